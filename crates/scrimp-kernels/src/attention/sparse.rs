//! The inner loops over sparse pages ([`sparse`](super::storage::sparse)), for a block of `R` rows.
//!
//! A step's kept elements are loaded as they stand, one after the other, and spread to their lanes by the step's bitmap
//! (`vpexpandw`; in AVX2 a shuffle for each byte of the bitmap); then all is as with bf16 pages. Queries and probabilities
//! come in the form that those take. Loads run up to 64 bytes past what is kept, which the page has room for.
//!
//! A page's center adds the same to all scores of a row, `q . center`, and to outputs the sum of the row's probabilities times
//! the center: once per page.
//!
//! What limits it: memory, where the rows are few; spreading costs about two multiply-adds.

use super::codes::PackedPage;
use crate::arch::codes::CodeLanes;

/// Steps of a unit of 16 by 16 elements.
const STEPS: usize = 8;

/// A place in the values of a page, with the bitmaps of the steps that follow.
#[derive(Clone, Copy)]
struct Cursor {
    bitmaps: *const u32,
    values: *const u8,
    ahead: *const u8,
}

impl Cursor {
    /// At unit `unit` of a page.
    ///
    /// # Safety
    /// The page holds the unit.
    #[inline(always)]
    unsafe fn at(a: &PackedPage, unit: usize) -> Self {
        // SAFETY: the caller vouches for the unit.
        unsafe {
            let start = 2 * usize::from(u16::from_le(*a.page.cast::<u16>().add(unit)));
            Self {
                bitmaps: a.page.add(a.bitmaps).cast::<u32>().add(unit * STEPS),
                values: a.page.add(a.values + start),
                ahead: a.ahead.wrapping_add(a.values + start),
            }
        }
    }

    /// The elements of the next step.
    ///
    /// # Safety
    /// The page holds the step.
    #[inline(always)]
    unsafe fn next<S: CodeLanes>(&mut self, s: S, prefetch: bool) -> S::Pairs {
        // SAFETY: the caller vouches for the step; the page has 64 bytes behind its last value.
        unsafe {
            let bitmap = u32::from_le(*self.bitmaps);
            self.bitmaps = self.bitmaps.add(1);
            let pairs = s.expand_pairs(bitmap, self.values);
            let bytes = 2 * s.count_ones(bitmap);
            self.values = self.values.add(bytes);
            if prefetch {
                s.prefetch(self.ahead);
                self.ahead = self.ahead.wrapping_add(bytes);
            }
            pairs
        }
    }
}

/// Asks for the part of the next page before the values.
#[inline(always)]
fn prefetch_header<S: CodeLanes>(s: S, a: &PackedPage) {
    for line in (0..a.values).step_by(64) {
        s.prefetch(a.ahead.wrapping_add(line));
    }
}

/// Scores of `R` rows against the tiles of a page; `q` are elements as bf16 pages take them, `out` is `[tiles][R][16]`.
///
/// # Safety
/// The page holds the tiles, `q` and `out` have the room that is said.
#[inline(always)]
pub(crate) unsafe fn qk<S: CodeLanes, const R: usize, const T: usize>(
    s: S,
    a: &PackedPage,
    q: *const f32,
    out: *mut f32,
) {
    if R <= 8 {
        prefetch_header(s, a);
    }
    // In all lanes.
    let mut base = [s.splat(0.0); R];
    for step in 0..a.dim_blocks * STEPS {
        // SAFETY: the center has a pair for each step.
        unsafe {
            let pair = *a.page.add(a.center).cast::<f32>().add(step);
            let pairs = s.load_pairs(&[pair; 16]);
            for r in 0..R {
                base[r] = s.mac_pairs(base[r], pairs, q.add((step * R + r) * S::PAIR_SLOTS));
            }
        }
    }
    let mut tile = 0;
    while tile < a.tiles {
        // SAFETY: all offsets stay inside what the caller vouches for.
        unsafe {
            let out = out.add(tile * R * 16);
            if tile + T <= a.tiles {
                qk_tiles::<S, R, T>(s, a, tile, q, &base, out);
                tile += T;
            } else {
                qk_tiles::<S, R, 1>(s, a, tile, q, &base, out);
                tile += 1;
            }
        }
    }
}

