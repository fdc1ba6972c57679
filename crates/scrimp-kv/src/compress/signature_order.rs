//! The order of the KVCrush paper (arXiv 2503.00022, §3.2): by the Hamming distance of binary signatures to an anchor.
//!
//! The anchor is the mean signature: each bit as the majority of the dropped items has it.

use super::order::{Dropped, Order};
use crate::policy::{Attention, Needs, Policy};

/// By the distance of signatures to their mean.
#[derive(Debug, Clone, Copy, Default)]
pub struct SignatureOrder;

impl Order for SignatureOrder {
    fn name(&self) -> &'static str {
        "signature"
    }

    fn about(&self) -> &'static str {
        "By the distance of signatures to their mean, as in the paper"
    }

    fn needs(&self, policy: &dyn Policy) -> Needs {
        let sum = policy.signature_attention() == Attention::Mean;
        Needs { sum, per_query_head: true, ..Needs::NONE }
    }

    fn needs_signatures(&self) -> bool {
        true
    }

    fn sorted(&self, dropped: &Dropped<'_>) -> Vec<u32> {
        let Some(signatures) = dropped.signatures else { return dropped.indices.to_vec() };
        let items = dropped.indices;
        let majority =
            |bit: usize| 2 * items.iter().filter(|&&i| signatures.bit(i, bit)).count() > items.len();
        let anchor: Vec<bool> = (0..signatures.n_bits()).map(majority).collect();
        signatures.sorted_by_distance(&anchor, items)
    }
}
