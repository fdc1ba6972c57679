//! Batches of lookups in parallel: hash, gather, sum and scale in one pass.
//!
//! ```text
//! out[bag] = sum over the lookups l of the bag of gather(l)           in the order of the lookups
//! ```
//! Cache misses overlap: up to [`AHEAD`] lookups are hashed, and their rows prefetched, before the previous ones are
//! summed. A task has about [`TASK`] lookups and owns its outputs, so the bits are the same for every number of threads
//! and level.

use super::{
    gather::{Epilogue, Rows, Terms},
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

/// Lookups whose rows are on their way while others' are added up, at most.
const AHEAD: usize = 16;
/// Their indices, at most.
const AHEAD_INDICES: usize = 512;
/// Indices of a lookup, at most.
pub const MAX_INDICES: usize = 256;
/// Indices of the weight table, at most.
pub(crate) const MAX_WEIGHT_PROBES: usize = 8;
/// Scales of a lookup (groups of dimensions with an alpha of their own), at most.
pub const MAX_GROUPS: usize = 32;
/// Bytes of a batch's outputs from which on they bypass the caches.
const STREAM: usize = 8 << 20;
/// Lookups of a task, about.
const TASK: usize = 512;

/// How ids become indices.
#[derive(Debug, Clone, Copy)]
pub struct Hashing<'a> {
    /// The hash of each feature.
    pub hashes: &'a [IdHash],
    /// The rows of each feature.
    pub ranges: &'a [RowRange],
    /// Indices of a lookup.
    pub per_lookup: usize,
    /// Whether values have signs, one for each [`SIGN_WIDTH`](super::SIGN_WIDTH) of a lookup.
    pub signs: bool,
}

impl Hashing<'_> {
    /// The indices of `id` of `feature`; `out` has [`Hashing::per_lookup`] places. Returns its signs.
    #[inline(always)]
    pub(super) fn fill(&self, feature: usize, id: u64, out: &mut [u32]) -> u64 {
        let (h, range) = (self.hashes[feature].hash(id), self.ranges[feature]);
        for j in 0..out.len() {
            out[j] = row(h, j as u32, range);
        }
        if self.signs { of_hash(h) } else { 0 }
    }

    /// The indices of lookups from `first` on, and where `signs` has places, those. `PER` is the number of indices of
    /// each, or 0.
    #[inline(always)]
    fn fill_all<const PER: usize>(&self, first: usize, ids: &[u64], out: &mut [u32], signs: &mut [u64]) {
        let per_lookup = if PER == 0 { self.per_lookup } else { PER };
        let features = self.hashes.len();
        let mut feature = first % features;
        for i in 0..ids.len() {
            let found = self.fill(feature, ids[i], &mut out[i * per_lookup..(i + 1) * per_lookup]);
            if let Some(signs) = signs.get_mut(i) {
                *signs = found;
            }
            feature = if feature + 1 == features { 0 } else { feature + 1 };
        }
    }
}

/// Where indices come from.
#[derive(Debug, Clone, Copy)]
pub enum Indices<'a> {
    /// Hashed from ids, feature `l % features` for lookup `l`.
    Hashed {
        /// One per lookup.
        ids: &'a [u64],
        /// The hash.
        hashing: Hashing<'a>,
    },
    /// Given, with weights or without.
    Given {
        /// `per_lookup` for each lookup; row numbers.
        indices: &'a [u32],
        /// As many as indices, or none.
        weights: &'a [f32],
        /// Indices of a lookup.
        per_lookup: usize,
    },
}

impl Indices<'_> {
    pub(super) fn per_lookup(&self) -> usize {
        match self {
            Self::Hashed { hashing, .. } => hashing.per_lookup,
            Self::Given { per_lookup, .. } => *per_lookup,
        }
    }

    fn lookups(&self) -> usize {
        match self {
            Self::Hashed { ids, .. } => ids.len(),
            Self::Given { indices, per_lookup, .. } => indices.len() / per_lookup,
        }
    }
}

