//! What attention over packed pages needs of a tier beyond [`Lanes`]: products of 16-bit pairs of codes, and pairs of bf16
//! spread by a bitmap.

use super::{Simd, attention::Lanes, scalar::Scalar};
use half::bf16;

/// Packed elements: products of codes with 16-bit numbers are exact in i32.
pub(crate) trait CodeLanes: Lanes {
    /// 16 pairs of codes, widened to 16 bits.
    type Codes: Copy;
    /// 16 pairs of bytes.
    fn load_codes(self, from: &[u8; 32]) -> Self::Codes;
    /// 16 pairs of the low halves of bytes, and 16 pairs of the high halves.
    fn load_half_codes(self, from: &[u8; 32]) -> [Self::Codes; 2];
    /// `acc + codes . element` lane by lane, the element being a pair of i16 (the first in the lower half).
    fn mac_codes(self, acc: Self::I, codes: Self::Codes, element: i32) -> Self::I;
    /// Rounds to the nearest integers (ties to even), which fit 16 bits unless something was not finite, and writes them
    /// as pairs.
    fn store_i16(self, x: Self::F, to: &mut [i32; 8]);
    /// 16 pairs of bf16, of which those with a bit in `bitmap` are read from `values` one after the other; the others are 0.
    ///
    /// # Safety
    /// 64 bytes can be read at `values`.
    unsafe fn expand_pairs(self, bitmap: u32, values: *const u8) -> Self::Pairs;
    /// Bits that are set.
    #[inline(always)]
    fn count_ones(self, bitmap: u32) -> usize {
        bitmap.count_ones() as usize
    }
}

impl CodeLanes for Scalar {
    type Codes = [[i32; 2]; 16];

    #[inline(always)]
    fn load_codes(self, from: &[u8; 32]) -> Self::Codes {
        std::array::from_fn(|i| [i32::from(from[2 * i]), i32::from(from[2 * i + 1])])
    }
    #[inline(always)]
    fn load_half_codes(self, from: &[u8; 32]) -> [Self::Codes; 2] {
        [self.load_codes(&from.map(|x| x & 15)), self.load_codes(&from.map(|x| x >> 4))]
    }
    #[inline(always)]
    fn mac_codes(self, acc: [i32; 16], codes: Self::Codes, element: i32) -> [i32; 16] {
        let (a, b) = (element as i16, (element >> 16) as i16);
        std::array::from_fn(|i| {
            let product = codes[i][0] * i32::from(a) + codes[i][1] * i32::from(b);
            acc[i].wrapping_add(product)
        })
    }
    #[inline(always)]
    fn store_i16(self, x: [f32; 16], to: &mut [i32; 8]) {
        let x = self.round_i32(x);
        *to = std::array::from_fn(|i| (x[2 * i] & 0xffff) | x[2 * i + 1] << 16);
    }
    #[inline(always)]
    unsafe fn expand_pairs(self, bitmap: u32, values: *const u8) -> [[f32; 16]; 2] {
        // SAFETY: the caller vouches for 64 bytes.
        let x = self.expand_words(bitmap, unsafe { &*values.cast() });
        let word = |i: usize| bf16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32_const();
        [std::array::from_fn(|i| word(2 * i)), std::array::from_fn(|i| word(2 * i + 1))]
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::CodeLanes;
    use crate::arch::{Simd, avx2::Avx2, avx512::Avx512};
    use std::arch::x86_64::*;

    impl CodeLanes for Avx2 {
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
            // SAFETY: the caller vouches for 64 bytes.
            let bits = self.expand_words(bitmap, unsafe { &*values.cast() });
            [
                self.of_bits(self.shl_i32::<16>(bits)),
                self.of_bits(self.and_i32(bits, self.splat_i32(0xffff_0000_u32 as i32))),
            ]
        }
        #[inline(always)]
        fn count_ones(self, bitmap: u32) -> usize {
            // SAFETY: the tier's entry points have POPCNT, which every CPU with AVX2 has.
            unsafe { _popcnt32(bitmap as i32) as usize }
        }
    }

    /// `vpdpwssd`. The intrinsic is compiled to `vpmaddwd` and `vpaddd`, for a latency that there is no lack of here.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dpwssd(mut acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the instruction touches these registers only.
        unsafe {
            std::arch::asm!(
                "vpdpwssd {acc}, {a}, {b}",
                acc = inout(zmm_reg) acc,
                a = in(zmm_reg) a,
                b = in(zmm_reg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        acc
    }

    impl CodeLanes for Avx512 {
        type Codes = __m512i;

        #[inline(always)]
        fn load_codes(self, from: &[u8; 32]) -> __m512i {
            // SAFETY: the token proves AVX-512BW; 32 bytes are read.
            unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.as_ptr().cast())) }
        }
        #[inline(always)]
        fn load_half_codes(self, from: &[u8; 32]) -> [__m512i; 2] {
            let x = self.load_codes(from);
            // SAFETY: the token proves AVX-512BW.
            unsafe { [_mm512_and_si512(x, _mm512_set1_epi16(15)), _mm512_srli_epi16::<4>(x)] }
        }
        #[inline(always)]
        fn mac_codes(self, acc: __m512i, codes: __m512i, element: i32) -> __m512i {
            // SAFETY: the token proves AVX-512 with VNNI.
            unsafe { dpwssd(acc, codes, _mm512_set1_epi32(element)) }
        }
        #[inline(always)]
        fn store_i16(self, x: __m512, to: &mut [i32; 8]) {
            // SAFETY: the token proves AVX-512F; 32 bytes are written.
            unsafe {
                let narrow = _mm512_cvtepi32_epi16(self.round_i32(x));
                _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
            }
        }
        #[inline(always)]
        unsafe fn expand_pairs(self, bitmap: u32, values: *const u8) -> __m512bh {
            // SAFETY: the caller vouches for 64 bytes; both types are 64 bytes without invalid values.
            unsafe { std::mem::transmute(self.expand_words(bitmap, &*values.cast())) }
        }
        #[inline(always)]
        fn count_ones(self, bitmap: u32) -> usize {
            // SAFETY: as above; every CPU with AVX-512 has POPCNT.
            unsafe { _popcnt32(bitmap as i32) as usize }
        }
    }
}
