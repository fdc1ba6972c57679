//! KVCrush's binary signatures (arXiv 2503.00022, §3.1): one bit per query head, set where the head by itself would
//! keep the token.
//!
//! Tokens that heads treat alike have a small Hamming distance. A signature takes 1/8 byte per head.

use super::best;
use crate::policy::{Attention, LayerView};
use std::ops::Range;

/// Signatures of items, `[items][words]`.
#[derive(Debug, Clone)]
pub struct Signatures {
    words: usize,
    n_bits: usize,
    packed: Vec<u64>,
}

/// The query heads that set the bits of a KV head's signatures.
pub(super) struct Judges {
    /// The attention by which they rank tokens.
    pub(super) kind: Attention,
    /// The KV head whose tokens are ranked.
    pub(super) kv_head: usize,
    pub(super) heads: Range<usize>,
}

impl Signatures {
    /// One bit per judge, set for the `budget` tokens of `candidates` with the most attention.
    pub(super) fn of_heads(
        view: &LayerView<'_>,
        judges: Judges,
        candidates: Range<usize>,
        budget: usize,
    ) -> Self {
        let Judges { kind, kv_head, heads } = judges;
        let tokens = view.n_tokens(kv_head);
        let mut signatures = Self::zeros(tokens, heads.len().max(1));
        let mut attention = vec![0.0; tokens];
        let group = (view.n_heads(kind) / view.n_kv_heads()).max(1);
        for (bit, head) in heads.enumerate() {
            view.head_attention(kind, head / group, head, &mut attention);
            for index in best(&attention, candidates.clone(), budget) {
                signatures.set(index as usize, bit);
            }
        }
        signatures
    }

    /// Signatures of `items` items with `n_bits` bits each, set where `set(item, bit)`.
    pub(super) fn from_bits(items: usize, n_bits: usize, set: impl Fn(usize, usize) -> bool) -> Self {
        let mut signatures = Self::zeros(items, n_bits);
        for item in 0..items {
            for bit in (0..n_bits).filter(|&bit| set(item, bit)) {
                signatures.set(item, bit);
            }
        }
        signatures
    }

    fn zeros(items: usize, n_bits: usize) -> Self {
        let words = n_bits.div_ceil(64);
        Self { words, n_bits, packed: vec![0; items * words] }
    }

    fn set(&mut self, item: usize, bit: usize) {
        self.packed[item * self.words + bit / 64] |= 1 << (bit % 64);
    }

    /// Bits of a signature.
    pub fn n_bits(&self) -> usize {
        self.n_bits
    }

    /// Bit `bit` of the signature of `item`.
    pub fn bit(&self, item: u32, bit: usize) -> bool {
        self.packed[item as usize * self.words + bit / 64] >> (bit % 64) & 1 == 1
    }

    /// `items` by the Hamming distance of their signatures to `anchor` (`[n_bits]`). Items at the same distance keep
    /// their order.
    ///
    /// A counting sort: the time is linear in the number of items (§3.2).
    pub fn sorted_by_distance(&self, anchor: &[bool], items: &[u32]) -> Vec<u32> {
        let mut packed = vec![0_u64; self.words];
        for bit in (0..self.n_bits).filter(|&bit| anchor[bit]) {
            packed[bit / 64] |= 1 << (bit % 64);
        }
        let distance = |item: u32| -> usize {
            let words = &self.packed[item as usize * self.words..][..self.words];
            words.iter().zip(&packed).map(|(word, anchor)| (word ^ anchor).count_ones() as usize).sum()
        };
        let mut starts = vec![0_usize; self.n_bits + 2];
        for &item in items {
            starts[distance(item) + 1] += 1;
        }
        for d in 1..starts.len() {
            starts[d] += starts[d - 1];
        }
        let mut sorted = vec![0; items.len()];
        for &item in items {
            let next = &mut starts[distance(item)];
            sorted[*next] = item;
            *next += 1;
        }
        sorted
    }
}
