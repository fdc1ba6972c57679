//! The inner loops over pages of integer codes ([`integer`](super::storage::integer)), for a block of `R` rows.
//!
//! Minimum and scale of keys belong to dims, those of values to tokens: the sides of the products that run over the sum.
//! So they are folded into the query and the probabilities once per page, and the sums themselves are of integers:
//! ```text
//!   qk:  a[d] = round(q[d] kscale[d] / f)       f = max |q[d] kscale[d]| / LIMIT, for each page and row
//!        s[t] = sum of q[d] kmin[d] + f sum over d of code[t][d] a[d]
//!   pv:  b[t] = round(p[t] vscale[t] / f)       f = max p[t] vscale[t] / LIMIT
//!        o[d] += sum of p[t] vmin[t] + f sum over t of code[t][d] b[t]
//! ```
//! `a` and `b` have up to 16 bits, LIMIT being the most that cannot overflow an i32 sum, so next to nothing is lost against
//! f32, and the integer sums have the same bits in every tier. Bytes are widened to 16 bits when they are loaded, and
//! multiplied in pairs (`vpdpwssd`, `vpmaddwd`).
//!
//! ```text
//! a: [D/16][R][8 pairs]   b: [tile][R][8 pairs]      both i16, one 4-byte broadcast to a step of 16 pairs of codes
//! ```
//!
//! What limits it: as many multiply-adds per element as bf16 pages, at half (`int8`) or a quarter (`int4`) of the bytes.

use crate::arch::codes::CodeLanes;

/// How codes are stored: two steps of 16 pairs at a time.
pub(crate) trait Codes: Copy {
    /// Bytes of two steps.
    const BYTES: usize;
    /// The largest code.
    const LARGEST: i32;
    /// # Safety
    /// `BYTES` bytes can be read at `at`.
    unsafe fn load<S: CodeLanes>(s: S, at: *const u8) -> [S::Codes; 2];
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
    unsafe fn load<S: CodeLanes>(s: S, at: *const u8) -> [S::Codes; 2] {
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { [s.load_codes(&*at.cast()), s.load_codes(&*at.add(32).cast())] }
    }
}

impl Codes for Codes4 {
    const BYTES: usize = 32;
    const LARGEST: i32 = 15;
    #[inline(always)]
    unsafe fn load<S: CodeLanes>(s: S, at: *const u8) -> [S::Codes; 2] {
        // SAFETY: the caller vouches for 32 bytes.
        s.load_half_codes(unsafe { &*at.cast() })
    }
}

/// Two steps at a time, so many to a tile of 16 by 16.
const UNITS: usize = 4;

/// One page and a block of rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackedPage {
    /// The page.
    pub(crate) page: *const u8,
    /// The page that is read next, and need not be there.
    pub(crate) ahead: *const u8,
    /// Tokens of a page.
    pub(crate) page_tokens: usize,
    /// Blocks of 16 dims.
    pub(crate) dim_blocks: usize,
    /// Where bitmaps, center and values of a sparse page begin.
    pub(crate) bitmaps: usize,
    pub(crate) center: usize,
    pub(crate) values: usize,
    /// First tile, and how many.
    pub(crate) first: usize,
    pub(crate) tiles: usize,
    /// Room for `R` times 8 pairs for each block of dims or tile of a page.
    pub(crate) work: *mut i32,
}

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

