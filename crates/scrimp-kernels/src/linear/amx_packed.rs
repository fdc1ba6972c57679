//! Batches for `bf16` and `int8` weights, dense and sparse, with AMX. Block formats have [`amx_int8`] for few tokens
//! and [`amx_bf16`] for many.
//!
//! ```text
//! y[t][row] = sum over columns of w[row][column] x[t][column]
//!
//! C (4 tiles)   2 token tiles of up to 16 tokens × 2 panels             f32 or i32, across all columns
//! A (2 tiles)   16 tokens × 64 bytes: 32 bf16 or 64 signed bytes        activations, stored AMX tile by AMX tile
//! B (2 tiles)   16 steps × 64 bytes: a step is [16 rows][2 or 4 cols]   1 KiB of a packed panel
//! ```
//! The packed order of a panel is the order of B tiles, 16 steps each. Dense weights are loaded in place. Sparse
//! weights are expanded by vector instructions, 16 steps at a time, into one of two buffers in the first-level cache,
//! while the products of the other buffer are in flight. With more than 32 tokens, the expanded panel is kept: the
//! tokens behind the first 32 read it. 16 steps and two full token tiles take 4 loads and 4 products of 16 × 16 × 64
//! bytes.
//!
//! Each pair of panels reads the activations of all tokens. Large batches are therefore cut into parts of [`NEAR`]
//! bytes, which stay in the second-level cache for all panels of a task.
//!
//! A thread configures its AMX tiles at their first use in a parallel region, and again if a matrix needs other shapes
//! ([`ThreadTiles`](super::ThreadTiles)). A and C have as many rows as a token tile has tokens, so small batches waste
//! no work. Up to 4 tokens use AVX-512, which reads the weights at the speed of memory.
//!
//! Equality: `int8` gives the bits of every other level. `bf16` sums differ by rounding: `tdpbf16ps` adds even and odd
//! columns of a step separately and flushes denormals (Intel SDM, volume 2, `TDPBF16PS`).

