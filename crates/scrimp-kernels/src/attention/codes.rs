//! The inner loops over pages of integer codes ([`integer`](super::storage::integer)), for a block of `R` rows.
//!
//! Both products sum over the index that minimum and scale belong to: dims for keys, tokens for values. Minimum and
//! scale are therefore multiplied into the query and the probabilities once per page, and the long sums are of
//! integers:
//! ```text
//!   qk:  a[d] = round(q[d] kscale[d] / f)       f = max |q[d] kscale[d]| / LIMIT, for each page and row
//!        s[t] = sum of q[d] kmin[d] + f sum over d of code[t][d] a[d]
//!   pv:  b[t] = round(p[t] vscale[t] / f)       f = max p[t] vscale[t] / LIMIT
//!        o[d] += sum of p[t] vmin[t] + f sum over t of code[t][d] b[t]
//!
//! a: [D/16][R][8 pairs]   b: [tile][R][8 pairs]      i16; one 4-byte broadcast per step of 16 pairs of codes
//! ```
//! Codes are widened to 16 bits when they are loaded and multiplied in pairs (`vpdpwssd`, `vpmaddwd`).
//!
//! Error: `a` and `b` have up to 16 bits; LIMIT is the largest value for which an i32 sum cannot overflow. The integer
//! sums have the same bits at every level.
//!
//! Limit: as many multiply-adds per element as bf16 pages, at half (`int8`) or a quarter (`int4`) of the bytes.

use super::{
    packed_page::{PackedPvArgs, PackedQkArgs},
    qk_pv::{Strip, strips},
};
use crate::arch::{AttentionSimd, L2, array, prefetch};
use std::marker::PhantomData;

/// How codes are stored: two steps of 16 pairs at a time.
pub(crate) trait Codes: Copy {
    /// Bytes of two steps.
    const BYTES: usize;
    /// The largest code.
    const LARGEST: i32;
    /// # Safety
    /// `BYTES` bytes can be read at `at`.
    unsafe fn load<S: AttentionSimd>(s: S, at: *const u8) -> [S::Codes; 2];
}

/// A byte each.
#[derive(Clone, Copy)]
pub(crate) struct Codes8;
/// Half a byte each.
#[derive(Clone, Copy)]
pub(crate) struct Codes4;

impl Codes for Codes8 {
    const BYTES: usize = 64;
    const LARGEST: i32 = 255;
    #[inline(always)]
    unsafe fn load<S: AttentionSimd>(s: S, at: *const u8) -> [S::Codes; 2] {
        // SAFETY: the caller guarantees `BYTES` readable bytes, which are 64; byte arrays need no alignment.
        unsafe { [s.load_codes(&*at.cast()), s.load_codes(&*at.add(32).cast())] }
    }
}

impl Codes for Codes4 {
    const BYTES: usize = 32;
    const LARGEST: i32 = 15;
    #[inline(always)]
    unsafe fn load<S: AttentionSimd>(s: S, at: *const u8) -> [S::Codes; 2] {
        // SAFETY: the caller guarantees `BYTES` readable bytes, which are 32; byte arrays need no alignment.
        s.load_half_codes(unsafe { &*at.cast() })
    }
}

/// Two steps at a time, so many to a tile of 16 by 16.
const UNITS: usize = 4;

/// Largest magnitude of a 16-bit factor, where `n` products with codes are summed.
const fn limit<C: Codes>(n: usize) -> f32 {
    let limit = i32::MAX as usize / (C::LARGEST as usize * n);
    if limit < i16::MAX as usize { limit as f32 } else { i16::MAX as f32 }
}

/// The factors from numbers to integers and back, given the bits of the largest magnitude. NaN stays NaN.
#[inline(always)]
fn factors(largest: i32, limit: f32) -> (f32, f32) {
    let largest = f32::from_bits(largest as u32);
    if largest < 1e-30 { (0.0, 0.0) } else { (limit / largest, largest / limit) }
}

/// Numbers of `R` rows, 16 at a time, that codes are multiplied with: queries or probabilities.
trait Operand<S: AttentionSimd> {
    /// Vector `at` of row `r`.
    ///
    /// # Safety
    /// The row has that vector.
    unsafe fn load(&self, s: S, r: usize, at: usize) -> S::F;
}

/// Queries, `[R][blocks][16]` f32.
struct Queries {
    q: *const f32,
    blocks: usize,
}

impl<S: AttentionSimd> Operand<S> for Queries {
    #[inline(always)]
    unsafe fn load(&self, s: S, r: usize, at: usize) -> S::F {
        // SAFETY: the caller guarantees vector `at` of row `r`.
        s.load(unsafe { &*self.q.add((r * self.blocks + at) * 16).cast() })
    }
}

/// Probabilities of `R` rows, `[tiles][R][16]`, rounded to bf16.
struct Probabilities<const R: usize>(*const f32);

