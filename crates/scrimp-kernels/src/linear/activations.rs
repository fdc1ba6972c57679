//! Activations as the linear kernels read them: 8-bit groups of 32 with a scale each, and plain f32 where asked.
//!
//! ```text
//! tokens are cut into tiles of up to `tier.token_tile()` tokens (see `tile_of`); a tile is [columns / 32][tokens of the tile] groups
//! (or [columns][tokens of the tile] floats), so that a kernel walks it front to back.
//! ```
//! Tiles and sums have the form that the tier's kernels read; products must run in the tier that stored them.
//!
//! `bf16` weights read pairs of columns as bf16, `int8` weights 4 columns as bytes with one scale per token. With tile registers,
//! batches of [`EXPANDED_TOKENS`] and more are bf16 for weights in blocks, too, and those of [`EXACT_TOKENS`] are one tile of 8-bit
//! groups, as wide as a tile register.
//!
//! Numeric contract (every tier, every batch): `scale = max|x| / 127`, quants are `x / scale` rounded half to even.
//! A group that holds a NaN or an infinity has the scale NaN: what is computed from it is NaN, nothing else is. A group whose
//! largest magnitude is below 1e-30 counts as zero. Where a token has one scale, the same holds for the whole token.

use super::{
    amx_bf16::EXPANDED_TOKENS,
    amx_int8::{self, EXACT_TOKENS},
    amx_packed::{FEW_TOKENS, block_rows},
    quantize::{Quantize, QuantizeRow, RoundRow},
};
use crate::{
    arch::SimdLevel,
    exec::{DisjointSliceMut, Exec},
    quant::{GROUP, QuantGroup},
};

/// The forms of the activations that a set of weights needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Block-quantized weights read 8-bit groups.
    pub quantized: bool,
    /// Float weights read f32.
    pub float: bool,
    /// `bf16` and `sparse-bf16` weights read pairs of bf16.
    pub bf16: bool,
    /// `int8` and `sparse-int8` weights read 8 bits with one scale per token.
    pub row_int8: bool,
}

impl Needs {
    /// What either needs.
    pub const fn and(self, other: Self) -> Self {
        Self {
            quantized: self.quantized || other.quantized,
            float: self.float || other.float,
            bf16: self.bf16 || other.bf16,
            row_int8: self.row_int8 || other.row_int8,
        }
    }
}

/// The size of a batch, and the forms that it is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationShape {
    /// Tokens in the batch.
    pub n_tokens: usize,
    /// Features per token.
    pub cols: usize,
    /// The forms that the weights read.
    pub needs: Needs,
}

/// Input of a linear layer for a batch of tokens, `[n_tokens][cols]`.
#[derive(Debug, Default)]
pub struct Activations {
    n_tokens: usize,
    cols: usize,
    needs: Needs,
    /// The tier that they were stored for.
    level: Option<SimdLevel>,
    tile: usize,
    /// Whether `pairs` and `bytes` are stored as tile registers load them: `[block of tokens][64 bytes of a token][tokens of
    /// the block]`. Tokens of a block, or 0.
    block: usize,
    /// Whether weights in blocks are dequantized for tile registers: they read `pairs`, too.
    expanded: bool,
    /// Whether tile registers load the 8-bit groups, which are one tile then.
    exact: bool,
    groups: Vec<QuantGroup>,
    floats: Vec<f32>,
    /// Tiles of `[cols / 2][tokens]`, columns padded to 32.
    pairs: Vec<u32>,
    /// Tiles of `[cols / 4][tokens]`, 4 signed bytes each, columns padded to 64.
    bytes: Vec<i32>,
    rows: Vec<RowScale>,
    scratch: Vec<f32>,
}

/// What belongs to the 8-bit row of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct RowScale {
    pub(crate) scale: f32,
    /// The sum of the quants.
    pub(crate) sum: i32,
}

/// Tokens of a tile of a batch: 16 do better as two tiles of 8 than as 12 and 4.
fn tile_of(level: SimdLevel, n_tokens: usize) -> usize {
    match (level.token_tile(), n_tokens) {
        (12, 13..=16) => 8,
        (tile, _) => tile,
    }
}

/// Tiles of tokens for which expanding packed weights anew is faster than a panel.
const FEW_TILES: usize = 3;

