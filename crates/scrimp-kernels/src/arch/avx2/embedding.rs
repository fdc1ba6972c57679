//! The operations of embedding bags with AVX2.

use super::Avx2;
use crate::arch::{Simd, embedding::EmbeddingSimd};
use std::arch::x86_64::*;

impl EmbeddingSimd for Avx2 {
    type W = [__m256i; 2];

    #[inline(always)]
    fn splat_i16(self, x: i16) -> [__m256i; 2] {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_set1_epi16(x); 2] }
    }
    #[inline(always)]
    fn add_i8(self, sum: [__m256i; 2], x: &[i8; 32]) -> [__m256i; 2] {
        // SAFETY: the token proves AVX2; 32 bytes are read.
        unsafe {
            let a = _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
            let b = _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().add(16).cast()));
            [_mm256_add_epi16(sum[0], a), _mm256_add_epi16(sum[1], b)]
        }
    }
    #[inline(always)]
    fn negate(self, x: [__m256; 2], mask: u16) -> [__m256; 2] {
        // SAFETY: the token proves AVX2.
        unsafe {
            // The bit of each lane moves to where its sign is.
            let bits = _mm256_set1_epi32(i32::from(mask));
            let top = _mm256_set1_epi32(i32::MIN);
            let low = _mm256_sllv_epi32(bits, _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24));
            let high = _mm256_sllv_epi32(bits, _mm256_setr_epi32(23, 22, 21, 20, 19, 18, 17, 16));
            [
                _mm256_xor_ps(x[0], _mm256_castsi256_ps(_mm256_and_si256(low, top))),
                _mm256_xor_ps(x[1], _mm256_castsi256_ps(_mm256_and_si256(high, top))),
            ]
        }
    }
    #[inline(always)]
    fn stream(self, x: [__m256; 2], to: &mut [f32; 16]) {
        if to.as_ptr().addr().is_multiple_of(64) {
            // SAFETY: the token proves AVX2; twice 32 aligned bytes are written.
            unsafe {
                _mm256_stream_ps(to.as_mut_ptr(), x[0]);
                _mm256_stream_ps(to.as_mut_ptr().add(8), x[1]);
            }
        } else {
            Simd::store(self, x, to);
        }
    }
    #[inline(always)]
    fn fence(self) {
        // SAFETY: every x86-64 CPU has it.
        unsafe { _mm_sfence() };
    }
    #[inline(always)]
    fn floats(self, x: [__m256i; 2]) -> [[__m256; 2]; 2] {
        // SAFETY: the token proves AVX2.
        unsafe {
            let half = |x| _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(x));
            let [a, b] = x;
            [
                [half(_mm256_castsi256_si128(a)), half(_mm256_extracti128_si256::<1>(a))],
                [half(_mm256_castsi256_si128(b)), half(_mm256_extracti128_si256::<1>(b))],
            ]
        }
    }
}
