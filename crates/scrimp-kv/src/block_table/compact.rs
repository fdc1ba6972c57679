//! New blocks from old ones: compaction to selected tokens, and packing of old blocks.

use super::{BlockTable, Positions};
use crate::{
    block::{Block, bytes_of_new, open_pages},
    cache::Pages,
    error::KvError,
    format::KvFormat,
    policy::Selection,
    sequence::ApplyRope,
};
use scrimp_kernels::attention::{PackedKind, PageRows};
use std::{ops::Range, sync::Arc};

/// The rotation of kept keys to consecutive positions.
#[derive(Clone, Copy)]
pub(crate) struct Rotation<'a> {
    pub(crate) apply_rope: ApplyRope<'a>,
    /// Position of the next token: the last kept key is rotated to the position before it.
    pub(crate) next: u32,
}

/// The tokens of one new block.
struct Tokens<'a> {
    indices: &'a [u32],
    /// The rotation and, for each token, the number of positions.
    rotation: Option<(ApplyRope<'a>, &'a [u32])>,
}

impl<'a> Tokens<'a> {
    /// The rotation of the token in `slot`, unless it is 0.
    fn rotation(&self, slot: usize) -> Option<(ApplyRope<'a>, u32)> {
        self.rotation.map(|(apply_rope, by)| (apply_rope, by[slot])).filter(|&(_, by)| by > 0)
    }
}

impl BlockTable {
    /// A table with the selected tokens in new blocks. Blocks that are old enough for `format` are packed.
    pub(crate) fn compacted(
        &self,
        pages: Pages<'_>,
        format: KvFormat,
        selection: &Selection,
        rotation: Option<Rotation<'_>>,
    ) -> Result<Self, KvError> {
        let (g, indices) = (pages.geometry, &selection.indices);
        let len = indices.len();
        let old = format.old_blocks(g, len);
        let mut table = Self { len, ..Self::new() };
        let position = |&i: &u32| self.position(i as usize);
        let rotated_by = |&i: &u32| self.rotated_by.get(i as usize).copied().unwrap_or(0);
        // The new rotation of each key minus its old one.
        let mut by = Vec::new();
        if let Some(Rotation { next, .. }) = rotation {
            let targets = (next - len as u32..next).zip(indices);
            table.rotated_by = targets.map(|(target, i)| target - position(i)).collect();
            by = table.rotated_by.iter().zip(indices).map(|(new, i)| new - rotated_by(i)).collect();
        } else if !self.rotated_by.is_empty() {
            table.rotated_by = indices.iter().map(rotated_by).collect();
        }
        for (page, indices) in indices.chunks(g.page_tokens).enumerate() {
            let of_page = page * g.page_tokens..page * g.page_tokens + indices.len();
            let rotation = rotation.map(|rotation| (rotation.apply_rope, &by[of_page.clone()]));
            let tokens = Tokens { indices, rotation };
            let mut block = match format.packing().filter(|_| page < old) {
                Some(kind) => self.packed_block(pages, kind, &tokens)?,
                None => self.open_block(pages, &tokens)?,
            };
            let bias: Vec<f32> = match &selection.bias {
                Some(bias) => bias[of_page].to_vec(),
                None => indices.iter().map(|&i| self.bias(g.page_tokens, i as usize)).collect(),
            };
            if bias.iter().any(|&b| b != 0.0) {
                let bias = bias.into_iter().chain(std::iter::repeat(0.0)).take(g.page_tokens);
                block.bias = Some(bias.collect());
                table.biased = true;
            }
            table.blocks.push(block);
        }
        table.positions = Positions::List(indices.iter().map(position).collect());
        Ok(table)
    }

