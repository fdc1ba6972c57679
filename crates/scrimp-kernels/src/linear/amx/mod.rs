//! Batches of `bf16` and `int8` weights, dense and sparse, with AMX.
//!
//! ```text
//! C (4 tiles)   2 blocks of up to 16 tokens × 2 tiles of 16 rows        f32 or i32, in tiles across all columns
//! A (2 tiles)   16 tokens × 64 bytes: 32 bf16 or 64 signed bytes        activations as they are, `[token][cols]`
//! B (2 tiles)   16 steps × 64 bytes: a step is [16 rows][2 or 4 cols]   packed weights as they are: 1 KiB of a tile
//! ```
//! The packed order of a tile of 16 rows *is* the order of B tiles, 16 steps each. Dense weights are loaded where they lie.
//! Sparse ones are expanded by vector instructions, 16 steps at a time, into one of two buffers in the first-level cache,
//! while the multiplications of the other one are under way; with more than 32 tokens a tile is expanded once into a panel
//! that all tokens share. Per 16 steps and full block: 4 loads and 4 products of 16 × 16 × 64 bytes.
//!
//! Each thread configures its tiles once in a region ([`ThreadTiles`]); A and C have as many rows as a block has tokens, so
//! small batches waste no work. Up to 4 tokens stay with AVX-512, which reads the weights as fast as memory gives them.
//!
//! `int8` gives the bits of every other tier. `bf16` sums differ by rounding: `tdpbf16ps` adds even and odd columns of a
//! step apart, and flushes denormals (Intel SDM, volume 2, `TDPBF16PS`).

#[cfg(target_arch = "x86_64")]
pub(crate) mod asm;
#[cfg(all(test, target_os = "linux"))]
pub(crate) mod emulator;
#[cfg(test)]
pub(crate) mod soft;
#[cfg(test)]
mod tests;

use super::{
    Activations, Job,
    packed::{PackedUnit, Steps, panel_groups},
};
use crate::{
    dispatch::Kernel,
    formats::{TILE_ROWS, packed::Value},
    isa::Simd,
    tier::Tier,
};
use std::ops::Range;

/// Tokens that stay with vector instructions.
pub(crate) const FEW_TOKENS: usize = 4;
/// Tokens of a block: rows of a tile.
const BLOCK: usize = 16;
/// Bytes of a B tile.
const TILE_BYTES: usize = 1024;
/// Steps of a B tile.
const TILE_STEPS: usize = 16;
/// Tile registers: C of token block `t` and row tile `r` is `2 t + r`.
const A: [u8; 2] = [4, 5];
const B: [u8; 2] = [6, 7];

/// The eight tile registers of a thread.
pub(crate) trait Tile {
    /// C and A tiles get `rows` rows, B tiles 16, all of 64 bytes; everything is zeroed.
    fn configure(&mut self, rows: u8);
    /// Gives the registers back: their state need no longer be saved.
    fn release(&mut self);
    /// `T = 0`
    fn zero<const T: u8>(&mut self);
    /// Loads the rows of a tile.
    ///
    /// # Safety
    /// 64 bytes can be read at `from`, `from + stride` and so on, for each row of the tile.
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize);
    /// Stores the rows of a tile.
    ///
    /// # Safety
    /// 64 bytes can be written at `to`, `to + stride` and so on, for each row of the tile.
    unsafe fn store<const T: u8>(&mut self, to: *mut u8, stride: usize);
    /// `C += A B` for bf16 pairs (`tdpbf16ps`).
    fn dot_bf16<const C: u8, const A: u8, const B: u8>(&mut self);
    /// `C += A B` for signed bytes of A and unsigned ones of B (`tdpbsud`).
    fn dot_i8u8<const C: u8, const A: u8, const B: u8>(&mut self);
}

/// A thread's tile registers, configured for a batch until they are dropped.
pub(super) struct Configured<X: Tile>(X);

impl<X: Tile> Configured<X> {
    pub(super) fn new(mut tile: X, x: &Activations) -> Self {
        tile.configure(block_rows(x.n_tokens()) as u8);
        Self(tile)
    }
}

impl<X: Tile> Drop for Configured<X> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// What a thread holds while it takes part in a region.
#[cfg(target_arch = "x86_64")]
pub(super) type ThreadTiles = Option<Configured<asm::Amx>>;
/// What a thread holds while it takes part in a region.
#[cfg(not(target_arch = "x86_64"))]
pub(super) type ThreadTiles = ();

