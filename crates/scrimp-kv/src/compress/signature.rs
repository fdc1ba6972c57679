//! KVCrush's binary signatures (arXiv 2503.00022, §3.1): one bit per query head, set where the head by itself would have kept
//! the token. Tokens that heads treat alike have signatures that are close in Hamming distance, at 1/8 byte per head.

use super::Anchor;
use crate::policy::{Attention, LayerView, mix};
use scrimp_kernels::{SimdLevel, hamming};

/// Signatures of the tokens of one KV head, `[tokens][words]`.
pub(super) struct Signatures {
    words: usize,
    bits: usize,
    packed: Vec<u64>,
}

impl Signatures {
    /// A bit for each of `heads`, which judge by `kind`: the `budget` tokens of `candidates` with the most attention.
    pub(super) fn of_heads(
        view: &LayerView<'_>,
        kind: Attention,
        kv_head: usize,
        heads: std::ops::Range<usize>,
        candidates: std::ops::Range<usize>,
        budget: usize,
    ) -> Self {
        let (tokens, bits) = (view.n_tokens(kv_head), heads.len().max(1));
        let mut signatures = Self { words: bits.div_ceil(64), bits, packed: Vec::new() };
        signatures.packed.resize(tokens * signatures.words, 0);
        let mut attention = vec![0.0; tokens];
        let group = (view.n_heads(kind) / view.n_kv_heads()).max(1);
        for (bit, head) in heads.enumerate() {
            view.head_attention(kind, head / group, head, &mut attention);
            for index in super::select::best(&attention, candidates.clone(), budget) {
                signatures.set(index as usize, bit);
            }
        }
        signatures
    }

    /// `[items][bits]`, from whether a bit is set.
    pub(super) fn from_bits(items: usize, bits: usize, set: impl Fn(usize, usize) -> bool) -> Self {
        let mut signatures = Self { words: bits.div_ceil(64), bits, packed: Vec::new() };
        signatures.packed.resize(items * signatures.words, 0);
        for item in 0..items {
            for bit in (0..bits).filter(|&bit| set(item, bit)) {
                signatures.set(item, bit);
            }
        }
        signatures
    }

    fn set(&mut self, item: usize, bit: usize) {
        self.packed[item * self.words + bit / 64] |= 1 << (bit % 64);
    }

    fn get(&self, item: u32, bit: usize) -> bool {
        self.packed[item as usize * self.words + bit / 64] >> (bit % 64) & 1 == 1
    }

    /// The anchor's bits for `items`.
    fn anchor(&self, anchor: Anchor, items: &[u32], seed: u64) -> Vec<u64> {
        let bit = |bit: usize| match anchor {
            Anchor::Random => mix(seed ^ bit as u64) & 1 == 1,
            Anchor::Zeros => false,
            Anchor::Ones => true,
            Anchor::Mean => 2 * items.iter().filter(|&&i| self.get(i, bit)).count() > items.len(),
            Anchor::Alternate => bit % 2 == 1,
        };
        let mut words = vec![0; self.words];
        for b in (0..self.bits).filter(|&b| bit(b)) {
            words[b / 64] |= 1 << (b % 64);
        }
        words
    }

    /// `items` by their distance to the anchor (§3.2): a counting sort, so linear in their number; items at the same
    /// distance stay in order.
    pub(super) fn sorted(&self, anchor: Anchor, items: &[u32], seed: u64) -> Vec<u32> {
        let anchor = self.anchor(anchor, items, seed);
        let mut distances = vec![0; self.packed.len() / self.words];
        hamming::distances(SimdLevel::detect(), &self.packed, &anchor, &mut distances);
        let mut starts = vec![0_usize; self.bits + 2];
        for &item in items {
            starts[distances[item as usize] as usize + 1] += 1;
        }
        for d in 1..starts.len() {
            starts[d] += starts[d - 1];
        }
        let mut sorted = vec![0; items.len()];
        for &item in items {
            let place = &mut starts[distances[item as usize] as usize];
            sorted[*place] = item;
            *place += 1;
        }
        sorted
    }
}