/// # Safety
/// As [`qk`], for `T` tiles.
#[inline(always)]
unsafe fn qk_tiles<S: CodeLanes, const R: usize, const T: usize>(
    s: S,
    a: &PackedPage,
    tile: usize,
    q: *const f32,
    base: &[S::F; R],
    out: *mut f32,
) {
    let mut acc = [*base; T];
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        let mut cursors: [Cursor; T] =
            std::array::from_fn(|t| Cursor::at(a, (a.first + tile + t) * a.dim_blocks));
        for step in 0..a.dim_blocks * STEPS {
            for t in 0..T {
                let data = cursors[t].next(s, R <= 8);
                for r in 0..R {
                    let element = q.add((step * R + r) * S::PAIR_SLOTS);
                    acc[t][r] = s.mac_pairs(acc[t][r], data, element);
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

/// Adds the values of the tiles of a page, weighed by `p` (`[tiles][R][16]`, as bf16 pages take it), to the outputs of
/// `R` rows (`[dim_blocks][R][16]`).
///
/// # Safety
/// As [`qk`].
#[inline(always)]
pub(crate) unsafe fn pv<S: CodeLanes, const R: usize, const D: usize>(
    s: S,
    a: &PackedPage,
    p: *const f32,
    acc: *mut f32,
) {
    if R <= 8 {
        prefetch_header(s, a);
    }
    let mut sums = [s.splat(0.0); R];
    for tile in 0..a.tiles {
        for r in 0..R {
            // SAFETY: the caller vouches for the tiles' probabilities.
            sums[r] = s.add(sums[r], s.load_rounded(unsafe { &*p.add((tile * R + r) * 16).cast() }));
        }
    }
    let sums: [f32; R] = std::array::from_fn(|r| s.reduce_add(sums[r]));
    let mut block = 0;
    while block < a.dim_blocks {
        // SAFETY: all offsets stay inside what the caller vouches for.
        unsafe {
            let acc = acc.add(block * R * 16);
            if block + D <= a.dim_blocks {
                pv_blocks::<S, R, D>(s, a, block, p, &sums, acc);
                block += D;
            } else {
                pv_blocks::<S, R, 1>(s, a, block, p, &sums, acc);
                block += 1;
            }
        }
    }
}

/// # Safety
/// As [`pv`], for `D` blocks of dims.
#[inline(always)]
unsafe fn pv_blocks<S: CodeLanes, const R: usize, const D: usize>(
    s: S,
    a: &PackedPage,
    block: usize,
    p: *const f32,
    sums: &[f32; R],
    out: *mut f32,
) {
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        let units = a.page_tokens / 16;
        let mut cursors: [Cursor; D] = std::array::from_fn(|d| Cursor::at(a, (block + d) * units + a.first));
        let mut acc: [[S::F; R]; D] =
            std::array::from_fn(|d| std::array::from_fn(|r| s.load(&*out.add((d * R + r) * 16).cast())));
        for d in 0..D {
            let center = s.load_bf16(&*a.page.add(a.center + (block + d) * 32).cast());
            for r in 0..R {
                acc[d][r] = s.mul_acc(center, s.splat(sums[r]), acc[d][r]);
            }
        }
        for tile in 0..a.tiles {
            for step in 0..STEPS {
                for d in 0..D {
                    let data = cursors[d].next(s, R <= 8);
                    for r in 0..R {
                        let element = p.add((tile * R + r) * 16 + step * S::PAIR_SLOTS);
                        acc[d][r] = s.mac_pairs(acc[d][r], data, element);
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
