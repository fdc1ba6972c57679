//! KVCrush (arXiv 2503.00022): a part of the budget goes to *representatives* of the tokens that are dropped.
//!
//! ```text
//! dropped tokens of a KV head, in some order, cut into segments:
//!
//!     | t17 t2 t80 | t3 t41 t9 | t5 t66 t12 | ...        one representative of each segment is kept
//! ```
//! In the paper (§3.2) the order is the distance of binary signatures to an anchor (`signature_order.rs`), and a
//! representative counts as itself only. By default scrimp orders by keys (`key_order.rs`) and gives each
//! representative a *mass* (`mass.rs`): `0.75 ln(sum of a over S / a[rep])` is added to its attention scores, so that
//! `exp(score)` estimates the contribution of the whole segment `S` to the softmax.
//!
//! `a[t]` estimates the attention that token `t` will receive: the mean over the queries that could see it,
//! multiplied by the position weight (`policy/position_weight.rs`). Segments have about equal sums of `sqrt(a)`, so
//! segments of important tokens are short, and the token with the most attention represents its segment.

use super::{
    key_order::KeyOrder,
    mass::{AttentionMass, Mass, Segment},
    order::{Dropped, Items, Order},
    signatures::Signatures,
};
use crate::policy::{LayerView, Needs, Policy};
use std::{cmp::Ordering, ops::Range};

/// KVCrush's parameters.
#[derive(Debug, Clone, Copy)]
pub struct Crush {
    /// Share of the whole budget that goes to representatives; 0 turns KVCrush off.
    pub share: f64,
    /// The mass of a representative.
    pub mass: &'static dyn Mass,
    /// The order of dropped tokens.
    pub order: &'static dyn Order,
}

impl Default for Crush {
    fn default() -> Self {
        Self { share: 0.0, mass: &AttentionMass, order: &KeyOrder }
    }
}

impl PartialEq for Crush {
    fn eq(&self, other: &Self) -> bool {
        let names = |crush: &Self| (crush.mass.name(), crush.order.name());
        self.share == other.share && names(self) == names(other)
    }
}

impl Crush {
    /// The attention scores that KVCrush reads in addition to those of `policy`.
    pub(super) fn needs(&self, policy: &dyn Policy) -> Needs {
        if self.share == 0.0 { Needs::NONE } else { self.mass.needs().and(self.order.needs(policy)) }
    }

    /// Chooses `n` representatives of the `dropped` tokens of a KV head (indices, increasing; more than `n`):
    /// `(index, bias)` in no particular order.
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
        view.weighted_attention(kv_head, &mut attention);
        let items = Items::Tokens { kv_head };
        let order =
            self.order.sorted(&Dropped { view, items, indices: dropped, attention: &attention, signatures });
        let a = |i: u32| attention[i as usize];
        let segments = if self.mass.by_attention() {
            equal_sums(order.iter().map(|&i| f64::from(a(i).max(0.0)).sqrt()), n)
        } else {
            equal_lengths(order.len(), n)
        };
        let represent = |segment: Range<usize>| {
            let segment = &order[segment];
            let mut representative = segment[segment.len() / 2];
            if self.mass.by_attention() {
                let better = |best, i| match a(i).total_cmp(&a(best)) {
                    Ordering::Greater => i,
                    Ordering::Equal => i.min(best),
                    Ordering::Less => best,
                };
                representative = segment.iter().copied().reduce(better).unwrap_or(representative);
            }
            let bias = self.mass.bias(Segment {
                len: segment.len(),
                attention: segment.iter().map(|&i| f64::from(a(i))).sum(),
                representative: f64::from(a(representative)),
            });
            (representative, bias)
        };
        segments.into_iter().map(represent).collect()
    }
}

/// Cuts a row of `len` items into `n` parts of about equal length.
pub(super) fn equal_lengths(len: usize, n: usize) -> Vec<Range<usize>> {
    (0..n).map(|i| i * len / n..(i + 1) * len / n).collect()
}

/// Cuts a row of weights into `n` parts with about equal sums. No part is empty.
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
