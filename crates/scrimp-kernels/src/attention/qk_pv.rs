//! The inner loops of attention, written once over tier ([`Lanes`]) and storage ([`Format`]).
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
//! Source: the order "scores of a block of rows against all keys, exact maximum, exponentials, values" is plain attention
//! (Vaswani et al. 2017) blocked for registers; the merge of key segments is that of Milakov & Gimelshein 2018.

use super::format::Format;
use crate::arch::attention::{Lanes, RowPair};

/// Scores of `R` rows against `tiles` tiles of keys.
///
/// # Safety
/// `k` has `tiles * steps` steps, `q` `steps * R` elements, `out` room for `tiles * R * 16` floats; `k` is aligned to 4.
#[inline(always)]
pub(crate) unsafe fn qk<S: Lanes, F: Format, const R: usize, const T: usize>(
    s: S,
    k: *const u8,
    tiles: usize,
    steps: usize,
    q: *const f32,
    out: *mut f32,
    ahead: *const u8,
) {
    let tile_bytes = steps * F::STEP_BYTES;
    let mut tile = 0;
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        while tile + T <= tiles {
            let offset = tile * tile_bytes;
            let ahead = ahead.wrapping_add(offset);
            qk_tiles::<S, F, R, T>(s, k.add(offset), tile_bytes, steps, q, out.add(tile * R * 16), ahead);
            tile += T;
        }
        while tile < tiles {
            let offset = tile * tile_bytes;
            let ahead = ahead.wrapping_add(offset);
            qk_tiles::<S, F, R, 1>(s, k.add(offset), tile_bytes, steps, q, out.add(tile * R * 16), ahead);
            tile += 1;
        }
    }
}

