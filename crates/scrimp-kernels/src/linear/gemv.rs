//! One token, and small batches of block formats on x86: `y = W x` for the 16 rows of a panel. Weights are unpacked in
//! registers.
//!
//! ```text
//! y[row] = sum over groups of the float step of `group.rs`, in column order        (floats: one fma per column)
//! ```
//!
//! Limit: memory. Each weight is read once (4.5 bits for `Q4_0`, which is 0.56 bytes per multiply-add). Unpacking a
//! group of 512 4-bit weights takes about 25 instructions, a quarter of the time that a core needs to load them.
//! Integer formats give the same bits at every level ([`group`](crate::quant::group)).

use crate::{
    arch::{L1, Simd, prefetch_stream},
    mem::stream::PREFETCH,
    quant::{
        BlockFormat, Group, PANEL_ROWS, QuantGroup, Quants, Scaling,
        float::FloatFormat,
        group::{acc_init, add_min_term, add_two_min_terms, dot, dot_four, fma_scaled, steps},
    },
};

/// Prefetches one of `parts` parts of the block that lies [`PREFETCH`] bytes behind this one.
#[inline(always)]
pub(crate) fn prefetch_part<B>(block: &B, part: usize, parts: usize) {
    let bytes = size_of::<B>() / parts;
    let at = std::ptr::from_ref(block).cast::<u8>().wrapping_add(PREFETCH + part * bytes);
    prefetch_stream::<L1>(at, bytes.div_ceil(64));
}

/// Dot products of the 16 rows of a panel with one token.
#[inline(always)]
pub(crate) fn panel<S: Simd, F: BlockFormat>(s: S, blocks: &[F::Block], x: &[QuantGroup]) -> S::F {
    let mut acc = s.splat(0.0);
    for (block, x) in blocks.iter().zip(x.chunks_exact(F::GROUPS)) {
        if F::GROUPS == 1 {
            prefetch_part(block, 0, 1);
            acc = step::<S, F>(s, block, 0, &x[0], acc);
            continue;
        }
        // Two groups share the bytes that they are unpacked from. A loop that stays a loop: with all 8 groups of a
        // block unrolled, the compiler unpacks them together and spills what does not fit the registers (half the
        // speed).
        for (i, x) in x.as_chunks::<2>().0.iter().enumerate().take(std::hint::black_box(F::GROUPS / 2)) {
            prefetch_part(block, i, F::GROUPS / 2);
            acc = step::<S, F>(s, block, 2 * i, &x[0], acc);
            acc = step::<S, F>(s, block, 2 * i + 1, &x[1], acc);
        }
    }
    acc
}

/// Dot products of the 16 rows of a panel with `T` tokens, a token tile. A group is unpacked once, and its bytes stay in
/// registers while all tokens use them. The bits are those of [`panel`].
#[inline(always)]
pub(crate) fn tile<S: Simd, F: BlockFormat, const T: usize>(
    s: S,
    blocks: &[F::Block],
    x: &[QuantGroup],
) -> [S::F; T] {
    let mut acc = [s.splat(0.0); T];
    for (block, x) in blocks.iter().zip(x.chunks_exact(F::GROUPS * T)) {
        let x = x.as_chunks::<T>().0;
        if F::GROUPS == 1 {
            prefetch_part(block, 0, 1);
            tile_step::<S, F, T>(s, block, 0, &x[0], &mut acc);
            continue;
        }
        // As in `panel`.
        for (i, x) in x.as_chunks::<2>().0.iter().enumerate().take(std::hint::black_box(F::GROUPS / 2)) {
            prefetch_part(block, i, F::GROUPS / 2);
            tile_step::<S, F, T>(s, block, 2 * i, &x[0], &mut acc);
            tile_step::<S, F, T>(s, block, 2 * i + 1, &x[1], &mut acc);
        }
    }
    acc
}

#[inline(always)]
fn tile_step<S: Simd, F: BlockFormat, const T: usize>(
    s: S,
    block: &F::Block,
    g: usize,
    x: &[QuantGroup; T],
    acc: &mut [S::F; T],
) {
    let group = F::group(s, block, g);
    for t in 0..T {
        acc[t] = accumulate::<S, F::Quants>(s, &group, &x[t], acc[t]);
    }
}

