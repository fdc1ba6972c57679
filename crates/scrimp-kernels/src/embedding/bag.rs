//! Embedding bags: look-ups of many ids in parallel, hash, gather, sum and scale in one pass.
//!
//! Rows of look-up `l + AHEAD` are asked for before those of look-up `l` are added up, so cache misses overlap.

use super::{
    gather::Rows,
    hash::{IdHash, RowRange, row},
    ring::{self, Ring},
    signs::of_hash,
    table::{Stored, Table, Values},
};
use crate::{
    SimdLevel,
    arch::{EmbeddingSimd, Kernel, L1, Level, prefetch},
    exec::{DisjointSliceMut, Exec, Pool},
};
use std::ops::Range;

/// Look-ups whose rows are on their way while others' are added up, at most.
const AHEAD: usize = 16;
/// Their probes, at most.
const AHEAD_PROBES: usize = 512;
/// Probes of a look-up, at most.
pub const MAX_PROBES: usize = 256;
/// Probes of the weight table, at most.
pub(crate) const MAX_WEIGHT_PROBES: usize = 8;
/// Scales of a look-up (groups of dimensions with an alpha of their own), at most.
pub const MAX_GROUPS: usize = 32;
/// Bytes of a batch's outputs from which on they bypass the caches.
const STREAM: usize = 8 << 20;
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
    /// Whether values have signs, one for each [`SIGN_WIDTH`](super::SIGN_WIDTH) of a look-up.
    pub signs: bool,
}

impl Probing<'_> {
    /// The probes of `id` of `feature`; `out` has [`Probing::probes`] places. Returns its signs.
    #[inline(always)]
    pub(super) fn fill(&self, feature: usize, id: u64, out: &mut [u32]) -> u64 {
        let (h, range) = (self.hashes[feature].hash(id), self.ranges[feature]);
        for j in 0..out.len() {
            out[j] = row(h, j as u32, range);
        }
        if self.signs { of_hash(h) } else { 0 }
    }

    /// The probes of look-ups from `first` on, and where `signs` has places, those. `PER` is the number of probes of each, or 0.
    #[inline(always)]
    fn fill_all<const PER: usize>(&self, first: usize, ids: &[u64], out: &mut [u32], signs: &mut [u64]) {
        let per = if PER == 0 { self.probes } else { PER };
        let features = self.hashes.len();
        let mut feature = first % features;
        for i in 0..ids.len() {
            let found = self.fill(feature, ids[i], &mut out[i * per..(i + 1) * per]);
            if let Some(signs) = signs.get_mut(i) {
                *signs = found;
            }
            feature = if feature + 1 == features { 0 } else { feature + 1 };
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
        /// `per` for each look-up; row numbers.
        probes: &'a [u32],
        /// As many as probes, or none.
        weights: &'a [f32],
        /// Probes of a look-up.
        per: usize,
    },
}

impl Probes<'_> {
    pub(super) fn per(&self) -> usize {
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
}