impl<S: AttentionSimd, const R: usize> Operand<S> for Probabilities<R> {
    #[inline(always)]
    unsafe fn load(&self, s: S, r: usize, at: usize) -> S::F {
        // SAFETY: the caller guarantees vector `at` of row `r`.
        s.load_rounded(unsafe { &*self.0.add((at * R + r) * 16).cast() })
    }
}

/// Minima and scales of `n` vectors of codes, and the largest 16-bit factor.
#[derive(Clone, Copy)]
struct Header {
    min: *const u8,
    scale: *const u8,
    n: usize,
    limit: f32,
}

/// Folds minima and scales into the operand: writes its 16-bit factors to `work` (`[n][R][8 pairs]`), and returns for
/// each row the constant that the minima add, and the factor of the integer sums.
///
/// # Safety
/// The header has `n` vectors of minima and of scales, the operand `n` vectors of `R` rows, and `work` room for their
/// factors.
#[inline(always)]
unsafe fn fold<S: AttentionSimd, O: Operand<S>, const R: usize>(
    s: S,
    operand: O,
    header: Header,
    work: *mut i32,
) -> ([f32; R], [f32; R]) {
    let Header { min, scale, n, limit } = header;
    let (mut constant, mut factor) = ([0.0; R], [0.0; R]);
    for r in 0..R {
        let (mut sum, mut largest) = (s.splat(0.0), s.splat_i32(0));
        // SAFETY: `i < n` and `r < R`, so header, operand and `work` have the vectors (the caller guarantees it).
        unsafe {
            for i in 0..n {
                let x = operand.load(s, r, i);
                sum = s.mul_acc(x, s.load_bf16(&*min.add(i * 32).cast()), sum);
                let x = s.mul(x, s.load_bf16(&*scale.add(i * 32).cast()));
                largest = s.max_i32(largest, s.and_i32(s.bits(x), s.splat_i32(i32::MAX)));
            }
            let (to_int, from_int) = factors(s.reduce_max_i32(largest), limit);
            for i in 0..n {
                let x = operand.load(s, r, i);
                let x = s.mul(x, s.load_bf16(&*scale.add(i * 32).cast()));
                s.store_i16(s.mul(x, s.splat(to_int)), &mut *work.add((i * R + r) * 8).cast());
            }
            constant[r] = s.reduce_add(sum);
            factor[r] = from_int;
        }
    }
    (constant, factor)
}

/// Prefetches `bytes` bytes: the header of the page that is read next.
#[inline(always)]
fn prefetch_header(ahead: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        prefetch::<L2>(ahead.wrapping_add(line));
    }
}

/// Scores of `R` rows against the tiles of a page; `q` is `[R][dims]` in f32.
///
/// # Safety
/// The page holds the tiles, `q`, `out` and `work` have room for `R` rows.
#[inline(always)]
pub(crate) unsafe fn qk<S: AttentionSimd, C: Codes, const R: usize, const T: usize>(
    s: S,
    PackedQkArgs { page: a, q, out }: PackedQkArgs<'_>,
) {
    let dim = a.dim_blocks * 16;
    let header =
        Header { min: a.page, scale: a.page.wrapping_add(2 * dim), n: a.dim_blocks, limit: limit::<C>(dim) };
    let stride = a.dim_blocks * UNITS * C::BYTES;
    let start = 4 * dim + a.first * stride;
    // SAFETY: the caller guarantees the page, with its header and `a.tiles` tiles, and room for `R` rows.
    unsafe {
        let (constant, factor) = fold::<S, _, R>(s, Queries { q, blocks: a.dim_blocks }, header, a.work);
        prefetch_header(a.ahead, 4 * dim);
        let (codes, ahead) = (a.page.wrapping_add(start), a.ahead.wrapping_add(start));
        let runs = CodeRuns { codes, stride, blocks: a.dim_blocks, work: a.work, ahead };
        strips::<S, _, T>(s, &QkStrip::<C, R> { runs, constant, factor, out, codes: PhantomData }, a.tiles);
    }
}

struct QkStrip<C, const R: usize> {
    /// A run is a tile.
    runs: CodeRuns,
    constant: [f32; R],
    factor: [f32; R],
    out: *mut f32,
    codes: PhantomData<C>,
}

impl<S: AttentionSimd, C: Codes, const R: usize> Strip<S> for QkStrip<C, R> {
    #[inline(always)]
    unsafe fn compute<const T: usize>(&self, s: S, first: usize) {
        let out = self.out.wrapping_add(first * R * 16);
        // SAFETY: `qk` was called with a page that holds tiles `first..first + T`, and with room for their scores.
        unsafe {
            let acc = mac_units::<S, C, R, T>(s, self.runs.from(first));
            for t in 0..T {
                for r in 0..R {
                    let x =
                        s.mul_acc(s.to_f32(acc[t][r]), s.splat(self.factor[r]), s.splat(self.constant[r]));
                    s.store(x, &mut *out.add((t * R + r) * 16).cast());
                }
            }
        }
    }
}

