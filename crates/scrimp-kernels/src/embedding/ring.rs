//! The fast path of [`forward`](super::forward): lookups of few rows, without weights, with one scale, in bags of the
//! same size. Its results have the bits of the general path.
//!
//! ```text
//! lookup      l                        l + DISTANCE
//!              sum, scale, store        hash, prefetch its rows and its weight
//! ring         | l | l + 1 | ...        | l + DISTANCE |          known indices, by l mod RING
//! ```
//!
//! Rows are prefetched one lookup at a time: a core can wait for 16 lines at once, and would stall on the first lines
//! if it prefetched the rows of many lookups together.
//!
//! Limit: for batches whose outputs exceed the cache, the outputs. They take 512 bytes per lookup of 128 values, while
//! four rows of 128 bytes come from a cache.

use super::{
    gather::{Epilogue, Rows, Terms, store},
    hash::row,
    lookup::{Bags, Batch, Indices, Outputs, Scales},
    table::Stored,
};
use crate::arch::{EmbeddingSimd, Kernel, L1, Level, SimdLevel, prefetch};

/// Lookups between the prefetch of rows and their sum.
const DISTANCE: usize = 8;
/// Lookups whose indices are known; a power of two above [`DISTANCE`].
const RING: usize = 16;
/// Indices of a lookup, at most.
const MAX_PER: usize = 32;

/// Whether this path can compute `batch`. The scalar level has the general path alone.
pub(super) fn can(level: SimdLevel, batch: &Batch<'_>) -> bool {
    let weights = matches!(batch.indices, Indices::Given { weights, .. } if !weights.is_empty());
    let one_scale = match batch.scales {
        Scales::One(_) => true,
        Scales::Given { groups, .. } => groups == 1,
        Scales::Hashed { hashing, groups, .. } => {
            groups == 1 && hashing.per_lookup == 1 && matches!(batch.indices, Indices::Hashed { .. })
        }
    };
    !level.is_scalar()
        && !weights
        && one_scale
        && batch.table.block_dim > 0
        && (1..=MAX_PER).contains(&batch.indices.per_lookup())
        && matches!(batch.bags, Bags::Fixed(_))
}

/// A part of a batch.
pub(super) struct Ring<'a, T> {
    pub(super) batch: &'a Batch<'a>,
    pub(super) values: &'a [T],
    /// Multiplies all values.
    pub(super) factor: f32,
    pub(super) outputs: Outputs<'a>,
}

impl<T: Stored> Kernel for Ring<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        if !S::FAST_LOOKUPS {
            unreachable!("the scalar level has the general path alone");
        }
        let whole = self.batch.table.block_dim.is_multiple_of(64);
        match (self.batch.indices.per_lookup(), self.batch.num_hashes) {
            (1, 1) if whole => self.lookups::<S, 1, 1, 1>(s),
            (2, 1) if whole => self.lookups::<S, 2, 1, 2>(s),
            (4, 4) if whole => self.lookups::<S, 4, 4, 4>(s),
            (_, 1) => self.lookups::<S, 0, 1, MAX_PER>(s),
            _ => self.lookups::<S, 0, 0, MAX_PER>(s),
        }
    }
}

/// Indices and signs of the lookups whose rows are being loaded.
struct Known<const MOST: usize> {
    indices: [[u32; MOST]; RING],
    signs: [u64; RING],
    /// Rows of the weight table.
    weights: [u32; RING],
}

