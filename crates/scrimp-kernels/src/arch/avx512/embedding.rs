//! The operations of embedding bags with AVX-512.

use super::Avx512;
use crate::arch::{Simd, embedding::EmbeddingSimd};
use std::arch::x86_64::*;

impl EmbeddingSimd for Avx512 {
    type W = __m512i;

    #[inline(always)]
    fn splat_i16(self, x: i16) -> __m512i {
        // SAFETY: the token proves AVX-512BW.
        unsafe { _mm512_set1_epi16(x) }
    }
    #[inline(always)]
    fn add_i8(self, sum: __m512i, x: &[i8; 32]) -> __m512i {
        // SAFETY: the token proves AVX-512BW; 32 bytes are read.
        unsafe { _mm512_add_epi16(sum, _mm512_cvtepi8_epi16(_mm256_loadu_si256(x.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn negate(self, x: __m512, mask: u16) -> __m512 {
        // SAFETY: the token proves AVX-512DQ.
        unsafe { _mm512_mask_xor_ps(x, mask, x, _mm512_set1_ps(-0.0)) }
    }
    #[inline(always)]
    fn stream(self, x: __m512, to: &mut [f32; 16]) {
        if to.as_ptr().addr().is_multiple_of(64) {
            // SAFETY: the token proves AVX-512F; 64 aligned bytes are written.
            unsafe { _mm512_stream_ps(to.as_mut_ptr(), x) };
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
    fn floats(self, x: __m512i) -> [__m512; 2] {
        // SAFETY: the token proves AVX-512F and BW.
        unsafe {
            [
                _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(x))),
                _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64::<1>(x))),
            ]
        }
    }
}