/// Widths that kernels are compiled for; a last tile with fewer tokens is padded to the next one.
pub(crate) const TILE_WIDTHS: [usize; 5] = [1, 2, 4, 8, 12];

/// Stored tokens of a tile of `n` tokens.
pub(crate) fn padded(n: usize) -> usize {
    TILE_WIDTHS.into_iter().find(|&w| w >= n).unwrap_or(n)
}

/// How tokens are cut into tiles.
#[derive(Clone, Copy)]
struct Tiles {
    n_tokens: usize,
    tile: usize,
    /// The last tile is stored as wide as a tile.
    whole: bool,
}

impl Tiles {
    /// First token, number of tokens and stored width of a tile.
    fn get(self, i: usize) -> (usize, usize, usize) {
        let first = i * self.tile;
        let n = self.tile.min(self.n_tokens - first);
        (first, n, if self.whole || n == self.tile { self.tile } else { padded(n) })
    }
}

impl Activations {
    /// Empty; memory grows on first use and is kept.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tokens in the batch.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Features per token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.groups.capacity() * size_of::<QuantGroup>()
            + (self.floats.capacity() + self.scratch.capacity()) * 4
            + (self.pairs.capacity() + self.bytes.capacity()) * 4
            + self.rows.capacity() * size_of::<RowScale>()
    }

    /// Fills the batch: `fill(token, x)` writes the `cols` features of a token, which are then stored as `shape.needs` says.
    /// Tokens are spread over the pool.
    pub fn fill(&mut self, exec: Exec<'_>, shape: ActivationShape, fill: impl Fn(usize, &mut [f32]) + Sync) {
        let blocks = exec.level.has_amx() && shape.n_tokens > FEW_TOKENS;
        self.fill_as(exec, shape, blocks, fill);
    }

    /// [`Activations::fill`] in the form that tile registers load if `blocks`, whatever the tier.
    pub(crate) fn fill_as(
        &mut self,
        exec: Exec<'_>,
        shape: ActivationShape,
        blocks: bool,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let Exec { pool, level } = exec;
        let ActivationShape { n_tokens, cols, needs } = shape;
        let expanded = blocks && needs.quantized && n_tokens >= EXPANDED_TOKENS;
        // Floats would need tiles of other widths.
        let exact = blocks && needs.quantized && !needs.float && EXACT_TOKENS.contains(&n_tokens);
        let needs = if expanded { Needs { quantized: false, bf16: true, ..needs } } else { needs };
        let tile = if exact { amx_int8::width(n_tokens) } else { tile_of(level, n_tokens) };
        let block = if blocks { block_rows(n_tokens) } else { 0 };
        (self.n_tokens, self.cols, self.needs, self.tile) = (n_tokens, cols, needs, tile);
        (self.level, self.block, self.expanded, self.exact) = (Some(level), block, expanded, exact);
        let tiles = self.tiles();
        let (first, _, width) = tiles.get(n_tokens.div_ceil(tile).saturating_sub(1));
        let stored = (first + width).max(if blocks { n_tokens.next_multiple_of(block) } else { 0 });
        let groups_per_token = cols.div_ceil(GROUP);
        if needs.quantized {
            self.groups.resize(stored * groups_per_token, QuantGroup::default());
        }
        if needs.float {
            self.floats.resize(stored * cols, 0.0);
        }
        let (pairs_per_token, bytes_per_token) = (groups_per_token * GROUP / 2, cols.div_ceil(64) * 16);
        if needs.bf16 {
            self.pairs.resize(stored * pairs_per_token, 0);
        }
        if needs.row_int8 {
            self.bytes.resize(stored * bytes_per_token, 0);
            self.rows.resize(stored, RowScale::default());
        }
        // Quantization reads whole groups, so scratch rows are padded with zeros. The second half is for rounded rows.
        let padded_cols = cols.next_multiple_of(2 * GROUP);
        if self.scratch.len() < pool.threads() * 2 * padded_cols {
            self.scratch.resize(pool.threads() * 2 * padded_cols, 0.0);
        }
        let (groups, floats) =
            (DisjointSliceMut::new(&mut self.groups), DisjointSliceMut::new(&mut self.floats));
        let (pairs, bytes) = (DisjointSliceMut::new(&mut self.pairs), DisjointSliceMut::new(&mut self.bytes));
        let rows = DisjointSliceMut::new(&mut self.rows);
        let scratch = DisjointSliceMut::new(&mut self.scratch);
        // A tile is a multiple of 4 tokens, whose groups are whole cache lines; the other forms are written through slices of a tile.
        let only_groups = needs == Needs { quantized: true, ..Needs::default() };
        let per_unit = if only_groups || exact { 4 } else { tile };
        pool.run(n_tokens.div_ceil(per_unit), |unit, worker| {
            let (first, n, width) = tiles.get(unit * per_unit / tile);
            let start = unit * per_unit - first;
            // SAFETY: each worker has a scratch row of its own, and each unit tokens of its own.
            let row = unsafe { scratch.slice(2 * worker * padded_cols..2 * (worker + 1) * padded_cols) };
            let (row, quants) = row.split_at_mut(padded_cols);
            row[cols..].fill(0.0);
            for t in start..n.min(start + per_unit) {
                fill(first + t, &mut row[..cols]);
                if needs.quantized {
                    let row = &row[..groups_per_token * GROUP];
                    // SAFETY: as above.
                    level.run(unsafe { Quantize::new(row, &groups, first * groups_per_token + t, width) });
                }
                if needs.float {
                    // SAFETY: as above.
                    let out = unsafe { floats.slice(first * cols..(first + width) * cols) };
                    for (out, &x) in out[t..].iter_mut().step_by(width).zip(&row[..cols]) {
                        *out = x;
                    }
                }
                // Floats and groups stay in tiles: no tile register loads them.
                if needs.bf16 {
                    let rounded: &mut [u32] = &mut bytemuck::cast_slice_mut(quants)[..pairs_per_token];
                    level.run(RoundRow { row, out: bytemuck::cast_slice_mut(rounded) });
                    if blocks {
                        // SAFETY: nobody else stores this token.
                        unsafe { store_in_block(&pairs, block, first + t, rounded) };
                    } else {
                        // SAFETY: as above.
                        let out = unsafe {
                            pairs.slice(first * pairs_per_token..(first + width) * pairs_per_token)
                        };
                        out[t..].iter_mut().step_by(width).zip(&*rounded).for_each(|(out, x)| *out = *x);
                    }
                }
                if needs.row_int8 {
                    // SAFETY: as above.
                    let scale = unsafe { rows.slice(first + t..first + t + 1) };
                    if blocks {
                        let quants: &mut [i32] = &mut bytemuck::cast_slice_mut(quants)[..bytes_per_token];
                        scale[0] = level.run(QuantizeRow { row, out: quants, width: 1 });
                        // SAFETY: nobody else stores this token.
                        unsafe { store_in_block(&bytes, block, first + t, quants) };
                    } else {
                        // SAFETY: as above.
                        let out = unsafe {
                            bytes.slice(first * bytes_per_token..(first + width) * bytes_per_token)
                        };
                        scale[0] = level.run(QuantizeRow { row, out: &mut out[t..], width });
                    }
                }
            }
        });
    }

    /// Whether kernels of `tier` can read them.
    pub(crate) fn stored_for(&self, level: SimdLevel) -> bool {
        self.level == Some(level)
    }

    /// Number of token tiles.
    pub(crate) fn n_tiles(&self) -> usize {
        self.n_tokens.div_ceil(self.tile)
    }

    /// Whether packed weights are expanded for each tile of tokens, and not once into a panel: always with one tile; with
    /// AVX-512 up to [`FEW_TILES`], because it expands the next step while it multiplies the last one with 12 tokens.
    pub(crate) fn expands_each(&self) -> bool {
        let few = if self.level.is_some_and(|level| level.token_tile() == 12) { FEW_TILES } else { 1 };
        self.n_tiles() <= few
    }

    /// First token, number of tokens and stored width of a tile.
    pub(crate) fn tile(&self, i: usize) -> (usize, usize, usize) {
        self.tiles().get(i)
    }

    fn tiles(&self) -> Tiles {
        Tiles { n_tokens: self.n_tokens, tile: self.tile, whole: self.exact }
    }

    /// The 8-bit groups of a tile, `[cols / 32][width]`.
    pub(crate) fn groups(&self, i: usize) -> &[QuantGroup] {
        assert!(self.needs.quantized, "activations were not quantized");
        let (first, _, width) = self.tile(i);
        let n = self.cols.div_ceil(GROUP);
        &self.groups[first * n..(first + width) * n]
    }

    /// The bf16 pairs of a tile, `[steps][width]`.
    pub(crate) fn pairs(&self, i: usize) -> &[u32] {
        assert!(self.needs.bf16 && self.block == 0, "activations were not stored as tiles of bf16");
        let (first, _, width) = self.tile(i);
        let n = self.cols.div_ceil(GROUP) * GROUP / 2;
        &self.pairs[first * n..(first + width) * n]
    }

    /// The 8-bit rows of a tile, `[steps][width]`, and their scales.
    pub(crate) fn row_bytes(&self, i: usize) -> (&[i32], &[RowScale]) {
        assert!(self.needs.row_int8 && self.block == 0, "activations were not quantized by rows, in tiles");
        let (first, _, width) = self.tile(i);
        let n = self.cols.div_ceil(64) * 16;
        (&self.bytes[first * n..(first + width) * n], &self.rows[first..first + width])
    }

    /// Tokens of a block, where pairs and bytes are stored for tile registers; else 0.
    pub(crate) fn block(&self) -> usize {
        self.block
    }

    /// Whether weights in blocks run in tile registers.
    pub(crate) fn expanded(&self) -> bool {
        self.expanded
    }

    /// Whether tile registers load the 8-bit groups.
    pub(crate) fn exact(&self) -> bool {
        self.exact
    }

    /// For tile registers: the bytes of bf16 pairs, or of 8-bit rows, `[blocks][steps of 64 bytes][tokens of a block][64]`, and
    /// the number of steps.
    pub(crate) fn blocks(&self, int8: bool) -> (&[u8], usize) {
        assert!(self.block > 0, "activations were not stored in blocks");
        if int8 {
            assert!(self.needs.row_int8, "activations were not quantized by rows");
            (bytemuck::cast_slice(&self.bytes), self.cols.div_ceil(64))
        } else {
            assert!(self.needs.bf16, "activations were not stored as bf16");
            (bytemuck::cast_slice(&self.pairs), self.cols.div_ceil(GROUP))
        }
    }

    /// The scales of 8-bit rows.
    pub(crate) fn row_scales(&self) -> &[RowScale] {
        &self.rows
    }

    /// The floats of a tile, `[cols][width]`.
    pub(crate) fn floats(&self, i: usize) -> &[f32] {
        assert!(self.needs.float, "activations were not kept as floats");
        let (first, _, width) = self.tile(i);
        &self.floats[first * self.cols..(first + width) * self.cols]
    }
}

