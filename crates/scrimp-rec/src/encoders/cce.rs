//! Clustered compositional embeddings (Tsang and Ahle, "Clustering the Sketch", arXiv 2210.05974): each quarter of the vector is
//! the sum of two rows, selected by a pointer and by a hash.
//!
//! Pointers start as hashes. After the first epoch, k-means clusters each quarter of all vectors. Pointers then select clusters,
//! whose centers become the rows, and the hashed rows start again at zero with another hash. Ids with similar vectors share a
//! row, and the hashed rows learn the differences.
//!
//! *Size.* Pointers take two bytes per slot and quarter, at most half of the budget. A hash maps ids to slots.

use super::{
    Encoder, EncoderConfig, EncoderEntry, EncoderOptions, Exec, IdCounts, Param, ParamInit, Stored,
    hashed_blocks, too_small,
};
use crate::{Error, Result};
use scrimp_kernels::embedding::{Backward, Batch, IdHash, Optimizer, forward};

pub(super) const ENTRY: EncoderEntry = EncoderEntry {
    name: "cce",
    about: "a clustered and a hashed row for each quarter of the vector (Tsang and Ahle, 2023)",
    plan,
    build,
};

/// Parts of a vector.
const COLUMNS: usize = 4;
/// Rounds of k-means.
const ROUNDS: usize = 8;
/// The approximate number of distances of a round.
const DISTANCES: usize = 100_000_000;

fn plan(options: &EncoderOptions, id_counts: &IdCounts) -> Result<EncoderConfig> {
    if !options.dim.is_multiple_of(COLUMNS) {
        return Err(Error::bad_input(format!(
            "encoder cce: dimension {}: must be a multiple of 4",
            options.dim
        )));
    }
    let slots = (options.budget / 2 / (2 * COLUMNS as u64)).min(id_counts.total() * 3 / 2).min(1 << 30);
    let rest = options.budget - slots * 2 * COLUMNS as u64;
    let rows = options.precision.rows_in(rest, options.dim) / 2;
    if rows == 0 || slots == 0 {
        return Err(too_small(options));
    }
    let base = options.base(id_counts.distinct.len());
    let (rows, weight_rows) = (vec![rows.min(65535) as u32], vec![slots as u32]);
    Ok(EncoderConfig {
        rows,
        weight_rows,
        block_dim: options.dim / COLUMNS,
        num_hashes: 2,
        weight_num_hashes: 1,
        groups: 1,
        ..base
    })
}

fn build(config: &EncoderConfig, _: &[u64]) -> Result<Box<dyn Encoder>> {
    let c = config;
    let (&[rows], &[slots]) = (&c.rows[..], &c.weight_rows[..]) else {
        return Err(Error::bad_input("encoder cce has one table and one list of pointers"));
    };
    if c.dim != c.block_dim * COLUMNS || c.num_hashes != 2 || rows > 65535 {
        return Err(Error::bad_input("encoder cce: four blocks of two rows, at most 65535 of them"));
    }
    let hash = IdHash::new(c.seed ^ 1, 0);
    let mut pointers = Vec::new();
    pointers
        .try_reserve_exact(slots as usize * COLUMNS)
        .map_err(|_| Error::out_of_memory(format!("{slots} pointers")))?;
    pointers.extend((0..slots as usize * COLUMNS).map(|i| reduce(hash.hash(i as u64), rows) as u16));
    let spread = super::memrec::spread(c);
    Ok(Box::new(Cce {
        features: c.features,
        rows,
        slots,
        seed: c.seed,
        clusterings: 0,
        hashes: hashed_blocks::hashes(c.seed ^ 2, c.features),
        pointers,
        seen: vec![false; slots as usize],
        table: Param::new(ParamInit {
            spread,
            ..ParamInit::rows(rows as usize * 2 * COLUMNS, c.block_dim, c.seed ^ 3)
        })?,
        precision: c.precision,
    }))
}

/// Reduces a hash to a number below `n`.
fn reduce(hash: u64, n: u32) -> u32 {
    (((hash >> 32) * u64::from(n)) >> 32) as u32
}