/// The scale of a lookup.
#[derive(Debug, Clone, Copy)]
pub enum Scales<'a> {
    /// One for all.
    One(f32),
    /// `groups` for each lookup, each for as many neighboring blocks.
    Given {
        /// Lookup after lookup.
        scales: &'a [f32],
        /// Scales of a lookup.
        groups: usize,
    },
    /// `scale * sum of the rows of a weight table` (alpha of MEM-REC, arXiv 2305.07205): `groups` values each, hashed
    /// from the same ids as the indices of [`Indices::Hashed`].
    Hashed {
        /// The weight table, rows of `groups` values.
        weights: &'a [f32],
        /// The hash of the weight table.
        hashing: Hashing<'a>,
        /// Scales of a lookup.
        groups: usize,
        /// Multiplies all.
        scale: f32,
    },
}

impl Scales<'_> {
    /// The scales of some lookups, whose rows of the weight table are `rows`.
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
            Self::Hashed { weights, hashing, groups, scale } => {
                let num_hashes = hashing.per_lookup;
                for l in 0..range.len() {
                    for g in 0..groups {
                        let mut sum = 0.0;
                        for j in l * num_hashes..(l + 1) * num_hashes {
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

/// Which lookups are added up into one output.
#[derive(Debug, Clone, Copy)]
pub enum Bags<'a> {
    /// Every `n` consecutive ones (1: an output for each).
    Fixed(usize),
    /// Bag `b` is `offsets[b]..offsets[b + 1]`, the last one ends with the lookups.
    Offsets(&'a [usize]),
}

impl Bags<'_> {
    pub(super) fn count(&self, lookups: usize) -> usize {
        match self {
            Self::Fixed(n) => lookups / n,
            Self::Offsets(offsets) => offsets.len(),
        }
    }

    #[inline(always)]
    pub(super) fn range(&self, bag: usize, lookups: usize) -> Range<usize> {
        match *self {
            Self::Fixed(n) => bag * n..(bag + 1) * n,
            Self::Offsets(offsets) => offsets[bag]..offsets.get(bag + 1).copied().unwrap_or(lookups),
        }
    }
}

/// A batch of lookups in one table.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// The rows.
    pub table: Table<'a>,
    /// Which of them.
    pub indices: Indices<'a>,
    /// Rows added up per block of the output; an output has `indices / num_hashes` blocks of `table.block_dim` values.
    pub num_hashes: usize,
    /// What the sum is multiplied with.
    pub scales: Scales<'a>,
    /// The lookups that are added up into one output.
    pub bags: Bags<'a>,
    /// Keep what the output holds and add to it.
    pub add: bool,
}

impl<'a> Batch<'a> {
    /// Plain sums of given rows: `per_lookup` of them for each lookup, `num_hashes` for each block, every lookup an
    /// output.
    pub fn given(table: Table<'a>, indices: &'a [u32], per_lookup: usize, num_hashes: usize) -> Self {
        Self {
            table,
            indices: Indices::Given { indices, weights: &[], per_lookup },
            num_hashes,
            scales: Scales::One(1.0),
            bags: Bags::Fixed(1),
            add: false,
        }
    }
}

/// Fills `out`, one after another the outputs of all bags.
///
/// # Panics
/// When sizes do not fit each other, or an index lies outside the table.
pub fn forward(exec: Exec<'_>, batch: &Batch<'_>, out: &mut [f32]) {
    let Exec { pool, level } = exec;
    let per_lookup = batch.indices.per_lookup();
    assert!(
        per_lookup <= MAX_INDICES && batch.num_hashes > 0 && per_lookup.is_multiple_of(batch.num_hashes),
        "{per_lookup} indices, {} a block",
        batch.num_hashes
    );
    let dim = per_lookup / batch.num_hashes * batch.table.block_dim;
    let bags = batch.bags.count(batch.indices.lookups());
    assert_eq!(out.len(), bags * dim, "outputs of {bags} bags of {dim} values");
    if dim == 0 {
        return;
    }
    // Outputs larger than a cache would only push the tables out of it; each is written once.
    let stream = matches!(batch.bags, Bags::Fixed(1)) && !batch.add && size_of_val(out) >= STREAM;
    let bags_per_task = (TASK * bags).div_ceil(batch.indices.lookups().max(1)).max(1);
    pool.chunks(out, bags_per_task * dim, |task, out| {
        part(level, batch, Outputs { first: task * bags_per_task, stream, out });
    });
}

/// The outputs of consecutive bags of a batch.
pub(super) struct Outputs<'a> {
    /// The first bag.
    pub(super) first: usize,
    /// Stores past the caches.
    pub(super) stream: bool,
    /// `[bags][dim]`.
    pub(super) out: &'a mut [f32],
}

/// Computes some outputs. Inlined, as [`part_of`] is: copies of `outputs` between calls cost a single lookup 5 ns.
#[inline(always)]
fn part(level: SimdLevel, batch: &Batch<'_>, outputs: Outputs<'_>) {
    match batch.table.values {
        Values::F32(values) => part_of(level, batch, values, 1.0, outputs),
        Values::Bf16(values) => part_of(level, batch, values, 1.0, outputs),
        Values::Int8 { q, scale } => part_of(level, batch, q, scale, outputs),
        Values::Int4 { q, scale, .. } => part_of(level, batch, q, scale, outputs),
    }
}

#[inline(always)]
fn part_of<T: Stored>(level: SimdLevel, batch: &Batch<'_>, values: &[T], factor: f32, outputs: Outputs<'_>) {
    if ring::can(level, batch) {
        return level.run(Ring { batch, values, factor, outputs });
    }
    let dim = batch.indices.per_lookup() / batch.num_hashes * batch.table.block_dim;
    level.run(Forward { batch, values, factor, dim, outputs });
}

struct Forward<'a, T> {
    batch: &'a Batch<'a>,
    values: &'a [T],
    factor: f32,
    /// Values of an output.
    dim: usize,
    outputs: Outputs<'a>,
}

