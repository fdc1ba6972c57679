//! Batches with vector instructions: a panel is unpacked once and multiplied with all tokens, `T` at a time.
//!
//! ```text
//! y[t][row] = sum over groups of the float step of `group.rs`, in column order
//!
//! unpacked group: w[8][16 rows][4]  scale[16]  second[16]  third[16]      704 bytes per 32 columns, in the second-level cache
//! registers:      T float accumulators, T integer accumulators, one register of weights
//! ```
//! For few tokens on ARM, a part of the columns is unpacked at a time and stays in the first-level cache
//! ([`small_batch`]).
//!
//! Limit: arithmetic. A token and a group take 8 `vpdpbusd` and 3 to 5 float instructions, so at most 73% of the
//! integer peak with AVX-512 (67% for formats with a minimum). Integer formats give the bits of [`gemv`](super::gemv).

use super::{activations::Activations, width::with_width};
use crate::{
    arch::{EntryKernel, Level, Simd, array},
    quant::{
        BlockFormat, Group, PANEL_ROWS, QuantGroup, Quants, Scaling,
        float::FloatFormat,
        group::{add_min_term, add_two_min_terms, dots, fma_scaled},
    },
};
use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;

/// The largest small batch.
pub(crate) const SMALL_BATCH: usize = 36;
/// Sums of that batch, with the padding of its last token tile.
pub(crate) const SMALL_BATCH_SUMS: usize = SMALL_BATCH + 4;
/// Tokens of the widest token tile.
pub(crate) const MOST_TOKENS: usize = 12;
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

    /// The quants as they were stored: unsigned, except in `amx_int8`.
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

    /// Stores an unpacked group for vector kernels, its steps [`Simd::paired`].
    #[inline(always)]
    pub(crate) fn fill<S: Simd>(&mut self, s: S, mut group: Group<S>) {
        for steps in group.w.as_chunks_mut::<2>().0 {
            *steps = s.paired(*steps);
        }
        self.fill_steps(s, group);
    }

    /// Stores an unpacked group, one step after another.
    #[inline(always)]
    pub(crate) fn fill_steps<S: Simd>(&mut self, s: S, group: Group<S>) {
        for (w, out) in group.w.into_iter().zip(&mut self.w) {
            s.store_b(w, out);
        }
        s.store(group.scale, &mut self.scale);
        s.store(group.second, &mut self.second);
        s.store(group.third, &mut self.third);
    }

    /// Dequantizes row `r` of the panel.
    pub(crate) fn dequantize<S: Simd, Q: Quants>(&self, s: S, r: usize, out: &mut [f32]) {
        // Where the row's bytes of two steps are after `Simd::paired`.
        let places = s.places_of_row(r);
        for (c, out) in out.iter_mut().enumerate() {
            let (step, byte) = places[c / 4 % 2];
            let q = (i32::from(self.w[c / 8 * 2 + step][byte + c % 4]) - Q::ZERO) as f32;
            *out = match Q::SCALING {
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

/// Unpacks some blocks of a panel. Compiled once for each format.
struct Unpack<F>(PhantomData<F>);

impl<F: BlockFormat> EntryKernel for Unpack<F> {
    type Args<'a> = (&'a [F::Block], &'a mut [PanelGroup]);

    #[inline(always)]
    unsafe fn run<S: Level>(s: S, (blocks, panel): Self::Args<'_>) {
        for (block, out) in blocks.iter().zip(panel.chunks_exact_mut(F::GROUPS)) {
            for (g, out) in out.iter_mut().enumerate() {
                out.fill(s, F::group(s, block, g));
            }
        }
    }
}

/// Unpacks some blocks of a panel.
#[inline(always)]
pub(crate) fn unpack<S: Level, F: BlockFormat>(_: S, blocks: &[F::Block], panel: &mut [PanelGroup]) {
    // SAFETY: the level exists, so the CPU has its features; `Unpack` takes any arguments.
    unsafe { S::call::<Unpack<F>>((blocks, panel)) };
}

/// Sums of 16 rows for one token.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [f32; PANEL_ROWS]);

impl Sums {
    pub(crate) const ZERO: Self = Self([0.0; PANEL_ROWS]);
}

/// Adds the dot products of 16 rows with the tokens of a token tile to their sums. Compiled once for each kind of
/// quants, and called by all formats of the kind: a call takes some nanoseconds, and the widths of token tiles are most
/// of the code of batches.
struct AddTile<Q>(PhantomData<Q>);

/// Arguments of [`AddTile`].
struct TileArgs<'a> {
    panel: &'a [PanelGroup],
    /// The activations of the token tile, from the first group of `panel` on.
    x: &'a [QuantGroup],
    /// Tokens of the token tile, padding included.
    width: usize,
    sums: &'a mut [Sums],
    /// The sums are undefined before and start from zero.
    from_zero: bool,
}

impl<Q: Quants> EntryKernel for AddTile<Q> {
    type Args<'a> = TileArgs<'a>;

    #[inline(always)]
    unsafe fn run<S: Level>(s: S, args: TileArgs<'_>) {
        with_width!(S, args.width, T => add_to::<S, Q, T>(s, args));
    }
}

/// Writes the dot products of the 16 rows of an unpacked panel with the tokens of a token tile of `width` tokens to
/// `sums`.
#[inline(always)]
pub(crate) fn panel<S: Level, Q: Quants>(
    _: S,
    panel: &[PanelGroup],
    x: &[QuantGroup],
    width: usize,
    sums: &mut [Sums; MOST_TOKENS],
) {
    // SAFETY: the level exists, so the CPU has its features; `AddTile` takes any arguments.
    unsafe { S::call::<AddTile<Q>>(TileArgs { panel, x, width, sums, from_zero: true }) };
}

/// Dot products of 16 rows with at most [`SMALL_BATCH`] tokens. [`SMALL_BATCH_GROUPS`] groups are unpacked at a time
/// and multiplied with all tokens while they are in the first-level cache; the sums are in memory. Each weight is read
/// once and unpacked once.
#[inline(always)]
pub(crate) fn small_batch<S: Level, F: BlockFormat>(
    s: S,
    blocks: &[F::Block],
    x: &Activations,
    panel: &mut [PanelGroup],
    sums: &mut [Sums; SMALL_BATCH_SUMS],
) {
    let per_chunk = const { if F::GROUPS < SMALL_BATCH_GROUPS { SMALL_BATCH_GROUPS / F::GROUPS } else { 1 } };
    let mut from = 0;
    for blocks in blocks.chunks(per_chunk) {
        let panel = &mut panel[..blocks.len() * F::GROUPS];
        unpack::<S, F>(s, blocks, panel);
        for i in 0..x.n_token_tiles() {
            let (first, _, width) = x.token_tile(i);
            let x = &x.groups(i)[from * width..][..panel.len() * width];
            let args = TileArgs { panel, x, width, sums: &mut sums[first..], from_zero: from == 0 };
            // SAFETY: the level exists, so the CPU has its features; `AddTile` takes any arguments.
            unsafe { S::call::<AddTile<F::Quants>>(args) };
        }
        from += panel.len();
    }
}

#[inline(always)]
fn add_to<S: Simd, Q: Quants, const T: usize>(
    s: S,
    TileArgs { panel, x, sums, from_zero, .. }: TileArgs<'_>,
) {
    if let Some(sums) = sums.first_chunk_mut::<T>() {
        let before = if from_zero { [s.splat(0.0); T] } else { array(|t| s.load(&sums[t].0)) };
        let acc = add_tile::<S, Q, T>(s, before, panel, x);
        for (sums, acc) in sums.iter_mut().zip(acc) {
            s.store(acc, &mut sums.0);
        }
    }
}

/// Adds the dot products of 16 rows with `T` tokens.
#[inline(always)]
fn add_tile<S: Simd, Q: Quants, const T: usize>(
    s: S,
    mut acc: [S::F; T],
    panel: &[PanelGroup],
    x: &[QuantGroup],
) -> [S::F; T] {
    for (group, x) in panel.iter().zip(x.as_chunks::<T>().0) {
        let (w, (scale, second)) = (&group.w, group.scales(s));
        // `if const`: branches of other formats are not compiled.
        if const { matches!(Q::SCALING, Scaling::TwoScales) } {
            dot_subgroup::<S, Q, T, 0, 4>(s, &mut acc, w, scale, x);
            dot_subgroup::<S, Q, T, 4, 8>(s, &mut acc, w, second, x);
            continue;
        }
        dot_subgroup::<S, Q, T, 0, 8>(s, &mut acc, w, scale, x);
        if const { matches!(Q::SCALING, Scaling::Minimum) } {
            for t in 0..T {
                acc[t] = add_min_term(s, acc[t], x[t].sum, second);
            }
        }
        if const { matches!(Q::SCALING, Scaling::TwoMinima) } {
            let minima = group.minima(s);
            for t in 0..T {
                acc[t] = add_two_min_terms(s, acc[t], &x[t], minima);
            }
        }
    }
    acc
}

/// Adds one group of a symmetric format.
#[inline(always)]
pub(crate) fn symmetric<S: Simd, Q: Quants, const T: usize>(
    s: S,
    acc: &mut [S::F; T],
    group: &PanelGroup,
    x: &[QuantGroup; T],
) {
    dot_subgroup::<S, Q, T, 0, 8>(s, acc, &group.w, s.load(&group.scale), x);
}

/// Columns `4 FROM .. 4 TO` of a group, which share one scale.
#[inline(always)]
fn dot_subgroup<S: Simd, Q: Quants, const T: usize, const FROM: usize, const TO: usize>(
    s: S,
    acc: &mut [S::F; T],
    w: &[[u8; 64]; 8],
    scale: S::F,
    x: &[QuantGroup; T],
) {
    let sums = dots::<S, Q, T, FROM, TO>(s, w, x);
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
