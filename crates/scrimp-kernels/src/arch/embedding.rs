//! What embedding bags ask of a tier beyond [`Simd`]: sums of bytes in 16 bits. And the place where their kernels are
//! compiled with a tier's `target_feature`s.

use super::{Simd, SimdLevel, level::Kind, scalar::Scalar};

/// 32 lanes of i16, sums of at most 256 bytes each.
pub(crate) trait Lanes: Simd {
    /// 32 × i16.
    type W: Copy;
    fn splat_i16(self, x: i16) -> Self::W;
    /// `sum + x`.
    fn add_i8(self, sum: Self::W, x: &[i8; 32]) -> Self::W;
    /// `-x` in the lanes whose bit of `mask` is set.
    fn negate(self, x: Self::F, mask: u16) -> Self::F;
    /// Lanes 0 to 15 and 16 to 31.
    fn floats(self, x: Self::W) -> [Self::F; 2];
    /// Stores past the caches, where the tier can and `to` starts at a cache line. [`Lanes::fence`] must follow before
    /// another thread reads.
    #[inline(always)]
    fn stream(self, x: Self::F, to: &mut [f32; 16]) {
        self.store(x, to);
    }
    /// Orders streamed stores before all that follow.
    #[inline(always)]
    fn fence(self) {}
}

impl Lanes for Scalar {
    type W = [i16; 32];

    #[inline(always)]
    fn splat_i16(self, x: i16) -> [i16; 32] {
        [x; 32]
    }
    #[inline(always)]
    fn add_i8(self, sum: [i16; 32], x: &[i8; 32]) -> [i16; 32] {
        std::array::from_fn(|i| sum[i] + i16::from(x[i]))
    }
    #[inline(always)]
    fn negate(self, x: [f32; 16], mask: u16) -> [f32; 16] {
        std::array::from_fn(|i| if mask >> i & 1 == 1 { -x[i] } else { x[i] })
    }
    #[inline(always)]
    fn floats(self, x: [i16; 32]) -> [[f32; 16]; 2] {
        [std::array::from_fn(|i| f32::from(x[i])), std::array::from_fn(|i| f32::from(x[i + 16]))]
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use crate::arch::{avx2::Avx2, avx512::Avx512};
    use std::arch::x86_64::*;

    impl Lanes for Avx2 {
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
                crate::arch::Simd::store(self, x, to);
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

    impl Lanes for Avx512 {
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
                crate::arch::Simd::store(self, x, to);
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
}

/// A computation written once over [`Lanes`]. Implementations mark `run` `#[inline(always)]`.
pub(crate) trait BagKernel {
    fn run<S: Lanes>(self, s: S);
}

/// Runs `kernel` with the instructions of `tier`.
pub(crate) fn run<K: BagKernel>(level: SimdLevel, kernel: K) {
    match level.kind() {
        Kind::Scalar => kernel.run(Scalar),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `SimdLevel` of this kind exists only where the CPU has the features.
        Kind::Avx2 => unsafe { run_avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kind::Avx512 => unsafe { run_avx512(kernel) },
    }
}

/// # Safety
/// The CPU must have the features that are enabled here.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<K: BagKernel>(kernel: K) {
    // SAFETY: the caller vouches for the features.
    kernel.run(unsafe { crate::arch::avx2::Avx2::new() });
}

/// # Safety
/// The CPU must have the features that are enabled here.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
unsafe fn run_avx512<K: BagKernel>(kernel: K) {
    // SAFETY: the caller vouches for the features.
    kernel.run(unsafe { crate::arch::avx512::Avx512::new() });
}
