//! Speed of embedding lookups: a full table against tables that fit a cache.
//!
//! Every encoder computes the f32 vectors of the same batches: `batch` samples of `features` ids, drawn uniformly, with other
//! ids in each round. Rounds of all encoders are interleaved, so that a slower machine affects all; the best round counts.

use crate::{Error, Result, encoders::Precision};
use scrimp_kernels::{
    Exec,
    embedding::{
        Bags, Batch, Hashing, IdHash, Indices, RowRange, Scales, Table, Values, forward, forward_one,
    },
    mem::{Arena, ArenaBox},
};
use std::time::Instant;

/// Options of the benchmark.
#[derive(Debug, Clone)]
pub struct EmbeddingBench {
    /// Rows of the full f32 table.
    pub rows_full: usize,
    /// Dimension of a vector.
    pub dim: usize,
    /// Samples of a batch.
    pub batch: usize,
    /// Ids of a sample.
    pub features: usize,
    /// Rounds; the best counts.
    pub rounds: usize,
}

/// The speed of one encoder.
#[derive(Debug, Clone, serde::Serialize)]
pub struct EmbeddingSpeed {
    /// Name and shape.
    pub encoder: String,
    /// The type of the rows.
    pub dtype: &'static str,
    /// Size of the tables in bytes.
    pub bytes: usize,
    /// Time of a batch divided by its lookups, in nanoseconds.
    pub ns_per_lookup: f64,
    /// The full table's time divided by this.
    pub speedup_vs_full: f64,
    /// Time of a single lookup on one thread, in nanoseconds.
    pub ns_single: f64,
    /// The full table's time of a single lookup divided by this.
    pub single_speedup_vs_full: f64,
}

/// The bytes of CriteoTB's tables divided by 2900, then tables for smaller caches.
const SIZES: [usize; 3] = [33_000_000, 8_000_000, 2_000_000];
/// Number of different batches of ids.
const ID_SETS: usize = 16;
/// Single lookups of a round.
const SINGLES: usize = 4096;

/// The shape of an encoder.
#[derive(Debug, Clone, Copy)]
struct Shape {
    name: &'static str,
    blocks: usize,
    num_hashes: usize,
    alpha: bool,
    bagged: bool,
    /// Values have signs and rows begin at each value of the table: the default of `memrec` (two in a vector).
    overlap: bool,
}

const fn shape(name: &'static str, blocks: usize, num_hashes: usize, alpha: bool) -> Shape {
    Shape { name, blocks, num_hashes, alpha, bagged: false, overlap: false }
}

const fn overlapping(name: &'static str, blocks: usize) -> Shape {
    Shape { overlap: true, ..shape(name, blocks, 1, false) }
}

struct Subject {
    label: String,
    shape: Shape,
    precision: Precision,
    /// Values of the table.
    values: usize,
    memory: ArenaBox,
    weights: Vec<f32>,
    hashes: Vec<IdHash>,
    ranges: Vec<RowRange>,
    weight_hashes: Vec<IdHash>,
    weight_ranges: Vec<RowRange>,
    block_dim: usize,
    best: f64,
    best_single: f64,
}

impl Subject {
    fn new(shape: Shape, precision: Precision, bytes: usize, options: &EmbeddingBench) -> Result<Self> {
        let block_dim = options.dim / shape.blocks;
        // Alpha takes 1 % of the budget.
        let weight_rows = if shape.alpha { bytes / 100 / 4 } else { 0 };
        let stride = if shape.overlap { 1 } else { block_dim };
        let values = precision.fitting((bytes - weight_rows * 4) as u64, block_dim, stride) as usize;
        let values = values / block_dim * block_dim;
        let size = precision.bytes(values, block_dim, stride);
        let rows = (values - block_dim) / stride + 1;
        let memory = Arena::new(Arena::size_of(size)).and_then(|mut a| a.alloc(size));
        let mut memory = memory.map_err(|_| Error::out_of_memory(format!("a table of {size} bytes")))?;
        // Writing to every page allocates it.
        for (i, page) in memory.chunks_mut(4096).enumerate() {
            let byte = if matches!(precision, Precision::Int8 | Precision::Int4) { i as u8 } else { 0 };
            page.fill(byte);
        }
        let hashes = |seed| (0..options.features).map(|f| IdHash::new(seed, f as u32)).collect();
        let ranges = |rows: usize| vec![RowRange { base: 0, rows: rows.max(1) as u32 }; options.features];
        Ok(Self {
            label: shape.name.to_owned(),
            shape,
            precision,
            values,
            memory,
            weights: vec![1.0; weight_rows],
            hashes: hashes(1),
            ranges: ranges(rows),
            weight_hashes: hashes(2),
            weight_ranges: ranges(weight_rows),
            block_dim,
            best: f64::INFINITY,
            best_single: f64::INFINITY,
        })
    }

    fn bytes(&self) -> usize {
        self.memory.len() + self.weights.len() * 4
    }

