//! Small batches for block formats (GGUF's formats and `int4`) with AMX, bit-equal to the other levels.
//!
//! ```text
//! i[t][row] = sum over the 32 columns of a group of (q - ZERO) x        C, exact; then the float step of `group.rs`
//!
//! A (2 tiles)   8, 12 or 16 tokens × 32 signed bytes     the quants of a group in place (rows 48 bytes apart)
//! B (2 tiles)   8 steps × [16 rows][4 columns]           a group of a panel: signed weights, zero point subtracted
//! C (4 tiles)   tokens × 16 rows                         i32: the integer sums of one group
//! ```
//! If a group has two scales, each half of 16 columns is a product of its own with half of these sizes.
//!
//! The kernel alternates between AMX and float arithmetic: it starts the products of four C tiles, unpacks the next
//! weights meanwhile, and then scales and adds the four results. Float arithmetic is half of the work, and only one of
//! two ports executes it while AMX instructions are in flight (measured on a Xeon, Emerald Rapids).
//!
//! Limit: a core of that machine takes 33 ns for a group of 16 rows and 16 tokens (13 for AMX, 12 for floats, 6 for
//! unpacking); `vpdpbusd` takes 50. At times, its AMX instructions run at half speed for minutes: then 55 against 66.
//! All data of the loop has to stay in the first-level cache: more groups at once are slower.

use super::{amx_bf16::Rows, gemm::PanelGroup, job::Task};
use crate::{
    arch::{
        Kernel, Level, Simd,
        amx::{A, B, Configured, Shape, Tile},
    },
    quant::{
        GROUP, PANEL_ROWS, QuantGroup, Quants, Scaling,
        group::{add_min_term, add_two_min_terms, fma_scaled},
    },
};
use std::ops::RangeInclusive;

/// Batches for which this kernel is faster than vector instructions. It is not faster with a second token tile.
pub(super) const INT8_TOKENS: RangeInclusive<usize> = 5..=16;
/// Token tiles that kernels are compiled for.
const WIDTHS: [usize; 3] = [8, 12, 16];
/// Products in flight: C tiles.
const PRODUCTS: usize = 4;
/// Unpacked groups: half are multiplied while the other half is unpacked.
pub(super) const PANEL_GROUPS: usize = 2 * PRODUCTS;

/// Rows of the A tile for `n` tokens.
pub(super) fn width(n: usize) -> usize {
    WIDTHS.into_iter().find(|&width| width >= n).expect("few tokens")
}

/// A task over AMX tiles of type `X`; `rows(panel)` starts a panel.
pub(super) struct Int8Task<'a, 'x, X: Tile, W> {
    pub(super) task: Task<'a>,
    pub(super) rows: W,
    pub(super) tiles: &'x mut Configured<X>,
}

/// A stored C tile, whose bits are those of i32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([[f32; PANEL_ROWS]; 16]);

/// Products of a group.
const fn products<F: Quants>() -> usize {
    if matches!(F::SCALING, Scaling::TwoScales) { 2 } else { 1 }
}

/// Unpacks the next groups, with signed weights.
///
/// # Safety
/// There are as many groups.
#[inline(always)]
unsafe fn unpack<S: Simd, R: Rows>(s: S, rows: &mut R, unpacked: &mut [PanelGroup]) {
    for to in unpacked {
        rows.prefetch();
        // SAFETY: the caller guarantees as many groups as `unpacked` has.
        let mut group = unsafe { rows.next(s) };
        if R::Quants::ZERO != 0 {
            for w in &mut group.w {
                *w = s.wrapping_sub(*w, R::Quants::ZERO as u8);
            }
        }
        to.fill_steps(s, group);
    }
}

/// Starts the product of C tile `C`: a group, or half of one, with `T` tokens.
#[inline(always)]
fn multiply<X: Tile, F: Quants, const T: usize, const C: u8, const A: u8, const B: u8>(
    tile: &mut X,
    unpacked: &[PanelGroup],
    x: &[[QuantGroup; T]],
) {
    let (group, half) = (usize::from(C) / products::<F>(), usize::from(C) % products::<F>());
    let (Some(weights), Some(x)) = (unpacked.get(group), x.get(group)) else { return };
    let steps = 8 / products::<F>();
    // SAFETY: B has `steps` rows of 64 bytes, and A `T` rows of as many columns, which start each group of `x`.
    unsafe {
        tile.load::<B>(weights.quants()[steps * half..].as_ptr().cast(), 64);
        tile.load::<A>(x.as_ptr().cast::<u8>().add(4 * steps * half), size_of::<QuantGroup>());
    }
    tile.zero::<C>();
    tile.dot_i8::<C, A, B>();
}

