//! The operations of embedding bags in plain Rust.

use super::Scalar;
use crate::arch::{array, embedding::EmbeddingSimd};

impl EmbeddingSimd for Scalar {
    const FAST_LOOKUPS: bool = false;
    type W = [i16; 32];

    #[inline(always)]
    fn splat_i16(self, x: i16) -> [i16; 32] {
        [x; 32]
    }
    #[inline(never)]
    fn add_i8(self, sum: [i16; 32], x: &[i8; 32]) -> [i16; 32] {
        array(|i| sum[i] + i16::from(x[i]))
    }
    #[inline(never)]
    fn negate(self, x: [f32; 16], mask: u16) -> [f32; 16] {
        array(|i| if mask >> i & 1 == 1 { -x[i] } else { x[i] })
    }
    #[inline(never)]
    fn floats(self, x: [i16; 32]) -> [[f32; 16]; 2] {
        [array(|i| f32::from(x[i])), array(|i| f32::from(x[i + 16]))]
    }
}
