//! NEON (Advanced SIMD), which every aarch64 CPU has: four registers per vector. The levels above it add instructions
//! for products ([`products`]).

mod attention;
mod embedding;
mod products;

use super::{
    Simd,
    expand::{EXPAND_BYTES, EXPAND_WORDS, expand_bytes},
};
use products::{Dotprod, I8mm, Multiply, Products};
use std::arch::aarch64::*;

/// NEON without further features.
pub(crate) type NeonBase = Neon<Multiply>;
/// NEON with dot products of bytes.
pub(crate) type NeonDotprod = Neon<Dotprod>;
/// NEON with products of matrices of bytes and of bf16.
pub(crate) type NeonI8mm = Neon<I8mm>;

/// Proof that the CPU has the features of `P`; made only in [`dispatch`](crate::arch::dispatch).
#[derive(Clone, Copy)]
pub(crate) struct Neon<P>(P);

impl<P: Products> Neon<P> {
    /// # Safety
    /// The CPU must have every feature of the level.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller guarantees the features.
        Self(unsafe { P::new() })
    }
}

/// Applies an intrinsic to all quarters.
macro_rules! each {
    ($f:expr, $a:expr) => {
        isa!([$f($a[0]), $f($a[1]), $f($a[2]), $f($a[3])])
    };
    ($f:expr, $a:expr, $b:expr) => {
        isa!([$f($a[0], $b[0]), $f($a[1], $b[1]), $f($a[2], $b[2]), $f($a[3], $b[3])])
    };
    ($f:expr, $a:expr, $b:expr, $c:expr) => {
        isa!([
            $f($a[0], $b[0], $c[0]),
            $f($a[1], $b[1], $c[1]),
            $f($a[2], $b[2], $c[2]),
            $f($a[3], $b[3], $c[3]),
        ])
    };
}
use each;

/// The expression for each quarter. Closures would lack the features of the level ([`products`]).
macro_rules! quarters {
    ($i:ident => $value:expr) => {
        [
            {
                let $i = 0;
                $value
            },
            {
                let $i = 1;
                $value
            },
            {
                let $i = 2;
                $value
            },
            {
                let $i = 3;
                $value
            },
        ]
    };
}
use quarters;

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];
type B = [uint8x16_t; 4];