/// Stores C tile `C`.
#[inline(always)]
fn store<X: Tile, const C: u8>(tile: &mut X, sums: &mut [Sums; PRODUCTS], n: usize) {
    if usize::from(C) < n {
        // SAFETY: a C tile has at most 16 rows of 64 bytes.
        unsafe { tile.store::<C>((&raw mut sums[usize::from(C)]).cast(), 64) };
    }
}

/// Adds a group to the results of `T` tokens.
#[inline(always)]
fn add<S: Simd, F: Quants, const T: usize>(
    s: S,
    acc: &mut [S::F; T],
    group: &PanelGroup,
    sums: &[Sums],
    x: &[QuantGroup; T],
) {
    let (scale, second) = group.scales(s);
    for t in 0..T {
        let i = s.bits(s.load(&sums[0].0[t]));
        acc[t] = fma_scaled(s, acc[t], i, x[t].scale, scale);
        match F::SCALING {
            Scaling::Symmetric => {}
            Scaling::Minimum => acc[t] = add_min_term(s, acc[t], x[t].sum, second),
            Scaling::TwoMinima => acc[t] = add_two_min_terms(s, acc[t], &x[t], group.minima(s)),
            Scaling::TwoScales => {
                let i = s.bits(s.load(&sums[1].0[t]));
                acc[t] = fma_scaled(s, acc[t], i, x[t].scale, second);
            }
        }
    }
}

impl<X: Tile, R: Rows, W: Fn(usize) -> R> Int8Task<'_, '_, X, W> {
    /// All columns for at most `T` tokens.
    #[inline(always)]
    fn tokens<S: Simd, const T: usize>(self, s: S) {
        let Task { job, x, panels, scratch, .. } = self.task;
        let per_group = const { products::<R::Quants>() };
        let most = const { PRODUCTS / products::<R::Quants>() };
        let amx = self.tiles.shaped(Shape { rows: T, width: 32 / per_group, steps: 8 / per_group });
        let (groups, n_tokens) = (x.cols().div_ceil(GROUP), x.n_tokens());
        let (x, _) = x.groups(0).as_chunks::<T>();
        assert_eq!(x.len(), groups, "groups of the activations");
        let (mut this, mut next) = scratch[..PANEL_GROUPS].split_at_mut(PRODUCTS);
        let mut sums = [Sums([[0.0; PANEL_ROWS]; 16]); PRODUCTS];
        for panel in panels {
            let mut rows = (self.rows)(panel);
            let (mut y, mut odd) = ([s.splat(0.0); T], [s.splat(0.0); T]);
            // SAFETY: a panel has as many groups as the activations.
            unsafe { unpack(s, &mut rows, &mut this[..most.min(groups)]) };
            let mut left = groups;
            for x in x.chunks(most) {
                left -= x.len();
                let unpacked = &this[..x.len()];
                multiply::<X, R::Quants, T, 0, { A[0] }, { B[0] }>(amx, unpacked, x);
                multiply::<X, R::Quants, T, 1, { A[1] }, { B[1] }>(amx, unpacked, x);
                multiply::<X, R::Quants, T, 2, { A[0] }, { B[0] }>(amx, unpacked, x);
                multiply::<X, R::Quants, T, 3, { A[1] }, { B[1] }>(amx, unpacked, x);
                // SAFETY: a panel has as many groups as the activations, and `left` of them are left.
                unsafe { unpack(s, &mut rows, &mut next[..most.min(left)]) };
                let n = x.len() * per_group;
                store::<X, 0>(amx, &mut sums, n);
                store::<X, 1>(amx, &mut sums, n);
                store::<X, 2>(amx, &mut sums, n);
                store::<X, 3>(amx, &mut sums, n);
                let all = || unpacked.iter().zip(sums.chunks_exact(per_group)).zip(x);
                for ((group, sums), x) in all().step_by(R::CHAINS) {
                    add::<S, R::Quants, T>(s, &mut y, group, sums, x);
                }
                if R::CHAINS == 2 {
                    for ((group, sums), x) in all().skip(1).step_by(2) {
                        add::<S, R::Quants, T>(s, &mut odd, group, sums, x);
                    }
                }
                std::mem::swap(&mut this, &mut next);
            }
            if R::CHAINS == 2 {
                for t in 0..T {
                    y[t] = s.add(y[t], odd[t]);
                }
            }
            job.store(s, &y, panel, 0, n_tokens);
        }
    }
}

impl<X: Tile, R: Rows, W: Fn(usize) -> R> Kernel for Int8Task<'_, '_, X, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        match width(self.task.x.n_tokens()) {
            8 => self.tokens::<S, 8>(s),
            12 => self.tokens::<S, 12>(s),
            _ => self.tokens::<S, 16>(s),
        }
    }
}
