//! The inner loops of attention, written once over the level ([`AttentionSimd`]) and the storage ([`Format`]).
//!
//! For a block of `R` query rows and 16 keys to a tile:
//! ```text
//!   qk:      s[t][r][lane]  = sum over steps of K[t][step][lane] . q[step][r]            lane = key of the tile
//!   finish:  s              = cap tanh(scale s / cap) + bias[key]      (only with a cap or a bias)
//!   row_max: m[r]           = max over keys of s
//!   exp_sum: p[t][r][lane]  = 2^((s - m[r]) c),  l[r] = sum over keys of p               (in place of s)
//!   pv:      o[b][r][lane] += sum over steps of V[b][step][lane] . p[step][r]            lane = dim of block b
//! ```
//! `.` is a product of two bf16 pairs, or of two f32.
//!
//! ```text
//! elements q: [step][R]          broadcast one after the other, shared by T tiles
//! scores:     [tile][R][16]      all passes walk it in order; p of a tile and row stays inside its 64 bytes
//! outputs:    [block][R][16]
//! ```
//!
//! What limits it: with `R` rows a K or V vector that is loaded once feeds `R` multiply-adds; from 8 rows on the
//! multiply-add units are the limit (prefill), below that the memory that K and V come from (decode).
//!
//! Source: the order "scores of a block of rows against all keys, exact maximum, exponentials, values" is plain
//! attention (Vaswani et al. 2017) blocked for registers; the merge of key segments is that of Milakov & Gimelshein
//! 2018.

use super::format::Format;
use crate::arch::{AttentionSimd, L2, array, attention::RowPair, prefetch};
use std::marker::PhantomData;

/// Work on neighboring tiles of keys or blocks of dims, of which some are computed together in registers.
pub(crate) trait Strip<S> {
    /// Computes `N` tiles or blocks from `first` on.
    ///
    /// # Safety
    /// As the implementation says; the tiles or blocks exist.
    unsafe fn compute<const N: usize>(&self, s: S, first: usize);
}

/// Computes `n` tiles or blocks, `N` at a time and the rest one by one.
///
/// # Safety
/// As [`Strip::compute`] of `strip` for all of `0..n`.
#[inline(always)]
pub(crate) unsafe fn strips<S: AttentionSimd, W: Strip<S>, const N: usize>(s: S, strip: &W, n: usize) {
    let mut at = 0;
    // SAFETY: the caller guarantees that tiles or blocks `0..n` exist, and `at + N` or `at + 1` is at most `n`.
    unsafe {
        while at + N <= n {
            strip.compute::<N>(s, at);
            at += N;
        }
        while at < n {
            strip.compute::<1>(s, at);
            at += 1;
        }
    }
}

/// Keys and the queries that they are scored against.
#[derive(Clone, Copy)]
pub(crate) struct QkArgs {
    /// The first step of the first tile of keys.
    pub(crate) k: *const u8,
    /// Tiles of keys.
    pub(crate) tiles: usize,
    /// Steps of a tile.
    pub(crate) steps: usize,
    /// Elements, `[steps][R]`.
    pub(crate) q: *const f32,
    /// Scores, `[tiles][R][16]`.
    pub(crate) out: *mut f32,
    /// The bytes that are read after the keys, for prefetching; any address.
    pub(crate) ahead: *const u8,
}

/// Scores of `R` rows against all tiles, `T` tiles at a time.
///
/// # Safety
/// `k` has `tiles * steps` steps, `q` `steps * R` elements, `out` room for `tiles * R * 16` floats; `k` is aligned to
/// 4.
#[inline(always)]
pub(crate) unsafe fn qk<S: AttentionSimd, F: Format, const R: usize, const T: usize>(s: S, a: QkArgs) {
    // SAFETY: the caller guarantees the sizes for all of `a.tiles`.
    unsafe { strips::<S, _, T>(s, &QkStrip::<F, R>(a, PhantomData), a.tiles) }
}

struct QkStrip<F, const R: usize>(QkArgs, PhantomData<F>);