/// The scale of a look-up.
#[derive(Debug, Clone, Copy)]
pub enum Scales<'a> {
    /// One for all.
    One(f32),
    /// `groups` for each look-up, each for as many neighboring blocks.
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
    /// The scales of some look-ups, whose rows of the weight table are `rows`.
    #[inline(always)]
    fn fill(&self, range: Range<usize>, rows: &[u32], factor: f32, out: &mut [f32]) -> usize {
        match *self {
            Self::One(scale) => {
                out[..range.len()].fill(scale * factor);
                1
            }
            Self::Given { scales, groups } => {
                let scales = &scales[range.start * groups..range.end * groups];
                for (out, &scale) in out.iter_mut().zip(scales) {
                    *out = scale * factor;
                }
                groups
            }
            Self::Hashed { weights, probing, groups, scale } => {
                let k = probing.probes;
                for l in 0..range.len() {
                    for g in 0..groups {
                        let mut sum = 0.0;
                        for j in l * k..(l + 1) * k {
                            sum += weights[rows[j] as usize * groups + g];
                        }
                        out[l * groups + g] = sum * (scale * factor);
                    }
                }
                groups
            }
        }
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

impl<'a> Batch<'a> {
    /// The sums of given rows as they are: `per` of them for each look-up, `k` for each block, every look-up an output.
    pub fn given(table: Table<'a>, probes: &'a [u32], per: usize, k: usize) -> Self {
        Self {
            table,
            probes: Probes::Given { probes, weights: &[], per },
            k,
            scales: Scales::One(1.0),
            bags: Bags::Fixed(1),
            add: false,
        }
    }
}

/// Fills `out`, one after another the outputs of all bags.
///
/// # Panics
/// When sizes do not fit each other, or a probe lies outside the table.
pub fn forward(exec: Exec<'_>, batch: &Batch<'_>, out: &mut [f32]) {
    let Exec { pool, level } = exec;
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
    // Outputs larger than a cache would only push the tables out of it; each is written once.
    let stream = matches!(batch.bags, Bags::Fixed(1)) && !batch.add && size_of_val(out) >= STREAM;
    let bags_per_unit = (UNIT * bags).div_ceil(batch.probes.look_ups().max(1)).max(1);
    pool.chunks(out, bags_per_unit * dim, |unit, out| {
        part(level, batch, unit * bags_per_unit, stream, out);
    });
}

/// The outputs of the bags from `first` on.
fn part(level: SimdLevel, batch: &Batch<'_>, first: usize, stream: bool, out: &mut [f32]) {
    match batch.table.values {
        Values::F32(values) => part_of(level, batch, values, 1.0, first, stream, out),
        Values::Bf16(values) => part_of(level, batch, values, 1.0, first, stream, out),
        Values::Int8 { q, scale } => part_of(level, batch, q, scale, first, stream, out),
        Values::Int4 { q, scale, .. } => part_of(level, batch, q, scale, first, stream, out),
    }
}

fn part_of<T: Stored>(
    level: SimdLevel,
    batch: &Batch<'_>,
    values: &[T],
    factor: f32,
    first: usize,
    stream: bool,
    out: &mut [f32],
) {
    if ring::can(batch) {
        return level.run(Ring { batch, values, factor, first, stream, out });
    }
    let dim = batch.probes.per() / batch.k * batch.table.width;
    level.run(Forward { batch, values, factor, dim, first, stream, out });
}

struct Forward<'a, T> {
    batch: &'a Batch<'a>,
    values: &'a [T],
    factor: f32,
    dim: usize,
    /// The first bag.
    first: usize,
    stream: bool,
    out: &'a mut [f32],
}

impl<T: Stored> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        match self.batch.k {
            1 => self.with_k::<S, 1>(s),
            _ => self.with_k::<S, 0>(s),
        }
    }
}

/// What is known of some look-ups before their rows arrive.
struct Ahead {
    probes: [u32; AHEAD_PROBES],
    signs: [u64; AHEAD],
    /// Rows of the weight table.
    weights: [u32; AHEAD * MAX_WEIGHT_PROBES],
}