    /// A writable block with these tokens. Bits are copied unchanged from blocks that are not packed, unless a key is
    /// rotated.
    fn open_block(&self, pages: Pages<'_>, tokens: &Tokens<'_>) -> Result<Block, KvError> {
        let (g, storage, n) = (pages.geometry, pages.storage, tokens.indices.len());
        let [mut k, mut v] = open_pages(pages, n)?;
        let (to_k, to_v) = (bytes_of_new(&mut k), bytes_of_new(&mut v));
        let mut row = vec![0.0; g.head_dim];
        for (slot, &index) in tokens.indices.iter().enumerate() {
            let (from, at) = self.slot(pages, index as usize);
            let rotation = tokens.rotation(slot);
            if from.packed.is_some() {
                from.read_value(pages, at, &mut row);
                storage.write_v(g, to_v, PageRows { slot, n: 1, rows: &row, stride: g.head_dim });
            } else {
                storage.copy_v(g, &from.v, at, to_v, slot);
            }
            if from.packed.is_none() && rotation.is_none() {
                storage.copy_k(g, &from.k, at, to_k, slot);
            } else {
                from.read_key(pages, at, &mut row);
                if let Some((apply_rope, by)) = rotation {
                    apply_rope(&mut row, by);
                }
                storage.write_k(g, to_k, PageRows { slot, n: 1, rows: &row, stride: g.head_dim });
            }
        }
        if !n.is_multiple_of(16) {
            storage.clear_tile_from(g, to_k, to_v, n);
        }
        Ok(Block { k, v, bias: None, packed: None })
    }

    /// A packed block with these `page_tokens` tokens.
    fn packed_block(
        &self,
        pages: Pages<'_>,
        kind: PackedKind,
        tokens: &Tokens<'_>,
    ) -> Result<Block, KvError> {
        let (g, packing, n) = (pages.geometry, kind.packing(), tokens.indices.len());
        let [k_bytes, v_bytes] = packing.page_bytes(g);
        let mut k = pages.pool.alloc(k_bytes, n)?;
        let mut v = pages.pool.alloc(v_bytes, n)?;
        let mut rows_k = vec![0.0; g.page_tokens * g.head_dim];
        let mut rows_v = rows_k.clone();
        for (slot, &index) in tokens.indices.iter().enumerate() {
            let row = slot * g.head_dim..(slot + 1) * g.head_dim;
            self.read(pages, index as usize, &mut rows_k[row.clone()], &mut rows_v[row.clone()]);
            if let Some((apply_rope, by)) = tokens.rotation(slot) {
                apply_rope(&mut rows_k[row], by);
            }
        }
        packing.pack_k(g, &rows_k, bytes_of_new(&mut k));
        packing.pack_v(g, &rows_v, bytes_of_new(&mut v));
        Ok(Block { k, v, bias: None, packed: Some(kind) })
    }

    /// Replaces the values of all tokens (`[len][head_dim]`). Shared pages are not written.
    pub(crate) fn write_values(&mut self, pages: Pages<'_>, values: &[f32]) {
        let (g, storage) = (pages.geometry, pages.storage);
        for (block, rows) in self.blocks.iter_mut().zip(values.chunks(g.page_tokens * g.head_dim)) {
            let Some(page) = Arc::get_mut(&mut block.v) else { continue };
            match block.packed {
                Some(kind) => kind.packing().pack_v(g, rows, page),
                None => {
                    let n = rows.len() / g.head_dim;
                    storage.write_v(g, page, PageRows { slot: 0, n, rows, stride: g.head_dim });
                }
            }
        }
    }

    /// The blocks that are old enough for `format` to pack and are not packed. Packed blocks come before all others.
    pub(crate) fn to_pack(&self, pages: Pages<'_>, format: KvFormat) -> Range<usize> {
        let old = format.old_blocks(pages.geometry, self.len);
        let last = self.blocks[..old].iter().rposition(|block| block.packed.is_some());
        last.map_or(0, |i| i + 1)..old
    }

    /// Packed copies of full blocks.
    pub(crate) fn pack(
        &self,
        pages: Pages<'_>,
        kind: PackedKind,
        blocks: Range<usize>,
    ) -> Result<Vec<Block>, KvError> {
        let page_tokens = pages.geometry.page_tokens as u32;
        blocks
            .map(|block| {
                let first = block as u32 * page_tokens;
                let indices: Vec<u32> = (first..first + page_tokens).collect();
                let packed = self.packed_block(pages, kind, &Tokens { indices: &indices, rotation: None })?;
                Ok(Block { bias: self.blocks[block].bias.clone(), ..packed })
            })
            .collect()
    }

    /// Replaces the blocks from `first` on by blocks with the same tokens.
    pub(crate) fn replace(&mut self, first: usize, blocks: Vec<Block>) {
        self.blocks.splice(first..first + blocks.len(), blocks);
    }
}