impl<S: AttentionSimd, F: Format, const R: usize> Strip<S> for QkStrip<F, R> {
    #[inline(always)]
    unsafe fn compute<const T: usize>(&self, s: S, first: usize) {
        let QkArgs { k, steps, q, out, ahead, .. } = self.0;
        let slots = F::slots::<S>();
        let tile_bytes = steps * F::STEP_BYTES;
        let (k, ahead) = (k.wrapping_add(first * tile_bytes), ahead.wrapping_add(first * tile_bytes));
        let out = out.wrapping_add(first * R * 16);
        let mut acc = [[s.splat(0.0); R]; T];
        // SAFETY: `qk` was called with room for tiles `first..first + T` in `k` and `out`, and with `steps * R`
        // elements.
        unsafe {
            for step in 0..steps {
                let at = step * F::STEP_BYTES;
                let data: [F::Step<S>; T] = array(|t| F::load(s, k.add(t * tile_bytes + at)));
                if R <= 8 {
                    for t in 0..T {
                        prefetch::<L2>(ahead.wrapping_add(t * tile_bytes + at));
                    }
                }
                for r in 0..R {
                    let element = q.add((step * R + r) * slots);
                    for t in 0..T {
                        acc[t][r] = F::mac(s, acc[t][r], data[t], element);
                    }
                }
            }
            for t in 0..T {
                for r in 0..R {
                    s.store(acc[t][r], &mut *out.add((t * R + r) * 16).cast());
                }
            }
        }
    }
}

/// Values of a page.
#[derive(Clone, Copy)]
pub(crate) struct Values {
    /// The first step of the first block.
    pub(crate) at: *const u8,
    /// Tiles of keys.
    pub(crate) tiles: usize,
}

/// Values, their probabilities and the outputs that they are added to.
#[derive(Clone, Copy)]
pub(crate) struct PvArgs<'a> {
    pub(crate) pages: &'a [Values],
    /// Bytes from block to block of a page.
    pub(crate) block_bytes: usize,
    /// Blocks of 16 dims.
    pub(crate) blocks: usize,
    /// Probabilities, `[tiles of all pages][R][16]`.
    pub(crate) p: *const f32,
    /// Outputs, `[blocks][R][16]`.
    pub(crate) acc: *mut f32,
    /// The bytes that are read after the values, for prefetching; any address.
    pub(crate) ahead: *const u8,
}

/// Adds values, weighed by `p`, to the outputs of `R` rows, page after page, `D` blocks at a time.
///
/// # Safety
/// A page has `blocks` blocks, `block_bytes` apart, with the steps of its tiles; [`exp_sum`] has written `p` for all of
/// them, `acc` has `blocks * R * 16` floats; pages are aligned to 4.
#[inline(always)]
pub(crate) unsafe fn pv<S: AttentionSimd, F: Format, const R: usize, const D: usize>(s: S, a: PvArgs<'_>) {
    let mut p = a.p;
    for &page in a.pages {
        let strip = PvStrip::<F, R> {
            page,
            block_bytes: a.block_bytes,
            p,
            acc: a.acc,
            ahead: a.ahead,
            format: PhantomData,
        };
        // SAFETY: the caller guarantees the page's blocks, and probabilities for the tiles of all pages.
        unsafe {
            strips::<S, _, D>(s, &strip, a.blocks);
            p = p.add(page.tiles * R * 16);
        }
    }
}

struct PvStrip<F, const R: usize> {
    page: Values,
    block_bytes: usize,
    p: *const f32,
    acc: *mut f32,
    ahead: *const u8,
    format: PhantomData<F>,
}