struct Cce {
    features: usize,
    rows: u32,
    slots: u32,
    seed: u64,
    /// The number of clusterings, which selects the hash of the second rows.
    clusterings: u32,
    hashes: Vec<IdHash>,
    /// `[slots, COLUMNS]`
    pointers: Vec<u16>,
    /// The slots that occurred in training.
    seen: Vec<bool>,
    /// For each column, the rows of pointers, then the rows of hashes.
    table: Param,
    precision: super::Precision,
}

impl Cce {
    fn slot(&self, l: usize, id: u64) -> usize {
        reduce(self.hashes[l % self.features].hash(id), self.slots) as usize
    }

    /// The rows of a slot in column `c`.
    fn rows_of(&self, slot: usize, c: usize) -> [u32; 2] {
        let hash = IdHash::new(self.seed ^ 4, self.clusterings);
        let base = c as u32 * 2 * self.rows;
        let pointer = u32::from(self.pointers[slot * COLUMNS + c]).min(self.rows - 1);
        [base + pointer, base + self.rows + reduce(hash.hash((slot * COLUMNS + c) as u64), self.rows)]
    }

    fn indices(&self, exec: Exec<'_>, ids: &[u64]) -> Vec<u32> {
        let mut indices = vec![0; ids.len() * 2 * COLUMNS];
        exec.pool.chunks(&mut indices, 1024 * 2 * COLUMNS, |chunk, out| {
            for (i, out) in out.chunks_exact_mut(2 * COLUMNS).enumerate() {
                let l = chunk * 1024 + i;
                let slot = self.slot(l, ids[l]);
                for c in 0..COLUMNS {
                    out[c * 2..c * 2 + 2].copy_from_slice(&self.rows_of(slot, c));
                }
            }
        });
        indices
    }

    /// Clusters column `c`. Returns its new pointers and rows.
    fn cluster(&self, exec: Exec<'_>, c: usize, seen: &[usize]) -> (Vec<u16>, Vec<f32>) {
        let (width, k) = (self.table.block_dim, self.rows as usize);
        let values = self.table.floats();
        let point = |slot: usize, out: &mut [f32]| {
            let [a, b] = self.rows_of(slot, c).map(|r| &values[r as usize * width..][..width]);
            for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
                *out = a + b;
            }
        };
        let hash = IdHash::new(self.seed ^ 5, self.clusterings * COLUMNS as u32 + c as u32);
        // Centers start at random points; k-means uses a sample of the points.
        let sample = (DISTANCES / k).clamp(k, seen.len().max(k));
        let every = (seen.len() / sample).max(1);
        let mut centers = vec![0.0; k * width];
        for (i, center) in centers.chunks_exact_mut(width).enumerate() {
            point(seen[reduce(hash.hash(i as u64), seen.len() as u32) as usize], center);
        }
        let nearest = |centers: &[f32], norms: &[f32], x: &[f32]| {
            let mut best = (f32::INFINITY, 0);
            for (i, (center, norm)) in centers.chunks_exact(width).zip(norms).enumerate() {
                let mut dot = 0.0;
                for (a, b) in center.iter().zip(x) {
                    dot += a * b;
                }
                let distance = norm - 2.0 * dot;
                if distance < best.0 {
                    best = (distance, i);
                }
            }
            best.1
        };
        let norms = |centers: &[f32]| -> Vec<f32> {
            centers.chunks_exact(width).map(|c| c.iter().map(|x| x * x).sum()).collect()
        };
        let some: Vec<usize> = seen.iter().copied().step_by(every).collect();
        let mut assigned = vec![0_u16; some.len()];
        for _ in 0..ROUNDS {
            let norms = norms(&centers);
            exec.pool.chunks(&mut assigned, 256, |chunk, out| {
                let mut x = vec![0.0; width];
                for (i, out) in out.iter_mut().enumerate() {
                    point(some[chunk * 256 + i], &mut x);
                    *out = nearest(&centers, &norms, &x) as u16;
                }
            });
            let mut sums = vec![0.0_f64; k * width];
            let mut counts = vec![0_u32; k];
            let mut x = vec![0.0; width];
            for (&slot, &cluster) in some.iter().zip(&assigned) {
                point(slot, &mut x);
                counts[cluster as usize] += 1;
                for (sum, &x) in sums[cluster as usize * width..].iter_mut().zip(&x) {
                    *sum += f64::from(x);
                }
            }
            for (i, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
                for d in i * width..(i + 1) * width {
                    centers[d] = (sums[d] / f64::from(count)) as f32;
                }
            }
        }
        let norms = norms(&centers);
        let mut pointers: Vec<u16> =
            (0..self.slots as usize).map(|slot| self.pointers[slot * COLUMNS + c]).collect();
        exec.pool.chunks(&mut pointers, 256, |chunk, out| {
            let mut x = vec![0.0; width];
            for (i, out) in out.iter_mut().enumerate() {
                let slot = chunk * 256 + i;
                if self.seen[slot] {
                    point(slot, &mut x);
                    *out = nearest(&centers, &norms, &x) as u16;
                }
            }
        });
        (pointers, centers)
    }
}

