//! The operations of embedding bags with NEON.

use super::{Neon, products::Products, quarters};
use crate::arch::embedding::EmbeddingSimd;
use std::arch::aarch64::*;

impl<P: Products> EmbeddingSimd for Neon<P> {
    type W = [int16x8_t; 4];

    #[inline(always)]
    fn splat_i16(self, x: i16) -> Self::W {
        isa!([vdupq_n_s16(x); 4])
    }
    #[inline(always)]
    fn add_i8(self, sum: Self::W, x: &[i8; 32]) -> Self::W {
        isa!({
            let (a, b) = (vld1q_s8(x.as_ptr()), vld1q_s8(x.as_ptr().add(16)));
            [
                vaddw_s8(sum[0], vget_low_s8(a)),
                vaddw_high_s8(sum[1], a),
                vaddw_s8(sum[2], vget_low_s8(b)),
                vaddw_high_s8(sum[3], b),
            ]
        })
    }
    #[inline(always)]
    fn negate(self, x: Self::F, mask: u16) -> Self::F {
        // The bit of each lane moves to the sign.
        isa!({
            let (bits, sign) = (vdupq_n_u32(u32::from(mask)), vdupq_n_u32(1 << 31));
            quarters!(i => {
                let last = 31 - 4 * i as i32;
                let distance: [i32; 4] = [last, last - 1, last - 2, last - 3];
                let moved = vshlq_u32(bits, vld1q_s32(distance.as_ptr()));
                vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x[i]), vandq_u32(moved, sign)))
            })
        })
    }
    #[inline(always)]
    fn floats(self, x: Self::W) -> [Self::F; 2] {
        isa!({
            let low = |x| vcvtq_f32_s32(vmovl_s16(vget_low_s16(x)));
            let high = |x| vcvtq_f32_s32(vmovl_high_s16(x));
            [[low(x[0]), high(x[0]), low(x[1]), high(x[1])], [low(x[2]), high(x[2]), low(x[3]), high(x[3])]]
        })
    }
}
