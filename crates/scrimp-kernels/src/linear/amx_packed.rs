//! Batches of `bf16` and `int8` weights, dense and sparse, with AMX. (Weights in blocks: [`amx_int8`] for few tokens,
//! [`amx_bf16`] for many.)
//!
//! ```text
//! C (4 tiles)   2 blocks of up to 16 tokens × 2 tiles of 16 rows        f32 or i32, in tiles across all columns
//! A (2 tiles)   16 tokens × 64 bytes: 32 bf16 or 64 signed bytes        activations, stored tile after tile
//! B (2 tiles)   16 steps × 64 bytes: a step is [16 rows][2 or 4 cols]   packed weights as they are: 1 KiB of a tile
//! ```
//! The packed order of a tile of 16 rows *is* the order of B tiles, 16 steps each. Dense weights are loaded where they
//! lie. Sparse ones are expanded by vector instructions, 16 steps at a time, into one of two buffers in the first-level
//! cache, while the multiplications of the other one are under way; with more than 32 tokens they are expanded side by
//! side into a panel, which the tokens behind the first 32 read. Per 16 steps and full block: 4 loads and 4 products of
//! 16 × 16 × 64 bytes.
//!
//! Every pair of row tiles passes all tokens by, so their activations have to be near: large batches are cut into parts
//! of [`NEAR`] bytes, which stay in the second-level cache while all rows of a task pass.
//!
//! Each thread configures its tiles in a region when it first uses them, and again where matrices use them in different
//! ways ([`ThreadTiles`](super::ThreadTiles)); A and C have as many rows as a block has tokens, so small batches waste
//! no work. Up to 4 tokens stay with AVX-512, which reads the weights as fast as memory gives them.
//!
//! `int8` gives the bits of every other level. `bf16` sums differ by rounding: `tdpbf16ps` adds even and odd columns of
//! a step apart, and flushes denormals (Intel SDM, volume 2, `TDPBF16PS`).

use super::{
    amx_bf16::{self, Rows},
    amx_int8,
    gemm::PanelGroup,
    job::{Job, Task},
    packed::{PackedTask, Steps, panel_groups},
    plan::Engine,
};
use crate::{
    arch::{
        Kernel, Level, Simd, SimdLevel,
        amx::{A, B, Configured, Shape, TILE_BYTES, TILE_STEPS, Tile, clear},
    },
    quant::{PANEL_ROWS, packed::Value},
};
use std::ops::Range;

/// Tokens that stay with vector instructions.
pub(crate) const FEW_TOKENS: usize = 4;
/// Tokens of a block: rows of a tile.
pub(super) const BLOCK: usize = 16;
/// Bytes of activations that stay in the second-level cache, of which CPUs with AMX have 2 MB.
const NEAR: usize = if cfg!(test) { 4 << 10 } else { 1 << 20 };
/// Row tiles of a task at most: more of them read the activations less often.
pub(super) const TASK_PANELS: usize = 32;

/// Runs a task of weights in blocks; `rows(tile)` starts a tile of rows.
pub(super) fn run_groups<X: Tile, R: Rows>(
    level: SimdLevel,
    task: Task<'_>,
    rows: impl Fn(usize) -> R,
    tiles: &mut Configured<X>,
) {
    if task.job.engine == Engine::AmxInt8 {
        X::run(level, amx_int8::Int8Task { task, rows, tiles });
    } else {
        X::run(level, amx_bf16::Bf16Task { task, rows, tiles });
    }
}

/// A task of packed work, for tiles of type `X`.
pub(super) struct AmxTask<'a, 'x, X: Tile> {
    pub(super) task: PackedTask<'a>,
    pub(super) tiles: &'x mut Configured<X>,
}

/// Where the weights of row tiles come from: packed or expanded bytes, or an expansion on the fly.
pub(super) trait Source<S: Simd> {
    /// The next 16 steps, somewhere that stays valid until the call after the next.
    ///
    /// # Safety
    /// There are another 16 steps.
    unsafe fn next(&mut self, s: S) -> *const u8;
}

/// Whole steps in memory.
pub(super) struct Whole(pub(super) *const u8);

impl<S: Simd> Source<S> for Whole {
    #[inline(always)]
    unsafe fn next(&mut self, _: S) -> *const u8 {
        let at = self.0;
        self.0 = self.0.wrapping_add(TILE_BYTES);
        at
    }
}

/// Sparse steps, expanded into a panel or into two alternating buffers.
struct Expanded<W> {
    steps: W,
    to: *mut [u8; 64],
    at: usize,
    /// Applied to `at`: wraps around in two buffers, or keeps all steps.
    mask: usize,
}

impl<W> Expanded<W> {
    /// `to` has room for two B tiles, or for all steps if they are to be kept.
    fn new(steps: W, to: *mut u8, keep: bool) -> Self {
        Self { steps, to: to.cast(), at: 0, mask: if keep { usize::MAX } else { 2 * TILE_STEPS - 1 } }
    }
}