impl<P: Products> Simd for Neon<P> {
    const UNROLL: bool = true;
    const TOKEN_TILE: usize = 4;
    type F = F;
    type I = I;
    type B = B;
    type Accumulator = I;
    const TWO_TOKENS: bool = P::MATRICES;
    /// `[step of the first token, next step, step of the second token, next step]`
    type Two = int32x4_t;
    const ACCUMULATOR_MAX: usize = i32::MAX as usize;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        isa!([vdupq_n_f32(x); 4])
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> F {
        isa!(quarters!(i => vld1q_f32(x.as_ptr().add(4 * i))))
    }
    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; 16]) {
        for i in 0..4 {
            isa!(vst1q_f32(to.as_mut_ptr().add(4 * i), x[i]));
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> F {
        isa!({
            let [a, b] = load_words(x);
            let (a1, b1) = (half_to_float_high(a), half_to_float_high(b));
            [half_to_float(vget_low_u16(a)), a1, half_to_float(vget_low_u16(b)), b1]
        })
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> F {
        isa!({
            let [a, b] = load_words(x);
            let low = |x| vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(x)));
            let high = |x| vreinterpretq_f32_u32(vshll_high_n_u16::<16>(x));
            [low(a), high(a), low(b), high(b)]
        })
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> F {
        isa!({
            let x = vld1q_u8(x.as_ptr());
            let (a, b) = (vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x));
            let low = |x| vcvtq_f32_u32(vmovl_u16(vget_low_u16(x)));
            let high = |x| vcvtq_f32_u32(vmovl_high_u16(x));
            [low(a), high(a), low(b), high(b)]
        })
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> F {
        isa!({
            let x = vld1q_s8(x.as_ptr());
            let (a, b) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
            let low = |x| vcvtq_f32_s32(vmovl_s16(vget_low_s16(x)));
            let high = |x| vcvtq_f32_s32(vmovl_high_s16(x));
            [low(a), high(a), low(b), high(b)]
        })
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each!(vdivq_f32, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        each!(vfmaq_f32, c, a, b)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        // `fmax` returns NaN where `a` is NaN.
        let larger = each!(vcgtq_f32, a, b);
        each!(vbslq_f32, larger, a, b)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        let smaller = each!(vcltq_f32, a, b);
        each!(vbslq_f32, smaller, a, b)
    }
    #[inline(always)]
    fn round_i32(self, x: F) -> I {
        each!(vcvtnq_s32_f32, x)
    }
    #[inline(always)]
    fn to_f32(self, x: I) -> F {
        each!(vcvtq_f32_s32, x)
    }
    #[inline(always)]
    fn bits(self, x: F) -> I {
        each!(vreinterpretq_s32_f32, x)
    }
    #[inline(always)]
    fn of_bits(self, x: I) -> F {
        each!(vreinterpretq_f32_s32, x)
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> I {
        isa!([vdupq_n_s32(x); 4])
    }
    #[inline(always)]
    fn add_i32(self, a: I, b: I) -> I {
        each!(vaddq_s32, a, b)
    }
    #[inline(always)]
    fn and_i32(self, a: I, b: I) -> I {
        each!(vandq_s32, a, b)
    }
    #[inline(always)]
    fn max_i32(self, a: I, b: I) -> I {
        each!(vmaxq_s32, a, b)
    }
    #[inline(always)]
    fn shl_i32<const N: u32>(self, a: I) -> I {
        // The immediate of the intrinsic is an i32; the compiler makes one of this constant.
        let n = self.splat_i32(N as i32);
        each!(vshlq_s32, a, n)
    }
    #[inline(always)]
    fn shr_i32<const N: u32>(self, a: I) -> I {
        let n = self.splat_i32(-(N as i32));
        each!(vshlq_s32, a, n)
    }
    #[inline(always)]
    fn store_low_bytes(self, x: I, to: &mut [i8; 16]) {
        isa!({
            let words = |a, b| vuzp1q_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
            let (a, b) = (words(x[0], x[1]), words(x[2], x[3]));
            vst1q_s8(to.as_mut_ptr(), vuzp1q_s8(vreinterpretq_s8_s16(a), vreinterpretq_s8_s16(b)));
        });
    }
    #[inline(always)]
    fn store_i32(self, x: I, to: &mut [i32; 16]) {
        for i in 0..4 {
            isa!(vst1q_s32(to.as_mut_ptr().add(4 * i), x[i]));
        }
    }
    #[inline(always)]
    fn load_b(self, x: &[u8; 64]) -> B {
        isa!(quarters!(i => vld1q_u8(x.as_ptr().add(16 * i))))
    }
    #[inline(always)]
    fn store_b(self, x: B, to: &mut [u8; 64]) {
        for i in 0..4 {
            isa!(vst1q_u8(to.as_mut_ptr().add(16 * i), x[i]));
        }
    }
    #[inline(always)]
    fn wrapping_sub(self, a: B, x: u8) -> B {
        let x = isa!([vdupq_n_u8(x); 4]);
        each!(vsubq_u8, a, x)
    }
    #[inline(always)]
    fn low_nibbles(self, x: B) -> B {
        let mask = isa!([vdupq_n_u8(15); 4]);
        each!(vandq_u8, x, mask)
    }
    #[inline(always)]
    fn high_nibbles(self, x: B) -> B {
        each!(vshrq_n_u8::<4>, x)
    }
    #[inline(always)]
    fn nibbles(self, x: B, half: usize) -> B {
        if half == 0 { self.low_nibbles(x) } else { self.high_nibbles(x) }
    }
    #[inline(always)]
    fn with_high_bits(self, low: B, x: B, shift: usize, mask: u8) -> B {
        isa!({
            // A shift to the right is one by a negative distance.
            let (distance, mask) = (vdupq_n_s8(4 - shift as i8), vdupq_n_u8(mask << 4));
            quarters!(i => vorrq_u8(low[i], vandq_u8(vshlq_u8(x[i], distance), mask)))
        })
    }
    #[inline(always)]
    fn sums(self, x: &[i8; 16]) -> (i32, i32) {
        let sum = isa!(i32::from(vaddlvq_s8(vld1q_s8(x.as_ptr()))));
        (sum, -sum)
    }
    #[inline(always)]
    fn acc_init(self, zero: i32, negated_sums: [i32; 2]) -> I {
        self.splat_i32(zero * (negated_sums[0] + negated_sums[1]))
    }
    #[inline(always)]
    fn dot(self, acc: I, w: B, x: i32) -> I {
        isa!({
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
            quarters!(i => self.0.dot(acc[i], w[i], x))
        })
    }
    #[inline(always)]
    fn acc_init_wide(self, negated_sums: [i32; 2]) -> I {
        self.acc_init(P::WIDE_ZERO, negated_sums)
    }
    #[inline(always)]
    fn dot_wide(self, acc: I, w: B, x: i32) -> I {
        isa!({
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
            quarters!(i => self.0.dot_wide(acc[i], w[i], x))
        })
    }
    #[inline(always)]
    fn acc_finish(self, acc: I) -> I {
        acc
    }
    #[inline(always)]
    fn expand_bytes(self, mask: u64, from: &[u8; 64], hole: u8) -> B {
        isa!({
            let (before, hole) = (values_until(mask) << 8, vdupq_n_u8(hole));
            quarters!(i => {
                let (values, order) = quarter(mask, before, i, from);
                vqtbx1q_u8(hole, values, order)
            })
        })
    }
    #[inline(always)]
    fn expanded(self, mask: u64) -> usize {
        isa!((values_until(mask) >> 56) as usize)
    }
    #[inline(always)]
    fn expand_words(self, mask: u32, from: &[u8; 64]) -> B {
        isa!({
            // Twice as many bytes as words.
            let before = values_until(u64::from(mask)) << 9;
            quarters!(i => {
                let order = &EXPAND_WORDS[(mask >> (8 * i) & 0xff) as usize];
                // At most 24 words lie before, so 16 bytes are left of the 64.
                let before = (before >> (8 * i) & 0xff) as usize;
                vqtbl1q_u8(vld1q_u8(from.as_ptr().add(before)), vld1q_u8(order.0.as_ptr()))
            })
        })
    }
    #[inline(always)]
    fn expand_nibbles<const HIGH: bool>(self, mask: u64, from: &[u8; 64]) -> B {
        isa!({
            let (before, hole) = (values_until(mask) << 8, vdupq_n_u8(8));
            quarters!(i => {
                let (values, order) = quarter(mask, before, i, from);
                let values = if HIGH { vshrq_n_u8::<4>(values) } else { vandq_u8(values, vdupq_n_u8(15)) };
                vqtbx1q_u8(hole, values, order)
            })
        })
    }
    #[inline(always)]
    fn expand_halves<const HIGH: bool>(self, mask: u64, from: &[u8; 64]) -> B {
        let (half, hole) = if HIGH { (0xF0, 0x80) } else { (0x0F, 0x08) };
        isa!({
            let (before, half, hole) = (values_until(mask) << 8, vdupq_n_u8(half), vdupq_n_u8(hole));
            quarters!(i => {
                let (values, order) = quarter(mask, before, i, from);
                vqtbx1q_u8(hole, vandq_u8(values, half), order)
            })
        })
    }
    #[inline(always)]
    fn dot_bf16(self, acc: F, w: B, x: u32) -> F {
        isa!(quarters!(i => self.0.dot_bf16(acc[i], vreinterpretq_u32_u8(w[i]), x)))
    }
    const FOUR_STEPS: bool = true;
    #[inline(always)]
    fn dot_four(self, acc: I, w: [B; 4], x: &[i32; 4]) -> I {
        isa!({
            let x = vreinterpretq_s8_s32(vld1q_s32(x.as_ptr()));
            quarters!(i => self.0.dot_four(acc[i], quarter_of(w, i), x))
        })
    }
    #[inline(always)]
    fn dot_four_wide(self, acc: I, w: [B; 4], x: &[i32; 4]) -> I {
        isa!({
            let x = vreinterpretq_s8_s32(vld1q_s32(x.as_ptr()));
            quarters!(i => self.0.dot_four_wide(acc[i], quarter_of(w, i), x))
        })
    }
    #[inline(always)]
    fn dot_four_s8(self, acc: I, w: [B; 4], x: &[i32; 4]) -> I {
        self.dot_four_wide(acc, w, x)
    }
    #[inline(always)]
    fn dot_four_bf16(self, acc: F, w: [B; 4], x: &[u32; 4]) -> F {
        isa!({
            let x = vld1q_u32(x.as_ptr());
            quarters!(i => self.0.dot_four_bf16(acc[i], quarter_of(w, i), x))
        })
    }
    #[inline(always)]
    fn paired(self, w: [B; 2]) -> [B; 2] {
        if !P::MATRICES {
            return w;
        }
        [each!(first_rows, w[0], w[1]), each!(last_rows, w[0], w[1])]
    }
    #[inline(always)]
    fn unpaired(self, w: [B; 2]) -> [B; 2] {
        if !P::MATRICES {
            return w;
        }
        let w = w.map(|w| each!(vreinterpretq_u32_u8, w));
        let (first, second) = (each!(vuzp1q_u32, w[0], w[1]), each!(vuzp2q_u32, w[0], w[1]));
        [each!(vreinterpretq_u8_u32, first), each!(vreinterpretq_u8_u32, second)]
    }
    #[inline(always)]
    fn places_of_row(self, row: usize) -> [(usize, usize); 2] {
        if !P::MATRICES {
            return [(0, 4 * row), (1, 4 * row)];
        }
        let (vector, byte) = (row % 4 / 2, row / 4 * 16 + row % 2 * 8);
        [(vector, byte), (vector, byte + 4)]
    }
    #[inline(always)]
    fn two_tokens(self, first: &[i32; 4], second: &[i32; 4]) -> [int32x4_t; 2] {
        isa!({
            let a = vreinterpretq_s64_s32(vld1q_s32(first.as_ptr()));
            let b = vreinterpretq_s64_s32(vld1q_s32(second.as_ptr()));
            [vreinterpretq_s32_s64(vzip1q_s64(a, b)), vreinterpretq_s32_s64(vzip2q_s64(a, b))]
        })
    }
    #[inline(always)]
    fn four_tokens(self, first: &[i32; 4], second: &[i32; 4]) -> [int32x4_t; 2] {
        isa!({
            let (a, b) = (vld1q_s32(first.as_ptr()), vld1q_s32(second.as_ptr()));
            [vzip1q_s32(a, b), vzip2q_s32(a, b)]
        })
    }
    #[inline(always)]
    fn two_steps(self, first: &[i32; 2], second: &[i32; 2]) -> int32x4_t {
        isa!({
            let (a, b) = (vld1_s32(first.as_ptr()), vld1_s32(second.as_ptr()));
            vcombine_s32(vzip1_s32(a, b), vzip2_s32(a, b))
        })
    }
    /// Lanes of the two tokens alternate: rows `4 i`, `4 i + 1` in the first vector, the other two in the second one.
    #[inline(always)]
    fn join(self, [a, b]: [I; 2]) -> [I; 2] {
        [each!(vzip1q_s32, a, b), each!(vzip2q_s32, a, b)]
    }
    #[inline(always)]
    fn split(self, [a, b]: [I; 2]) -> [I; 2] {
        [each!(vuzp1q_s32, a, b), each!(vuzp2q_s32, a, b)]
    }
    #[inline(always)]
    fn dot_two(self, [a, b]: [I; 2], w: [B; 2], x: int32x4_t) -> [I; 2] {
        isa!({
            let x = vreinterpretq_s8_s32(x);
            [quarters!(i => self.0.matrix(a[i], w[0][i], x)), quarters!(i => self.0.matrix(b[i], w[1][i], x))]
        })
    }
    #[inline(always)]
    fn dot_two_bf16(self, [a, b]: [F; 2], w: [B; 2], x: int32x4_t) -> [F; 2] {
        isa!({
            let x = vreinterpretq_u32_s32(x);
            [
                quarters!(i => self.0.matrix_bf16(a[i], vreinterpretq_u32_u8(w[0][i]), x)),
                quarters!(i => self.0.matrix_bf16(b[i], vreinterpretq_u32_u8(w[1][i]), x)),
            ]
        })
    }
    #[inline(always)]
    fn acc_init_s8(self, sum: i32) -> I {
        self.splat_i32(sum.wrapping_mul(-P::WIDE_ZERO))
    }
    #[inline(always)]
    fn dot_s8(self, acc: I, w: B, x: i32) -> I {
        self.dot_wide(acc, w, x)
    }
    #[inline(always)]
    fn reduce_max_i32(self, x: I) -> i32 {
        isa!(vmaxvq_s32(vmaxq_s32(vmaxq_s32(x[0], x[1]), vmaxq_s32(x[2], x[3]))))
    }
    #[inline(always)]
    fn reduce_add(self, x: F) -> f32 {
        isa!({
            let x = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
            vget_lane_f32::<0>(x) + vget_lane_f32::<1>(x)
        })
    }
}

/// Two steps of the first two of four rows: both steps of a row, then those of the next.
#[inline]
#[target_feature(enable = "neon")]
fn first_rows(step: uint8x16_t, next: uint8x16_t) -> uint8x16_t {
    vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(step), vreinterpretq_u32_u8(next)))
}

/// The same of the last two rows.
#[inline]
#[target_feature(enable = "neon")]
fn last_rows(step: uint8x16_t, next: uint8x16_t) -> uint8x16_t {
    vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(step), vreinterpretq_u32_u8(next)))
}