#[inline(always)]
fn step<S: Simd, F: BlockFormat>(s: S, block: &F::Block, g: usize, x: &QuantGroup, acc: S::F) -> S::F {
    accumulate::<S, F::Quants>(s, &F::group(s, block, g), x, acc)
}

/// Adds the products of one group.
#[inline(always)]
pub(crate) fn accumulate<S: Simd, Q: Quants>(s: S, group: &Group<S>, x: &QuantGroup, acc: S::F) -> S::F {
    let (lo, hi) = halves::<S, Q>(s, group, x);
    match Q::SCALING {
        Scaling::Symmetric => fma_scaled(s, acc, s.add_i32(lo, hi), x.scale, group.scale),
        Scaling::Minimum => {
            let acc = fma_scaled(s, acc, s.add_i32(lo, hi), x.scale, group.scale);
            add_min_term(s, acc, x.sum, group.second)
        }
        Scaling::TwoMinima => {
            let acc = fma_scaled(s, acc, s.add_i32(lo, hi), x.scale, group.scale);
            add_two_min_terms(s, acc, x, [group.second, group.third])
        }
        Scaling::TwoScales => {
            let acc = fma_scaled(s, acc, lo, x.scale, group.scale);
            fma_scaled(s, acc, hi, x.scale, group.second)
        }
    }
}

/// The integer sums of the first and the last 16 columns; with one scale, only their sum is defined.
#[inline(always)]
fn halves<S: Simd, Q: Quants>(s: S, group: &Group<S>, x: &QuantGroup) -> (S::I, S::I) {
    // With one scale, a wide sum takes both halves' zero points.
    let one = S::ACCUMULATOR_MAX > i16::MAX as usize && !matches!(Q::SCALING, Scaling::TwoScales);
    if const { S::FOUR_STEPS } {
        let [first, last] = x.negated_sums;
        let ([w0, w1], [x0, x1]) = (group.w.as_chunks::<4>().0, x.q.as_chunks::<4>().0) else {
            unreachable!("8 steps");
        };
        if one {
            let sum = dot_four::<S, Q>(s, acc_init::<S, Q>(s, [first, last]), *w0, x0);
            return (s.acc_finish(dot_four::<S, Q>(s, sum, *w1, x1)), s.splat_i32(0));
        }
        let lo = dot_four::<S, Q>(s, acc_init::<S, Q>(s, [first, 0]), *w0, x0);
        let hi = dot_four::<S, Q>(s, acc_init::<S, Q>(s, [last, 0]), *w1, x1);
        return (s.acc_finish(lo), s.acc_finish(hi));
    }
    // Two chains of four: half the latency, and the halves that two scales need.
    let steps = const { if steps::<S, Q>() < 4 { steps::<S, Q>() } else { 4 } };
    let (mut lo, mut hi) = (s.splat_i32(0), s.splat_i32(0));
    for i in 0..4 / steps {
        let [first, last] = if i == 0 { x.negated_sums } else { [0; 2] };
        let (lo_opens, hi_opens) = if one { ([first, last], [0; 2]) } else { ([first, 0], [last, 0]) };
        let (mut lo_part, mut hi_part) = (acc_init::<S, Q>(s, lo_opens), acc_init::<S, Q>(s, hi_opens));
        for k in i * steps..(i + 1) * steps {
            lo_part = dot::<S, Q>(s, lo_part, group.w[k], x.q[k]);
            hi_part = dot::<S, Q>(s, hi_part, group.w[k + 4], x.q[k + 4]);
        }
        (lo, hi) = (s.add_i32(lo, s.acc_finish(lo_part)), s.add_i32(hi, s.acc_finish(hi_part)));
    }
    (lo, hi)
}

/// The same for float weights: column after column.
#[inline(always)]
pub(crate) fn float_panel<S: Simd, F: FloatFormat>(
    s: S,
    columns: &[[F::Element; PANEL_ROWS]],
    x: &[f32],
) -> S::F {
    let mut acc = s.splat(0.0);
    for (w, &x) in columns.iter().zip(x) {
        prefetch_part(w, 0, 1);
        acc = s.fma(F::load(s, w), s.splat(x), acc);
    }
    acc
}
