//! Batches with vector instructions: a panel is unpacked once and multiplied with all tokens, `T` at a time.
//!
//! ```text
//! y[t][row] = sum over groups of the float step of `group.rs`, in column order
//!
//! unpacked group: w[8][16 rows][4]  scale[16]  second[16]  third[16]      704 bytes per 32 columns, in the second-level cache
//! registers:      T float accumulators, T integer accumulators, one register of weights
//! ```
//! For few tokens, a part of the columns is unpacked at a time and stays in the first-level cache ([`small_batch`]).
//!
//! Limit: arithmetic. A token and a group take 8 `vpdpbusd` and 3 to 5 float instructions, so at most 73% of the
//! integer peak with AVX-512 (67% for formats with a minimum). Integer formats give the bits of [`gemv`](super::gemv).

use super::activations::Activations;
use crate::{
    arch::Simd,
    quant::{
        BlockFormat, Group, PANEL_ROWS, QuantGroup, Quants, Scaling,
        float::FloatFormat,
        group::{add_min_term, add_two_min_terms, dots, fma_scaled},
    },
};
use bytemuck::{Pod, Zeroable};

/// The largest batch of [`small_batch`].
pub(crate) const SMALL_BATCH: usize = 36;
/// Sums of that batch, with the padding of its last token tile.
pub(crate) const SMALL_BATCH_SUMS: usize = SMALL_BATCH + 4;
/// Groups that it unpacks at a time: 10 KB.
pub(crate) const SMALL_BATCH_GROUPS: usize = 16;

/// 32 columns of 16 rows, unpacked.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct PanelGroup {
    w: [[u8; 64]; 8],
    scale: [f32; 16],
    second: [f32; 16],
    third: [f32; 16],
}

impl PanelGroup {
    pub(crate) const ZERO: Self =
        Self { w: [[0; 64]; 8], scale: [0.0; 16], second: [0.0; 16], third: [0.0; 16] };

    /// The quants as [`PanelGroup::fill`] stored them: unsigned, except in `amx_int8`.
    pub(crate) fn quants(&self) -> &[[u8; 64]; 8] {
        &self.w
    }

    /// Its scale and second number.
    #[inline(always)]
    pub(crate) fn scales<S: Simd>(&self, s: S) -> (S::F, S::F) {
        (s.load(&self.scale), s.load(&self.second))
    }

    /// The minima of the first and the last 16 columns.
    #[inline(always)]
    pub(crate) fn minima<S: Simd>(&self, s: S) -> [S::F; 2] {
        [s.load(&self.second), s.load(&self.third)]
    }

    /// Stores an unpacked group.
    #[inline(always)]
    pub(crate) fn fill<S: Simd>(&mut self, s: S, group: Group<S>) {
        for (w, out) in group.w.into_iter().zip(&mut self.w) {
            s.store_b(w, out);
        }
        s.store(group.scale, &mut self.scale);
        s.store(group.second, &mut self.second);
        s.store(group.third, &mut self.third);
    }

    /// Dequantizes row `r` of the panel.
    pub(crate) fn dequantize<F: Quants>(&self, r: usize, out: &mut [f32]) {
        for (c, out) in out.iter_mut().enumerate() {
            let q = (i32::from(self.w[c / 4][4 * r + c % 4]) - F::ZERO) as f32;
            *out = match F::SCALING {
                Scaling::Symmetric => self.scale[r] * q,
                Scaling::Minimum => self.scale[r] * q + self.second[r],
                Scaling::TwoMinima if c < 16 => self.scale[r] * q + self.second[r],
                Scaling::TwoMinima => self.scale[r] * q + self.third[r],
                Scaling::TwoScales if c < 16 => self.scale[r] * q,
                Scaling::TwoScales => self.second[r] * q,
            };
        }
    }
}

/// Unpacks some blocks of a panel.
#[inline(always)]
pub(crate) fn unpack<S: Simd, F: BlockFormat>(s: S, blocks: &[F::Block], panel: &mut [PanelGroup]) {
    for (block, out) in blocks.iter().zip(panel.chunks_exact_mut(F::GROUPS)) {
        for (g, out) in out.iter_mut().enumerate() {
            out.fill(s, F::group(s, block, g));
        }
    }
}

/// Dot products of 16 rows with `T` tokens.
#[inline(always)]
pub(crate) fn panel<S: Simd, F: Quants, const T: usize>(
    s: S,
    panel: &[PanelGroup],
    x: &[QuantGroup],
) -> [S::F; T] {
    add_tile::<S, F, T>(s, [s.splat(0.0); T], panel, x)
}