impl<S: AttentionSimd, F: Format, const R: usize> Strip<S> for PvStrip<F, R> {
    #[inline(always)]
    unsafe fn compute<const D: usize>(&self, s: S, first: usize) {
        let slots = F::slots::<S>();
        let steps = 16 / F::PAIR;
        let block_bytes = self.block_bytes;
        let offset = first * block_bytes;
        let (v, ahead) = (self.page.at.wrapping_add(offset), self.ahead.wrapping_add(offset));
        let out = self.acc.wrapping_add(first * R * 16);
        // SAFETY: `pv` was called with blocks `first..first + D` in the page and in `acc`, and with probabilities of
        // all its tiles.
        unsafe {
            let mut acc: [[S::F; R]; D] = array(|d| array(|r| s.load(&*out.add((d * R + r) * 16).cast())));
            for tile in 0..self.page.tiles {
                let p = self.p.add(tile * R * 16);
                for step in 0..steps {
                    let at = (tile * steps + step) * F::STEP_BYTES;
                    let data: [F::Step<S>; D] = array(|d| F::load(s, v.add(d * block_bytes + at)));
                    if R <= 8 {
                        for d in 0..D {
                            prefetch::<L2>(ahead.wrapping_add(d * block_bytes + at));
                        }
                    }
                    for r in 0..R {
                        let element = p.add(r * 16 + step * slots);
                        for d in 0..D {
                            acc[d][r] = F::mac(s, acc[d][r], data[d], element);
                        }
                    }
                }
            }
            for d in 0..D {
                for r in 0..R {
                    s.store(acc[d][r], &mut *out.add((d * R + r) * 16).cast());
                }
            }
        }
    }
}

/// Scores, and their scale, cap and bias.
#[derive(Clone, Copy)]
pub(crate) struct FinishArgs {
    /// `[tiles][R][16]`.
    pub(crate) scores: *mut f32,
    pub(crate) tiles: usize,
    pub(crate) scale: f32,
    /// The soft cap; 0 for none.
    pub(crate) cap: f32,
    /// A number for each key, or null.
    pub(crate) bias: *const f32,
}

/// `s = cap tanh(scale s / cap) + bias`, in place. No cap where `cap` is 0, no bias where `bias` is null.
///
/// # Safety
/// `scores` has `tiles * R * 16` floats and `bias`, unless null, `tiles * 16`.
#[inline(always)]
pub(crate) unsafe fn finish<S: AttentionSimd, const R: usize>(s: S, a: FinishArgs) {
    let FinishArgs { scores, tiles, scale, cap, bias } = a;
    let factor = 2.0 * std::f32::consts::LOG2_E / cap;
    // SAFETY: `tile < tiles` and `r < R`, so all offsets lie inside the arrays that the caller guarantees.
    unsafe {
        for tile in 0..tiles {
            let add = if bias.is_null() { s.splat(0.0) } else { s.load(&*bias.add(tile * 16).cast()) };
            for r in 0..R {
                let at = &mut *scores.add((tile * R + r) * 16).cast();
                let mut x = s.mul(s.load(at), s.splat(scale));
                if cap != 0.0 {
                    x = s.softcap(x, cap, factor);
                }
                s.store(s.add(x, add), at);
            }
        }
    }
}

/// Scores and where their maxima go.
#[derive(Clone, Copy)]
pub(crate) struct RowMaxArgs {
    /// `[tiles][R][16]`.
    pub(crate) scores: *const f32,
    pub(crate) tiles: usize,
    /// `[R]`
    pub(crate) max: *mut f32,
}

/// The largest score of each row; NaN is passed over.
///
/// # Safety
/// `scores` has `tiles * R * 16` floats, `max` has room for `R`.
#[inline(always)]
pub(crate) unsafe fn row_max<S: AttentionSimd, const R: usize>(s: S, a: RowMaxArgs) {
    // SAFETY: rows `r..r + 16` of every tile lie inside the arrays that the caller guarantees; `R` above 16 is a
    // multiple of it.
    unsafe {
        if R <= IN_REGISTERS {
            max_of_rows::<S, R>(s, R, a);
        } else {
            const { assert!(R <= IN_REGISTERS || R.is_multiple_of(IN_REGISTERS)) };
            for r in (0..R).step_by(IN_REGISTERS) {
                let part = RowMaxArgs { scores: a.scores.add(r * 16), max: a.max.add(r), ..a };
                max_of_rows::<S, IN_REGISTERS>(s, R, part);
            }
        }
    }
}