impl<T: Stored> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        match self.batch.num_hashes {
            1 => self.with_k::<S, 1>(s),
            _ => self.with_k::<S, 0>(s),
        }
    }
}

/// Indices and signs of some lookups whose rows are being loaded.
struct Ahead {
    indices: [u32; AHEAD_INDICES],
    signs: [u64; AHEAD],
    /// Rows of the weight table.
    weights: [u32; AHEAD * MAX_WEIGHT_PROBES],
}

impl<T: Stored> Forward<'_, T> {
    /// `K` is `num_hashes`, or 0 for any.
    #[inline(always)]
    fn with_k<S: EmbeddingSimd, const K: usize>(self, s: S) {
        let Self { batch, dim, outputs: Outputs { first: first_bag, stream, out }, .. } = self;
        let rows = Rows {
            values: self.values,
            block_dim: batch.table.block_dim,
            stride: batch.table.stride,
            half: batch.table.half(),
            num_hashes: batch.num_hashes,
        };
        let (per_lookup, total) = (batch.indices.per_lookup(), batch.indices.lookups());
        let bags = out.len() / dim;
        let (mut bag, mut bag_range) = (0, batch.bags.range(first_bag, total));
        let start = bag_range.start;
        let end = batch.bags.range(first_bag + bags - 1, total).end;
        let at_once = AHEAD.min(AHEAD_INDICES / per_lookup);
        const NOTHING: Ahead =
            Ahead { indices: [0; AHEAD_INDICES], signs: [0; AHEAD], weights: [0; AHEAD * MAX_WEIGHT_PROBES] };
        let mut ahead = [NOTHING; 2];
        if bag_range.is_empty() && !batch.add {
            out[..dim].fill(0.0);
        }
        let mut scales = [0.0; AHEAD * MAX_GROUPS];
        // The first pass has no lookups yet and prefetches only.
        let (mut first, mut last, mut current) = (start, start, 0);
        while first < end {
            let next = end.min(last + at_once);
            prefetch_rows(batch, &rows, last..next, &mut ahead[1 - current]);
            let known = &ahead[current];
            let groups = batch.scales.fill(first..last, &known.weights, self.factor, &mut scales);
            for l in first..last {
                while l >= bag_range.end {
                    bag += 1;
                    bag_range = batch.bags.range(first_bag + bag, total);
                    if bag_range.is_empty() && !batch.add {
                        out[bag * dim..(bag + 1) * dim].fill(0.0);
                    }
                }
                let out = &mut out[bag * dim..(bag + 1) * dim];
                let i = l - first;
                let scales = &scales[i * groups..(i + 1) * groups];
                let (weights, indices): (&[f32], &[u32]) = match batch.indices {
                    Indices::Hashed { .. } => (&[], &known.indices[i * per_lookup..(i + 1) * per_lookup]),
                    Indices::Given { indices, weights, .. } => {
                        let range = l * per_lookup..(l + 1) * per_lookup;
                        (if weights.is_empty() { weights } else { &weights[range.clone()] }, &indices[range])
                    }
                };
                let add = batch.add || l > bag_range.start;
                let epilogue = Epilogue { scale: 1.0, signs: known.signs[i], first: 0, add, stream };
                rows.lookup::<S, K>(s, Terms { indices, weights }, scales, epilogue, out);
            }
            (first, last, current) = (last, next, 1 - current);
        }
        if stream {
            s.fence();
        }
        // Empty bags at the end.
        for bag in bag + 1..bags {
            if !batch.add {
                out[bag * dim..(bag + 1) * dim].fill(0.0);
            }
        }
    }
}

