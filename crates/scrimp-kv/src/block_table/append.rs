//! Appending tokens: allocate the blocks, extend the table, write the rows.
//!
//! [`BlockTable::allocate`] is the only step that can fail, and it does not change the table. So an append to many
//! heads either succeeds for all of them or leaves all of them unchanged.

use super::{BlockTable, Positions};
use crate::{block::Block, cache::Pages, error::KvError};
use scrimp_kernels::attention::PageRows;
use std::sync::Arc;

/// The blocks that an append needs.
pub(crate) struct NewBlocks {
    /// A writable copy of the last block.
    replace_last: Option<Block>,
    blocks: Vec<Block>,
}

/// The rows of an append that go to one block.
pub(crate) struct WriteTask<'a> {
    head: usize,
    k: &'a mut [u8],
    v: &'a mut [u8],
    slot: usize,
    n: usize,
    first_row: usize,
    clear_tail: bool,
}

/// The tokens of an append.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appended {
    pub(crate) n: usize,
    /// Position of the first token.
    pub(crate) position: u32,
}

impl BlockTable {
    /// Blocks that [`BlockTable::allocate`] allocates for `n` tokens.
    pub(crate) fn growth(&self, page_tokens: usize, n: usize) -> usize {
        let new = (self.len + n).div_ceil(page_tokens) - self.blocks.len();
        let copied = n > 0
            && !self.len.is_multiple_of(page_tokens)
            && self.blocks.last().is_some_and(|last| !last.is_writable());
        new + usize::from(copied)
    }

    /// Allocates the blocks for `n` tokens: a copy of the last block, if it has free slots and is shared or packed,
    /// and new blocks.
    pub(crate) fn allocate(&self, pages: Pages<'_>, n: usize) -> Result<NewBlocks, KvError> {
        let page_tokens = pages.geometry.page_tokens;
        let mut new = NewBlocks { replace_last: None, blocks: Vec::new() };
        if n == 0 {
            return Ok(new);
        }
        let used = self.len % page_tokens;
        if used > 0
            && let Some(last) = self.blocks.last().filter(|last| !last.is_writable())
        {
            new.replace_last = Some(last.writable_copy(pages, used, n)?);
        }
        let blocks = (self.len + n).div_ceil(page_tokens) - self.blocks.len();
        // All K pages, then all V pages: attention reads many pages of one kind in a row, and long runs have more
        // bandwidth.
        let alloc =
            || (0..blocks).map(|_| pages.pool.alloc(pages.open_bytes(), n)).collect::<Result<Vec<_>, _>>();
        let (k, v) = (alloc()?, alloc()?);
        new.blocks.extend(k.into_iter().zip(v).map(|(k, v)| Block { k, v, bias: None, packed: None }));
        Ok(new)
    }

    /// Adds the tokens to the table of `head` and pushes the writes that they need.
    pub(crate) fn extend<'a>(
        &'a mut self,
        page_tokens: usize,
        head: usize,
        new: NewBlocks,
        tokens: Appended,
        tasks: &mut Vec<WriteTask<'a>>,
    ) {
        let Appended { n, position } = tokens;
        if let (Some(block), Some(last)) = (new.replace_last, self.blocks.last_mut()) {
            *last = block;
        }
        self.blocks.extend(new.blocks);
        match &mut self.positions {
            Positions::Run(first) if self.len == 0 => *first = position,
            Positions::Run(first) if *first as usize + self.len == position as usize => {}
            Positions::Run(first) => {
                let kept = *first..*first + self.len as u32;
                self.positions = Positions::List(kept.chain(position..position + n as u32).collect());
            }
            Positions::List(list) => list.extend(position..position + n as u32),
        }
        let start = self.len;
        let stale = std::mem::take(&mut self.stale_tail);
        self.len += n;
        let mut row = 0;
        for block in &mut self.blocks[start / page_tokens..] {
            let slot = (start + row) % page_tokens;
            let count = (page_tokens - slot).min(n - row);
            // Kernels read whole tiles: the free slots of a tile that this append begins, or that holds truncated
            // tokens, become 0.
            let end = slot + count;
            let clear_tail = !end.is_multiple_of(16) && (end / 16 * 16 >= slot || stale);
            let (Some(k), Some(v)) = (Arc::get_mut(&mut block.k), Arc::get_mut(&mut block.v)) else {
                unreachable!(
                    "`allocate` copied the last block if it was shared, and new blocks have one owner"
                );
            };
            tasks.push(WriteTask { head, k, v, slot, n: count, first_row: row, clear_tail });
            row += count;
        }
    }
}

impl WriteTask<'_> {
    /// Writes the block's rows of `k` and `v` (`[n_tokens][n_kv_heads][head_dim]`).
    pub(crate) fn run(&mut self, pages: Pages<'_>, k: &[f32], v: &[f32]) {
        let (g, storage) = (pages.geometry, pages.storage);
        let stride = pages.n_kv_heads * g.head_dim;
        let from = self.first_row * stride + self.head * g.head_dim;
        storage.write_k(g, self.k, PageRows { slot: self.slot, n: self.n, rows: &k[from..], stride });
        storage.write_v(g, self.v, PageRows { slot: self.slot, n: self.n, rows: &v[from..], stride });
        if self.clear_tail {
            storage.clear_tile_from(g, self.k, self.v, self.slot + self.n);
        }
    }
}
