//! Batches of weights in blocks (GGUF's formats and `int4`) with AMX: dequantized to bf16, once for up to 256 tokens.
//!
//! ```text
//! for each 576 columns or fewer          the activations of 256 tokens: 288 KB, in the second-level cache
//!   for each pair of row tiles           dequantized: 2 × 18 KB, in the first-level cache
//!     for each pair of token blocks      C: 4 KB of sums are loaded, 16 × 4 products added, and stored
//! ```
//! On a Xeon with 2.6 TFLOP/s of `tdpbf16ps` a core, two run 512 tokens at 1.1 to 1.8 (at 0.5 to 0.8 without tile
//! registers): each step of products reads 2 KB of activations from the second-level cache, and results are written to
//! the third. Dequantizing takes about 180 vector instructions for 32 columns of 16 rows, as long as the products of
//! 100 tokens.
//!
//! Both factors are rounded to bf16 (relative error 2^-9) and sums are f32, so results differ by rounding from those of
//! fewer tokens, whose activations have 8 bits in groups of 32.

use super::{
    amx_packed::{BLOCK, Tokens, Whole, add},
    gemm::PanelGroup,
    gemv::prefetch_part,
    job::Task,
};
use crate::{
    arch::{
        Kernel, Level, Simd,
        amx::{Configured, Shape, TILE_BYTES, TILE_STEPS, Tile, clear},
    },
    quant::{BlockFormat, GROUP, Group, PANEL_ROWS, Quants, Scaling},
};
use std::ops::Range;

/// Tokens from which on dequantizing pays.
pub(super) const BF16_TOKENS: usize = 48;
/// Row tiles of a task at most, whose sums for 256 tokens take 512 KB of the second-level cache. Each task reads all
/// activations.
const MOST_PANELS: usize = 32;
/// Groups of columns that are dequantized at a time, at most.
const GROUPS: usize = if cfg!(test) { 2 } else { 18 };
/// Blocks of tokens that pass by a dequantized pair.
const TOKEN_BLOCKS: usize = if cfg!(test) { 4 } else { 16 };
/// Lines of 64 bytes in a C tile.
const C_LINES: usize = 16;

/// The groups of a tile of 16 rows, one after another.
pub(super) trait Rows: Copy {
    type Quants: Quants;
    /// Sums of a row: 2 where even and odd groups are added up apart, in every kernel of the format.
    const CHAINS: usize = 1;
    /// The next group.
    ///
    /// # Safety
    /// There is another group.
    unsafe fn next<S: Simd>(&mut self, s: S) -> Group<S>;
    /// Prefetches a group that will come later, once for each, unless `next` does.
    #[inline(always)]
    fn prefetch(&self) {}
}

/// The groups of a block format.
pub(super) struct Blocks<'a, F: BlockFormat> {
    blocks: &'a [F::Block],
    group: usize,
}

impl<'a, F: BlockFormat> Blocks<'a, F> {
    pub(super) fn new(blocks: &'a [F::Block]) -> Self {
        Self { blocks, group: 0 }
    }
}

impl<F: BlockFormat> Clone for Blocks<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: BlockFormat> Copy for Blocks<'_, F> {}

impl<F: BlockFormat> Rows for Blocks<'_, F> {
    type Quants = F;

    #[inline(always)]
    unsafe fn next<S: Simd>(&mut self, s: S) -> Group<S> {
        let group = F::group(s, &self.blocks[self.group / F::GROUPS], self.group % F::GROUPS);
        self.group += 1;
        group
    }

    #[inline(always)]
    fn prefetch(&self) {
        prefetch_part(&self.blocks[self.group / F::GROUPS], self.group % F::GROUPS, F::GROUPS);
    }
}

/// A task over tiles of type `X`; `rows(tile)` starts a tile of rows.
pub(super) struct Bf16Task<'a, 'x, X: Tile, W> {
    pub(super) task: Task<'a>,
    pub(super) rows: W,
    pub(super) tiles: &'x mut Configured<X>,
}

