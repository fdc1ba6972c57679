//! AVX2 + FMA + F16C: two registers per vector.

use super::Simd;
use std::arch::x86_64::*;

/// Proof that the CPU has the tier's features; made only in [`crate::dispatch`].
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU must have every feature of the tier.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Calls an intrinsic of this tier.
macro_rules! isa {
    ($e:expr) => {{
        // SAFETY: `self` proves that the CPU has the features, and pointers come from references to arrays of the
        // size that the instructions read or write; unaligned variants are used throughout.
        unsafe { $e }
    }};
}

/// Applies an intrinsic to both halves.
macro_rules! both {
    ($f:expr, $a:expr) => {
        isa!([$f($a[0]), $f($a[1])])
    };
    ($f:expr, $a:expr, $b:expr) => {
        isa!([$f($a[0], $b[0]), $f($a[1], $b[1])])
    };
}

type F = [__m256; 2];
type I = [__m256i; 2];

impl Simd for Avx2 {
    const TOKEN_TILE: usize = 4;
    type F = F;
    type I = I;
    type B = I;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        isa!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> F {
        isa!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))])
    }
    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; 16]) {
        isa!({
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
        });
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> F {
        isa!([
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(8).cast())),
        ])
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> F {
        isa!({
            let half = |p: *const u16| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            [half(x.as_ptr()), half(x.as_ptr().add(8))]
        })
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> F {
        isa!([
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast()))),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().add(8).cast()))),
        ])
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> F {
        isa!([
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast()))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().add(8).cast()))),
        ])
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        isa!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn round_i32(self, x: F) -> I {
        both!(_mm256_cvtps_epi32, x)
    }
    #[inline(always)]
    fn to_f32(self, x: I) -> F {
        both!(_mm256_cvtepi32_ps, x)
    }
    #[inline(always)]
    fn bits(self, x: F) -> I {
        both!(_mm256_castps_si256, x)
    }
    #[inline(always)]
    fn of_bits(self, x: I) -> F {
        both!(_mm256_castsi256_ps, x)
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> I {
        isa!([_mm256_set1_epi32(x); 2])
    }
    #[inline(always)]
    fn add_i32(self, a: I, b: I) -> I {
        both!(_mm256_add_epi32, a, b)
    }
    #[inline(always)]
    fn and_i32(self, a: I, b: I) -> I {
        both!(_mm256_and_si256, a, b)
    }
    #[inline(always)]
    fn max_i32(self, a: I, b: I) -> I {
        both!(_mm256_max_epi32, a, b)
    }
    #[inline(always)]
    fn shl_i32<const N: u32>(self, a: I) -> I {
        // The immediate of the AVX2 intrinsic is an i32 where AVX-512's is a u32; shift by a register instead.
        isa!({
            let n = _mm_cvtsi32_si128(N as i32);
            [_mm256_sll_epi32(a[0], n), _mm256_sll_epi32(a[1], n)]
        })
    }
    #[inline(always)]
    fn store_low_bytes(self, x: I, to: &mut [i8; 16]) {
        let mut lanes = [0; 16];
        self.store_i32(x, &mut lanes);
        *to = lanes.map(|x| x as i8);
    }
    #[inline(always)]
    fn store_i32(self, x: I, to: &mut [i32; 16]) {
        isa!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), x[1]);
        });
    }
    #[inline(always)]
    fn load_b(self, x: &[u8; 64]) -> I {
        isa!([_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(32).cast())])
    }
    #[inline(always)]
    fn store_b(self, x: I, to: &mut [u8; 64]) {
        isa!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(32).cast(), x[1]);
        });
    }
    #[inline(always)]
    fn low_nibbles(self, x: I) -> I {
        isa!({
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)]
        })
    }
    #[inline(always)]
    fn high_nibbles(self, x: I) -> I {
        self.low_nibbles(both!(_mm256_srli_epi16::<4>, x))
    }
    #[inline(always)]
    fn nibbles(self, x: I, half: usize) -> I {
        self.low_nibbles(isa!({
            let n = _mm_cvtsi32_si128(4 * half as i32);
            [_mm256_srl_epi16(x[0], n), _mm256_srl_epi16(x[1], n)]
        }))
    }
    #[inline(always)]
    fn with_high_bits(self, low: I, x: I, shift: usize, mask: u8) -> I {
        // One of the two shifts is by 0. They work on 16-bit lanes; bits that cross a byte are masked off.
        isa!({
            let left = _mm_cvtsi32_si128(4usize.saturating_sub(shift) as i32);
            let right = _mm_cvtsi32_si128(shift.saturating_sub(4) as i32);
            let mask = _mm256_set1_epi8((mask << 4) as i8);
            let half = |low, x| {
                let moved = _mm256_srl_epi16(_mm256_sll_epi16(x, left), right);
                _mm256_or_si256(low, _mm256_and_si256(moved, mask))
            };
            [half(low[0], x[0]), half(low[1], x[1])]
        })
    }
    #[inline(always)]
    fn dot(self, acc: I, w: I, x: i32) -> I {
        // u8 × i8 pairs fit an i16 because w <= 127 and |x| <= 127: at most 2 · 127 · 127 = 32258.
        isa!({
            let (x, ones) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1));
            let half = |acc, w| _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones));
            [half(acc[0], w[0]), half(acc[1], w[1])]
        })
    }
    #[inline(always)]
    fn wide_start(self, _isum: i32) -> I {
        self.splat_i32(0)
    }
    #[inline(always)]
    fn dot_wide(self, acc: I, w: I, x: i32) -> I {
        // |s| · (sign(s) x) with s = w - 128: at most 2 · 128 · 127 = 32512, which fits an i16.
        isa!({
            let (x, ones) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1));
            let flip = _mm256_set1_epi8(-128);
            let half = |acc, w| {
                let s = _mm256_xor_si256(w, flip);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(x, s));
                _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, ones))
            };
            [half(acc[0], w[0]), half(acc[1], w[1])]
        })
    }
    #[inline(always)]
    fn reduce_add(self, x: F) -> f32 {
        isa!(reduce_add_8(_mm256_add_ps(x[0], x[1])))
    }
}

/// Sum of 8 lanes: 8 → 4 → 2 → 1.
///
/// # Safety
/// Needs AVX.
#[inline(always)]
pub(super) unsafe fn reduce_add_8(x: __m256) -> f32 {
    // SAFETY: the caller has AVX.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}