/// Stores the words of a token in its block of `block` tokens, 64 bytes after 64 bytes.
///
/// # Safety
/// Nobody else uses the words of this token.
unsafe fn store_in_block<T: Copy>(to: &DisjointSliceMut<'_, T>, block: usize, token: usize, words: &[T]) {
    const STEP: usize = 16;
    let start = token / block * block * words.len() + token % block * STEP;
    for (step, words) in words.as_chunks::<STEP>().0.iter().enumerate() {
        // SAFETY: the caller's word.
        let out = unsafe { to.slice(start + step * block * STEP..start + step * block * STEP + STEP) };
        out.copy_from_slice(words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Pool;

    /// Weights that tile registers do not multiply read the batch as they always do.
    #[test]
    fn storing_in_blocks_changes_pairs_and_bytes_only() {
        let pool = Pool::new(2).unwrap();
        let needs = Needs { quantized: true, float: true, bf16: true, row_int8: true };
        let (n, cols) = (15, 70);
        for level in SimdLevel::supported() {
            let [tiles, blocks] = [false, true].map(|blocks| {
                let mut x = Activations::new();
                let shape = ActivationShape { n_tokens: n, cols, needs };
                x.fill_as(Exec { pool: &pool, level }, shape, blocks, |t, out| {
                    out.iter_mut().enumerate().for_each(|(i, x)| *x = (t * cols + i) as f32);
                });
                x
            });
            assert_eq!(tiles.floats, blocks.floats, "{level}");
            assert_eq!(tiles.groups, blocks.groups, "{level}");
            for i in 0..n {
                assert_eq!(tiles.rows[i], blocks.rows[i], "{level}");
            }
            assert_ne!(tiles.pairs, blocks.pairs, "{level}");
        }
    }
}