/// Quarter `i` of four steps.
#[inline(always)]
fn quarter_of(w: [B; 4], i: usize) -> [uint8x16_t; 4] {
    [w[0][i], w[1][i], w[2][i], w[3][i]]
}

#[inline]
#[target_feature(enable = "neon")]
fn load_words(x: &[u16; 16]) -> [uint16x8_t; 2] {
    // SAFETY: 16 words are read from an array of 16.
    unsafe { [vld1q_u16(x.as_ptr()), vld1q_u16(x.as_ptr().add(8))] }
}

/// 4 × f16 as f32. In assembly, because the intrinsics' type is not stable.
#[inline]
#[target_feature(enable = "neon")]
fn half_to_float(x: uint16x4_t) -> float32x4_t {
    let y;
    // SAFETY: this function requires NEON; the instruction accesses these registers only.
    unsafe {
        std::arch::asm!("fcvtl {y:v}.4s, {x:v}.4h", y = lateout(vreg) y, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    y
}

/// The upper 4 × f16 as f32.
#[inline]
#[target_feature(enable = "neon")]
fn half_to_float_high(x: uint16x8_t) -> float32x4_t {
    let y;
    // SAFETY: this function requires NEON; the instruction accesses these registers only.
    unsafe {
        std::arch::asm!("fcvtl2 {y:v}.4s, {x:v}.8h", y = lateout(vreg) y, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    y
}

/// [`EXPAND_BYTES`] for the upper half of a register.
static EXPAND_UPPER_BYTES: [u64; 256] = expand_bytes(8);

/// Byte `i`: set bits of `mask` in the bytes up to byte `i`.
#[inline]
#[target_feature(enable = "neon")]
fn values_until(mask: u64) -> u64 {
    let counts = vget_lane_u64::<0>(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(mask))));
    counts.wrapping_mul(0x0101_0101_0101_0101)
}

/// The values of quarter `i` (16 bytes) of an expansion, 8 for each half, and their order.
#[inline]
#[target_feature(enable = "neon")]
fn quarter(mask: u64, before: u64, i: usize, from: &[u8; 64]) -> (uint8x16_t, uint8x16_t) {
    let before = |half: usize| (before >> (16 * i + 8 * half) & 0xff) as usize;
    let bits = |half: usize| (mask >> (16 * i + 8 * half) & 0xff) as usize;
    // SAFETY: at most 56 values lie before, so 8 bytes are left of the 64.
    let half = |half: usize| unsafe { vld1_u8(from.as_ptr().add(before(half))) };
    let order = vcombine_u8(vcreate_u8(EXPAND_BYTES[bits(0)]), vcreate_u8(EXPAND_UPPER_BYTES[bits(1)]));
    (vcombine_u8(half(0), half(1)), order)
}
