//! The operations of attention with AVX-512.

use super::Avx512;
use crate::arch::{
    Simd,
    attention::{AttentionSimd, BlockShape, RowPair},
};
use std::arch::x86_64::*;

/// Adds the products of 16 words of `a` and `b` each, from float `FROM` (0 or 8) on, with a pair of weights.
///
/// # Safety
/// The CPU has AVX-512 with BF16 and BW.
#[inline(always)]
unsafe fn add_half<const FROM: usize>(
    acc: __m512,
    a: &[f32; 16],
    b: &[f32; 16],
    weights: __m512bh,
) -> __m512 {
    // Words i of both, side by side in lane i.
    let order: [i32; 16] = std::array::from_fn(|i| (i | (i + 32) << 16) as i32);
    // SAFETY: this function requires AVX-512 with BF16 and BW; from float 0 or 8 on, 8 of 16 floats are read.
    unsafe {
        let load = |x: &[f32; 16]| _mm512_castsi256_si512(_mm256_loadu_si256(x[FROM..].as_ptr().cast()));
        let order = _mm512_loadu_si512(order.as_ptr().cast());
        let pairs = _mm512_permutex2var_epi16(load(a), order, load(b));
        let pairs: __m512bh = std::mem::transmute(pairs);
        _mm512_dpbf16_ps(acc, pairs, weights)
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

impl AttentionSimd for Avx512 {
    fn row_block<B: BlockShape>(rows: usize) -> B::Output {
        match rows {
            ..=1 => B::of::<1, 2, 2>(),
            2 => B::of::<2, 2, 2>(),
            3 => B::of::<3, 2, 2>(),
            4 => B::of::<4, 2, 2>(),
            5..=6 => B::of::<6, 2, 2>(),
            7..=8 => B::of::<8, 1, 1>(),
            _ => B::of::<12, 2, 2>(),
        }
    }

    type Pairs = __m512bh;
    const PAIR_SLOTS: usize = 1;

    #[inline(always)]
    fn load_pairs(self, from: &[f32; 16]) -> __m512bh {
        // SAFETY: the token proves AVX-512; both types are 64 bytes without invalid values.
        unsafe { std::mem::transmute(_mm512_loadu_ps(from.as_ptr())) }
    }

    #[inline(always)]
    unsafe fn mac_pairs(self, acc: __m512, pairs: __m512bh, element: *const f32) -> __m512 {
        // SAFETY: the token proves AVX-512 with BF16, the caller that the slot can be read.
        unsafe {
            let element: __m512bh = std::mem::transmute(_mm512_set1_epi32(*element.cast::<i32>()));
            _mm512_dpbf16_ps(acc, pairs, element)
        }
    }

    #[inline(always)]
    fn store_rounded(self, x: __m512, to: &mut [f32; 16]) -> __m512 {
        // SAFETY: the token proves AVX-512 with BF16; 32 of the 64 bytes are written.
        unsafe {
            let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(x));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), rounded);
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded)))
        }
    }

    #[inline(always)]
    fn load_rounded(self, from: &[f32; 16]) -> __m512 {
        // SAFETY: the token proves AVX-512; 32 of the 64 bytes are read.
        unsafe {
            let rounded = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded)))
        }
    }

    /// Pairs of bf16.
    type Weights = __m512bh;
    #[inline(always)]
    fn weights(self, pair: &RowPair) -> __m512bh {
        // SAFETY: the token proves AVX-512; the types are 64 bytes without invalid values.
        unsafe { std::mem::transmute(_mm512_set1_epi32(pair.rounded)) }
    }
    #[inline(always)]
    fn add_rounded(self, acc: __m512, a: &[f32; 16], b: &[f32; 16], weights: __m512bh) -> __m512 {
        // SAFETY: the token proves AVX-512 with BF16 and BW.
        unsafe { add_half::<0>(acc, a, b, weights) }
    }
    #[inline(always)]
    fn add_rounded_line(
        self,
        acc: [__m512; 2],
        a: &[f32; 16],
        b: &[f32; 16],
        weights: __m512bh,
    ) -> [__m512; 2] {
        // SAFETY: the token proves AVX-512 with BF16 and BW.
        unsafe { [add_half::<0>(acc[0], a, b, weights), add_half::<8>(acc[1], a, b, weights)] }
    }

    #[inline(always)]
    fn pair_element(a: u16, b: u16, to: &mut [f32]) {
        to[0] = f32::from_bits(u32::from(a) | u32::from(b) << 16);
    }

    #[inline(always)]
    fn exp2(self, x: __m512) -> __m512 {
        let x = self.max(self.splat(-150.0), x);
        // SAFETY: the token proves AVX-512F.
        unsafe {
            let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm512_scalef_ps(self.exp2_fraction(_mm512_sub_ps(x, n)), n)
        }
    }

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
        // SAFETY: the caller guarantees 64 readable bytes; both types are 64 bytes without invalid values.
        unsafe { std::mem::transmute(self.expand_words(bitmap, &*values.cast())) }
    }
    #[inline(always)]
    fn count_ones(self, bitmap: u32) -> usize {
        // SAFETY: the token proves POPCNT, which is a feature of the level.
        unsafe { _popcnt32(bitmap as i32) as usize }
    }
}