/// Rows whose maxima or sums are kept in registers.
const IN_REGISTERS: usize = 16;

/// # Safety
/// As [`row_max`], for `N` of `rows` rows.
#[inline(always)]
unsafe fn max_of_rows<S: AttentionSimd, const N: usize>(s: S, rows: usize, a: RowMaxArgs) {
    let mut acc = [s.splat(f32::NEG_INFINITY); N];
    // SAFETY: `row_max` passes `N` rows that lie inside each tile of `rows` rows, and room for `N` maxima.
    unsafe {
        for tile in 0..a.tiles {
            for r in 0..N {
                let x = s.load(&*a.scores.add((tile * rows + r) * 16).cast());
                // The second operand is returned where one is NaN.
                acc[r] = s.max(x, acc[r]);
            }
        }
        for r in 0..N {
            let mut lanes = [0.0; 16];
            s.store(acc[r], &mut lanes);
            *a.max.add(r) = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        }
    }
}

/// Scores, their maxima and where the sums of their exponentials go.
#[derive(Clone, Copy)]
pub(crate) struct ExpSumArgs {
    /// `[tiles][R][16]`.
    pub(crate) scores: *mut f32,
    pub(crate) tiles: usize,
    /// Multiplies the difference from the maximum.
    pub(crate) c: f32,
    /// `[R]`
    pub(crate) max: *const f32,
    /// `[R]`
    pub(crate) sum: *mut f32,
}

/// Turns scores into probabilities (not normalized) in place, and sums them as they are stored.
///
/// # Safety
/// `scores` has `tiles * R * 16` floats, `max` has `R`, `sum` room for `R`.
#[inline(always)]
pub(crate) unsafe fn exp_sum<S: AttentionSimd, F: Format, const R: usize>(s: S, a: ExpSumArgs) {
    // SAFETY: rows `r..r + 16` of every tile lie inside the arrays that the caller guarantees; `R` above 16 is a
    // multiple of it. After the loop no score is needed any more.
    unsafe {
        if R <= IN_REGISTERS {
            exp_of_rows::<S, F, R>(s, R, a);
        } else {
            const { assert!(R <= IN_REGISTERS || R.is_multiple_of(IN_REGISTERS)) };
            for r in (0..R).step_by(IN_REGISTERS) {
                let part =
                    ExpSumArgs { scores: a.scores.add(r * 16), max: a.max.add(r), sum: a.sum.add(r), ..a };
                exp_of_rows::<S, F, IN_REGISTERS>(s, R, part);
            }
        }
        F::pad_p(a.scores, a.tiles, R * 16);
    }
}

/// # Safety
/// As [`exp_sum`], for `N` of `rows` rows.
#[inline(always)]
unsafe fn exp_of_rows<S: AttentionSimd, F: Format, const N: usize>(s: S, rows: usize, a: ExpSumArgs) {
    let mut acc = [s.splat(0.0); N];
    // SAFETY: `exp_sum` passes `N` rows that lie inside each tile of `rows` rows, and room for `N` sums. The place of a
    // probability held a score of its row, of this tile or of one before, which has been read.
    unsafe {
        let max: [f32; N] = array(|r| *a.max.add(r));
        for tile in 0..a.tiles {
            let place = F::place_p(tile, rows * 16);
            for r in 0..N {
                let score = s.load(&*a.scores.add((tile * rows + r) * 16).cast());
                // The difference first: then large scores lose nothing.
                let x = s.mul(s.sub(score, s.splat(max[r])), s.splat(a.c));
                let to = &mut *a.scores.add(place + r * 16).cast();
                acc[r] = s.add(acc[r], F::store_p(s, s.exp2(x), to));
            }
        }
        for r in 0..N {
            *a.sum.add(r) = s.reduce_add(acc[r]);
        }
    }
}