/// Scores of `R` rows against the tiles of a page; `q` is `[R][dims]` in f32, `out` `[tiles][R][16]`.
///
/// # Safety
/// The page holds the tiles, `q`, `out` and `work` have the room that is said.
#[inline(always)]
pub(crate) unsafe fn qk<S: CodeLanes, C: Codes, const R: usize, const T: usize>(
    s: S,
    a: &PackedPage,
    q: *const f32,
    out: *mut f32,
) {
    let dim = a.dim_blocks * 16;
    let limit = limit::<C>(dim);
    let (min, scale) = (a.page, a.page.wrapping_add(2 * dim));
    let (mut constant, mut factor) = ([0.0; R], [0.0; R]);
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        for r in 0..R {
            let q = q.add(r * dim);
            let (mut sum, mut largest) = (s.splat(0.0), s.splat_i32(0));
            for b in 0..a.dim_blocks {
                let x = s.load(&*q.add(b * 16).cast());
                sum = s.mul_acc(x, s.load_bf16(&*min.add(b * 32).cast()), sum);
                let x = s.mul(x, s.load_bf16(&*scale.add(b * 32).cast()));
                largest = s.max_i32(largest, s.and_i32(s.bits(x), s.splat_i32(i32::MAX)));
            }
            let (to_int, from_int) = factors(s.reduce_max_i32(largest), limit);
            for b in 0..a.dim_blocks {
                let x = s.load(&*q.add(b * 16).cast());
                let x = s.mul(x, s.load_bf16(&*scale.add(b * 32).cast()));
                s.store_i16(s.mul(x, s.splat(to_int)), &mut *a.work.add((b * R + r) * 8).cast());
            }
            constant[r] = s.reduce_add(sum);
            factor[r] = from_int;
        }
        for line in (0..4 * dim).step_by(64) {
            s.prefetch(a.ahead.wrapping_add(line));
        }
        let codes = a.page.add(4 * dim);
        let ahead = a.ahead.wrapping_add(4 * dim);
        let tile_bytes = a.dim_blocks * UNITS * C::BYTES;
        let mut tile = 0;
        while tile < a.tiles {
            let offset = (a.first + tile) * tile_bytes;
            let out = out.add(tile * R * 16);
            let (k, ahead) = (codes.add(offset), ahead.wrapping_add(offset));
            if tile + T <= a.tiles {
                qk_tiles::<S, C, R, T>(
                    s,
                    k,
                    tile_bytes,
                    a.dim_blocks,
                    a.work,
                    &constant,
                    &factor,
                    out,
                    ahead,
                );
                tile += T;
            } else {
                qk_tiles::<S, C, R, 1>(
                    s,
                    k,
                    tile_bytes,
                    a.dim_blocks,
                    a.work,
                    &constant,
                    &factor,
                    out,
                    ahead,
                );
                tile += 1;
            }
        }
    }
}

/// # Safety
/// As [`qk`], for `T` tiles.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn qk_tiles<S: CodeLanes, C: Codes, const R: usize, const T: usize>(
    s: S,
    k: *const u8,
    tile_bytes: usize,
    dim_blocks: usize,
    work: *const i32,
    constant: &[f32; R],
    factor: &[f32; R],
    out: *mut f32,
    ahead: *const u8,
) {
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        let acc = mac_units::<S, C, R, T>(s, k, tile_bytes, dim_blocks, work, ahead);
        for t in 0..T {
            for r in 0..R {
                let x = s.mul_acc(s.to_f32(acc[t][r]), s.splat(factor[r]), s.splat(constant[r]));
                s.store(x, &mut *out.add((t * R + r) * 16).cast());
            }
        }
    }
}