use super::{
    amx_bf16::{self, Rows},
    amx_int8,
    gemm::PanelGroup,
    job::{Job, Task},
    packed::Steps,
    packed_task::{PackedTask, panel_groups},
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
/// Tokens of a token tile, at most: rows of an AMX tile.
pub(super) const TILE_TOKENS: usize = 16;
/// Bytes of activations that stay in the second-level cache, of which CPUs with AMX have 2 MB.
const NEAR: usize = if cfg!(test) { 4 << 10 } else { 1 << 20 };
/// Panels of a task, at most: more of them read the activations less often.
pub(super) const TASK_PANELS: usize = 32;

/// Runs a task of a block format; `rows(panel)` starts a panel.
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

/// The weights of a panel, as B tiles: packed or expanded bytes, or expanded while they are read.
pub(super) trait Source<S: Simd> {
    /// The next 16 steps. They stay valid until the call after the next one.
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

/// One or two token tiles.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    /// The activations of each token tile.
    pub(super) x: [*const u8; 2],
    /// Tokens of a token tile.
    pub(super) rows: usize,
    /// The first token of each.
    pub(super) first: [usize; 2],
}

/// Products of `NA` token tiles with `NB` panels; results are left in the C tiles.
///
/// # Safety
/// Sources and activations have `b_tiles * 16` steps.
#[inline(always)]
unsafe fn product<S: Simd, X: Tile, W: Source<S>, const INT8: bool, const NA: usize, const NB: usize>(
    s: S,
    tile: &mut X,
    tokens: Tokens,
    weights: &mut [W; NB],
    b_tiles: usize,
) {
    clear::<X, NA, NB>(tile);
    // SAFETY: the caller guarantees `b_tiles * 16` steps of weights and activations.
    unsafe { add::<S, X, W, INT8, NA, NB>(s, tile, tokens, weights, b_tiles) };
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
    b_tiles: usize,
) {
    let a_bytes = 64 * tokens.rows;
    for k in 0..b_tiles {
        // SAFETY: the caller guarantees `b_tiles * 16` steps of weights and activations.
        unsafe {
            let b0 = weights[0].next(s);
            tile.load::<{ B[0] }>(b0, 64);
            if NB == 2 {
                let b1 = weights[1].next(s);
                tile.load::<{ B[1] }>(b1, 64);
            }
            tile.load::<{ A[0] }>(tokens.x[0].wrapping_add(a_bytes * k), 64);
            if NA == 2 {
                tile.load::<{ A[1] }>(tokens.x[1].wrapping_add(a_bytes * k), 64);
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
        panel: usize,
        tokens: Tokens,
        token_tile: usize,
    ) {
        let first = tokens.first[token_tile];
        let mut c = [[0f32; PANEL_ROWS]; TILE_TOKENS];
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
                s.mul(y, s.load(self.task.panel(panel).scale()))
            } else {
                s.load(c)
            };
            job.store(s, &[y], panel, first + t, 1);
        }
    }

    /// Some token tiles times one or two panels; `source(i)` starts the weights of panel `first_panel + i`.
    #[inline(always)]
    fn panels<S: Simd, W: Source<S>, const NB: usize>(
        &mut self,
        s: S,
        first_panel: usize,
        token_tiles: Range<usize>,
        mut source: impl FnMut(usize) -> W,
    ) {
        let (x, job) = (self.task.task.x, self.task.task.job);
        let rows = x.layout().amx_rows().expect("activations for AMX");
        let int8 = self.task.layout.format.value() == Value::Int8;
        let (data, steps) = x.amx_tiles(int8);
        let b_tiles = self.task.layout.steps / TILE_STEPS;
        let bytes = steps * rows * 64;
        assert!(
            steps == b_tiles && data.len() >= token_tiles.end * bytes,
            "activations of the matrix's columns"
        );
        let data = data.as_ptr();
        for tile in token_tiles.clone().step_by(2) {
            let two = tile + 1 < token_tiles.end;
            let both = [tile, tile + usize::from(two)];
            let tokens =
                Tokens { x: both.map(|t| data.wrapping_add(t * bytes)), rows, first: both.map(|t| t * rows) };
            let mut weights: [W; NB] = std::array::from_fn(&mut source);
            // SAFETY: panels and activations are padded to the same number of whole B tiles.
            unsafe {
                let amx = &mut self.tiles.tile;
                match (int8, two) {
                    (false, false) => product::<S, X, W, false, 1, NB>(s, amx, tokens, &mut weights, b_tiles),
                    (false, true) => product::<S, X, W, false, 2, NB>(s, amx, tokens, &mut weights, b_tiles),
                    (true, false) => product::<S, X, W, true, 1, NB>(s, amx, tokens, &mut weights, b_tiles),
                    (true, true) => product::<S, X, W, true, 2, NB>(s, amx, tokens, &mut weights, b_tiles),
                }
            }
            self.finish::<S, 0>(s, job, first_panel, tokens, 0);
            if NB == 2 {
                self.finish::<S, 1>(s, job, first_panel + 1, tokens, 0);
            }
            if two {
                self.finish::<S, 2>(s, job, first_panel, tokens, 1);
                if NB == 2 {
                    self.finish::<S, 3>(s, job, first_panel + 1, tokens, 1);
                }
            }
        }
    }

    /// Some token tiles times the one or two panels of `panels`.
    #[inline(always)]
    fn pair<S: Simd>(&mut self, s: S, panels: Range<usize>, token_tiles: Range<usize>) {
        let layout = self.task.layout;
        let one = panels.len() == 1;
        let first = panels.start;
        if !layout.format.is_sparse() {
            let at: [*const u8; 2] =
                std::array::from_fn(|i| self.task.panel((first + i).min(panels.end - 1)).dense_bytes());
            if one {
                self.panels::<S, _, 1>(s, first, token_tiles, |i| Whole(at[i]));
            } else {
                self.panels::<S, _, 2>(s, first, token_tiles, |i| Whole(at[i]));
            }
            return;
        }
        let per_panel = panel_groups(layout);
        assert!(self.task.task.scratch.len() >= 2 * per_panel, "room for two panels");
        let expanded: *mut u8 = self.task.task.scratch.as_mut_ptr().cast();
        let expanded = |i: usize| expanded.wrapping_add(i * per_panel * size_of::<PanelGroup>());
        let from: [_; 2] = std::array::from_fn(|i| self.task.panel((first + i).min(panels.end - 1)));
        let few = token_tiles.start..(token_tiles.start + 2).min(token_tiles.end);
        let others = few.end..token_tiles.end;
        let keep = !others.is_empty();
        let words = |i: usize| Expanded::new(from[i].words(), expanded(i), keep);
        let bytes = |i: usize| Expanded::new(from[i].bytes(), expanded(i), keep);
        match (layout.format.value(), one) {
            (Value::Bf16, true) => self.panels::<S, _, 1>(s, first, few, words),
            (Value::Bf16, false) => self.panels::<S, _, 2>(s, first, few, words),
            (_, true) => self.panels::<S, _, 1>(s, first, few, bytes),
            (_, false) => self.panels::<S, _, 2>(s, first, few, bytes),
        }
        if one {
            self.panels::<S, _, 1>(s, first, others, |i| Whole(expanded(i)));
        } else {
            self.panels::<S, _, 2>(s, first, others, |i| Whole(expanded(i)));
        }
    }
}

/// Tokens of a token tile when `n` tokens are cut into as few tiles of at most 16 as possible.
pub(super) fn tile_rows(n: usize) -> usize {
    n.div_ceil(n.div_ceil(TILE_TOKENS))
}

impl<X: Tile> Kernel for AmxTask<'_, '_, X> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(mut self, s: S) {
        let panels = self.task.task.panels.clone();
        let x = self.task.task.x;
        let rows = x.layout().amx_rows().expect("activations for AMX");
        self.tiles.shaped(Shape::whole(rows));
        let token_tiles = x.n_tokens().div_ceil(rows);
        let (_, steps) = x.amx_tiles(self.task.layout.format.value() == Value::Int8);
        let near = (NEAR / (steps * rows * 64)).next_multiple_of(2).max(2);
        for tile in (0..token_tiles).step_by(near) {
            for first in panels.clone().step_by(2) {
                self.pair(s, first..(first + 2).min(panels.end), tile..(tile + near).min(token_tiles));
            }
        }
    }
}