    fn batch<'a>(&'a self, ids: &'a [u64], indices: &'a [u32]) -> Batch<'a> {
        let values = match self.precision {
            Precision::F32 => Values::F32(bytemuck::cast_slice(&self.memory)),
            Precision::Bf16 => Values::Bf16(bytemuck::cast_slice(&self.memory)),
            Precision::Int8 => Values::Int8 { q: bytemuck::cast_slice(&self.memory), scale: 0.01 },
            Precision::Int4 => Values::Int4 { q: &self.memory, len: self.values, scale: 0.1 },
        };
        let hashing = |hashes: &'a [IdHash], ranges: &'a [RowRange], per_lookup, signs| {
            let n = hashes.len().min(ids.len().max(1));
            Hashing { hashes: &hashes[..n], ranges: &ranges[..n], per_lookup, signs }
        };
        let Shape { blocks, num_hashes, overlap, .. } = self.shape;
        Batch {
            table: Table {
                values,
                block_dim: self.block_dim,
                stride: if overlap { 1 } else { self.block_dim },
            },
            indices: if self.shape.name == "full" {
                Indices::Given { indices, weights: &[], per_lookup: 1 }
            } else {
                Indices::Hashed {
                    ids,
                    hashing: hashing(&self.hashes, &self.ranges, blocks * num_hashes, overlap),
                }
            },
            num_hashes,
            scales: if self.shape.alpha {
                let hashing = hashing(&self.weight_hashes, &self.weight_ranges, 1, false);
                Scales::Hashed { weights: &self.weights, hashing, groups: 1, scale: 1.0 }
            } else {
                Scales::One(1.0)
            },
            bags: Bags::Fixed(if self.shape.bagged { ids.len().min(self.hashes.len()) } else { 1 }),
            add: false,
        }
    }

    fn round(&mut self, exec: Exec<'_>, ids: &[u64], indices: &[u32], out: &mut [f32]) {
        let dim = self.block_dim * self.shape.blocks;
        let bags = if self.shape.bagged { ids.len() / self.hashes.len() } else { ids.len() };
        let out = &mut out[..bags * dim];
        let start = Instant::now();
        forward(exec, &self.batch(ids, indices), out);
        self.best = self.best.min(start.elapsed().as_secs_f64() / ids.len() as f64);
        let singles = SINGLES.min(ids.len());
        let out = &mut out[..dim];
        let start = Instant::now();
        for i in 0..singles {
            forward_one(exec.level, &self.batch(&ids[i..=i], &indices[i..=i]), out);
            std::hint::black_box(&mut *out);
        }
        self.best_single = self.best_single.min(start.elapsed().as_secs_f64() / singles as f64);
    }
}

/// Runs the benchmark.
///
/// # Errors
/// An allocation fails, or an option is out of its range.
pub fn embedding(exec: Exec<'_>, options: &EmbeddingBench) -> Result<Vec<EmbeddingSpeed>> {
    if options.dim == 0 || !options.dim.is_multiple_of(64) {
        return Err(Error::bad_input(format!("`dim` is {}; it must be a multiple of 64", options.dim)));
    }
    if options.rows_full == 0 || options.rows_full > i32::MAX as usize {
        return Err(Error::bad_input(format!(
            "`rows_full` is {}; it must be from 1 to 2^31 - 1",
            options.rows_full
        )));
    }
    let row = options.dim * 4;
    let mut subjects =
        vec![Subject::new(shape("full", 1, 1, false), Precision::F32, options.rows_full * row, options)?];
    let wide = options.dim / 64;
    for size in SIZES {
        let shapes = [
            (shape("hashing", 1, 1, false), Precision::F32),
            (shape("memrec", 1, 4, true), Precision::F32),
            (shape("memrec", 1, 4, true), Precision::Bf16),
            (shape("memrec", 1, 4, true), Precision::Int8),
            (shape("memrec blocks of 64", wide, 1, true), Precision::Bf16),
            (shape("memrec blocks of 64", wide, 1, true), Precision::Int8),
            (overlapping("memrec overlapping", 1), Precision::Int8),
            (overlapping("memrec overlapping", 1), Precision::Int4),
            (overlapping("memrec two overlapping", 2), Precision::Bf16),
            (overlapping("memrec two overlapping", 2), Precision::Int8),
            (overlapping("memrec two overlapping", 2), Precision::Int4),
            (overlapping("robe", options.dim / 8), Precision::Int4),
            (Shape { bagged: true, ..shape("memrec-bagged", 1, 1, true) }, Precision::F32),
            (Shape { bagged: true, ..shape("memrec-bagged", 1, 4, true) }, Precision::Int8),
        ];
        for (shape, precision) in shapes {
            let mut subject = Subject::new(shape, precision, size, options)?;
            subject.label = format!("{} k={}", shape.name, shape.num_hashes);
            subjects.push(subject);
        }
    }
    let lookups = options.batch * options.features;
    let hash = IdHash::new(3, 0);
    let sets: Vec<(Vec<u64>, Vec<u32>)> = (0..ID_SETS)
        .map(|set| {
            let ids: Vec<u64> = (0..lookups).map(|i| hash.hash((set * lookups + i) as u64)).collect();
            let row = |id: &u64| ((u128::from(*id) * options.rows_full as u128) >> 64) as u32;
            let rows = ids.iter().map(row).collect();
            (ids, rows)
        })
        .collect();
    // The outputs are on huge pages, like the tables.
    let size = lookups * row;
    let memory = Arena::new(Arena::size_of(size)).and_then(|mut a| a.alloc(size));
    let mut out = memory.map_err(|_| Error::out_of_memory(format!("outputs of {size} bytes")))?;
    let out: &mut [f32] = bytemuck::cast_slice_mut(&mut out);
    for round in 0..options.rounds {
        for subject in &mut subjects {
            // A round has three batches: the first loads the table into the cache.
            for i in 0..3 {
                let (ids, rows) = &sets[(round * 3 + i) % ID_SETS];
                subject.round(exec, ids, rows, out);
            }
        }
    }
    let (full, full_single) = (subjects[0].best, subjects[0].best_single);
    let speed = |s: &Subject| EmbeddingSpeed {
        encoder: s.label.clone(),
        dtype: s.precision.name(),
        bytes: s.bytes(),
        ns_per_lookup: s.best * 1e9,
        speedup_vs_full: full / s.best,
        ns_single: s.best_single * 1e9,
        single_speedup_vs_full: full_single / s.best_single,
    };
    Ok(subjects.iter().map(speed).collect())
}
