//! The operations of attention in plain Rust.

use super::Scalar;
use crate::arch::{
    Simd, array,
    attention::{AttentionSimd, BlockShape, RowPair, widened_pairs},
};
use half::bf16;

impl AttentionSimd for Scalar {
    fn row_block<B: BlockShape>(rows: usize) -> B::Output {
        match rows {
            ..=1 => B::of::<1, 1, 1>(),
            _ => B::of::<4, 1, 1>(),
        }
    }

    widened_pairs!();

    #[inline(never)]
    fn mul_acc(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.add(self.mul(a, b), c)
    }

    #[inline(never)]
    fn store_rounded(self, x: Self::F, to: &mut [f32; 16]) -> Self::F {
        let x = x.map(|x| bf16::from_f32_const(x).to_f32_const());
        self.store(x, to);
        x
    }

    type Codes = [[i32; 2]; 16];

    #[inline(never)]
    fn load_codes(self, from: &[u8; 32]) -> Self::Codes {
        array(|i| [i32::from(from[2 * i]), i32::from(from[2 * i + 1])])
    }
    #[inline(never)]
    fn load_half_codes(self, from: &[u8; 32]) -> [Self::Codes; 2] {
        [self.load_codes(&from.map(|x| x & 15)), self.load_codes(&from.map(|x| x >> 4))]
    }
    #[inline(never)]
    fn mac_codes(self, acc: [i32; 16], codes: Self::Codes, element: i32) -> [i32; 16] {
        let (a, b) = (element as i16, (element >> 16) as i16);
        array(|i| {
            let product = codes[i][0] * i32::from(a) + codes[i][1] * i32::from(b);
            acc[i].wrapping_add(product)
        })
    }
    #[inline(never)]
    fn store_i16(self, x: [f32; 16], to: &mut [i32; 8]) {
        let x = self.round_i32(x);
        *to = array(|i| (x[2 * i] & 0xffff) | x[2 * i + 1] << 16);
    }
    #[inline(never)]
    unsafe fn expand_pairs(self, bitmap: u32, values: *const u8) -> [[f32; 16]; 2] {
        // SAFETY: the caller guarantees 64 readable bytes; byte arrays need no alignment.
        let x = self.expand_words(bitmap, unsafe { &*values.cast() });
        let word = |i: usize| bf16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32_const();
        [array(|i| word(2 * i)), array(|i| word(2 * i + 1))]
    }
}
