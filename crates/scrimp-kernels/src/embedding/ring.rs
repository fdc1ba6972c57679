//! The fast path of [`forward`](super::forward): look-ups of few rows, without weights, with one scale, in bags of the same size.
//!
//! ```text
//! look-up      l                        l + DISTANCE
//!              sum, scale, store        hash, ask for its rows and its weight
//! ring         | l | l + 1 | ...        | l + DISTANCE |          probes that are known, by l mod RING
//! ```
//!
//! Rows are asked for one look-up at a time: a core can wait for 16 lines at once, so asking for those of many look-ups in one go would
//! stop it until the first have come. What bounds a batch whose outputs leave the cache is not the table but the outputs: 512 bytes for
//! each look-up of 128 values, while four rows of 128 bytes come from a cache.

use super::{
    bag::{Bags, Batch, Probes, Scales},
    gather::{Rows, store},
    hash::row,
    table::Stored,
};
use crate::arch::{EmbeddingSimd, Kernel, L1, Level, prefetch};

/// Look-ups between asking for rows and adding them up.
const DISTANCE: usize = 8;
/// Look-ups whose probes are known; a power of two above [`DISTANCE`].
const RING: usize = 16;
/// Probes of a look-up, at most.
const MAX_PER: usize = 32;

/// Whether this path can answer `batch`.
pub(super) fn can(batch: &Batch<'_>) -> bool {
    let weights = matches!(batch.probes, Probes::Given { weights, .. } if !weights.is_empty());
    let one_scale = match batch.scales {
        Scales::One(_) => true,
        Scales::Given { groups, .. } => groups == 1,
        Scales::Hashed { probing, groups, .. } => {
            groups == 1 && probing.probes == 1 && matches!(batch.probes, Probes::Hashed { .. })
        }
    };
    !weights
        && one_scale
        && batch.table.width > 0
        && (1..=MAX_PER).contains(&batch.probes.per())
        && matches!(batch.bags, Bags::Fixed(_))
}

/// A part of a batch, from bag `first` on.
pub(super) struct Ring<'a, T> {
    pub(super) batch: &'a Batch<'a>,
    pub(super) values: &'a [T],
    /// Multiplies all values.
    pub(super) factor: f32,
    pub(super) first: usize,
    pub(super) stream: bool,
    pub(super) out: &'a mut [f32],
}

impl<T: Stored> Kernel for Ring<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let whole = self.batch.table.width.is_multiple_of(64);
        match (self.batch.probes.per(), self.batch.k) {
            (1, 1) if whole => self.look_ups::<S, 1, 1, 1>(s),
            (2, 1) if whole => self.look_ups::<S, 2, 1, 2>(s),
            (4, 4) if whole => self.look_ups::<S, 4, 4, 4>(s),
            (_, 1) => self.look_ups::<S, 0, 1, MAX_PER>(s),
            _ => self.look_ups::<S, 0, 0, MAX_PER>(s),
        }
    }
}

/// What is known of the look-ups ahead.
struct Known<const MOST: usize> {
    probes: [[u32; MOST]; RING],
    signs: [u64; RING],
    /// Rows of the weight table.
    weights: [u32; RING],
}

impl<T: Stored> Ring<'_, T> {
    /// `PER` and `K` are the probes of a look-up and of a block, or 0 for any; `MOST` is at least the number of probes. Where `PER`
    /// is given, rows are a multiple of 64 values.
    #[inline(always)]
    fn look_ups<S: EmbeddingSimd, const PER: usize, const K: usize, const MOST: usize>(self, s: S) {
        let batch = self.batch;
        let (width, stride) = (batch.table.width, batch.table.stride);
        let per = if PER == 0 { batch.probes.per() } else { PER };
        let k = if K == 0 { batch.k } else { K };
        let half = batch.table.half();
        let rows = Rows { values: self.values, width, stride, half, k, stream: self.stream };
        let dim = per / k * width;
        let Bags::Fixed(members) = batch.bags else { return };
        let start = self.first * members;
        let end = start + self.out.len() / dim * members;
        let mut known = Known { probes: [[0; MOST]; RING], signs: [0; RING], weights: [0; RING] };
        let mut feature = match batch.probes {
            Probes::Hashed { probing, .. } => start % probing.hashes.len(),
            Probes::Given { .. } => 0,
        };
        let mut asked = start;
        while asked < end.min(start + DISTANCE) {
            ask::<T, PER, MOST>(batch, &rows, asked, &mut feature, &mut known);
            asked += 1;
        }
        let (mut member, mut at) = (0, 0);
        for l in start..end {
            if asked < end {
                ask::<T, PER, MOST>(batch, &rows, asked, &mut feature, &mut known);
                asked += 1;
            }
            let scale = match batch.scales {
                Scales::One(scale) => scale * self.factor,
                Scales::Given { scales, .. } => scales[l] * self.factor,
                Scales::Hashed { weights, scale, .. } => {
                    weights[known.weights[l % RING] as usize] * (scale * self.factor)
                }
            };
            let (probes, signs) = (&known.probes[l % RING][..per], known.signs[l % RING]);
            let out = &mut self.out[at..at + dim];
            let add = batch.add || member > 0;
            if PER == 0 {
                rows.look_up::<S, K>(s, probes, &[], &[scale], signs, add, out);
            } else {
                let (mut p, mut to) = (0, 0);
                while p < per {
                    let mut value = 0;
                    while value < width {
                        let sum = T::sum::<S, K>(s, &rows, &probes[p..p + k], &[], value);
                        store(s, sum, scale, (signs, to), add, self.stream, &mut out[to..to + 64]);
                        value += 64;
                        to += 64;
                    }
                    p += k;
                }
            }
            member += 1;
            if member == members {
                member = 0;
                at += dim;
            }
        }
        if self.stream {
            s.fence();
        }
    }
}

/// Finds the rows of look-up `l` of `feature` and asks for them; goes on to the next feature.
#[inline(always)]
fn ask<T: Stored, const PER: usize, const MOST: usize>(
    batch: &Batch<'_>,
    rows: &Rows<'_, T>,
    l: usize,
    feature: &mut usize,
    known: &mut Known<MOST>,
) {
    let per = if PER == 0 { batch.probes.per() } else { PER };
    let probes = &mut known.probes[l % RING][..per];
    match batch.probes {
        Probes::Hashed { ids, probing } => {
            known.signs[l % RING] = probing.fill(*feature, ids[l], probes);
            rows.prefetch(probes);
            if let Scales::Hashed { weights, probing, .. } = batch.scales {
                let h = probing.hashes[*feature].hash(ids[l]);
                let row = row(h, 0, probing.ranges[*feature]);
                known.weights[l % RING] = row;
                prefetch::<L1>(weights.as_ptr().wrapping_add(row as usize).cast());
            }
            *feature = if *feature + 1 == probing.hashes.len() { 0 } else { *feature + 1 };
        }
        Probes::Given { probes: given, .. } => {
            probes.copy_from_slice(&given[l * per..(l + 1) * per]);
            rows.prefetch(probes);
        }
    }
}
