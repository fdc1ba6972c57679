//! KVCrush (arXiv 2503.00022): a part of the budget goes to *representatives* of the tokens that are dropped.
//!
//! ```text
//! dropped tokens of a KV head, in the order of their signatures' distance to an anchor (§3.2), cut into segments:
//!
//!     | t17 t2 t80 | t3 t41 t9 | t5 t66 t12 | ...        one representative of each is kept
//! ```
//! With a *mass* (ours), a representative stands for its segment `S`: its score gets `ln(sum of a over S / a[rep])` added
//! from then on, so that `exp(score)` estimates what the whole segment would have added to the softmax. `a[t]` is the
//! attention that the token got, divided by the number of queries that could see it. The representative is then the token
//! of its segment with the most attention.

use super::signature::Signatures;
use crate::policy::{Attention, LayerView, Needs, Policy, mix};
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
    /// By the distance of signatures to the anchor, as in the paper; segments of equal length.
    Signature,
    /// By attention; segments of equal sums of its square root.
    #[default]
    Score,
    /// Any; segments of equal length.
    Random,
    /// By codes of key directions (experiment).
    Keys,
    /// By position; segments of equal length. Without mass, a control: every so many tokens.
    Position,
}

/// Experiment: how an order is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cut {
    /// As is usual for the order.
    #[default]
    Usual,
    /// Equal length.
    Equal,
    /// Equal sums of roots.
    Root,
    /// Equal sums.
    Sum,
    /// Equal sums of fourth roots.
    Fourth,
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
    /// Experiment.
    pub cut: Cut,
    /// Experiment: a * ||v|| in the place of a. 1: choice and cut; 2: mass, too.
    pub value: u8,
    /// Experiment: a over so many last queries.
    pub window: usize,
    /// Experiment: exponent on the mass.
    pub damp: f32,
}

impl Crush {
    /// What has to be known of attention, on top of what `policy` needs.
    pub(super) fn needs(&self, policy: &dyn Policy) -> Needs {
        if self.share == 0.0 {
            return Needs::NONE;
        }
        let attention = self.mass == Mass::Attention || self.order == Order::Score;
        let signature = self.order == Order::Signature && policy.signature() == Attention::Mean;
        Needs { sum: attention || signature, recent: Some(self.window).filter(|&w| w > 0), ..Needs::NONE }
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
        let mut attention = Vec::new();
        if self.mass == Mass::Attention || self.order == Order::Score {
            attention = vec![0.0; view.n_tokens(kv_head)];
            view.attention(
                if self.window > 0 { Attention::Recent } else { Attention::Mean },
                kv_head,
                &mut attention,
            );
        }
        let mut weighed = attention.clone();
        if self.value > 0 {
            let (mut k, mut v) = (vec![0.0; view.head_dim()], vec![0.0; view.head_dim()]);
            for &i in dropped {
                view.read(kv_head, i as usize, &mut k, &mut v);
                weighed[i as usize] *= v.iter().map(|x| x * x).sum::<f32>().sqrt();
            }
        }
        let a = |i: u32| weighed[i as usize];
        let m = |i: u32| if self.value == 2 { weighed[i as usize] } else { attention[i as usize] };
        let mut order = dropped.to_vec();
        match self.order {
            Order::Position => {}
            Order::Signature => {
                if let Some(signatures) = signatures {
                    order = signatures.sorted(self.anchor, &order, view.seed(kv_head));
                }
            }
            Order::Score => order.sort_by(|&x, &y| a(y).total_cmp(&a(x)).then(x.cmp(&y))),
            Order::Keys => {
                let d = view.head_dim();
                let (mut k, mut v) = (vec![0.0; d], vec![0.0; d]);
                let mut keys = vec![];
                let mut mean = vec![0.0; d];
                for &i in dropped {
                    view.read(kv_head, i as usize, &mut k, &mut v);
                    mean.iter_mut().zip(&k).for_each(|(m, x)| *m += x / dropped.len() as f32);
                    keys.push(k.clone());
                }
                let bits = 6;
                let planes: Vec<Vec<f32>> = (0..bits)
                    .map(|b| {
                        (0..d)
                            .map(|i| {
                                let x = mix(view.seed(kv_head) ^ (b * 1000 + i) as u64);
                                ((x >> 40) as f32 / (1 << 24) as f32)
                                    + ((x & 0xffffff) as f32 / (1 << 24) as f32)
                                    - 1.0
                            })
                            .collect()
                    })
                    .collect();
                let mut codes: Vec<(u32, f32, u32)> = dropped
                    .iter()
                    .zip(&keys)
                    .map(|(&i, k)| {
                        let mut code = 0_u32;
                        for p in &planes {
                            let dot: f32 = p.iter().zip(k).zip(&mean).map(|((p, k), m)| p * (k - m)).sum();
                            code = code << 1 | u32::from(dot > 0.0);
                        }
                        (code, a(i), i)
                    })
                    .collect();
                codes.sort_by(|x, y| x.0.cmp(&y.0).then(y.1.total_cmp(&x.1)).then(x.2.cmp(&y.2)));
                order = codes.iter().map(|c| c.2).collect();
            }
            Order::Random => shuffle(&mut order, view.seed(kv_head)),
        }
        let power = match (self.cut, self.order) {
            (Cut::Usual, Order::Score) | (Cut::Root, _) => Some(0.5),
            (Cut::Sum, _) => Some(1.0),
            (Cut::Fourth, _) => Some(0.25),
            _ => None,
        };
        let segments = match power {
            Some(power) => equal_sums(order.iter().map(|&i| f64::from(a(i).max(0.0)).powf(power)), n),
            _ => (0..n).map(|i| i * order.len() / n..(i + 1) * order.len() / n).collect(),
        };
        let of_segment = |segment: Range<usize>| {
            let segment = &order[segment];
            let middle = segment[segment.len() / 2];
            let (index, mass) = match self.mass {
                Mass::None => (middle, 1.0),
                Mass::Count => (middle, segment.len() as f64),
                Mass::Attention => {
                    let best = segment.iter().copied().reduce(|best, i| match a(i).total_cmp(&a(best)) {
                        std::cmp::Ordering::Greater => i,
                        std::cmp::Ordering::Equal => best.min(i),
                        std::cmp::Ordering::Less => best,
                    });
                    let best = best.unwrap_or(middle);
                    let sum: f64 = segment.iter().map(|&i| f64::from(m(i))).sum();
                    (best, (sum / f64::from(m(best))).powf(1.0 - f64::from(self.damp)))
                }
            };
            // Where nothing was attended to, there is no ratio.
            let bias = if mass.is_finite() && mass >= 1.0 { mass.ln() as f32 } else { 0.0 };
            (index, bias)
        };
        segments.into_iter().map(of_segment).collect()
    }
}

/// Cuts a row into `n` parts with about equal sums, none of them empty.
fn equal_sums(weights: impl Iterator<Item = f64>, n: usize) -> Vec<Range<usize>> {
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
