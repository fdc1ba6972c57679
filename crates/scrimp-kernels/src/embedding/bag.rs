//! Embedding bags: look-ups of many ids in parallel, hash, gather, sum and scale in one pass.
//!
//! Rows of look-up `l + AHEAD` are asked for before those of look-up `l` are added up, so cache misses overlap.

use super::{
    gather::Rows,
    hash::{IdHash, RowRange, row},
    table::{Stored, Table, Values},
};
use crate::{Tier, dispatch::Kernel, isa::Simd, threads::Pool};
use std::ops::Range;

/// Look-ups whose rows are on their way while another's are added up.
const AHEAD: usize = 8;
/// Probes of a look-up, at most.
pub const MAX_PROBES: usize = 256;
/// Scales of a look-up (groups of dimensions with an alpha of their own), at most.
pub const MAX_GROUPS: usize = 32;
/// Look-ups of a unit of parallel work, about.
const UNIT: usize = 512;

/// How ids become probes.
#[derive(Debug, Clone, Copy)]
pub struct Probing<'a> {
    /// The hash of each feature.
    pub hashes: &'a [IdHash],
    /// The rows of each feature.
    pub ranges: &'a [RowRange],
    /// Probes of an id.
    pub probes: usize,
    /// Whether rows have a sign.
    pub signs: bool,
}

impl Probing<'_> {
    /// The probes of `id` of `feature`; `out` has [`Probing::probes`] places.
    #[inline(always)]
    pub fn fill(&self, feature: usize, id: u64, out: &mut [u32]) {
        let (start, range) = (self.hashes[feature].probes(id), self.ranges[feature]);
        for (j, out) in out.iter_mut().enumerate() {
            *out = row(start, j as u32, range, self.signs);
        }
    }
}

/// Where probes come from.
#[derive(Debug, Clone, Copy)]
pub enum Probes<'a> {
    /// Hashed from ids, feature `l % features` for look-up `l`.
    Hashed {
        /// One per look-up.
        ids: &'a [u64],
        /// The hash.
        probing: Probing<'a>,
    },
    /// Given, with weights or without.
    Given {
        /// `per` for each look-up; row numbers, with [`super::NEGATIVE`] where a row is subtracted.
        probes: &'a [u32],
        /// As many as probes, or none.
        weights: &'a [f32],
        /// Probes of a look-up.
        per: usize,
        /// Whether any is negative.
        signs: bool,
    },
}

impl Probes<'_> {
    fn per(&self) -> usize {
        match self {
            Self::Hashed { probing, .. } => probing.probes,
            Self::Given { per, .. } => *per,
        }
    }

    fn look_ups(&self) -> usize {
        match self {
            Self::Hashed { ids, .. } => ids.len(),
            Self::Given { probes, per, .. } => probes.len() / per,
        }
    }

    fn signs(&self) -> bool {
        match self {
            Self::Hashed { probing, .. } => probing.signs,
            Self::Given { signs, .. } => *signs,
        }
    }
}

/// The scale of a look-up.
#[derive(Debug, Clone, Copy)]
pub enum Scales<'a> {
    /// One for all.
    One(f32),
    /// `groups` for each look-up, each for as many neighbouring blocks.
    Given {
        /// Look-up after look-up.
        scales: &'a [f32],
        /// Scales of a look-up.
        groups: usize,
    },
    /// `scale * sum of the rows of a weight table` (alpha of MEM-REC, arXiv 2305.07205): `groups` values each, hashed from
    /// the same ids as the probes of [`Probes::Hashed`].
    Hashed {
        /// The weight table, rows of `groups` values.
        weights: &'a [f32],
        /// The hash of the weight table.
        probing: Probing<'a>,
        /// Scales of a look-up.
        groups: usize,
        /// Multiplies all.
        scale: f32,
    },
}

impl Scales<'_> {
    /// The scales of look-up `l`.
    #[inline(always)]
    fn fill(&self, l: usize, ids: &[u64], factor: f32, out: &mut [f32; MAX_GROUPS]) -> usize {
        match *self {
            Self::One(scale) => {
                out[0] = scale * factor;
                1
            }
            Self::Given { scales, groups } => {
                for g in 0..groups {
                    out[g] = scales[l * groups + g] * factor;
                }
                groups
            }
            Self::Hashed { weights, probing, groups, scale } => {
                let mut rows = [0_u32; MAX_PROBES];
                let rows = &mut rows[..probing.probes];
                probing.fill(l % probing.hashes.len(), ids[l], rows);
                alpha(weights, rows, groups, scale * factor, out);
                groups
            }
        }
    }
}

/// `factor * sum of rows`, `groups` values.
#[inline(always)]
fn alpha(weights: &[f32], rows: &[u32], groups: usize, factor: f32, out: &mut [f32]) {
    for (g, out) in out[..groups].iter_mut().enumerate() {
        let mut sum = 0.0;
        for &row in rows {
            sum += weights[row as usize * groups + g];
        }
        *out = sum * factor;
    }
}

/// Which look-ups are added up into one output.
#[derive(Debug, Clone, Copy)]
pub enum Bags<'a> {
    /// Every `n` consecutive ones (1: an output for each).
    Fixed(usize),
    /// Bag `b` is `offsets[b]..offsets[b + 1]`, the last one ends with the look-ups.
    Offsets(&'a [usize]),
}

impl Bags<'_> {
    pub(super) fn count(&self, look_ups: usize) -> usize {
        match self {
            Self::Fixed(n) => look_ups / n,
            Self::Offsets(offsets) => offsets.len(),
        }
    }

    #[inline(always)]
    pub(super) fn range(&self, bag: usize, look_ups: usize) -> Range<usize> {
        match *self {
            Self::Fixed(n) => bag * n..(bag + 1) * n,
            Self::Offsets(offsets) => offsets[bag]..offsets.get(bag + 1).copied().unwrap_or(look_ups),
        }
    }
}

