//! The operations of attention with NEON.

use super::{Neon, each, products::Products};
use crate::arch::{
    Simd,
    attention::{AttentionSimd, BlockShape, RowPair, widened_pairs},
};
use half::bf16;
use std::arch::aarch64::*;

impl<P: Products> AttentionSimd for Neon<P> {
    fn row_block<B: BlockShape>(rows: usize) -> B::Output {
        match rows {
            ..=1 => B::of::<1, 2, 2>(),
            2 => B::of::<2, 2, 2>(),
            _ => B::of::<4, 1, 1>(),
        }
    }

    widened_pairs!();

    #[inline(always)]
    fn store_rounded(self, x: Self::F, to: &mut [f32; 16]) -> Self::F {
        // Nearest-even: adds half, and one less if the result's last bit is 0.
        let x = isa!(x.map(|x| {
            let bits = vreinterpretq_u32_f32(x);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            vreinterpretq_f32_u32(vandq_u32(rounded, vdupq_n_u32(0xffff_0000)))
        }));
        self.store(x, to);
        x
    }

    /// The first codes of 16 pairs, and the second ones.
    type Codes = [[int16x8_t; 2]; 2];

    #[inline(always)]
    fn load_codes(self, from: &[u8; 32]) -> Self::Codes {
        isa!({
            let x = load_pairs_of_bytes(from);
            [low_bits(x, 0xff), signed(x.map(|x| vshrq_n_u16::<8>(x)))]
        })
    }
    #[inline(always)]
    fn load_half_codes(self, from: &[u8; 32]) -> [Self::Codes; 2] {
        isa!({
            let x = load_pairs_of_bytes(from);
            [
                [low_bits(x, 15), low_bits(x.map(|x| vshrq_n_u16::<8>(x)), 15)],
                [low_bits(x.map(|x| vshrq_n_u16::<4>(x)), 15), signed(x.map(|x| vshrq_n_u16::<12>(x)))],
            ]
        })
    }
    #[inline(always)]
    fn mac_codes(self, acc: Self::I, [first, second]: Self::Codes, element: i32) -> Self::I {
        let (a, b) = (element as i16, (element >> 16) as i16);
        isa!({
            let low = |acc, i: usize| {
                vmlal_n_s16(vmlal_n_s16(acc, vget_low_s16(first[i]), a), vget_low_s16(second[i]), b)
            };
            let high = |acc, i: usize| vmlal_high_n_s16(vmlal_high_n_s16(acc, first[i], a), second[i], b);
            [low(acc[0], 0), high(acc[1], 0), low(acc[2], 1), high(acc[3], 1)]
        })
    }
    #[inline(always)]
    fn store_i16(self, x: Self::F, to: &mut [i32; 8]) {
        let x = each!(vreinterpretq_s16_s32, self.round_i32(x));
        isa!({
            vst1q_s32(to.as_mut_ptr(), vreinterpretq_s32_s16(vuzp1q_s16(x[0], x[1])));
            vst1q_s32(to.as_mut_ptr().add(4), vreinterpretq_s32_s16(vuzp1q_s16(x[2], x[3])));
        });
    }
    #[inline(always)]
    unsafe fn expand_pairs(self, bitmap: u32, values: *const u8) -> Self::Pairs {
        // SAFETY: the caller guarantees 64 readable bytes; byte arrays need no alignment.
        let bits = self.expand_words(bitmap, unsafe { &*values.cast() });
        isa!([
            bits.map(|x| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_u8(x)))),
            bits.map(|x| vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(x), vdupq_n_u32(0xffff_0000)))),
        ])
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_pairs_of_bytes(from: &[u8; 32]) -> [uint16x8_t; 2] {
    // SAFETY: 32 bytes are read from an array of 32.
    unsafe { [0, 16].map(|i| vreinterpretq_u16_u8(vld1q_u8(from.as_ptr().add(i)))) }
}

#[inline]
#[target_feature(enable = "neon")]
fn signed(x: [uint16x8_t; 2]) -> [int16x8_t; 2] {
    [vreinterpretq_s16_u16(x[0]), vreinterpretq_s16_u16(x[1])]
}

#[inline]
#[target_feature(enable = "neon")]
fn low_bits(x: [uint16x8_t; 2], mask: u16) -> [int16x8_t; 2] {
    let mask = vdupq_n_u16(mask);
    signed([vandq_u16(x[0], mask), vandq_u16(x[1], mask)])
}