/// Dot products of 16 rows with at most [`SMALL_BATCH`] tokens. [`SMALL_BATCH_GROUPS`] groups are unpacked at a time
/// and multiplied with all tokens while they are in the first-level cache; the sums are in memory. Each weight is read
/// once and unpacked once.
#[inline(always)]
pub(crate) fn small_batch<S: Simd, F: BlockFormat>(
    s: S,
    blocks: &[F::Block],
    x: &Activations,
    panel: &mut [PanelGroup],
    acc: &mut [S::F; SMALL_BATCH_SUMS],
) {
    let per_chunk = const { if F::GROUPS < SMALL_BATCH_GROUPS { SMALL_BATCH_GROUPS / F::GROUPS } else { 1 } };
    acc[..x.n_tokens().next_multiple_of(4)].fill(s.splat(0.0));
    let mut from = 0;
    for blocks in blocks.chunks(per_chunk) {
        let panel = &mut panel[..blocks.len() * F::GROUPS];
        unpack::<S, F>(s, blocks, panel);
        for i in 0..x.n_token_tiles() {
            let (first, _, width) = x.token_tile(i);
            let x = &x.groups(i)[from * width..][..panel.len() * width];
            let acc = &mut acc[first..];
            match width {
                1 => add_to::<S, F, 1>(s, acc, panel, x),
                2 => add_to::<S, F, 2>(s, acc, panel, x),
                4 => add_to::<S, F, 4>(s, acc, panel, x),
                8 if S::TOKEN_TILE >= 8 => add_to::<S, F, 8>(s, acc, panel, x),
                12 if S::TOKEN_TILE >= 12 => add_to::<S, F, 12>(s, acc, panel, x),
                width => unreachable!("no kernel for {width} tokens"),
            }
        }
        from += panel.len();
    }
}

#[inline(always)]
fn add_to<S: Simd, F: Quants, const T: usize>(
    s: S,
    acc: &mut [S::F],
    panel: &[PanelGroup],
    x: &[QuantGroup],
) {
    if let Some(acc) = acc.first_chunk_mut::<T>() {
        *acc = add_tile::<S, F, T>(s, *acc, panel, x);
    }
}

/// Adds the dot products of 16 rows with `T` tokens.
#[inline(always)]
fn add_tile<S: Simd, F: Quants, const T: usize>(
    s: S,
    mut acc: [S::F; T],
    panel: &[PanelGroup],
    x: &[QuantGroup],
) -> [S::F; T] {
    for (group, x) in panel.iter().zip(x.as_chunks::<T>().0) {
        let (w, (scale, second)) = (&group.w, group.scales(s));
        match F::SCALING {
            Scaling::Symmetric => dot_subgroup::<S, F, T, 0, 8>(s, &mut acc, w, scale, x),
            Scaling::Minimum => {
                dot_subgroup::<S, F, T, 0, 8>(s, &mut acc, w, scale, x);
                for t in 0..T {
                    acc[t] = add_min_term(s, acc[t], x[t].sum, second);
                }
            }
            Scaling::TwoMinima => {
                dot_subgroup::<S, F, T, 0, 8>(s, &mut acc, w, scale, x);
                let minima = group.minima(s);
                for t in 0..T {
                    acc[t] = add_two_min_terms(s, acc[t], &x[t], minima);
                }
            }
            Scaling::TwoScales => {
                dot_subgroup::<S, F, T, 0, 4>(s, &mut acc, w, scale, x);
                dot_subgroup::<S, F, T, 4, 8>(s, &mut acc, w, second, x);
            }
        }
    }
    acc
}

/// Adds one group of a symmetric format.
#[inline(always)]
pub(crate) fn symmetric<S: Simd, F: Quants, const T: usize>(
    s: S,
    acc: &mut [S::F; T],
    group: &PanelGroup,
    x: &[QuantGroup; T],
) {
    dot_subgroup::<S, F, T, 0, 8>(s, acc, &group.w, s.load(&group.scale), x);
}

/// Columns `4 FROM .. 4 TO` of a group, which share one scale.
#[inline(always)]
fn dot_subgroup<S: Simd, F: Quants, const T: usize, const FROM: usize, const TO: usize>(
    s: S,
    acc: &mut [S::F; T],
    w: &[[u8; 64]; 8],
    scale: S::F,
    x: &[QuantGroup; T],
) {
    let sums = dots::<S, F, T, FROM, TO>(s, w, x);
    for t in 0..T {
        acc[t] = fma_scaled(s, acc[t], sums[t], x[t].scale, scale);
    }
}

/// The same for float weights, directly from the packed panel.
#[inline(always)]
pub(crate) fn float_panel<S: Simd, F: FloatFormat, const T: usize>(
    s: S,
    columns: &[[F::Element; PANEL_ROWS]],
    x: &[f32],
) -> [S::F; T] {
    let mut acc = [s.splat(0.0); T];
    for (w, x) in columns.iter().zip(x.as_chunks::<T>().0) {
        let w = F::load(s, w);
        for t in 0..T {
            acc[t] = s.fma(w, s.splat(x[t]), acc[t]);
        }
    }
    acc
}