impl<T: Stored> Forward<'_, T> {
    /// `K` is `k`, or 0 for any.
    #[inline(always)]
    fn with_k<S: EmbeddingSimd, const K: usize>(self, s: S) {
        let batch = self.batch;
        let rows = Rows {
            values: self.values,
            width: batch.table.width,
            stride: batch.table.stride,
            half: batch.table.half(),
            k: batch.k,
            stream: self.stream,
        };
        let (per, total) = (batch.probes.per(), batch.probes.look_ups());
        let bags = self.out.len() / self.dim;
        let (mut bag, mut bag_range) = (0, batch.bags.range(self.first, total));
        let start = bag_range.start;
        let end = batch.bags.range(self.first + bags - 1, total).end;
        let at_once = AHEAD.min(AHEAD_PROBES / per);
        const NOTHING: Ahead =
            Ahead { probes: [0; AHEAD_PROBES], signs: [0; AHEAD], weights: [0; AHEAD * MAX_WEIGHT_PROBES] };
        let mut ahead = [NOTHING; 2];
        if bag_range.is_empty() && !batch.add {
            self.out[..self.dim].fill(0.0);
        }
        ask(batch, &rows, start..end.min(start + at_once), &mut ahead[0]);
        let mut scales = [0.0; AHEAD * MAX_GROUPS];
        let (mut first, mut turn) = (start, 0);
        while first < end {
            let last = end.min(first + at_once);
            ask(batch, &rows, last..end.min(last + at_once), &mut ahead[1 - turn]);
            let known = &ahead[turn];
            let groups = batch.scales.fill(first..last, &known.weights, self.factor, &mut scales);
            for l in first..last {
                while l >= bag_range.end {
                    bag += 1;
                    bag_range = batch.bags.range(self.first + bag, total);
                    if bag_range.is_empty() && !batch.add {
                        self.out[bag * self.dim..(bag + 1) * self.dim].fill(0.0);
                    }
                }
                let out = &mut self.out[bag * self.dim..(bag + 1) * self.dim];
                let i = l - first;
                let scales = &scales[i * groups..(i + 1) * groups];
                let (weights, probes): (&[f32], &[u32]) = match batch.probes {
                    Probes::Hashed { .. } => (&[], &known.probes[i * per..(i + 1) * per]),
                    Probes::Given { probes, weights, .. } => {
                        let range = l * per..(l + 1) * per;
                        (if weights.is_empty() { weights } else { &weights[range.clone()] }, &probes[range])
                    }
                };
                let add = batch.add || l > bag_range.start;
                rows.look_up::<S, K>(s, probes, weights, scales, known.signs[i], add, out);
            }
            (first, turn) = (last, 1 - turn);
        }
        if self.stream {
            s.fence();
        }
        // Empty bags at the end.
        for bag in bag + 1..bags {
            if !batch.add {
                self.out[bag * self.dim..(bag + 1) * self.dim].fill(0.0);
            }
        }
    }
}

/// Finds the rows of some look-ups and asks for them.
#[inline(always)]
fn ask<T: Stored>(batch: &Batch<'_>, rows: &Rows<'_, T>, range: Range<usize>, ahead: &mut Ahead) {
    match batch.probes {
        Probes::Hashed { ids, probing } => {
            let per = probing.probes;
            let ids = &ids[range.clone()];
            let found = &mut ahead.probes[..ids.len() * per];
            if per == 1 {
                probing.fill_all::<1>(range.start, ids, found, &mut ahead.signs);
            } else {
                probing.fill_all::<0>(range.start, ids, found, &mut ahead.signs);
            }
            rows.prefetch(found);
            if let Scales::Hashed { weights, probing, groups, .. } = batch.scales {
                let found = &mut ahead.weights[..ids.len() * probing.probes];
                probing.fill_all::<0>(range.start, ids, found, &mut []);
                for &row in &*found {
                    prefetch::<L1>(weights.as_ptr().wrapping_add(row as usize * groups).cast());
                }
            }
        }
        Probes::Given { probes, per, .. } => rows.prefetch(&probes[range.start * per..range.end * per]),
    }
}

/// The probes of all ids, for a backward pass that needs them again: `out` has `probing.probes` for each id, `signs` a place for each
/// id or none.
///
/// # Panics
/// When they have another size.
pub fn probe(pool: &Pool, ids: &[u64], probing: &Probing<'_>, out: &mut [u32], signs: &mut [u64]) {
    assert_eq!(out.len(), ids.len() * probing.probes);
    assert!(signs.is_empty() || signs.len() == ids.len());
    let signed = signs.len();
    let signs = DisjointSliceMut::new(signs);
    pool.chunks(out, UNIT * probing.probes, |unit, out| {
        let range = unit * UNIT..ids.len().min((unit + 1) * UNIT);
        // SAFETY: the look-ups of different units are different ones.
        let signs = unsafe { signs.slice(range.start.min(signed)..range.end.min(signed)) };
        probing.fill_all::<0>(range.start, &ids[range], out, signs);
    });
}

/// One look-up, without threads: what a request that has one id costs.
///
/// # Panics
/// As [`forward`].
pub fn forward_one(level: SimdLevel, batch: &Batch<'_>, out: &mut [f32]) {
    part(level, batch, 0, false, out);
}
