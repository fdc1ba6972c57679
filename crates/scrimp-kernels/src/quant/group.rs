//! One group of 32 columns: integer dot products, then one step of the float accumulation.
//!
//! For the quants `q` of 16 rows and the 8-bit activations `x` of a token, with i32 sums that are exact in every level:
//!
//! ```text
//! i   = sum over 32 columns of (q - ZERO) x
//! acc = fma(float(i) * x.scale, scale, acc)     symmetric; with two scales: first 16 columns, then the others
//! acc = fma(x.sum, minimum, acc)                with a minimum, after the above; with two minima: the first 16 columns'
//!                                               sum and minimum, then the others'
//! ```
//! A level holds sums in the narrowest form that is exact ([`Simd::Accumulator`]): AVX2 adds up 16-bit pairs and widens
//! them once for up to 8 steps of 4 columns.
//!
//! The groups of a row are added in column order, for any batch, chunk and number of threads, so results
//! are bit-equal in every level and for every way of cutting the work.

use super::{Quants, Scaling};
use crate::arch::Simd;

/// 32 activations of one token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct QuantGroup {
    /// 4 signed bytes each, in memory order.
    pub(crate) q: [i32; 8],
    pub(crate) scale: f32,
    /// `scale * sum(q)`.
    pub(crate) sum: f32,
    /// [`Simd::sums`](crate::arch::Simd::sums) of the first and last 16 quants, the negated ones.
    pub(crate) negated_sums: [i32; 2],
}

/// The sum that columns start from; the activations' sums are those of the columns.
#[inline(always)]
pub(crate) fn acc_init<S: Simd, F: Quants>(s: S, negated_sums: [i32; 2]) -> S::Accumulator {
    if const { F::LARGEST > 127 } { s.acc_init_wide(negated_sums) } else { s.acc_init(F::ZERO, negated_sums) }
}

/// Adds `q x` for 4 columns.
#[inline(always)]
pub(crate) fn dot<S: Simd, F: Quants>(s: S, acc: S::Accumulator, w: S::B, x: i32) -> S::Accumulator {
    if const { F::LARGEST > 127 } { s.dot_wide(acc, w, x) } else { s.dot(acc, w, x) }
}

/// [`dot`] of four steps.
#[inline(always)]
pub(crate) fn dot_four<S: Simd, F: Quants>(
    s: S,
    acc: S::Accumulator,
    w: [S::B; 4],
    x: &[i32; 4],
) -> S::Accumulator {
    if F::LARGEST > 127 { s.dot_four_wide(acc, w, x) } else { s.dot_four(acc, w, x) }
}

/// Steps of 4 columns that one partial sum holds, of those that share a scale.
///
/// A step adds two products to a lane, of at most `127 * |q - ZERO|`; until the end, the sum differs from that by
/// the term of [`acc_init`], and may wrap around. In 16 bits, 8 steps of 4-bit quants (`15 * 2 * 127 = 3810` each) and
/// of `Q5_0` (4064) fit one sum, and the 4 steps that share a scale of `Q6_K` (8128). `Q5_1` (7874) takes two sums, and
/// `Q8_0` one for each step.
pub(crate) const fn steps<S: Simd, F: Quants>() -> usize {
    let above = F::LARGEST as i32 - F::ZERO;
    let largest = if above > F::ZERO { above } else { F::ZERO } as usize;
    let wanted = if matches!(F::SCALING, Scaling::TwoScales) { 4 } else { 8 };
    let mut steps = wanted;
    while steps * 2 * 127 * largest > S::ACCUMULATOR_MAX {
        steps /= 2;
    }
    // Only the first partial sum subtracts the zero point.
    assert!(steps == wanted || F::ZERO == 0 || F::LARGEST > 127);
    steps
}

/// `n`, hidden from the compiler where the iterations must stay in order ([`Simd::UNROLL`]). Unrolled for AVX2, it does
/// all steps of the first 8 rows, then those of the others, and spills every activation in between.
#[inline(always)]
fn in_order<S: Simd>(n: usize) -> usize {
    if S::UNROLL || n == 1 { n } else { std::hint::black_box(n) }
}

