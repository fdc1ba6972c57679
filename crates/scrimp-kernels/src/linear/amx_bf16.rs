//! Large batches for block formats (GGUF's formats and `int4`) with AMX. The weights are dequantized to bf16 once for
//! up to 256 tokens.
//!
//! ```text
//! y[t][row] = sum over columns of bf16(w[row][column]) bf16(x[t][column])
//!
//! for at most 576 columns at a time       activations of 256 tokens: 288 KB, in the second-level cache
//!   for each pair of panels               dequantized: 2 × 18 KB, in the first-level cache
//!     for each pair of token tiles        C: load 4 KB of sums, add 18 × 4 products, store
//! ```
//!
//! Limit: each step of products reads 2 KB of activations from the second-level cache, and sums are written to the
//! third. On a Xeon with 2.6 TFLOP/s of `tdpbf16ps` per core, two cores run 512 tokens at 1.1 to 1.8 TFLOP/s (0.5 to
//! 0.8 without AMX). Dequantizing 32 columns of a panel takes about 180 vector instructions, as long as the products of
//! 100 tokens.
//!
//! Error: both factors are rounded to bf16 (relative error 2^-9) and sums are f32. Results therefore differ by rounding
//! from those of smaller batches, whose activations have 8 bits in groups of 32.

use super::{
    amx_packed::{TILE_TOKENS, Tokens, Whole, add},
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

/// The smallest batch that takes this kernel: dequantizing has to pay.
pub(super) const BF16_TOKENS: usize = 48;
/// Panels of a task, at most. Each task reads all activations; the sums of 32 panels for 256 tokens take 512 KB of the
/// second-level cache.
const MOST_PANELS: usize = 32;
/// Maximum number of groups of columns that are dequantized at once.
const GROUPS: usize = if cfg!(test) { 2 } else { 18 };
/// Maximum number of token tiles that are multiplied with a dequantized pair of panels.
const TOKEN_TILES: usize = if cfg!(test) { 4 } else { 16 };
/// Lines of 64 bytes in a C tile.
const C_LINES: usize = 16;

/// The groups of a panel, one after another.
pub(super) trait Rows: Copy {
    type Quants: Quants;
    /// Sums of a row: 2 where every kernel of the format sums even and odd groups separately.
    const CHAINS: usize = 1;
    /// The next group.
    ///
    /// # Safety
    /// There is another group.
    unsafe fn next<S: Simd>(&mut self, s: S) -> Group<S>;
    /// Prefetches a later group. Formats whose `next` prefetches have an empty body.
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
    type Quants = F::Quants;

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

/// A task over AMX tiles of type `X`; `rows(panel)` starts a panel.
pub(super) struct Bf16Task<'a, 'x, X: Tile, W> {
    pub(super) task: Task<'a>,
    pub(super) rows: W,
    pub(super) tiles: &'x mut Configured<X>,
}

/// Panels of a task, an even number. Threads have one task each or two, whichever makes the longest thread shorter.
pub(super) fn task_panels(n_panels: usize, threads: usize) -> usize {
    let of = |tasks: usize| n_panels.div_ceil(tasks * threads).next_multiple_of(2).min(MOST_PANELS);
    // Panels of the thread with the most tasks.
    let longest = |panels: usize| n_panels.div_ceil(panels).div_ceil(threads) * panels;
    [of(2), of(1)].into_iter().min_by_key(|&panels| longest(panels)).expect("two of them")
}

/// [`PanelGroup`]s of scratch memory that a worker needs for tasks of `panels` panels and `token_tiles` token tiles.
pub(super) fn panel_groups(panels: usize, token_tiles: usize) -> usize {
    let sums = panels.div_ceil(2) * token_tiles.min(TOKEN_TILES).div_ceil(2) * 4 * C_LINES;
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
            Scaling::TwoMinima => ((group.scale, group.second), (group.scale, group.third)),
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

/// Four tiles of sums in memory.
#[derive(Clone, Copy)]
struct Sums {
    at: *mut u8,
    /// The first products overwrite the sums; later ones are added.
    start: bool,
}

impl Sums {
    /// Adds the products of `NA` token tiles with `NB` panels.
    ///
    /// # Safety
    /// `tokens` and `weights` have `n` tiles along the columns, and `at` has room for four tiles.
    #[inline(always)]
    unsafe fn add<S: Simd, X: Tile, const NA: usize, const NB: usize>(
        self,
        s: S,
        tile: &mut X,
        tokens: Tokens,
        weights: [*const u8; NB],
        n: usize,
    ) {
        let Self { at: sums, start } = self;
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
        // SAFETY: the caller guarantees `n` tiles of tokens and of weights, and room for four tiles in `sums`.
        unsafe {
            add::<S, X, _, false, NA, NB>(s, tile, tokens, &mut weights.map(Whole), n);
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
}

impl<X: Tile, R: Rows, W: Fn(usize) -> R> Bf16Task<'_, '_, X, W> {
    /// All columns for some token tiles.
    #[inline(always)]
    fn token_tiles<S: Simd>(&mut self, s: S, token_tiles: Range<usize>) {
        let Task { job, x, ref panels, ref mut scratch, .. } = self.task;
        let (data, groups) = x.amx_tiles(false);
        let rows = x.layout().amx_rows().expect("activations for AMX");
        let tile_bytes = groups * rows * 64;
        assert!(data.len() >= token_tiles.end * tile_bytes, "activations of all token tiles");
        assert!(
            panels.len() <= MOST_PANELS && scratch.len() >= panel_groups(panels.len(), token_tiles.len())
        );
        let lines = bytemuck::cast_slice_mut::<PanelGroup, [u8; 64]>(scratch);
        let (weights, sums) = lines.split_at_mut(2 * GROUPS * TILE_STEPS);
        let token_pairs = token_tiles.len().div_ceil(2);
        let mut sources: [R; MOST_PANELS] =
            std::array::from_fn(|i| (self.rows)((panels.start + i).min(panels.end - 1)));
        // Passes of equal length: each loads and stores all sums.
        let per_pass = groups.div_ceil(groups.div_ceil(GROUPS).max(1)).max(1);
        for from in (0..groups).step_by(per_pass) {
            let n = per_pass.min(groups - from);
            for (pair, first_panel) in panels.clone().step_by(2).enumerate() {
                let two_panels = first_panel + 1 < panels.end;
                for (i, to) in weights
                    .chunks_exact_mut(GROUPS * TILE_STEPS)
                    .enumerate()
                    .take(1 + usize::from(two_panels))
                {
                    // SAFETY: a panel has as many groups as the activations.
                    unsafe { dequantize(s, &mut sources[2 * pair + i], n, to) };
                }
                let weights: *const u8 = weights.as_ptr().cast();
                let weights = [weights, weights.wrapping_add(GROUPS * TILE_BYTES)];
                for (at, tile) in token_tiles.clone().step_by(2).enumerate() {
                    let two_tiles = tile + 1 < token_tiles.end;
                    let both = [tile, tile + usize::from(two_tiles)];
                    let tokens = Tokens {
                        x: both.map(|t| data.as_ptr().wrapping_add(t * tile_bytes + from * rows * 64)),
                        rows,
                        first: both.map(|t| t * rows),
                    };
                    let sums = &mut sums[(pair * token_pairs + at) * 4 * C_LINES..][..4 * C_LINES];
                    let sums = Sums { at: sums.as_mut_ptr().cast(), start: from == 0 };
                    let amx = &mut self.tiles.tile;
                    // SAFETY: `sums` are four tiles; weights and activations have `n` groups from `from` on.
                    unsafe {
                        match (two_tiles, two_panels) {
                            (true, true) => sums.add::<S, X, 2, 2>(s, amx, tokens, weights, n),
                            (true, false) => {
                                sums.add::<S, X, 2, 1>(s, amx, tokens, [weights[0]], n);
                            }
                            (false, true) => sums.add::<S, X, 1, 2>(s, amx, tokens, weights, n),
                            (false, false) => {
                                sums.add::<S, X, 1, 1>(s, amx, tokens, [weights[0]], n);
                            }
                        }
                    }
                }
            }
        }
        // Token by token: consecutive results are written together.
        for (tile, t) in token_tiles.clone().flat_map(|tile| (0..rows).map(move |t| (tile, t))) {
            let (token, at) = (tile * rows + t, tile - token_tiles.start);
            if token >= x.n_tokens() {
                break;
            }
            let first = (at / 2 * 4 + at % 2 * 2) * C_LINES + t;
            job.store_row(s, token, panels.clone(), |i| {
                let line = &sums[first + (i / 2 * token_pairs * 4 + i % 2) * C_LINES];
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
        debug_assert!(rows <= TILE_TOKENS);
        self.tiles.shaped(Shape::whole(rows));
        let token_tiles = x.n_tokens().div_ceil(rows);
        for first in (0..token_tiles).step_by(TOKEN_TILES) {
            self.token_tiles(s, first..(first + TOKEN_TILES).min(token_tiles));
        }
    }
}