impl<S: Simd, W: Steps<S>> Source<S> for Expanded<W> {
    #[inline(always)]
    unsafe fn next(&mut self, s: S) -> *const u8 {
        let tile = self.to.wrapping_add(self.at);
        for k in 0..TILE_STEPS {
            if k % 2 == 0 {
                self.steps.prefetch();
            }
            // SAFETY: the caller guarantees 16 steps; `Expanded::new` requires room for two B tiles at `to`, or for
            // all steps.
            unsafe { s.store_b(self.steps.next(s), &mut *tile.add(k)) };
        }
        self.at = (self.at + TILE_STEPS) & self.mask;
        tile.cast_const().cast()
    }
}

/// One or two blocks of tokens.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    /// The activations of each block.
    pub(super) x: [*const u8; 2],
    /// Tokens of a block.
    pub(super) rows: usize,
    pub(super) first: [usize; 2],
}

/// Products of `NA` blocks of tokens with `NB` tiles of rows; results are left in the C tiles.
///
/// # Safety
/// Sources and activations have `blocks * 16` steps.
#[inline(always)]
unsafe fn product<S: Simd, X: Tile, W: Source<S>, const INT8: bool, const NA: usize, const NB: usize>(
    s: S,
    tile: &mut X,
    tokens: Tokens,
    weights: &mut [W; NB],
    blocks: usize,
) {
    clear::<X, NA, NB>(tile);
    // SAFETY: the caller guarantees `blocks * 16` steps of weights and activations.
    unsafe { add::<S, X, W, INT8, NA, NB>(s, tile, tokens, weights, blocks) };
}

/// Adds the products to the C tiles.
///
/// # Safety
/// As for [`product`].
#[inline(always)]
pub(super) unsafe fn add<
    S: Simd,
    X: Tile,
    W: Source<S>,
    const INT8: bool,
    const NA: usize,
    const NB: usize,
>(
    s: S,
    tile: &mut X,
    tokens: Tokens,
    weights: &mut [W; NB],
    blocks: usize,
) {
    let a_bytes = 64 * tokens.rows;
    for block in 0..blocks {
        // SAFETY: the caller guarantees `blocks * 16` steps of weights and activations.
        unsafe {
            let b0 = weights[0].next(s);
            tile.load::<{ B[0] }>(b0, 64);
            if NB == 2 {
                let b1 = weights[1].next(s);
                tile.load::<{ B[1] }>(b1, 64);
            }
            tile.load::<{ A[0] }>(tokens.x[0].wrapping_add(a_bytes * block), 64);
            if NA == 2 {
                tile.load::<{ A[1] }>(tokens.x[1].wrapping_add(a_bytes * block), 64);
            }
        }
        dot::<X, 0, { A[0] }, { B[0] }, INT8>(tile);
        if NB == 2 {
            dot::<X, 1, { A[0] }, { B[1] }, INT8>(tile);
        }
        if NA == 2 {
            dot::<X, 2, { A[1] }, { B[0] }, INT8>(tile);
            if NB == 2 {
                dot::<X, 3, { A[1] }, { B[1] }, INT8>(tile);
            }
        }
    }
}

#[inline(always)]
fn dot<X: Tile, const C: u8, const A: u8, const B: u8, const INT8: bool>(tile: &mut X) {
    if INT8 {
        tile.dot_i8u8::<C, A, B>();
    } else {
        tile.dot_bf16::<C, A, B>();
    }
}

impl<X: Tile> AmxTask<'_, '_, X> {
    /// Adds scale, bias and residual to C tile `T` and stores it.
    #[inline(always)]
    fn finish<S: Simd, const T: u8>(
        &mut self,
        s: S,
        job: &Job<'_>,
        row_tile: usize,
        tokens: Tokens,
        block: usize,
    ) {
        let first = tokens.first[block];
        let mut c = [[0f32; PANEL_ROWS]; BLOCK];
        // SAFETY: a C tile has at most 16 rows of 64 bytes.
        unsafe { self.tiles.tile.store::<T>(c.as_mut_ptr().cast(), 64) };
        let layout = self.task.layout;
        let rows = tokens.rows.min(self.task.task.x.n_tokens() - first);
        for (t, c) in c.iter().enumerate().take(rows) {
            let y = if layout.format.value() == Value::Int8 {
                let x = self.task.task.x.row_scales()[first + t];
                // 128 was added to each weight.
                let correction = x.sum.wrapping_mul(128);
                let sums = c.map(|sum| (sum.to_bits() as i32).wrapping_sub(correction) as f32);
                let y = s.mul(s.load(&sums), s.splat(x.scale));
                s.mul(y, s.load(self.task.tile(row_tile).scale()))
            } else {
                s.load(c)
            };
            job.store(s, &[y], row_tile, first + t, 1);
        }
    }