/// Row tiles of a task, in pairs: as many that threads end together, in one task or in two for each thread.
pub(super) fn task_panels(n_panels: usize, threads: usize) -> usize {
    let of = |tasks: usize| n_panels.div_ceil(tasks * threads).next_multiple_of(2).min(MOST_PANELS);
    // What the thread that ends last computes.
    let longest = |tiles: usize| n_panels.div_ceil(tiles).div_ceil(threads) * tiles;
    [of(2), of(1)].into_iter().min_by_key(|&tiles| longest(tiles)).expect("two of them")
}

/// [`PanelGroup`]s that a worker needs for tasks of `row_tiles` tiles and `blocks` blocks of tokens.
pub(super) fn panel_groups(row_tiles: usize, blocks: usize) -> usize {
    let sums = row_tiles.div_ceil(2) * blocks.min(TOKEN_BLOCKS).div_ceil(2) * 4 * C_LINES;
    ((2 * GROUPS * TILE_STEPS + sums) * 64).div_ceil(size_of::<PanelGroup>())
}

/// Dequantizes `n` groups into as many B tiles.
///
/// # Safety
/// There are as many groups.
#[inline(always)]
unsafe fn dequantize<S: Simd, R: Rows>(s: S, rows: &mut R, n: usize, to: &mut [[u8; 64]]) {
    for to in to.as_chunks_mut::<TILE_STEPS>().0.iter_mut().take(n) {
        // SAFETY: the caller guarantees `n` groups.
        let group = unsafe { rows.next(s) };
        // Zero points are powers of two, so that `scale * q - scale * zero` is rounded as `scale * (q - zero)` is.
        let zero = s.splat(-R::Quants::ZERO as f32);
        let (first, last) = match R::Quants::SCALING {
            Scaling::Symmetric => [(group.scale, s.mul(group.scale, zero)); 2].into(),
            Scaling::Minimum => [(group.scale, group.second); 2].into(),
            Scaling::TwoScales => {
                ((group.scale, s.mul(group.scale, zero)), (group.second, s.mul(group.second, zero)))
            }
        };
        for k in 0..GROUP / 4 {
            let (scale, offset) = if k < GROUP / 8 { first } else { last };
            let [even, odd] = s.bf16_steps(group.w[k], scale, offset);
            s.store_b(even, &mut to[2 * k]);
            s.store_b(odd, &mut to[2 * k + 1]);
        }
    }
}

/// Adds the products of `NA` blocks of tokens with `NB` tiles of rows to `sums`, or starts them.
///
/// # Safety
/// `tokens` and `weights` have `steps` tiles, and `sums` room for four.
#[inline(always)]
unsafe fn add_to<S: Simd, X: Tile, const NA: usize, const NB: usize>(
    s: S,
    tile: &mut X,
    tokens: Tokens,
    weights: [*const u8; NB],
    steps: usize,
    sums: *mut u8,
    start: bool,
) {
    if start {
        clear::<X, NA, NB>(tile);
    } else {
        // SAFETY: the caller guarantees room for four tiles in `sums`.
        unsafe {
            tile.load::<0>(sums, 64);
            if NB == 2 {
                tile.load::<1>(sums.wrapping_add(TILE_BYTES), 64);
            }
            if NA == 2 {
                tile.load::<2>(sums.wrapping_add(2 * TILE_BYTES), 64);
                if NB == 2 {
                    tile.load::<3>(sums.wrapping_add(3 * TILE_BYTES), 64);
                }
            }
        }
    }
    // SAFETY: the caller guarantees `steps` tiles of tokens and of weights, and room for four tiles in `sums`.
    unsafe {
        add::<S, X, _, false, NA, NB>(s, tile, tokens, &mut weights.map(Whole), steps);
        tile.store::<0>(sums, 64);
        if NB == 2 {
            tile.store::<1>(sums.wrapping_add(TILE_BYTES), 64);
        }
        if NA == 2 {
            tile.store::<2>(sums.wrapping_add(2 * TILE_BYTES), 64);
            if NB == 2 {
                tile.store::<3>(sums.wrapping_add(3 * TILE_BYTES), 64);
            }
        }
    }
}