/// Finds the rows of some lookups and prefetches them.
#[inline(always)]
fn prefetch_rows<T: Stored>(batch: &Batch<'_>, rows: &Rows<'_, T>, range: Range<usize>, ahead: &mut Ahead) {
    match batch.indices {
        Indices::Hashed { ids, hashing } => {
            let per_lookup = hashing.per_lookup;
            let ids = &ids[range.clone()];
            let found = &mut ahead.indices[..ids.len() * per_lookup];
            if per_lookup == 1 {
                hashing.fill_all::<1>(range.start, ids, found, &mut ahead.signs);
            } else {
                hashing.fill_all::<0>(range.start, ids, found, &mut ahead.signs);
            }
            rows.prefetch(found);
            if let Scales::Hashed { weights, hashing, groups, .. } = batch.scales {
                let found = &mut ahead.weights[..ids.len() * hashing.per_lookup];
                hashing.fill_all::<0>(range.start, ids, found, &mut []);
                for &row in &*found {
                    prefetch::<L1>(weights.as_ptr().wrapping_add(row as usize * groups).cast());
                }
            }
        }
        Indices::Given { indices, per_lookup, .. } => {
            rows.prefetch(&indices[range.start * per_lookup..range.end * per_lookup]);
        }
    }
}

/// The indices of all ids, for a backward pass that needs them again: `out` has `hashing.per_lookup` for each id,
/// `signs` a place for each id or none.
///
/// # Panics
/// When they have another size.
pub fn hash_indices(pool: &Pool, ids: &[u64], hashing: &Hashing<'_>, out: &mut [u32], signs: &mut [u64]) {
    assert_eq!(out.len(), ids.len() * hashing.per_lookup);
    assert!(signs.is_empty() || signs.len() == ids.len());
    let signed = signs.len();
    let signs = DisjointSliceMut::new(signs);
    pool.chunks(out, TASK * hashing.per_lookup, |task, out| {
        let range = task * TASK..ids.len().min((task + 1) * TASK);
        // SAFETY: the lookups of different tasks are different ones.
        let signs = unsafe { signs.slice(range.start.min(signed)..range.end.min(signed)) };
        hashing.fill_all::<0>(range.start, &ids[range], out, signs);
    });
}

/// One lookup, without threads: what a request that has one id costs.
///
/// # Panics
/// As [`forward`].
pub fn forward_one(level: SimdLevel, batch: &Batch<'_>, out: &mut [f32]) {
    part(level, batch, Outputs { first: 0, stream: false, out });
}
