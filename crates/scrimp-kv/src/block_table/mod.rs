//! The block table of one KV head of one layer.
//!
//! ```text
//! token i of the head  ->  block i / page_tokens, slot i % page_tokens
//! ```
//! [`append`] adds tokens, [`compact`] writes selected tokens to new blocks and packs old blocks, [`saved`] writes and reads
//! files.

mod append;
mod compact;
mod saved;

pub(crate) use append::Appended;
pub(crate) use compact::Rotation;

use crate::{block::Block, cache::Pages};
use scrimp_kernels::attention::PageView;

/// Positions of the kept tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Positions {
    /// `first`, `first + 1`, ...
    Run(u32),
    /// One per token, increasing.
    List(Vec<u32>),
}

/// The kept tokens of one KV head.
#[derive(Debug, Clone)]
pub(crate) struct BlockTable {
    blocks: Vec<Block>,
    len: usize,
    positions: Positions,
    /// By how many positions the keys of the first tokens were rotated beyond their own positions. Keys of tokens
    /// behind the end of the list were not rotated.
    rotated_by: Vec<u32>,
    /// Some block has a bias.
    biased: bool,
    /// The slots between `len` and the end of its tile may hold truncated tokens.
    stale_tail: bool,
}

impl BlockTable {
    pub(crate) fn new() -> Self {
        Self {
            blocks: Vec::new(),
            len: 0,
            positions: Positions::Run(0),
            rotated_by: Vec::new(),
            biased: false,
            stale_tail: false,
        }
    }

    /// Kept tokens.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of pages and biases.
    pub(crate) fn bytes(&self) -> usize {
        self.blocks.iter().map(Block::page_bytes).sum::<usize>() + self.bias_bytes()
    }

    pub(crate) fn bias_bytes(&self) -> usize {
        self.blocks.iter().map(Block::bias_bytes).sum()
    }

    pub(crate) fn ref_cnt(&self, block: usize) -> usize {
        self.blocks.get(block).map_or(0, Block::ref_cnt)
    }

    pub(crate) fn page(&self, index: usize) -> PageView<'_> {
        self.blocks[index].view()
    }

    pub(crate) fn has_bias(&self) -> bool {
        self.biased
    }

    pub(crate) fn position(&self, index: usize) -> u32 {
        match &self.positions {
            Positions::Run(first) => first + index as u32,
            Positions::List(list) => list[index],
        }
    }

    pub(crate) fn bias(&self, page_tokens: usize, index: usize) -> f32 {
        self.blocks[index / page_tokens].bias.as_ref().map_or(0.0, |b| b[index % page_tokens])
    }

    /// The first kept token at `position` or later.
    pub(crate) fn index_from(&self, position: u32) -> usize {
        match &self.positions {
            Positions::Run(first) => (position.saturating_sub(*first) as usize).min(self.len),
            Positions::List(list) => list.partition_point(|&p| p < position),
        }
    }

    /// Removes the tokens from `position` on.
    pub(crate) fn truncate(&mut self, page_tokens: usize, position: u32) {
        let len = self.index_from(position);
        if len == self.len {
            return;
        }
        self.len = len;
        self.rotated_by.truncate(len);
        self.blocks.truncate(len.div_ceil(page_tokens));
        self.stale_tail = !len.is_multiple_of(16);
        // Tokens that are appended to the free slots have no bias.
        let used = len % page_tokens;
        if used > 0
            && let Some(bias) = self.blocks.last_mut().and_then(|b| b.bias.as_mut())
        {
            let kept = bias.iter().enumerate().map(|(slot, &b)| if slot < used { b } else { 0.0 });
            *bias = kept.collect();
        }
        if let Positions::List(list) = &mut self.positions {
            list.truncate(len);
        }
    }

    /// Removes the blocks whose tokens are all before `position`; returns the number of removed tokens.
    pub(crate) fn drop_before(&mut self, page_tokens: usize, position: u32) -> usize {
        let blocks = self.index_from(position) / page_tokens;
        if blocks == 0 {
            return 0;
        }
        let tokens = blocks * page_tokens;
        self.blocks.drain(..blocks);
        self.len -= tokens;
        self.rotated_by.drain(..tokens.min(self.rotated_by.len()));
        match &mut self.positions {
            Positions::Run(first) => *first += tokens as u32,
            Positions::List(list) => drop(list.drain(..tokens)),
        }
        tokens
    }

    /// The block and slot of token `index`.
    fn slot(&self, pages: Pages<'_>, index: usize) -> (&Block, usize) {
        let page_tokens = pages.geometry.page_tokens;
        (&self.blocks[index / page_tokens], index % page_tokens)
    }

    /// Reads the key of token `index`.
    pub(crate) fn read_key(&self, pages: Pages<'_>, index: usize, k: &mut [f32]) {
        let (block, slot) = self.slot(pages, index);
        block.read_key(pages, slot, k);
    }

    /// Reads the key and value of token `index`.
    pub(crate) fn read(&self, pages: Pages<'_>, index: usize, k: &mut [f32], v: &mut [f32]) {
        let (block, slot) = self.slot(pages, index);
        block.read_key(pages, slot, k);
        block.read_value(pages, slot, v);
    }

    /// Reads the value of token `index`.
    pub(crate) fn read_value(&self, pages: Pages<'_>, index: usize, v: &mut [f32]) {
        let (block, slot) = self.slot(pages, index);
        block.read_value(pages, slot, v);
    }

    /// Reads the keys of 16 tokens, from token `16 * tile` on, `[head_dim][16]`. Columns behind the last token are
    /// unspecified.
    pub(crate) fn read_key_tile(&self, pages: Pages<'_>, tile: usize, keys: &mut [[f32; 16]]) {
        let (g, start) = (pages.geometry, tile * 16);
        let (block, slot) = self.slot(pages, start);
        if block.packed.is_none() {
            return pages.storage.read_k_tile(g, &block.k, slot / 16, keys);
        }
        let mut row = vec![0.0; g.head_dim];
        for t in 0..16.min(self.len - start) {
            block.read_key(pages, slot + t, &mut row);
            keys.iter_mut().zip(&row).for_each(|(key, &x)| key[t] = x);
        }
    }
}