impl<X: Tile, R: Rows, W: Fn(usize) -> R> Bf16Task<'_, '_, X, W> {
    /// All columns for the given blocks of tokens.
    #[inline(always)]
    fn token_blocks<S: Simd>(&mut self, s: S, blocks: Range<usize>) {
        let Task { job, x, panels: ref tiles, scratch: ref mut panel, .. } = self.task;
        let (data, groups) = x.amx_tiles(false);
        let rows = x.layout().amx_rows().expect("activations for AMX");
        let block_bytes = groups * rows * 64;
        assert!(data.len() >= blocks.end * block_bytes, "activations of all blocks");
        assert!(tiles.len() <= MOST_PANELS && panel.len() >= panel_groups(tiles.len(), blocks.len()));
        let lines = bytemuck::cast_slice_mut::<PanelGroup, [u8; 64]>(panel);
        let (weights, sums) = lines.split_at_mut(2 * GROUPS * TILE_STEPS);
        let block_pairs = blocks.len().div_ceil(2);
        let mut sources: [R; MOST_PANELS] =
            std::array::from_fn(|i| (self.rows)((tiles.start + i).min(tiles.end - 1)));
        // Passes of equal length: each loads and stores all sums.
        let per_pass = groups.div_ceil(groups.div_ceil(GROUPS).max(1)).max(1);
        for from in (0..groups).step_by(per_pass) {
            let n = per_pass.min(groups - from);
            for (pair, first_tile) in tiles.clone().step_by(2).enumerate() {
                let two_tiles = first_tile + 1 < tiles.end;
                for (i, to) in
                    weights.chunks_exact_mut(GROUPS * TILE_STEPS).enumerate().take(1 + usize::from(two_tiles))
                {
                    // SAFETY: a tile has as many groups as the activations.
                    unsafe { dequantize(s, &mut sources[2 * pair + i], n, to) };
                }
                let weights: *const u8 = weights.as_ptr().cast();
                let weights = [weights, weights.wrapping_add(GROUPS * TILE_BYTES)];
                for (at, block) in blocks.clone().step_by(2).enumerate() {
                    let two_blocks = block + 1 < blocks.end;
                    let both = [block, block + usize::from(two_blocks)];
                    let tokens = Tokens {
                        x: both.map(|b| data.as_ptr().wrapping_add(b * block_bytes + from * rows * 64)),
                        rows,
                        first: both.map(|b| b * rows),
                    };
                    let sums = &mut sums[(pair * block_pairs + at) * 4 * C_LINES..][..4 * C_LINES];
                    let to: *mut u8 = sums.as_mut_ptr().cast();
                    let (tile, start) = (&mut self.tiles.tile, from == 0);
                    // SAFETY: `sums` are four tiles; `n` groups of weights and activations are there.
                    unsafe {
                        match (two_blocks, two_tiles) {
                            (true, true) => add_to::<S, X, 2, 2>(s, tile, tokens, weights, n, to, start),
                            (true, false) => {
                                add_to::<S, X, 2, 1>(s, tile, tokens, [weights[0]], n, to, start);
                            }
                            (false, true) => add_to::<S, X, 1, 2>(s, tile, tokens, weights, n, to, start),
                            (false, false) => {
                                add_to::<S, X, 1, 1>(s, tile, tokens, [weights[0]], n, to, start);
                            }
                        }
                    }
                }
            }
        }
        // Token after token, so that results are written in runs.
        for (block, t) in blocks.clone().flat_map(|block| (0..rows).map(move |t| (block, t))) {
            let (token, at) = (block * rows + t, block - blocks.start);
            if token >= x.n_tokens() {
                break;
            }
            let first = (at / 2 * 4 + at % 2 * 2) * C_LINES + t;
            job.store_row(s, token, tiles.clone(), |i| {
                let line = &sums[first + (i / 2 * block_pairs * 4 + i % 2) * C_LINES];
                s.load(bytemuck::cast_ref::<_, [f32; PANEL_ROWS]>(line))
            });
        }
    }
}

impl<X: Tile, R: Rows, W: Fn(usize) -> R> Kernel for Bf16Task<'_, '_, X, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(mut self, s: S) {
        let x = self.task.x;
        let rows = x.layout().amx_rows().expect("activations for AMX");
        debug_assert!(rows <= BLOCK);
        self.tiles.shaped(Shape::whole(rows));
        let blocks = x.n_tokens().div_ceil(rows);
        for first in (0..blocks).step_by(TOKEN_BLOCKS) {
            self.token_blocks(s, first..(first + TOKEN_BLOCKS).min(blocks));
        }
    }
}