/// Exact sums of codes times factors, for `N` runs of codes that start `stride` bytes apart and hold `blocks` blocks each.
///
/// # Safety
/// As [`qk`]: the runs lie inside the page, and `work` holds `blocks * R * 8` factors.
#[inline(always)]
unsafe fn mac_units<S: CodeLanes, C: Codes, const R: usize, const N: usize>(
    s: S,
    codes: *const u8,
    stride: usize,
    blocks: usize,
    work: *const i32,
    ahead: *const u8,
) -> [[S::I; R]; N] {
    let mut acc = [[s.splat_i32(0); R]; N];
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        for b in 0..blocks {
            for unit in 0..UNITS {
                let at = (b * UNITS + unit) * C::BYTES;
                let data: [[S::Codes; 2]; N] =
                    std::array::from_fn(|n| C::load(s, codes.add(n * stride + at)));
                if R <= 8 {
                    for n in 0..N {
                        s.prefetch(ahead.wrapping_add(n * stride + at));
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

/// Adds the values of the tiles of a page, weighed by `p` (`[tiles][R][16]`, as bf16 pages take it), to the outputs of
/// `R` rows (`[dim_blocks][R][16]`).
///
/// # Safety
/// As [`qk`].
#[inline(always)]
pub(crate) unsafe fn pv<S: CodeLanes, C: Codes, const R: usize, const D: usize>(
    s: S,
    a: &PackedPage,
    p: *const f32,
    acc: *mut f32,
) {
    let limit = limit::<C>(a.page_tokens);
    let (min, scale) =
        (a.page.wrapping_add(32 * a.first), a.page.wrapping_add(2 * a.page_tokens + 32 * a.first));
    let (mut constant, mut factor) = ([0.0; R], [0.0; R]);
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        for r in 0..R {
            let (mut sum, mut largest) = (s.splat(0.0), s.splat_i32(0));
            for tile in 0..a.tiles {
                let x = s.load_rounded(&*p.add((tile * R + r) * 16).cast());
                sum = s.mul_acc(x, s.load_bf16(&*min.add(tile * 32).cast()), sum);
                let x = s.mul(x, s.load_bf16(&*scale.add(tile * 32).cast()));
                largest = s.max_i32(largest, s.and_i32(s.bits(x), s.splat_i32(i32::MAX)));
            }
            let (to_int, from_int) = factors(s.reduce_max_i32(largest), limit);
            for tile in 0..a.tiles {
                let x = s.load_rounded(&*p.add((tile * R + r) * 16).cast());
                let x = s.mul(x, s.load_bf16(&*scale.add(tile * 32).cast()));
                s.store_i16(s.mul(x, s.splat(to_int)), &mut *a.work.add((tile * R + r) * 8).cast());
            }
            constant[r] = s.reduce_add(sum);
            factor[r] = from_int;
        }
        for line in (0..4 * a.page_tokens).step_by(64) {
            s.prefetch(a.ahead.wrapping_add(line));
        }
        let tile_bytes = UNITS * C::BYTES;
        let block_bytes = a.page_tokens / 16 * tile_bytes;
        let start = 4 * a.page_tokens + a.first * tile_bytes;
        let mut block = 0;
        while block < a.dim_blocks {
            let offset = start + block * block_bytes;
            let acc = acc.add(block * R * 16);
            let (v, ahead) = (a.page.add(offset), a.ahead.wrapping_add(offset));
            if block + D <= a.dim_blocks {
                pv_blocks::<S, C, R, D>(s, v, block_bytes, a.tiles, a.work, &constant, &factor, acc, ahead);
                block += D;
            } else {
                pv_blocks::<S, C, R, 1>(s, v, block_bytes, a.tiles, a.work, &constant, &factor, acc, ahead);
                block += 1;
            }
        }
    }
}

/// # Safety
/// As [`pv`], for `D` blocks of dims.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn pv_blocks<S: CodeLanes, C: Codes, const R: usize, const D: usize>(
    s: S,
    v: *const u8,
    block_bytes: usize,
    tiles: usize,
    work: *const i32,
    constant: &[f32; R],
    factor: &[f32; R],
    out: *mut f32,
    ahead: *const u8,
) {
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        let acc = mac_units::<S, C, R, D>(s, v, block_bytes, tiles, work, ahead);
        for d in 0..D {
            for r in 0..R {
                let to = &mut *out.add((d * R + r) * 16).cast();
                let before = s.add(s.load(to), s.splat(constant[r]));
                s.store(s.mul_acc(s.to_f32(acc[d][r]), s.splat(factor[r]), before), to);
            }
        }
    }
}