/// Probabilities and the accumulated attention scores that they are added to.
#[derive(Clone, Copy)]
pub(crate) struct ColumnArgs<'a> {
    /// Probabilities of the first tile.
    pub(crate) p: *const f32,
    pub(crate) tiles: usize,
    /// Floats from tile to tile of the scores.
    pub(crate) stride: usize,
    /// Rows, and their weights.
    pub(crate) pairs: &'a [RowPair],
    /// A number for each key, `[tiles][16]`.
    pub(crate) columns: *mut f32,
}

/// `columns[key] += sum over the pairs' rows of weight * p[key][row]`.
///
/// # Safety
/// [`exp_sum`] has written `tiles` tiles, `stride` floats apart, from each row's offset in `p` on; `columns` has `tiles
/// * 16` floats.
#[inline(always)]
pub(crate) unsafe fn add_columns<S: AttentionSimd, F: Format>(s: S, a: ColumnArgs<'_>) {
    // Of 32 rows, a query head of a group of three has 11: one pass.
    for pairs in a.pairs.chunks(6) {
        let a = ColumnArgs { pairs, ..a };
        // SAFETY: the caller guarantees probabilities and columns for all pairs.
        unsafe {
            match pairs.len() {
                6 => add_pairs::<S, F, 6>(s, a),
                5 => add_pairs::<S, F, 5>(s, a),
                4 => add_pairs::<S, F, 4>(s, a),
                3 => add_pairs::<S, F, 3>(s, a),
                2 => add_pairs::<S, F, 2>(s, a),
                _ => add_pairs::<S, F, 1>(s, a),
            }
        }
    }
}

/// # Safety
/// As [`add_columns`].
#[inline(always)]
unsafe fn add_pairs<S: AttentionSimd, F: Format, const N: usize>(s: S, a: ColumnArgs<'_>) {
    let ColumnArgs { p, tiles, stride, pairs, columns } = a;
    // SAFETY: `tile < tiles`, and the caller guarantees probabilities and columns of that many tiles.
    unsafe {
        let weights: [F::Weights<S>; N] = array(|i| F::weights(s, &pairs[i]));
        let rows: [[*const f32; 2]; N] = array(|i| array(|row| p.add(pairs[i].rows[row])));
        for tile in (0..tiles).step_by(F::LINE) {
            let first: &mut [f32; 16] = &mut *columns.add(tile * 16).cast();
            let second = (tile + 1 < tiles).then(|| &mut *columns.add(tile * 16 + 16).cast::<[f32; 16]>());
            let second = second.filter(|_| F::LINE == 2);
            let mut acc = [s.load(first), second.as_deref().map_or(s.splat(0.0), |at| s.load(at))];
            for i in 0..N {
                let [a, b] = rows[i];
                let place = F::place_p(tile, stride);
                acc = F::add_p(s, acc, &*a.add(place).cast(), &*b.add(place).cast(), weights[i]);
            }
            s.store(acc[0], first);
            if let Some(second) = second {
                s.store(acc[1], second);
            }
        }
    }
}

/// As [`add_columns`], but `columns[key] = max(columns[key], weight * p)` over all rows.
///
/// # Safety
/// As [`add_columns`].
#[inline(always)]
pub(crate) unsafe fn max_columns<S: AttentionSimd, F: Format>(s: S, a: ColumnArgs<'_>) {
    for pair in a.pairs {
        let weights: [S::F; 2] = array(|i| s.splat(pair.weights[i]));
        for tile in 0..a.tiles {
            // SAFETY: `tile < a.tiles`, and the caller guarantees probabilities and columns of that many tiles.
            unsafe {
                let at = &mut *a.columns.add(tile * 16).cast();
                let place = F::place_p(tile, a.stride);
                let rows: [S::F; 2] = array(|i| F::load_p(s, &*a.p.add(pair.rows[i] + place).cast()));
                let best = s.max(s.mul(rows[0], weights[0]), s.mul(rows[1], weights[1]));
                let most = s.max(s.load(at), best);
                s.store(most, at);
            }
        }
    }
}