/// Runs of codes that are multiplied with the same factors.
#[derive(Clone, Copy)]
struct CodeRuns {
    /// The first run.
    codes: *const u8,
    /// Bytes from run to run.
    stride: usize,
    /// Blocks of a run.
    blocks: usize,
    /// Factors, `[blocks][R][8 pairs]`.
    work: *const i32,
    /// The bytes that are read after the runs, for prefetching; any address.
    ahead: *const u8,
}

impl CodeRuns {
    /// Those from run `first` on.
    #[inline(always)]
    fn from(self, first: usize) -> Self {
        let offset = first * self.stride;
        Self { codes: self.codes.wrapping_add(offset), ahead: self.ahead.wrapping_add(offset), ..self }
    }
}

/// Exact sums of codes times factors, for `N` runs.
///
/// # Safety
/// `N` runs can be read, and `work` holds `blocks * R * 8` factors.
#[inline(always)]
unsafe fn mac_units<S: AttentionSimd, C: Codes, const R: usize, const N: usize>(
    s: S,
    a: CodeRuns,
) -> [[S::I; R]; N] {
    let CodeRuns { codes, stride, blocks, work, ahead } = a;
    let mut acc = [[s.splat_i32(0); R]; N];
    // SAFETY: `n < N` and `b < blocks`, so all offsets lie inside the runs and factors that the caller guarantees.
    unsafe {
        for b in 0..blocks {
            for unit in 0..UNITS {
                let at = (b * UNITS + unit) * C::BYTES;
                let data: [[S::Codes; 2]; N] = array(|n| C::load(s, codes.add(n * stride + at)));
                if R <= 8 {
                    for n in 0..N {
                        prefetch::<L2>(ahead.wrapping_add(n * stride + at));
                    }
                }
                for half in 0..2 {
                    for r in 0..R {
                        let element = *work.add((b * R + r) * 8 + unit * 2 + half);
                        for n in 0..N {
                            acc[n][r] = s.mac_codes(acc[n][r], data[n][half], element);
                        }
                    }
                }
            }
        }
    }
    acc
}

/// Adds the values of the tiles of a page, weighed by `p`, to the outputs of `R` rows.
///
/// # Safety
/// The page holds the tiles, `p`, `acc` and `work` have room for `R` rows.
#[inline(always)]
pub(crate) unsafe fn pv<S: AttentionSimd, C: Codes, const R: usize, const D: usize>(
    s: S,
    PackedPvArgs { page: a, p, acc }: PackedPvArgs<'_>,
) {
    let header = Header {
        min: a.page.wrapping_add(32 * a.first),
        scale: a.page.wrapping_add(2 * a.page_tokens + 32 * a.first),
        n: a.tiles,
        limit: limit::<C>(a.page_tokens),
    };
    let tile_bytes = UNITS * C::BYTES;
    let stride = a.page_tokens / 16 * tile_bytes;
    let start = 4 * a.page_tokens + a.first * tile_bytes;
    // SAFETY: the caller guarantees the page, with its header and `a.tiles` tiles of all blocks, and room for `R` rows.
    unsafe {
        let (constant, factor) = fold::<S, _, R>(s, Probabilities::<R>(p), header, a.work);
        prefetch_header(a.ahead, 4 * a.page_tokens);
        let (codes, ahead) = (a.page.wrapping_add(start), a.ahead.wrapping_add(start));
        let runs = CodeRuns { codes, stride, blocks: a.tiles, work: a.work, ahead };
        strips::<S, _, D>(
            s,
            &PvStrip::<C, R> { runs, constant, factor, acc, codes: PhantomData },
            a.dim_blocks,
        );
    }
}

struct PvStrip<C, const R: usize> {
    /// A run is a block of dims.
    runs: CodeRuns,
    constant: [f32; R],
    factor: [f32; R],
    acc: *mut f32,
    codes: PhantomData<C>,
}

impl<S: AttentionSimd, C: Codes, const R: usize> Strip<S> for PvStrip<C, R> {
    #[inline(always)]
    unsafe fn compute<const D: usize>(&self, s: S, first: usize) {
        let out = self.acc.wrapping_add(first * R * 16);
        // SAFETY: `pv` was called with a page that holds blocks `first..first + D`, and with their outputs.
        unsafe {
            let acc = mac_units::<S, C, R, D>(s, self.runs.from(first));
            for d in 0..D {
                for r in 0..R {
                    let to = &mut *out.add((d * R + r) * 16).cast();
                    let before = s.add(s.load(to), s.splat(self.constant[r]));
                    s.store(s.mul_acc(s.to_f32(acc[d][r]), s.splat(self.factor[r]), before), to);
                }
            }
        }
    }
}
