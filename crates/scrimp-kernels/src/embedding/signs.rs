//! Signs of a lookup's values: one hashed bit for each eight neighboring values.
//!
//! ```text
//! value i of a lookup counts with the sign (-1)^bit[i / 8 mod 64]              bits = mum(h, P1), see `hash.rs`
//! ```
//! Two ids that share values of a table then disturb each other with random signs, and the disturbances cancel in sums
//! over many ids (the sign of the count sketch: Charikar, Chen and Farach-Colton 2002). With one sign for a whole row,
//! an overlapping row meets the same few other ids in all of its values.

use super::hash::{P, mum};
use crate::arch::EmbeddingSimd;

/// Neighboring values with the same sign. The signs of a lookup are 64 bits, those of the values `512 i .. 512 (i + 1)`
/// are the same.
pub const SIGN_WIDTH: usize = 8;

/// The bits of an id whose hash is `h`: set where a value counts negatively.
#[inline(always)]
pub(super) const fn of_hash(h: u64) -> u64 {
    mum(h, P[1])
}

/// The sign bit of an `f32` that is value `at` of a lookup.
#[inline(always)]
const fn sign(bits: u64, at: usize) -> u32 {
    ((bits >> (at / SIGN_WIDTH % 64)) as u32) << 31
}

/// `x` or `-x`, for value `at` of a lookup.
#[inline(always)]
pub(super) const fn flip(x: f32, bits: u64, at: usize) -> f32 {
    f32::from_bits(x.to_bits() ^ sign(bits, at))
}

/// The same for 16 values from `at` on.
#[inline(always)]
pub(super) fn flip_lanes<S: EmbeddingSimd>(s: S, x: S::F, bits: u64, at: usize) -> S::F {
    let mut mask = 0;
    if at.is_multiple_of(SIGN_WIDTH) {
        let two = bits.rotate_right((at / SIGN_WIDTH % 64) as u32) as u16;
        mask = ((two & 1) * 0xff) | ((two >> 1 & 1) * 0xff00);
    } else {
        for i in 0..16 {
            mask |= ((bits >> ((at + i) / SIGN_WIDTH % 64)) as u16 & 1) << i;
        }
    }
    s.negate(x, mask)
}
