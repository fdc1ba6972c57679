//! One group of 32 columns: integer dot products, then one step of the float accumulation.
//!
//! For the quants `q` of 16 rows and the 8-bit activations `x` of a token, with i32 sums that are exact in every tier:
//!
//! ```text
//! i   = sum over 32 columns of (q - ZERO) x
//! acc = fma(float(i) * x.scale, scale, acc)     symmetric; with two scales: first 16 columns, then the others
//! acc = fma(x.sum, minimum, acc)                with a minimum, after the above
//! ```
//! The groups of a row are added in column order, whatever the batch, the chunk or the number of threads, so results
//! are bit-equal in every tier and for every way of cutting the work.

use super::activations::Quantised;
use crate::{
    formats::{BlockFormat, Scaling},
    isa::Simd,
};

/// The accumulator that `half` of the group starts from (`half` is 0 or 1 for two scales, whole groups use both).
#[inline(always)]
pub(crate) fn start<S: Simd, F: BlockFormat>(s: S, x: &Quantised, half: usize) -> S::I {
    let isum = match F::SCALING {
        Scaling::TwoScales => x.isum[half],
        _ => x.isum[0] + x.isum[1],
    };
    if F::WIDE {
        s.wide_start(isum)
    } else if F::ZERO == 0 {
        s.splat_i32(0)
    } else {
        s.splat_i32(-F::ZERO * isum)
    }
}

/// `acc + w x` for 4 columns.
#[inline(always)]
pub(crate) fn dot<S: Simd, F: BlockFormat>(s: S, acc: S::I, w: S::B, x: i32) -> S::I {
    if F::WIDE { s.dot_wide(acc, w, x) } else { s.dot(acc, w, x) }
}

/// Adds `float(i) * x_scale * scale`.
#[inline(always)]
pub(crate) fn scaled<S: Simd>(s: S, acc: S::F, i: S::I, x_scale: f32, scale: S::F) -> S::F {
    s.fma(s.mul(s.to_f32(i), s.splat(x_scale)), scale, acc)
}
