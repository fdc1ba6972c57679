//! The inner loops over sparse pages ([`sparse`](super::storage::sparse)), for a block of `R` rows.
//!
//! ```text
//!   qk:  s[t]  = q . center + sum over stored elements (t, d) of q[d] value[t][d]
//!   pv:  o[d] += center[d] (sum over t of p[t]) + sum over stored elements (t, d) of p[t] value[t][d]
//! ```
//! The stored elements of a step are loaded consecutively and spread to their lanes by the step's bitmap (`vpexpandw`;
//! in AVX2 a shuffle per byte of the bitmap). The products, queries and probabilities are those of bf16 pages. Loads
//! read up to 64 bytes behind the last element; the page has that padding.
//!
//! Error: that of bf16 pages, against the page as it is stored.
//!
//! Limit: memory for few rows. Spreading costs about two multiply-adds per step.

use super::{
    packed_page::{PackedPage, PackedPvArgs, PackedQkArgs},
    qk_pv::{Strip, strips},
};
use crate::arch::{AttentionSimd, L2, array, prefetch};

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
        // SAFETY: the caller guarantees the unit; a page begins with the starts of all its units.
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
    unsafe fn next<S: AttentionSimd>(&mut self, s: S, ahead: bool) -> S::Pairs {
        // SAFETY: the caller guarantees the step; the page has 64 bytes behind its last value.
        unsafe {
            let bitmap = u32::from_le(*self.bitmaps);
            self.bitmaps = self.bitmaps.add(1);
            let pairs = s.expand_pairs(bitmap, self.values);
            let bytes = 2 * s.count_ones(bitmap);
            self.values = self.values.add(bytes);
            if ahead {
                prefetch::<L2>(self.ahead);
                self.ahead = self.ahead.wrapping_add(bytes);
            }
            pairs
        }
    }
}

/// Prefetches the header of the page that is read next: all bytes before its values.
#[inline(always)]
fn prefetch_header(a: &PackedPage) {
    for line in (0..a.values).step_by(64) {
        prefetch::<L2>(a.ahead.wrapping_add(line));
    }
}

/// Scores of `R` rows against the tiles of a page; `q` are elements as bf16 pages take them.
///
/// # Safety
/// The page holds the tiles, `q` and `out` have room for `R` rows.
#[inline(always)]
pub(crate) unsafe fn qk<S: AttentionSimd, const R: usize, const T: usize>(
    s: S,
    PackedQkArgs { page, q, out }: PackedQkArgs<'_>,
) {
    if R <= 8 {
        prefetch_header(page);
    }
    // In all lanes.
    let mut base = [s.splat(0.0); R];
    for step in 0..page.dim_blocks * STEPS {
        // SAFETY: the center has a pair for each step, and `q` an element for each step and row.
        unsafe {
            let pair = *page.page.add(page.center).cast::<f32>().add(step);
            let pairs = s.load_pairs(&[pair; 16]);
            for r in 0..R {
                base[r] = s.mac_pairs(base[r], pairs, q.add((step * R + r) * S::PAIR_SLOTS));
            }
        }
    }
    // SAFETY: the caller guarantees `page.tiles` tiles, and room for their scores.
    unsafe { strips::<S, _, T>(s, &QkStrip::<S, R> { page, q, base, out }, page.tiles) };
}

struct QkStrip<'a, S: AttentionSimd, const R: usize> {
    page: &'a PackedPage,
    q: *const f32,
    /// Products with the center, in all lanes.
    base: [S::F; R],
    out: *mut f32,
}

impl<S: AttentionSimd, const R: usize> Strip<S> for QkStrip<'_, S, R> {
    #[inline(always)]
    unsafe fn compute<const T: usize>(&self, s: S, first: usize) {
        let (a, q) = (self.page, self.q);
        let out = self.out.wrapping_add(first * R * 16);
        let mut acc = [self.base; T];
        // SAFETY: `qk` was called with a page that holds tiles `first..first + T`, with elements for all steps, and
        // with room for the scores.
        unsafe {
            let mut cursors: [Cursor; T] = array(|t| Cursor::at(a, (a.first + first + t) * a.dim_blocks));
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
}

/// Adds the values of the tiles of a page, weighed by `p`, to the outputs of `R` rows.
///
/// # Safety
/// The page holds the tiles, `p` and `acc` have room for `R` rows.
#[inline(always)]
pub(crate) unsafe fn pv<S: AttentionSimd, const R: usize, const D: usize>(
    s: S,
    PackedPvArgs { page, p, acc }: PackedPvArgs<'_>,
) {
    if R <= 8 {
        prefetch_header(page);
    }
    let mut sums = [s.splat(0.0); R];
    for tile in 0..page.tiles {
        for r in 0..R {
            // SAFETY: the caller guarantees probabilities for `page.tiles` tiles of `R` rows.
            sums[r] = s.add(sums[r], s.load_rounded(unsafe { &*p.add((tile * R + r) * 16).cast() }));
        }
    }
    let sums: [f32; R] = array(|r| s.reduce_add(sums[r]));
    // SAFETY: the caller guarantees `page.dim_blocks` blocks and their outputs.
    unsafe { strips::<S, _, D>(s, &PvStrip::<R> { page, p, sums, acc }, page.dim_blocks) };
}

struct PvStrip<'a, const R: usize> {
    page: &'a PackedPage,
    p: *const f32,
    /// Sums of the rows' probabilities.
    sums: [f32; R],
    acc: *mut f32,
}

impl<S: AttentionSimd, const R: usize> Strip<S> for PvStrip<'_, R> {
    #[inline(always)]
    unsafe fn compute<const D: usize>(&self, s: S, first: usize) {
        let (a, p) = (self.page, self.p);
        let out = self.acc.wrapping_add(first * R * 16);
        // SAFETY: `pv` was called with a page that holds blocks `first..first + D`, with their outputs, and with
        // probabilities of all tiles.
        unsafe {
            let units = a.page_tokens / 16;
            let mut cursors: [Cursor; D] = array(|d| Cursor::at(a, (first + d) * units + a.first));
            let mut acc: [[S::F; R]; D] = array(|d| array(|r| s.load(&*out.add((d * R + r) * 16).cast())));
            for d in 0..D {
                let center = s.load_bf16(&*a.page.add(a.center + (first + d) * 32).cast());
                for r in 0..R {
                    acc[d][r] = s.mul_acc(center, s.splat(self.sums[r]), acc[d][r]);
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
}
