//! The operations of attention with AVX2.

use super::Avx2;
use crate::arch::{
    Simd,
    attention::{AttentionSimd, BlockShape, RowPair, widened_pairs},
};
use half::bf16;
use std::arch::x86_64::*;

impl AttentionSimd for Avx2 {
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
        // Nearest-even: add half, and one less if the result's last bit is 0.
        let bits = self.bits(x);
        let rounded = x.map(|x| {
            // SAFETY: the token proves AVX2.
            unsafe {
                let bits = _mm256_castps_si256(x);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))
            }
        });
        let bits = self.and_i32(self.add_i32(bits, rounded), self.splat_i32(0xffff_0000_u32 as i32));
        let x = self.of_bits(bits);
        self.store(x, to);
        x
    }

    type Codes = [__m256i; 2];

    #[inline(always)]
    fn load_codes(self, from: &[u8; 32]) -> [__m256i; 2] {
        // SAFETY: the token proves AVX2; 16 bytes each are read.
        unsafe {
            let at: *const __m128i = from.as_ptr().cast();
            [_mm256_cvtepu8_epi16(_mm_loadu_si128(at)), _mm256_cvtepu8_epi16(_mm_loadu_si128(at.add(1)))]
        }
    }
    #[inline(always)]
    fn load_half_codes(self, from: &[u8; 32]) -> [[__m256i; 2]; 2] {
        let x = self.load_codes(from);
        // SAFETY: the token proves AVX2.
        unsafe {
            let mask = _mm256_set1_epi16(15);
            [
                [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)],
                [_mm256_srli_epi16::<4>(x[0]), _mm256_srli_epi16::<4>(x[1])],
            ]
        }
    }
    #[inline(always)]
    fn mac_codes(self, acc: [__m256i; 2], codes: [__m256i; 2], element: i32) -> [__m256i; 2] {
        // SAFETY: the token proves AVX2.
        unsafe {
            let element = _mm256_set1_epi32(element);
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(codes[0], element)),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(codes[1], element)),
            ]
        }
    }
    #[inline(always)]
    fn store_i16(self, x: [__m256; 2], to: &mut [i32; 8]) {
        let x = self.round_i32(x);
        // SAFETY: the token proves AVX2; 32 bytes are written.
        unsafe {
            let narrow = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_packs_epi32(x[0], x[1]));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
        }
    }
    #[inline(always)]
    unsafe fn expand_pairs(self, bitmap: u32, values: *const u8) -> [[__m256; 2]; 2] {
        // SAFETY: the caller guarantees 64 readable bytes; byte arrays need no alignment.
        let bits = self.expand_words(bitmap, unsafe { &*values.cast() });
        [
            self.of_bits(self.shl_i32::<16>(bits)),
            self.of_bits(self.and_i32(bits, self.splat_i32(0xffff_0000_u32 as i32))),
        ]
    }
    #[inline(always)]
    fn count_ones(self, bitmap: u32) -> usize {
        // SAFETY: the level's entry points have POPCNT, which every CPU with AVX2 has.
        unsafe { _popcnt32(bitmap as i32) as usize }
    }
}