/// A batch of look-ups in one table.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// The rows.
    pub table: Table<'a>,
    /// Which of them.
    pub probes: Probes<'a>,
    /// Rows added up per block of the output; an output has `probes / k` blocks of `table.width` values.
    pub k: usize,
    /// What the sum is multiplied with.
    pub scales: Scales<'a>,
    /// What is added up into one output.
    pub bags: Bags<'a>,
    /// Keep what the output holds and add to it.
    pub add: bool,
}

/// Fills `out`, one after another the outputs of all bags.
///
/// # Panics
/// When sizes do not fit each other, or a probe lies outside the table.
pub fn forward(pool: &Pool, tier: Tier, batch: &Batch<'_>, out: &mut [f32]) {
    let per = batch.probes.per();
    assert!(
        per <= MAX_PROBES && batch.k > 0 && per.is_multiple_of(batch.k),
        "{per} probes, {} a block",
        batch.k
    );
    let dim = per / batch.k * batch.table.width;
    let bags = batch.bags.count(batch.probes.look_ups());
    assert_eq!(out.len(), bags * dim, "outputs of {bags} bags of {dim} values");
    if dim == 0 {
        return;
    }
    let bags_per_unit = (UNIT * bags).div_ceil(batch.probes.look_ups().max(1)).max(1);
    pool.chunks(out, bags_per_unit * dim, |unit, out| {
        let first = unit * bags_per_unit;
        match batch.table.values {
            Values::F32(values) => tier.run(Forward { batch, values, factor: 1.0, dim, first, out }),
            Values::Bf16(values) => tier.run(Forward { batch, values, factor: 1.0, dim, first, out }),
            Values::Int8 { q, scale } => {
                tier.run(Forward { batch, values: q, factor: scale, dim, first, out })
            }
        }
    });
}

struct Forward<'a, T> {
    batch: &'a Batch<'a>,
    values: &'a [T],
    factor: f32,
    dim: usize,
    /// The first bag.
    first: usize,
    out: &'a mut [f32],
}

impl<T: Stored> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let batch = self.batch;
        let rows = Rows {
            values: self.values,
            width: batch.table.width,
            stride: batch.table.stride,
            k: batch.k,
            signs: batch.probes.signs(),
        };
        let (per, total) = (batch.probes.per(), batch.probes.look_ups());
        let bags = self.out.len() / self.dim;
        let end = batch.bags.range(self.first + bags - 1, total).end;
        let start = batch.bags.range(self.first, total).start;
        let mut ring = [0_u32; AHEAD * MAX_PROBES];
        for l in start..end.min(start + AHEAD) {
            ask(batch, &rows, l, &mut ring[l % AHEAD * per..][..per]);
        }
        let mut scales = [0.0; MAX_GROUPS];
        for (b, out) in self.out.chunks_exact_mut(self.dim).enumerate() {
            let range = batch.bags.range(self.first + b, total);
            if range.is_empty() && !batch.add {
                out.fill(0.0);
            }
            for l in range.clone() {
                let add = batch.add || l > range.start;
                let slot = &mut ring[l % AHEAD * per..][..per];
                let (ids, weights, probes): (&[u64], &[f32], &[u32]) = match batch.probes {
                    Probes::Hashed { ids, .. } => (ids, &[], slot),
                    Probes::Given { probes, weights, .. } => {
                        let range = l * per..(l + 1) * per;
                        let weights = if weights.is_empty() { weights } else { &weights[range.clone()] };
                        (&[], weights, &probes[range])
                    }
                };
                let groups = batch.scales.fill(l, ids, self.factor, &mut scales);
                rows.look_up(s, probes, weights, &scales[..groups], add, out);
                if l + AHEAD < end {
                    ask(batch, &rows, l + AHEAD, slot);
                }
            }
        }
    }
}

/// Finds the probes of look-up `l` and asks for their rows.
#[inline(always)]
fn ask<T: Stored>(batch: &Batch<'_>, rows: &Rows<'_, T>, l: usize, slot: &mut [u32]) {
    match batch.probes {
        Probes::Hashed { ids, probing } => {
            probing.fill(l % probing.hashes.len(), ids[l], slot);
            rows.prefetch(slot);
        }
        Probes::Given { probes, .. } => rows.prefetch(&probes[l * slot.len()..(l + 1) * slot.len()]),
    }
}

/// The probes of all ids, for a backward pass that needs them again: `out` has `probing.probes` for each id.
///
/// # Panics
/// When `out` has another size.
pub fn probe(pool: &Pool, ids: &[u64], probing: &Probing<'_>, out: &mut [u32]) {
    assert_eq!(out.len(), ids.len() * probing.probes);
    pool.chunks(out, UNIT * probing.probes, |unit, out| {
        for (i, out) in out.chunks_exact_mut(probing.probes).enumerate() {
            let l = unit * UNIT + i;
            probing.fill(l % probing.hashes.len(), ids[l], out);
        }
    });
}

/// One look-up, without threads: what a request that has one id costs.
///
/// # Panics
/// As [`forward`].
pub fn forward_one(tier: Tier, batch: &Batch<'_>, out: &mut [f32]) {
    let dim = batch.probes.per() / batch.k * batch.table.width;
    match batch.table.values {
        Values::F32(values) => tier.run(Forward { batch, values, factor: 1.0, dim, first: 0, out }),
        Values::Bf16(values) => tier.run(Forward { batch, values, factor: 1.0, dim, first: 0, out }),
        Values::Int8 { q, scale } => {
            tier.run(Forward { batch, values: q, factor: scale, dim, first: 0, out })
        }
    }
}
