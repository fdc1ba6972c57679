//! KVCrush (arXiv 2503.00022): a part of the budget goes to *representatives* of the tokens that are dropped.
//!
//! ```text
//! dropped tokens of a KV head, in some order, cut into segments:
//!
//!     | t17 t2 t80 | t3 t41 t9 | t5 t66 t12 | ...        one representative of each is kept
//! ```
//! In the paper (§3.2) the order is by the distance of their signatures to an anchor, and a representative is kept as it is.
//!
//! With a *mass* (ours), a representative stands for its segment `S`: its score gets `0.75 ln(sum of a over S / a[rep])` added
//! from then on, so that `exp(score)` estimates what the whole segment would have added to the softmax. (Not all of it: the
//! estimate is a noisy one, and where heads attend to single tokens, too high.) `a[t]` is the attention that the token can be
//! expected to get: what it got, divided by the number of queries that could see it, weighed by how much the end of the prompt
//! looks at its place (`policy/place.rs`).
//!
//! The representative is the token of its segment with the most attention, and segments have about equal sums of `sqrt(a)`:
//! those of tokens that matter are short. The estimate is better where a query treats the tokens of a segment alike, which it
//! does where their keys are similar: so the order that measures best is that of `codes` of keys, in `keys.rs`.

use super::{keys, signature::Signatures};
use crate::policy::{Attention, LayerView, Needs, Policy, mix, position_weight};
use std::ops::Range;

/// What signatures are compared with (§3.2 and the ablation of anchors in the paper).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Anchor {
    /// Random bits.
    Random,
    /// No bit set.
    Zeros,
    /// All bits set.
    Ones,
    /// Each bit as most of the dropped tokens have it.
    #[default]
    Mean,
    /// 0101...
    Alternate,
}

/// What a representative stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mass {
    /// Itself, as in the paper.
    None,
    /// The number of tokens in its segment.
    Count,
    /// The attention of its segment.
    #[default]
    Attention,
}

/// How dropped tokens are ordered before they are cut into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// By codes of the directions of their keys, and by attention among those of one code.
    #[default]
    Keys,
    /// By the distance of signatures to the anchor, as in the paper.
    Signature,
    /// By attention.
    Score,
    /// Any.
    Random,
    /// By position. Without mass, a control: every so many tokens.
    Position,
}

/// KVCrush's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Crush {
    /// Share of the whole budget that goes to representatives; 0 is off.
    pub share: f64,
    /// What signatures are compared with.
    pub anchor: Anchor,
    /// What a representative stands for.
    pub mass: Mass,
    /// How dropped tokens are ordered.
    pub order: Order,
}

impl Crush {
    /// What has to be known of attention, on top of what `policy` needs.
    pub(super) fn needs(&self, policy: &dyn Policy) -> Needs {
        if self.share == 0.0 {
            return Needs::NONE;
        }
        let attention = self.mass == Mass::Attention || matches!(self.order, Order::Keys | Order::Score);
        let query_heads = self.order == Order::Signature;
        let signature = query_heads && policy.signature() == Attention::Mean;
        let recent = attention.then_some(position_weight::WINDOW);
        Needs { sum: attention || signature, recent, query_heads, ..Needs::NONE }
    }

    /// Chooses `n` of `dropped` (indices of a KV head's tokens, increasing; more than `n`), and what is added to the score of
    /// each: `(index, bias)`, in no order.
    pub(super) fn representatives(
        &self,
        view: &LayerView<'_>,
        kv_head: usize,
        dropped: &[u32],
        n: usize,
        signatures: Option<&Signatures>,
    ) -> Vec<(u32, f32)> {
        if n == 0 {
            return Vec::new();
        }
        let mut attention = vec![0.0; view.n_tokens(kv_head)];
        view.attention_by_place(kv_head, &mut attention);
        let a = |i: u32| attention[i as usize];
        let mut order = dropped.to_vec();
        match self.order {
            Order::Position => {}
            Order::Signature => {
                if let Some(signatures) = signatures {
                    order = signatures.sorted(self.anchor, &order, view.seed(kv_head));
                }
            }
            Order::Keys => order = keys::sorted(view, kv_head, dropped, &attention),
            Order::Score => order.sort_by(|&x, &y| a(y).total_cmp(&a(x)).then(x.cmp(&y))),
            Order::Random => shuffle(&mut order, view.seed(kv_head)),
        }
        let segments = match self.mass {
            Mass::Attention => equal_sums(order.iter().map(|&i| f64::from(a(i).max(0.0)).sqrt()), n),
            Mass::None | Mass::Count => equal_lengths(order.len(), n),
        };
        let of_segment = |segment: Range<usize>| {
            let segment = &order[segment];
            let middle = segment[segment.len() / 2];
            match self.mass {
                Mass::None => (middle, 0.0),
                Mass::Count => (middle, (segment.len() as f32).ln()),
                Mass::Attention => {
                    let best = segment.iter().copied().reduce(|best, i| match a(i).total_cmp(&a(best)) {
                        std::cmp::Ordering::Greater => i,
                        std::cmp::Ordering::Equal => best.min(i),
                        std::cmp::Ordering::Less => best,
                    });
                    let best = best.unwrap_or(middle);
                    let sum: f64 = segment.iter().map(|&i| f64::from(a(i))).sum();
                    (best, bias(sum, f64::from(a(best))))
                }
            }
        };
        segments.into_iter().map(of_segment).collect()
    }
}

/// The power of a segment's mass that its representative stands for.
const POWER: f64 = 0.75;

/// What is added to the score of a token with attention `own`, which stands for a segment that got `sum`.
pub(super) fn bias(sum: f64, own: f64) -> f32 {
    let mass = sum / own;
    // Where nothing was attended to, there is no ratio.
    if mass.is_finite() && mass >= 1.0 { (POWER * mass.ln()) as f32 } else { 0.0 }
}

/// Cuts a row of `len` into `n` parts of about equal length.
pub(super) fn equal_lengths(len: usize, n: usize) -> Vec<Range<usize>> {
    (0..n).map(|i| i * len / n..(i + 1) * len / n).collect()
}

/// Cuts a row into `n` parts with about equal sums, none of them empty.
pub(super) fn equal_sums(weights: impl Iterator<Item = f64>, n: usize) -> Vec<Range<usize>> {
    let mut sums = vec![0.0];
    for w in weights {
        sums.push(sums[sums.len() - 1] + w);
    }
    let (len, total) = (sums.len() - 1, sums[sums.len() - 1]);
    let mut start = 0;
    (1..=n)
        .map(|part| {
            let aim = total * part as f64 / n as f64;
            let end = sums.partition_point(|&s| s < aim);
            let end = if part == n { len } else { end.clamp(start + 1, len - (n - part)) };
            std::mem::replace(&mut start, end)..end
        })
        .collect()
}

/// Fisher and Yates.
pub(super) fn shuffle(items: &mut [u32], seed: u64) {
    let mut state = seed;
    for i in (1..items.len()).rev() {
        state = mix(state);
        items.swap(i, (state % (i as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_equal_sums_and_are_never_empty() {
        assert_eq!(equal_sums([4.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0].into_iter(), 3), [0..1, 1..3, 3..7]);
        assert_eq!(equal_sums([9.0, 0.0, 0.0, 0.0].into_iter(), 3), [0..1, 1..2, 2..4]);
        assert_eq!(equal_sums([0.0; 3].into_iter(), 3), [0..1, 1..2, 2..3]);
        assert_eq!(equal_sums([0.0, 0.0, 9.0].into_iter(), 2), [0..2, 2..3]);
    }
}