    /// Blocks of tokens for one or two tiles of rows; `source(i)` starts the weights of the `i`-th.
    #[inline(always)]
    fn tiles<S: Simd, W: Source<S>, const NB: usize>(
        &mut self,
        s: S,
        first_tile: usize,
        token_blocks: Range<usize>,
        mut source: impl FnMut(usize) -> W,
    ) {
        let (x, job) = (self.task.task.x, self.task.task.job);
        let rows = x.layout().amx_rows().expect("activations for AMX");
        let int8 = self.task.layout.format.value() == Value::Int8;
        let (data, steps) = x.amx_tiles(int8);
        let blocks = self.task.layout.steps / TILE_STEPS;
        let bytes = steps * rows * 64;
        assert!(
            steps == blocks && data.len() >= token_blocks.end * bytes,
            "activations of the matrix's columns"
        );
        let data = data.as_ptr();
        for block in token_blocks.clone().step_by(2) {
            let two = block + 1 < token_blocks.end;
            let both = [block, block + usize::from(two)];
            let tokens =
                Tokens { x: both.map(|b| data.wrapping_add(b * bytes)), rows, first: both.map(|b| b * rows) };
            let mut weights: [W; NB] = std::array::from_fn(&mut source);
            // SAFETY: tiles and activations are padded to whole blocks of the same number of columns.
            unsafe {
                let tile = &mut self.tiles.tile;
                match (int8, two) {
                    (false, false) => product::<S, X, W, false, 1, NB>(s, tile, tokens, &mut weights, blocks),
                    (false, true) => product::<S, X, W, false, 2, NB>(s, tile, tokens, &mut weights, blocks),
                    (true, false) => product::<S, X, W, true, 1, NB>(s, tile, tokens, &mut weights, blocks),
                    (true, true) => product::<S, X, W, true, 2, NB>(s, tile, tokens, &mut weights, blocks),
                }
            }
            self.finish::<S, 0>(s, job, first_tile, tokens, 0);
            if NB == 2 {
                self.finish::<S, 1>(s, job, first_tile + 1, tokens, 0);
            }
            if two {
                self.finish::<S, 2>(s, job, first_tile, tokens, 1);
                if NB == 2 {
                    self.finish::<S, 3>(s, job, first_tile + 1, tokens, 1);
                }
            }
        }
    }

    /// The tiles of `tiles`, which are one or two.
    #[inline(always)]
    fn pair<S: Simd>(&mut self, s: S, tiles: Range<usize>, tokens: Range<usize>) {
        let layout = self.task.layout;
        let one = tiles.len() == 1;
        let first = tiles.start;
        if !layout.format.is_sparse() {
            let at: [*const u8; 2] =
                std::array::from_fn(|i| self.task.tile((first + i).min(tiles.end - 1)).dense_bytes());
            if one {
                self.tiles::<S, _, 1>(s, first, tokens, |i| Whole(at[i]));
            } else {
                self.tiles::<S, _, 2>(s, first, tokens, |i| Whole(at[i]));
            }
            return;
        }
        let per_tile = panel_groups(layout);
        assert!(self.task.task.scratch.len() >= 2 * per_tile, "room for two tiles");
        let panel: *mut u8 = self.task.task.scratch.as_mut_ptr().cast();
        let panel = |i: usize| panel.wrapping_add(i * per_tile * size_of::<PanelGroup>());
        let from: [_; 2] = std::array::from_fn(|i| self.task.tile((first + i).min(tiles.end - 1)));
        let few = tokens.start..(tokens.start + 2).min(tokens.end);
        let others = few.end..tokens.end;
        let keep = !others.is_empty();
        let words = |i: usize| Expanded::new(from[i].words(), panel(i), keep);
        let bytes = |i: usize| Expanded::new(from[i].bytes(), panel(i), keep);
        match (layout.format.value(), one) {
            (Value::Bf16, true) => self.tiles::<S, _, 1>(s, first, few, words),
            (Value::Bf16, false) => self.tiles::<S, _, 2>(s, first, few, words),
            (_, true) => self.tiles::<S, _, 1>(s, first, few, bytes),
            (_, false) => self.tiles::<S, _, 2>(s, first, few, bytes),
        }
        if one {
            self.tiles::<S, _, 1>(s, first, others, |i| Whole(panel(i)));
        } else {
            self.tiles::<S, _, 2>(s, first, others, |i| Whole(panel(i)));
        }
    }
}

/// Tokens of a block when `n` are cut into as few blocks of at most 16 as can be.
pub(super) fn tile_rows(n: usize) -> usize {
    n.div_ceil(n.div_ceil(BLOCK))
}

impl<X: Tile> Kernel for AmxTask<'_, '_, X> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(mut self, s: S) {
        let tiles = self.task.task.panels.clone();
        let x = self.task.task.x;
        let rows = x.layout().amx_rows().expect("activations for AMX");
        self.tiles.shaped(Shape::whole(rows));
        let blocks = x.n_tokens().div_ceil(rows);
        let (_, steps) = x.amx_tiles(self.task.layout.format.value() == Value::Int8);
        let near = (NEAR / (steps * rows * 64)).next_multiple_of(2).max(2);
        for block in (0..blocks).step_by(near) {
            for first in tiles.clone().step_by(2) {
                self.pair(s, first..(first + 2).min(tiles.end), block..(block + near).min(blocks));
            }
        }
    }
}
