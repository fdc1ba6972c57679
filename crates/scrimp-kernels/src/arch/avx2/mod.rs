//! AVX2 + FMA + F16C: two registers per vector.

mod attention;
mod embedding;

use super::{
    Simd,
    expand::{EXPAND_BYTES, EXPAND_WORDS},
};
use std::arch::x86_64::*;

/// Proof that the CPU has the level's features; made only in [`dispatch`](crate::arch::dispatch).
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU must have every feature of the level.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
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
    const UNROLL: bool = false;
    const TOKEN_TILE: usize = 4;
    type F = F;
    type I = I;
    type B = I;
    /// 16 rows × 2 sums of i16.
    type Accumulator = I;
    type Two = ();
    const ACCUMULATOR_MAX: usize = i16::MAX as usize;

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
    fn shr_i32<const N: u32>(self, a: I) -> I {
        isa!({
            let n = _mm_cvtsi32_si128(N as i32);
            [_mm256_sra_epi32(a[0], n), _mm256_sra_epi32(a[1], n)]
        })
    }
    #[inline(always)]
    fn store_low_bytes(self, x: I, to: &mut [i8; 16]) {
        isa!({
            let mask = _mm256_set1_epi32(0xff);
            // Packs the 128-bit halves of both registers; the permutation puts them in order.
            let words = _mm256_packus_epi32(_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        });
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
    fn wrapping_sub(self, a: I, x: u8) -> I {
        let x = isa!([_mm256_set1_epi8(x as i8); 2]);
        both!(_mm256_sub_epi8, a, x)
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
    fn bits_at(self, x: I, from: usize, to: usize, mask: u8) -> I {
        // One of the two shifts is by 0. They work on 16-bit lanes; bits that cross a byte are masked off.
        isa!({
            let left = _mm_cvtsi32_si128(to.saturating_sub(from) as i32);
            let right = _mm_cvtsi32_si128(from.saturating_sub(to) as i32);
            let mask = _mm256_set1_epi8((mask << to) as i8);
            [
                _mm256_and_si256(_mm256_srl_epi16(_mm256_sll_epi16(x[0], left), right), mask),
                _mm256_and_si256(_mm256_srl_epi16(_mm256_sll_epi16(x[1], left), right), mask),
            ]
        })
    }
    #[inline(always)]
    fn with_bits(self, low: I, x: I, from: usize, to: usize, mask: u8) -> I {
        let bits = self.bits_at(x, from, to, mask);
        both!(_mm256_or_si256, low, bits)
    }
    #[inline(always)]
    fn lookup16(self, table: &[u8; 16], x: I) -> I {
        isa!({
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, x[0]), _mm256_shuffle_epi8(table, x[1])]
        })
    }
    #[inline(always)]
    fn scale_quants(self, w: I, factor: &[u8; 16]) -> I {
        // Both bytes of a 16-bit lane are multiplied at once: no product reaches the next byte.
        isa!({
            let first = _mm256_cvtepu8_epi32(_mm_loadl_epi64(factor.as_ptr().cast()));
            let last = _mm256_cvtepu8_epi32(_mm_loadl_epi64(factor.as_ptr().add(8).cast()));
            [
                _mm256_mullo_epi16(w[0], _mm256_or_si256(first, _mm256_slli_epi32::<16>(first))),
                _mm256_mullo_epi16(w[1], _mm256_or_si256(last, _mm256_slli_epi32::<16>(last))),
            ]
        })
    }
    #[inline(always)]
    fn sum_of(self, negated: i32) -> i32 {
        -(i32::from(negated as i16) + (negated >> 16))
    }
    #[inline(always)]
    fn sums(self, x: &[i8; 16]) -> (i32, i32) {
        // The negated sums are two i16, one for each of the lanes that a row has in a partial sum.
        let packed = isa!({
            let x = _mm_loadu_si128(x.as_ptr().cast());
            let pairs = _mm_maddubs_epi16(_mm_set1_epi8(1), x);
            let pairs = _mm_add_epi16(pairs, _mm_srli_si128::<8>(pairs));
            let pairs = _mm_add_epi16(pairs, _mm_srli_si128::<4>(pairs));
            _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), pairs))
        });
        (-(i32::from(packed as i16) + (packed >> 16)), packed)
    }
    #[inline(always)]
    fn acc_init(self, zero: i32, negated_sums: [i32; 2]) -> I {
        isa!({
            let sums =
                _mm256_add_epi16(_mm256_set1_epi32(negated_sums[0]), _mm256_set1_epi32(negated_sums[1]));
            [_mm256_mullo_epi16(sums, _mm256_set1_epi16(zero as i16)); 2]
        })
    }
    #[inline(always)]
    fn dot(self, acc: I, w: I, x: i32) -> I {
        isa!({
            let x = _mm256_set1_epi32(x);
            [
                _mm256_add_epi16(acc[0], _mm256_maddubs_epi16(w[0], x)),
                _mm256_add_epi16(acc[1], _mm256_maddubs_epi16(w[1], x)),
            ]
        })
    }
    #[inline(always)]
    fn acc_init_wide(self, _negated_sums: [i32; 2]) -> I {
        self.splat_i32(0)
    }
    #[inline(always)]
    fn dot_wide(self, acc: I, w: I, x: i32) -> I {
        // |s| · (sign(s) x) with s = w - 128: at most 2 · 128 · 127 = 32512, which fits an i16.
        let s = self.wrapping_sub(w, 128);
        let magnitude = both!(_mm256_abs_epi8, s);
        isa!({
            let x = _mm256_set1_epi32(x);
            [
                _mm256_add_epi16(acc[0], _mm256_maddubs_epi16(magnitude[0], _mm256_sign_epi8(x, s[0]))),
                _mm256_add_epi16(acc[1], _mm256_maddubs_epi16(magnitude[1], _mm256_sign_epi8(x, s[1]))),
            ]
        })
    }
    #[inline(always)]
    fn acc_finish(self, acc: I) -> I {
        let ones = isa!([_mm256_set1_epi16(1); 2]);
        both!(_mm256_madd_epi16, acc, ones)
    }
    #[inline(always)]
    fn expand_words(self, mask: u32, from: &[u8; 64]) -> I {
        // 8 words at a time; each eighth's values start behind those of the eighths before.
        let eighth = |i: u32| {
            let before = (mask & ((1 << (8 * i)) - 1)).count_ones() as usize;
            let order = &EXPAND_WORDS[(mask >> (8 * i) & 0xff) as usize];
            // SAFETY: at most 24 values lie before, so 16 bytes are left of the 64.
            unsafe {
                let values = _mm_loadu_si128(from.as_ptr().add(2 * before).cast());
                _mm_shuffle_epi8(values, _mm_load_si128(order.0.as_ptr().cast()))
            }
        };
        isa!([_mm256_set_m128i(eighth(1), eighth(0)), _mm256_set_m128i(eighth(3), eighth(2))])
    }
    #[inline(always)]
    fn expand_bytes(self, mask: u64, from: &[u8; 64], hole: u8) -> I {
        let hole = isa!(_mm_set1_epi8(hole as i8));
        // Shuffles leave 0 in holes.
        let quarter = |i| isa!(_mm_xor_si128(shuffle_bytes(mask, i, from, |x| _mm_xor_si128(x, hole)), hole));
        isa!([_mm256_set_m128i(quarter(1), quarter(0)), _mm256_set_m128i(quarter(3), quarter(2))])
    }
    #[inline(always)]
    fn expand_nibbles<const HIGH: bool>(self, mask: u64, from: &[u8; 64]) -> I {
        let quarter = |i| {
            isa!({
                let eight = _mm_set1_epi8(8);
                let signed = |x| {
                    let x = if HIGH { _mm_srli_epi16::<4>(x) } else { x };
                    _mm_xor_si128(_mm_and_si128(x, _mm_set1_epi8(15)), eight)
                };
                _mm_xor_si128(shuffle_bytes(mask, i, from, signed), eight)
            })
        };
        isa!([_mm256_set_m128i(quarter(1), quarter(0)), _mm256_set_m128i(quarter(3), quarter(2))])
    }
    #[inline(always)]
    fn dot_bf16(self, acc: F, w: I, x: u32) -> F {
        isa!({
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let x = _mm256_set1_epi32(x as i32);
            let (x0, x1) = (_mm256_slli_epi32::<16>(x), _mm256_and_si256(x, high));
            let (x0, x1) = (_mm256_castsi256_ps(x0), _mm256_castsi256_ps(x1));
            let half = |acc: __m256, w: __m256i| {
                let acc = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(w)), x0, acc);
                _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(w, high)), x1, acc)
            };
            [half(acc[0], w[0]), half(acc[1], w[1])]
        })
    }
    #[inline(always)]
    fn reduce_max_i32(self, x: I) -> i32 {
        isa!({
            let x = _mm256_max_epi32(x[0], x[1]);
            let x = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let x = _mm_max_epi32(x, _mm_unpackhi_epi64(x, x));
            let x = _mm_max_epi32(x, _mm_shuffle_epi32::<1>(x));
            _mm_cvtsi128_si32(x)
        })
    }
    #[inline(always)]
    fn reduce_add(self, x: F) -> f32 {
        isa!(reduce_add_8(_mm256_add_ps(x[0], x[1])))
    }
}

/// Quarter `i` (16 bytes) of an expansion of `prepare(values)`, 0 in holes.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn shuffle_bytes(mask: u64, i: u32, from: &[u8; 64], prepare: impl Fn(__m128i) -> __m128i) -> __m128i {
    let before = |bits: u32| (mask & ((1 << bits) - 1)).count_ones() as usize;
    let order = |bits: u32| EXPAND_BYTES[(mask >> bits & 0xff) as usize] as i64;
    // SAFETY: at most 56 values lie before, so 8 bytes are left of the 64; this function requires AVX2.
    unsafe {
        let half = |bits: u32| from.as_ptr().add(before(bits)).cast::<i64>().read_unaligned();
        let values = _mm_set_epi64x(half(16 * i + 8), half(16 * i));
        let order = _mm_set_epi64x(order(16 * i + 8) + 0x0808_0808_0808_0808, order(16 * i));
        _mm_shuffle_epi8(prepare(values), order)
    }
}

/// Sum of 8 lanes: 8 → 4 → 2 → 1.
///
/// # Safety
/// Needs AVX.
#[inline(always)]
pub(super) unsafe fn reduce_add_8(x: __m256) -> f32 {
    // SAFETY: this function requires AVX.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}