/// # Safety
/// As [`qk`], for `T` tiles.
#[inline(always)]
unsafe fn qk_tiles<S: Lanes, F: Format, const R: usize, const T: usize>(
    s: S,
    k: *const u8,
    tile_bytes: usize,
    steps: usize,
    q: *const f32,
    out: *mut f32,
    ahead: *const u8,
) {
    let slots = F::slots::<S>();
    let mut acc = [[s.splat(0.0); R]; T];
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        for step in 0..steps {
            let at = step * F::STEP_BYTES;
            let data: [F::Step<S>; T] = std::array::from_fn(|t| F::load(s, k.add(t * tile_bytes + at)));
            if R <= 8 {
                for t in 0..T {
                    s.prefetch(ahead.wrapping_add(t * tile_bytes + at));
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

/// Values of a page.
#[derive(Clone, Copy)]
pub(crate) struct Values {
    /// The first step of the first block.
    pub(crate) at: *const u8,
    /// Tiles of keys.
    pub(crate) tiles: usize,
}

/// Adds values, weighed by `p`, to the outputs of `R` rows, page after page.
///
/// # Safety
/// A page has `blocks` blocks, `block_bytes` apart, with the steps of its tiles; `p` is what [`exp_sum`] wrote for all of
/// them, `acc` has `blocks * R * 16` floats; pages are aligned to 4.
#[inline(always)]
pub(crate) unsafe fn pv<S: Lanes, F: Format, const R: usize, const D: usize>(
    s: S,
    pages: &[Values],
    block_bytes: usize,
    blocks: usize,
    mut p: *const f32,
    acc: *mut f32,
    ahead: *const u8,
) {
    for &page in pages {
        // SAFETY: the caller's word.
        unsafe {
            pv_page::<S, F, R, D>(s, page, block_bytes, blocks, p, acc, ahead);
            p = p.add(page.tiles * R * 16);
        }
    }
}

/// # Safety
/// As [`pv`], for one page.
#[inline(always)]
unsafe fn pv_page<S: Lanes, F: Format, const R: usize, const D: usize>(
    s: S,
    Values { at: v, tiles }: Values,
    block_bytes: usize,
    blocks: usize,
    p: *const f32,
    acc: *mut f32,
    ahead: *const u8,
) {
    let mut block = 0;
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        while block + D <= blocks {
            let offset = block * block_bytes;
            let ahead = ahead.wrapping_add(offset);
            pv_blocks::<S, F, R, D>(s, v.add(offset), block_bytes, tiles, p, acc.add(block * R * 16), ahead);
            block += D;
        }
        while block < blocks {
            let offset = block * block_bytes;
            let ahead = ahead.wrapping_add(offset);
            pv_blocks::<S, F, R, 1>(s, v.add(offset), block_bytes, tiles, p, acc.add(block * R * 16), ahead);
            block += 1;
        }
    }
}

/// # Safety
/// As [`pv`], for `D` blocks.
#[inline(always)]
unsafe fn pv_blocks<S: Lanes, F: Format, const R: usize, const D: usize>(
    s: S,
    v: *const u8,
    block_bytes: usize,
    tiles: usize,
    p: *const f32,
    out: *mut f32,
    ahead: *const u8,
) {
    let slots = F::slots::<S>();
    let steps = 16 / F::PAIR;
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        let mut acc: [[S::F; R]; D] =
            std::array::from_fn(|d| std::array::from_fn(|r| s.load(&*out.add((d * R + r) * 16).cast())));
        for tile in 0..tiles {
            let p = p.add(tile * R * 16);
            for step in 0..steps {
                let at = (tile * steps + step) * F::STEP_BYTES;
                let data: [F::Step<S>; D] = std::array::from_fn(|d| F::load(s, v.add(d * block_bytes + at)));
                if R <= 8 {
                    for d in 0..D {
                        s.prefetch(ahead.wrapping_add(d * block_bytes + at));
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

/// `s = cap tanh(scale s / cap) + bias`, in place. No cap where `cap` is 0, no bias where `bias` is null.
///
/// # Safety
/// `scores` has `tiles * R * 16` floats and `bias`, unless null, `tiles * 16`.
#[inline(always)]
pub(crate) unsafe fn finish<S: Lanes, const R: usize>(
    s: S,
    scores: *mut f32,
    tiles: usize,
    scale: f32,
    cap: f32,
    bias: *const f32,
) {
    let factor = 2.0 * std::f32::consts::LOG2_E / cap;
    // SAFETY: all offsets stay inside what the caller vouches for.
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

/// The largest score of each row; NaN is passed over.
///
/// # Safety
/// `scores` has `tiles * R * 16` floats, `max` has room for `R`.
#[inline(always)]
pub(crate) unsafe fn row_max<S: Lanes, const R: usize>(
    s: S,
    scores: *const f32,
    tiles: usize,
    max: *mut f32,
) {
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        if R <= IN_REGISTERS {
            max_of_rows::<S, R>(s, scores, R, tiles, max);
        } else {
            for r in (0..R).step_by(IN_REGISTERS) {
                max_of_rows::<S, IN_REGISTERS>(s, scores.add(r * 16), R, tiles, max.add(r));
            }
        }
    }
}

/// Rows whose maxima or sums are kept in registers.
const IN_REGISTERS: usize = 16;

/// # Safety
/// As [`row_max`], for `N` of `rows` rows.
#[inline(always)]
unsafe fn max_of_rows<S: Lanes, const N: usize>(
    s: S,
    scores: *const f32,
    rows: usize,
    tiles: usize,
    max: *mut f32,
) {
    let mut acc = [s.splat(f32::NEG_INFINITY); N];
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        for tile in 0..tiles {
            for r in 0..N {
                let x = s.load(&*scores.add((tile * rows + r) * 16).cast());
                // The second operand is returned where one is NaN.
                acc[r] = s.max(x, acc[r]);
            }
        }
        for r in 0..N {
            let mut lanes = [0.0; 16];
            s.store(acc[r], &mut lanes);
            *max.add(r) = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        }
    }
}

/// Turns scores into probabilities (not normalized) in place, and sums them as they are stored.
///
/// # Safety
/// `scores` has `tiles * R * 16` floats, `max` has `R`, `sum` room for `R`.
#[inline(always)]
pub(crate) unsafe fn exp_sum<S: Lanes, F: Format, const R: usize>(
    s: S,
    scores: *mut f32,
    tiles: usize,
    c: f32,
    max: *const f32,
    sum: *mut f32,
) {
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        if R <= IN_REGISTERS {
            exp_of_rows::<S, F, R>(s, scores, R, tiles, c, max, sum);
        } else {
            for r in (0..R).step_by(IN_REGISTERS) {
                let (scores, max, sum) = (scores.add(r * 16), max.add(r), sum.add(r));
                exp_of_rows::<S, F, IN_REGISTERS>(s, scores, R, tiles, c, max, sum);
            }
        }
        F::pad_p(scores, tiles, R * 16);
    }
}

/// # Safety
/// As [`exp_sum`], for `N` of `rows` rows.
#[inline(always)]
unsafe fn exp_of_rows<S: Lanes, F: Format, const N: usize>(
    s: S,
    scores: *mut f32,
    rows: usize,
    tiles: usize,
    c: f32,
    max: *const f32,
    sum: *mut f32,
) {
    let mut acc = [s.splat(0.0); N];
    // SAFETY: all offsets stay inside what the caller vouches for; the place of a probability held a score of its row, of
    // this tile or of one before, which has been read.
    unsafe {
        let max: [f32; N] = std::array::from_fn(|r| *max.add(r));
        for tile in 0..tiles {
            let place = F::place_p(tile, rows * 16);
            for r in 0..N {
                let score = s.load(&*scores.add((tile * rows + r) * 16).cast());
                // The difference first: then large scores lose nothing.
                let x = s.mul(s.sub(score, s.splat(max[r])), s.splat(c));
                let to = &mut *scores.add(place + r * 16).cast();
                acc[r] = s.add(acc[r], F::store_p(s, s.exp2(x), to));
            }
        }
        for r in 0..N {
            *sum.add(r) = s.reduce_add(acc[r]);
        }
    }
}

/// `columns[key] += sum over the pairs' rows of weight * p[key][row]`.
///
/// # Safety
/// [`exp_sum`] has written `tiles` tiles, `stride` floats apart, from each row's offset in `p` on; `columns` has `tiles * 16` floats.
#[inline(always)]
pub(crate) unsafe fn add_columns<S: Lanes, F: Format>(
    s: S,
    p: *const f32,
    tiles: usize,
    stride: usize,
    pairs: &[RowPair],
    columns: *mut f32,
) {
    // Of 32 rows, a query head of a group of three has 11: one pass.
    for pairs in pairs.chunks(6) {
        // SAFETY: what the caller vouches for.
        unsafe {
            match pairs.len() {
                6 => add_pairs::<S, F, 6>(s, p, tiles, stride, pairs, columns),
                5 => add_pairs::<S, F, 5>(s, p, tiles, stride, pairs, columns),
                4 => add_pairs::<S, F, 4>(s, p, tiles, stride, pairs, columns),
                3 => add_pairs::<S, F, 3>(s, p, tiles, stride, pairs, columns),
                2 => add_pairs::<S, F, 2>(s, p, tiles, stride, pairs, columns),
                _ => add_pairs::<S, F, 1>(s, p, tiles, stride, pairs, columns),
            }
        }
    }
}

/// # Safety
/// As [`add_columns`].
#[inline(always)]
unsafe fn add_pairs<S: Lanes, F: Format, const N: usize>(
    s: S,
    p: *const f32,
    tiles: usize,
    stride: usize,
    pairs: &[RowPair],
    columns: *mut f32,
) {
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        let weights: [F::Weights<S>; N] = std::array::from_fn(|i| F::weights(s, &pairs[i]));
        let rows: [[*const f32; 2]; N] = std::array::from_fn(|i| pairs[i].rows.map(|row| p.add(row)));
        for tile in (0..tiles).step_by(F::LINE) {
            let first: &mut [f32; 16] = &mut *columns.add(tile * 16).cast();
            let second = (tile + 1 < tiles).then(|| &mut *columns.add(tile * 16 + 16).cast::<[f32; 16]>());
            let second = second.filter(|_| F::LINE == 2);
            let mut acc = [s.load(first), second.as_deref().map_or(s.splat(0.0), |at| s.load(at))];
            for i in 0..N {
                let [a, b] = rows[i].map(|row| &*row.add(F::place_p(tile, stride)).cast());
                acc = F::add_p(s, acc, a, b, weights[i]);
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
pub(crate) unsafe fn max_columns<S: Lanes, F: Format>(
    s: S,
    p: *const f32,
    tiles: usize,
    stride: usize,
    pairs: &[RowPair],
    columns: *mut f32,
) {
    for pair in pairs {
        let weights = pair.weights.map(|w| s.splat(w));
        for tile in 0..tiles {
            // SAFETY: all offsets stay inside what the caller vouches for.
            unsafe {
                let at = &mut *columns.add(tile * 16).cast();
                let rows = pair.rows.map(|row| F::load_p(s, &*p.add(row + F::place_p(tile, stride)).cast()));
                let best = s.max(s.mul(rows[0], weights[0]), s.mul(rows[1], weights[1]));
                let most = s.max(s.load(at), best);
                s.store(most, at);
            }
        }
    }
}