/// Dot products of columns `4 FROM .. 4 TO` of a group, which share one scale, with `T` tokens.
#[inline(always)]
pub(crate) fn dots<S: Simd, F: Quants, const T: usize, const FROM: usize, const TO: usize>(
    s: S,
    w: &[[u8; 64]; 8],
    x: &[QuantGroup; T],
) -> [S::I; T] {
    if const { S::TWO_TOKENS && T.is_multiple_of(2) } {
        return dots_of_two::<S, F, T, FROM, TO>(s, w, x);
    }
    if const { S::TWO_TOKENS } {
        // The weights are stored for two tokens.
        return x.map(|x| dots_of_two::<S, F, 2, FROM, TO>(s, w, &[x; 2])[0]);
    }
    let steps = const { steps::<S, F>() };
    let mut sums = [s.splat_i32(0); T];
    for i in 0..in_order::<S>((TO - FROM) / steps) {
        let from = FROM + i * steps;
        let mut partial = [acc_init::<S, F>(s, [0; 2]); T];
        if from == FROM {
            for t in 0..T {
                partial[t] = acc_init::<S, F>(s, negated_sums::<FROM, TO>(&x[t]));
            }
        }
        for k in from..from + in_order::<S>(steps) {
            let w = s.load_b(&w[k]);
            for t in 0..T {
                partial[t] = dot::<S, F>(s, partial[t], w, x[t].q[k]);
            }
        }
        for t in 0..T {
            sums[t] = s.add_i32(sums[t], s.acc_finish(partial[t]));
        }
    }
    sums
}

/// `x.scale * sum(q)` of the first and the last 16 columns.
#[inline(always)]
fn half_sums<S: Simd>(s: S, x: &QuantGroup) -> [f32; 2] {
    let [first, last] = x.negated_sums;
    [x.scale * s.sum_of(first) as f32, x.scale * s.sum_of(last) as f32]
}

/// Adds the minimum of each half times the half's sum of activations.
#[inline(always)]
pub(crate) fn add_two_min_terms<S: Simd>(s: S, acc: S::F, x: &QuantGroup, minima: [S::F; 2]) -> S::F {
    let [first, last] = half_sums(s, x);
    add_min_term(s, add_min_term(s, acc, first, minima[0]), last, minima[1])
}

/// The argument of [`acc_init`] for columns `4 FROM .. 4 TO`.
#[inline(always)]
fn negated_sums<const FROM: usize, const TO: usize>(x: &QuantGroup) -> [i32; 2] {
    let [first, last] = x.negated_sums;
    match TO - FROM {
        8 => [first, last],
        _ if FROM == 0 => [first, 0],
        _ => [last, 0],
    }
}

/// [`dots`] for levels that multiply two tokens and two steps at once; the steps are [`Simd::paired`].
#[inline(always)]
fn dots_of_two<S: Simd, F: Quants, const T: usize, const FROM: usize, const TO: usize>(
    s: S,
    w: &[[u8; 64]; 8],
    x: &[QuantGroup; T],
) -> [S::I; T] {
    let mut sums = [s.splat_i32(0); T];
    for (sums, x) in sums.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0) {
        let start = |x| s.acc_finish(acc_init::<S, F>(s, negated_sums::<FROM, TO>(x)));
        *sums = s.join([start(&x[0]), start(&x[1])]);
    }
    for (k, w) in w.as_chunks::<4>().0.iter().enumerate().take(TO / 4).skip(FROM / 4) {
        let (first, last) = ([s.load_b(&w[0]), s.load_b(&w[1])], [s.load_b(&w[2]), s.load_b(&w[3])]);
        for (sums, x) in sums.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0) {
            let [x0, x1] = [&x[0], &x[1]].map(|x| &x.q.as_chunks::<4>().0[k]);
            let x = s.two_tokens(x0, x1);
            *sums = s.dot_two(s.dot_two(*sums, first, x[0]), last, x[1]);
        }
    }
    for sums in sums.as_chunks_mut::<2>().0 {
        *sums = s.split(*sums);
    }
    sums
}

/// Adds `x_sum * minimum`.
#[inline(always)]
pub(crate) fn add_min_term<S: Simd>(s: S, acc: S::F, x_sum: f32, minimum: S::F) -> S::F {
    s.fma(s.splat(x_sum), minimum, acc)
}

/// Adds `float(i) * x_scale * scale`.
#[inline(always)]
pub(crate) fn fma_scaled<S: Simd>(s: S, acc: S::F, i: S::I, x_scale: f32, scale: S::F) -> S::F {
    s.fma(s.mul(s.to_f32(i), s.splat(x_scale)), scale, acc)
}
