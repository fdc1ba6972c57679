//! Packed pages of codes ([`integer`](super::storage::integer)) to bf16 pages, for the AMX kernels.
//!
//! ```text
//! x = bf16(minimum + scale code)            rounded half to even
//! ```
//! Codes have the order of bf16 elements. The two elements of a pair have a minimum and a scale each: those of two dims
//! in a page of keys, those of two tokens in a page of values. One loop therefore serves both: `runs` runs (key tiles
//! or blocks of dims) of `n / 2` steps, where step `i` uses the numbers `2 i` and `2 i + 1` of the page's header.

use super::storage::{integer::header_bytes, packing::PackedKind};
use crate::arch::{AttentionSimd, array};
use half::bf16;

/// Bytes behind the page that may be written.
pub(super) const SLACK: usize = 32;

/// A packed page of codes, and where it is unpacked to.
#[derive(Clone, Copy)]
pub(crate) struct UnpackArgs {
    pub(crate) kind: PackedKind,
    pub(crate) page: *const u8,
    /// Minima, and scales: a multiple of 16.
    pub(crate) n: usize,
    pub(crate) runs: usize,
    pub(crate) to: *mut u8,
}

/// Writes a page of bf16 elements, rounded, to `to`.
///
/// # Safety
/// `page` is a page of `kind` with `n` minima and scales and `runs` runs; `to`, aligned to 64, has room for the bf16
/// page and [`SLACK`] bytes more.
///
/// # Panics
/// When the page is sparse.
#[inline(always)]
pub(super) unsafe fn unpack<S: AttentionSimd>(s: S, a: UnpackArgs) {
    // SAFETY: the caller guarantees the page's kind and sizes.
    unsafe {
        match a.kind {
            PackedKind::Int8 => unpack_codes::<S, 8>(s, a),
            PackedKind::Int4 => unpack_codes::<S, 4>(s, a),
            PackedKind::Sparse(_) => unreachable!("sparse pages are read by vector kernels"),
        }
    }
}

/// # Safety
/// As [`unpack`], for codes of `BITS` bits.
#[inline(always)]
unsafe fn unpack_codes<S: AttentionSimd, const BITS: usize>(
    s: S,
    UnpackArgs { page, n, runs, to, .. }: UnpackArgs,
) {
    let steps = n / 2;
    for step in 0..steps {
        // SAFETY: the header has `n` minima, then as many scales.
        let number = |at: usize| unsafe { bf16::from_bits(page.cast::<u16>().add(at).read()).to_f32_const() };
        let pairs: [[f32; 2]; 2] = array(|i| [number(i * n + 2 * step), number(i * n + 2 * step + 1)]);
        let [low, scale] = pairs.map(|pair| s.load(&array(|i| pair[i % 2])));
        for run in 0..runs {
            let at = run * steps + step;
            // SAFETY: there are `runs * steps` steps of 32 codes, and of 64 bytes to write.
            unsafe {
                let codes = page.add(header_bytes(n));
                let codes: [u8; 32] = if BITS == 8 {
                    codes.add(at * 32).cast::<[u8; 32]>().read()
                } else {
                    let both = codes.add(at / 2 * 32).cast::<[u8; 32]>().read();
                    if at.is_multiple_of(2) { both.map(|b| b & 15) } else { both.map(|b| b >> 4) }
                };
                for (i, codes) in codes.as_chunks::<16>().0.iter().enumerate() {
                    let x = s.fma(s.load_u8(codes), scale, low);
                    s.store_rounded(x, &mut *to.add(at * 64 + i * 32).cast());
                }
            }
        }
    }
}