/// Tile registers for products of `x`, where the tier has them and the batch is worth it.
#[cfg(target_arch = "x86_64")]
pub(super) fn thread_tiles(tier: Tier, x: &Activations) -> ThreadTiles {
    // SAFETY: the tier says that there are tile registers.
    (tier.has_amx() && x.token_major()).then(|| Configured::new(unsafe { asm::Amx::new() }, x))
}
/// Nothing: the CPU has no tile registers.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn thread_tiles(_: Tier, _: &Activations) -> ThreadTiles {}

/// 1 KiB of weights in the order of a B tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Buffer([[u8; 64]; TILE_STEPS]);

/// A unit of packed work, for tiles of type `X`.
pub(super) struct AmxUnit<'a, 'x, X: Tile> {
    pub(super) unit: PackedUnit<'a>,
    pub(super) tiles: &'x mut Configured<X>,
}

/// Where the weights of row tiles come from: packed or expanded bytes, or an expansion on the fly.
trait Source<S: Simd> {
    /// The next 16 steps, somewhere that stays valid until the call after the next.
    ///
    /// # Safety
    /// There are another 16 steps.
    unsafe fn next(&mut self, s: S) -> *const u8;
}

/// Whole steps in memory.
struct Whole(*const u8);

impl<S: Simd> Source<S> for Whole {
    #[inline(always)]
    unsafe fn next(&mut self, _: S) -> *const u8 {
        let at = self.0;
        self.0 = self.0.wrapping_add(TILE_BYTES);
        at
    }
}

/// Sparse steps, expanded into two buffers in turn.
struct Expanded<W> {
    steps: W,
    buffers: [Buffer; 2],
    turn: usize,
}

impl<W> Expanded<W> {
    fn new(steps: W) -> Self {
        Self { steps, buffers: [Buffer([[0; 64]; TILE_STEPS]); 2], turn: 0 }
    }
}

impl<S: Simd, W: Steps<S>> Source<S> for Expanded<W> {
    #[inline(always)]
    unsafe fn next(&mut self, s: S) -> *const u8 {
        self.turn ^= 1;
        let buffer = &mut self.buffers[self.turn];
        for (k, out) in buffer.0.iter_mut().enumerate() {
            if k % 2 == 0 {
                self.steps.prefetch(s);
            }
            // SAFETY: the caller vouches for the steps.
            s.store_b(unsafe { self.steps.next(s) }, out);
        }
        buffer.0.as_ptr().cast()
    }
}