impl Encoder for Cce {
    fn vectors(&self) -> usize {
        self.features
    }

    fn forward(&self, exec: Exec<'_>, ids: &[u64], out: &mut [f32]) {
        let indices = self.indices(exec, ids);
        let batch = Batch::given(self.table.table(), &indices, 2 * COLUMNS, 2);
        forward(exec, &batch, out);
    }

    fn backward(&mut self, exec: Exec<'_>, ids: &[u64], grad: &[f32], optimizer: Optimizer) {
        for (l, &id) in ids.iter().enumerate() {
            let slot = self.slot(l, id);
            self.seen[slot] = true;
        }
        let indices = self.indices(exec, ids);
        let batch = Backward::given(&indices, 2 * COLUMNS, 2, grad);
        self.table.step(exec, optimizer, &batch);
    }

    fn between_epochs(&mut self, exec: Exec<'_>) {
        let seen: Vec<usize> = (0..self.slots as usize).filter(|&slot| self.seen[slot]).collect();
        if seen.is_empty() || self.clusterings > 0 {
            return;
        }
        let all: Vec<_> = (0..COLUMNS).map(|c| self.cluster(exec, c, &seen)).collect();
        self.clusterings += 1;
        let (width, rows) = (self.table.block_dim, self.rows as usize);
        // The state of the optimizer starts again with the rows.
        self.table.state.fill(0.0);
        let Stored::F32(values) = &mut self.table.values else { return };
        for (c, (pointers, centers)) in all.into_iter().enumerate() {
            for (slot, pointer) in pointers.into_iter().enumerate() {
                self.pointers[slot * COLUMNS + c] = pointer;
            }
            let column = &mut values[c * 2 * rows * width..(c + 1) * 2 * rows * width];
            column[..rows * width].copy_from_slice(&centers);
            column[rows * width..].fill(0.0);
        }
        self.table.round(0..self.table.len());
    }

    fn params(&self) -> Vec<(&'static str, &Param)> {
        vec![("table", &self.table)]
    }

    fn params_mut(&mut self) -> Vec<(&'static str, &mut Param)> {
        vec![("table", &mut self.table)]
    }

    fn bytes(&self) -> usize {
        self.table.bytes() + self.pointers.len() * 2
    }

    /// The pointers, the number of clusterings and, before the first clustering, the used slots.
    fn memory(&self) -> Vec<u16> {
        let mut memory = self.pointers.clone();
        memory.push(self.clusterings as u16);
        if self.clusterings == 0 {
            memory.extend(
                self.seen
                    .chunks(16)
                    .map(|bits| bits.iter().enumerate().map(|(i, &seen)| u16::from(seen) << i).sum::<u16>()),
            );
        }
        memory
    }

    fn restore(&mut self, memory: &[u16]) -> Result<()> {
        let n = self.pointers.len();
        let bits = self.seen.len().div_ceil(16);
        if memory.len() != n + 1 && memory.len() != n + 1 + bits {
            return Err(Error::bad_input(format!("{} pointers, not {n}", memory.len())));
        }
        self.pointers.copy_from_slice(&memory[..n]);
        self.clusterings = u32::from(memory[n]);
        for (slot, seen) in self.seen.iter_mut().enumerate() {
            *seen = memory.get(n + 1 + slot / 16).is_none_or(|bits| bits >> (slot % 16) & 1 == 1);
        }
        Ok(())
    }

    fn quantize(&mut self) {
        self.table.quantize(self.precision);
        self.seen = vec![true; self.seen.len()];
    }
}