impl<T: Stored> Ring<'_, T> {
    /// `PER` and `K` are the indices of a lookup and of a block, or 0 for any; `MOST` is at least the number of
    /// indices. Where `PER` is given, rows are a multiple of 64 values.
    #[inline(always)]
    fn lookups<S: EmbeddingSimd, const PER: usize, const K: usize, const MOST: usize>(self, s: S) {
        let (batch, Outputs { first, stream, out }) = (self.batch, self.outputs);
        let (block_dim, stride) = (batch.table.block_dim, batch.table.stride);
        let per_lookup = if PER == 0 { batch.indices.per_lookup() } else { PER };
        let num_hashes = if K == 0 { batch.num_hashes } else { K };
        let half = batch.table.half();
        let rows = Rows { values: self.values, block_dim, stride, half, num_hashes };
        let dim = per_lookup / num_hashes * block_dim;
        let Bags::Fixed(members) = batch.bags else { return };
        let start = first * members;
        let end = start + out.len() / dim * members;
        let mut known = Known { indices: [[0; MOST]; RING], signs: [0; RING], weights: [0; RING] };
        let mut feature = match batch.indices {
            Indices::Hashed { hashing, .. } => start % hashing.hashes.len(),
            Indices::Given { .. } => 0,
        };
        let mut prefetched = start;
        while prefetched < end.min(start + DISTANCE) {
            prefetch_rows::<T, PER, MOST>(batch, &rows, prefetched, &mut feature, &mut known);
            prefetched += 1;
        }
        let (mut member, mut at) = (0, 0);
        for l in start..end {
            if prefetched < end {
                prefetch_rows::<T, PER, MOST>(batch, &rows, prefetched, &mut feature, &mut known);
                prefetched += 1;
            }
            let scale = match batch.scales {
                Scales::One(scale) => scale * self.factor,
                Scales::Given { scales, .. } => scales[l] * self.factor,
                Scales::Hashed { weights, scale, .. } => {
                    weights[known.weights[l % RING] as usize] * (scale * self.factor)
                }
            };
            let (indices, signs) = (&known.indices[l % RING][..per_lookup], known.signs[l % RING]);
            let out = &mut out[at..at + dim];
            let add = batch.add || member > 0;
            let epilogue = Epilogue { scale, signs, first: 0, add, stream };
            if PER == 0 {
                rows.lookup::<S, K>(s, Terms { indices, weights: &[] }, &[scale], epilogue, out);
            } else {
                let (mut p, mut to) = (0, 0);
                while p < per_lookup {
                    let mut value = 0;
                    while value < block_dim {
                        let sum = T::sum::<S, K>(s, &rows, &indices[p..p + num_hashes], &[], value);
                        store(s, sum, Epilogue { first: to, ..epilogue }, &mut out[to..to + 64]);
                        value += 64;
                        to += 64;
                    }
                    p += num_hashes;
                }
            }
            member += 1;
            if member == members {
                member = 0;
                at += dim;
            }
        }
        if stream {
            s.fence();
        }
    }
}

/// Finds the rows of lookup `l` of `feature` and prefetches them; `feature` becomes the next one.
#[inline(always)]
fn prefetch_rows<T: Stored, const PER: usize, const MOST: usize>(
    batch: &Batch<'_>,
    rows: &Rows<'_, T>,
    l: usize,
    feature: &mut usize,
    known: &mut Known<MOST>,
) {
    let per_lookup = if PER == 0 { batch.indices.per_lookup() } else { PER };
    let indices = &mut known.indices[l % RING][..per_lookup];
    match batch.indices {
        Indices::Hashed { ids, hashing } => {
            known.signs[l % RING] = hashing.fill(*feature, ids[l], indices);
            rows.prefetch(indices);
            if let Scales::Hashed { weights, hashing, .. } = batch.scales {
                let h = hashing.hashes[*feature].hash(ids[l]);
                let row = row(h, 0, hashing.ranges[*feature]);
                known.weights[l % RING] = row;
                prefetch::<L1>(weights.as_ptr().wrapping_add(row as usize).cast());
            }
            *feature = if *feature + 1 == hashing.hashes.len() { 0 } else { *feature + 1 };
        }
        Indices::Given { indices: given, .. } => {
            indices.copy_from_slice(&given[l * per_lookup..(l + 1) * per_lookup]);
            rows.prefetch(indices);
        }
    }
}