/// Activations `[token][bytes]` and the first tokens of one or two blocks.
#[derive(Clone, Copy)]
struct Tokens {
    x: *const u8,
    stride: usize,
    /// Tokens of a block.
    rows: usize,
    first: [usize; 2],
    /// Tokens of each block that the one before it has too.
    shared: [usize; 2],
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
    let a = |i: usize| tokens.x.wrapping_add(tokens.first[i] * tokens.stride);
    tile.zero::<0>();
    if NB == 2 {
        tile.zero::<1>();
    }
    if NA == 2 {
        tile.zero::<2>();
        if NB == 2 {
            tile.zero::<3>();
        }
    }
    for block in 0..blocks {
        // SAFETY: the caller vouches for `blocks` of them, on both sides.
        unsafe {
            let b0 = weights[0].next(s);
            tile.load::<{ B[0] }>(b0, 64);
            if NB == 2 {
                let b1 = weights[1].next(s);
                tile.load::<{ B[1] }>(b1, 64);
            }
            tile.load::<{ A[0] }>(a(0).wrapping_add(64 * block), tokens.stride);
            if NA == 2 {
                tile.load::<{ A[1] }>(a(1).wrapping_add(64 * block), tokens.stride);
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

impl<X: Tile> AmxUnit<'_, '_, X> {
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
        let mut c = [[0f32; TILE_ROWS]; BLOCK];
        // SAFETY: a C tile has at most 16 rows of 64 bytes.
        unsafe { self.tiles.0.store::<T>(c.as_mut_ptr().cast(), 64) };
        let layout = self.unit.layout;
        for (t, c) in c.iter().enumerate().take(tokens.rows).skip(tokens.shared[block]) {
            let y = if layout.format.value() == Value::Int8 {
                let x = self.unit.unit.x.row_scales()[first + t];
                // 128 was added to each weight.
                let correction = x.sum.wrapping_mul(128);
                let sums = c.map(|sum| (sum.to_bits() as i32).wrapping_sub(correction) as f32);
                let y = s.mul(s.load(&sums), s.splat(x.scale));
                s.mul(y, s.load(self.unit.tile(row_tile).scale()))
            } else {
                s.load(c)
            };
            job.store(s, &[y], row_tile, first + t, 1);
        }
    }

    /// All tokens for one or two tiles of rows; `source(i)` starts the weights of the `i`-th.
    #[inline(always)]
    fn tiles<S: Simd, W: Source<S>, const NB: usize>(
        &mut self,
        s: S,
        first_tile: usize,
        mut source: impl FnMut(usize) -> W,
    ) {
        let (x, job) = (self.unit.unit.x, self.unit.unit.job);
        let (n, rows) = (x.n_tokens(), block_rows(x.n_tokens()));
        let int8 = self.unit.layout.format.value() == Value::Int8;
        let (data, stride) = x.token_bytes(int8);
        let blocks = self.unit.layout.steps / TILE_STEPS;
        assert!(stride == 64 * blocks && data.len() >= n * stride, "activations of the matrix's columns");
        let data = data.as_ptr();
        // The last block may begin in the one before it: all have as many rows as the tiles.
        let first = |block: usize| (block * rows).min(n - rows);
        let n_blocks = n.div_ceil(rows);
        for block in (0..n_blocks).step_by(2) {
            let two = block + 1 < n_blocks;
            let both = [block, block + usize::from(two)];
            let tokens = Tokens {
                x: data,
                stride,
                rows,
                first: both.map(first),
                shared: both.map(|block| block * rows - first(block)),
            };
            let mut weights: [W; NB] = std::array::from_fn(&mut source);
            // SAFETY: tiles and activations are padded to whole blocks of the same number of columns.
            unsafe {
                match (int8, two) {
                    (false, false) => {
                        product::<S, X, W, false, 1, NB>(s, &mut self.tiles.0, tokens, &mut weights, blocks);
                    }
                    (false, true) => {
                        product::<S, X, W, false, 2, NB>(s, &mut self.tiles.0, tokens, &mut weights, blocks);
                    }
                    (true, false) => {
                        product::<S, X, W, true, 1, NB>(s, &mut self.tiles.0, tokens, &mut weights, blocks);
                    }
                    (true, true) => {
                        product::<S, X, W, true, 2, NB>(s, &mut self.tiles.0, tokens, &mut weights, blocks);
                    }
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
    fn pair<S: Simd>(&mut self, s: S, tiles: Range<usize>) {
        let layout = self.unit.layout;
        let one = tiles.len() == 1;
        let first = tiles.start;
        if !layout.format.is_sparse() {
            let at: [*const u8; 2] =
                std::array::from_fn(|i| self.unit.tile((first + i).min(tiles.end - 1)).dense_bytes());
            if one {
                self.tiles::<S, _, 1>(s, first, |i| Whole(at[i]));
            } else {
                self.tiles::<S, _, 2>(s, first, |i| Whole(at[i]));
            }
            return;
        }
        if self.unit.unit.x.n_tokens() > 2 * BLOCK {
            let (expanded, per_tile) = self.unit.expand(s, tiles);
            debug_assert_eq!(expanded.start, first);
            let panel: *const u8 = self.unit.unit.panel.as_ptr().cast();
            let bytes = per_tile * size_of::<super::gemm::PanelGroup>();
            if expanded.len() == 1 {
                self.tiles::<S, _, 1>(s, first, |_| Whole(panel));
            } else {
                self.tiles::<S, _, 2>(s, first, |i| Whole(panel.wrapping_add(i * bytes)));
            }
            return;
        }
        let from: [_; 2] = std::array::from_fn(|i| self.unit.tile((first + i).min(tiles.end - 1)));
        match (layout.format.value(), one) {
            (Value::Bf16, true) => self.tiles::<S, _, 1>(s, first, |i| Expanded::new(from[i].words())),
            (Value::Bf16, false) => self.tiles::<S, _, 2>(s, first, |i| Expanded::new(from[i].words())),
            (_, true) => self.tiles::<S, _, 1>(s, first, |i| Expanded::new(from[i].bytes())),
            (_, false) => self.tiles::<S, _, 2>(s, first, |i| Expanded::new(from[i].bytes())),
        }
    }
}

/// Tokens of a block when `n` are cut into as few blocks of at most 16 as can be.
pub(super) fn block_rows(n: usize) -> usize {
    n.div_ceil(n.div_ceil(BLOCK))
}

impl<X: Tile> Kernel for AmxUnit<'_, '_, X> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let tiles = self.unit.unit.tiles.clone();
        // The panel has room for at least one tile, and for two unless a tile is huge.
        let room = self.unit.unit.panel.len() / panel_groups(self.unit.layout).max(1);
        let at_once = if self.unit.layout.format.is_sparse() && self.unit.unit.x.n_tokens() > 2 * BLOCK {
            room.clamp(1, 2)
        } else {
            2
        };
        for first in tiles.clone().step_by(at_once) {
            self.pair(s, first..(first + at_once).min(tiles.end));
        }
    }
}
