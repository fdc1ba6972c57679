//! Plain Rust: slow, portable, and the reference of the other levels' tests.
//!
//! Operations that take more than a few instructions are functions of their own: inlined into every kernel, they would
//! take a quarter of this crate's compile time.

mod attention;
mod embedding;

use super::{Simd, array};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn zip<T: Copy, U: Copy>(a: [T; 16], b: [T; 16], f: impl Fn(T, T) -> U) -> [U; 16] {
    array(|i| f(a[i], b[i]))
}

#[inline(always)]
fn dot_row(w: &[u8; 64], row: usize, x: i32, f: impl Fn(u8) -> i32) -> i32 {
    let x = x.to_le_bytes();
    (0..4).map(|j| f(w[row * 4 + j]) * i32::from(x[j] as i8)).sum()
}

impl Simd for Scalar {
    const UNROLL: bool = true;
    const TOKEN_TILE: usize = 4;
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];
    type Accumulator = [i32; 16];
    type Two = ();
    const ACCUMULATOR_MAX: usize = i32::MAX as usize;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }
    #[inline(always)]
    fn store(self, x: [f32; 16], to: &mut [f32; 16]) {
        *to = x;
    }
    #[inline(never)]
    fn load_f16(self, x: &[u16; 16]) -> [f32; 16] {
        x.map(|b| f16::from_bits(b).to_f32_const())
    }
    #[inline(never)]
    fn load_bf16(self, x: &[u16; 16]) -> [f32; 16] {
        x.map(|b| bf16::from_bits(b).to_f32_const())
    }
    #[inline(never)]
    fn load_u8(self, x: &[u8; 16]) -> [f32; 16] {
        x.map(f32::from)
    }
    #[inline(never)]
    fn load_i8(self, x: &[i8; 16]) -> [f32; 16] {
        x.map(f32::from)
    }
    #[inline(never)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(never)]
    fn sub(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(never)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(never)]
    fn div(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(never)]
    fn fma(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        array(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(never)]
    fn max(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(never)]
    fn min(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(never)]
    fn round_i32(self, x: [f32; 16]) -> [i32; 16] {
        x.map(|x| x.round_ties_even() as i32)
    }
    #[inline(never)]
    fn to_f32(self, x: [i32; 16]) -> [f32; 16] {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    fn bits(self, x: [f32; 16]) -> [i32; 16] {
        x.map(|x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn of_bits(self, x: [i32; 16]) -> [f32; 16] {
        x.map(|x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(never)]
    fn add_i32(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(never)]
    fn and_i32(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        zip(a, b, |a, b| a & b)
    }
    #[inline(never)]
    fn max_i32(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        zip(a, b, i32::max)
    }
    #[inline(never)]
    fn shl_i32<const N: u32>(self, a: [i32; 16]) -> [i32; 16] {
        a.map(|a| a << N)
    }
    #[inline(never)]
    fn shr_i32<const N: u32>(self, a: [i32; 16]) -> [i32; 16] {
        a.map(|a| a >> N)
    }
    #[inline(never)]
    fn store_low_bytes(self, x: [i32; 16], to: &mut [i8; 16]) {
        *to = x.map(|x| x as i8);
    }
    #[inline(always)]
    fn store_i32(self, x: [i32; 16], to: &mut [i32; 16]) {
        *to = x;
    }
    #[inline(always)]
    fn load_b(self, x: &[u8; 64]) -> [u8; 64] {
        *x
    }
    #[inline(always)]
    fn store_b(self, x: [u8; 64], to: &mut [u8; 64]) {
        *to = x;
    }
    #[inline(never)]
    fn wrapping_sub(self, a: [u8; 64], x: u8) -> [u8; 64] {
        a.map(|a| a.wrapping_sub(x))
    }
    #[inline(never)]
    fn low_nibbles(self, x: [u8; 64]) -> [u8; 64] {
        x.map(|x| x & 15)
    }
    #[inline(never)]
    fn high_nibbles(self, x: [u8; 64]) -> [u8; 64] {
        x.map(|x| x >> 4)
    }
    #[inline(never)]
    fn nibbles(self, x: [u8; 64], half: usize) -> [u8; 64] {
        x.map(|x| x >> (4 * half) & 15)
    }
    #[inline(never)]
    fn with_high_bits(self, low: [u8; 64], x: [u8; 64], shift: usize, mask: u8) -> [u8; 64] {
        array(|i| low[i] | (x[i] >> shift & mask) << 4)
    }
    #[inline(always)]
    fn acc_init(self, zero: i32, negated_sums: [i32; 2]) -> [i32; 16] {
        self.splat_i32(zero * (negated_sums[0] + negated_sums[1]))
    }
    #[inline(never)]
    fn dot(self, acc: [i32; 16], w: [u8; 64], x: i32) -> [i32; 16] {
        array(|row| acc[row] + dot_row(&w, row, x, i32::from))
    }
    #[inline(always)]
    fn acc_init_wide(self, negated_sums: [i32; 2]) -> [i32; 16] {
        self.acc_init(0, negated_sums)
    }
    #[inline(never)]
    fn dot_wide(self, acc: [i32; 16], w: [u8; 64], x: i32) -> [i32; 16] {
        array(|row| acc[row] + dot_row(&w, row, x, |w| i32::from(w) - 128))
    }
    #[inline(always)]
    fn acc_finish(self, acc: [i32; 16]) -> [i32; 16] {
        acc
    }
    #[inline(never)]
    fn dot_bf16(self, acc: [f32; 16], w: [u8; 64], x: u32) -> [f32; 16] {
        let halves = |x: u32| [f32::from_bits(x << 16), f32::from_bits(x & 0xffff_0000)];
        let x = halves(x);
        array(|row| {
            let [first, second] =
                halves(u32::from_le_bytes([w[4 * row], w[4 * row + 1], w[4 * row + 2], w[4 * row + 3]]));
            second.mul_add(x[1], first.mul_add(x[0], acc[row]))
        })
    }
}
