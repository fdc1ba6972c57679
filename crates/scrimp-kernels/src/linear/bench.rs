//! Timing of one linear layer in several formats, as `scrimp bench linear` reports it.
//!
//! All formats hold the same pruned random weights. In each round every format computes one product, so other load of
//! the machine affects all formats alike. Consecutive rounds use different copies of the weights. The copies take at
//! least [`ROTATED_BYTES`], so no product reads its weights from a cache. A time is the best of its rounds and includes
//! the quantization of the activations.

use super::{ActivationShape, Activations, Linear, LinearScratch, Matrix, StoredRows, linear};
use crate::{
    DType,
    arch::SimdLevel,
    exec::{DisjointSliceMut, Exec, Pool},
    mem::Arena,
    quant::{
        cb::{self, Codebook},
        packed::{DenseMatrix, PackedView, WeightFormat, pack},
    },
};
use scrimp_base::{SplitMix64, random::mix};
use std::{
    io,
    time::{Duration, Instant},
};

/// Minimum size of all copies of the weights: larger than the caches.
pub const ROTATED_BYTES: usize = 512 << 20;
/// The smallest number of rounds.
const LEAST_ROUNDS: usize = 3;

/// What to time.
#[derive(Debug, Clone)]
pub struct Options {
    /// Out features.
    pub rows: usize,
    /// In features.
    pub cols: usize,
    /// Tokens.
    pub batch: usize,
    /// Share of the weights that are zero, in `[0, 1]`.
    pub sparsity: f64,
    /// Names of formats: those of [`WeightFormat`], `f32` and `f16`.
    pub formats: Vec<BenchFormat>,
    /// Bytes of all weights together, at least: [`ROTATED_BYTES`].
    pub rotated_bytes: usize,
    /// Of the random weights.
    pub seed: u64,
    /// How long to measure, after setting up.
    pub time: Duration,
}

/// A format that can be timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BenchFormat {
    /// One of scrimp's own.
    Packed(WeightFormat),
    /// Plain numbers as files have them: f32 or f16.
    Plain(DType),
    /// A codebook format.
    Codebook(DType),
}

impl BenchFormat {
    /// Every one.
    pub const ALL: [Self; 11] = [
        Self::Plain(DType::F32),
        Self::Plain(DType::F16),
        Self::Packed(WeightFormat::Bf16),
        Self::Packed(WeightFormat::Int8),
        Self::Packed(WeightFormat::Int4),
        Self::Packed(WeightFormat::SparseBf16),
        Self::Packed(WeightFormat::SparseInt8),
        Self::Packed(WeightFormat::SparseInt4),
        Self::Codebook(DType::CB4),
        Self::Codebook(DType::CB3),
        Self::Codebook(DType::CB2),
    ];

    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Packed(format) => format.name(),
            Self::Plain(dtype) | Self::Codebook(dtype) => dtype.name(),
        }
    }

    /// One line for lists of formats.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Packed(format) => format.about(),
            Self::Plain(_) => "plain numbers",
            Self::Codebook(_) => "codebook, one scale per 32 weights",
        }
    }
}

impl std::str::FromStr for BenchFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| {
            format!("there is no format `{name}`; there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// How long a product took.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Of the weights.
    pub format: BenchFormat,
    /// The level that ran.
    pub level: SimdLevel,
    /// The best round.
    pub best: Duration,
    /// Bytes of the packed weights.
    pub bytes: usize,
    /// The time of dense bf16 in the same rounds, divided by this one.
    pub speedup_vs_dense_bf16: f64,
}

/// Times every format of `options`, in that order.
///
/// # Errors
/// When the shape is empty or too large, or memory cannot be had.
pub fn measure(exec: Exec<'_>, options: &Options) -> io::Result<Vec<Timing>> {
    let Exec { pool, level } = exec;
    let Options { rows, cols, batch, .. } = *options;
    if rows == 0 || cols == 0 || batch == 0 {
        return Err(io::Error::other("rows, columns and batch must be at least 1"));
    }
    let dense = BenchFormat::Packed(WeightFormat::Bf16);
    let mut formats = options.formats.clone();
    if !formats.contains(&dense) {
        formats.push(dense);
    }
    let len = rows.checked_mul(cols).ok_or_else(too_large)?;
    let weights = random_weights(pool, len, options.sparsity, 0.0375, options.seed)?;
    let mut sets =
        formats.iter().map(|&f| Packed::new(pool, f, options, &weights)).collect::<io::Result<Vec<_>>>()?;
    drop(weights);
    let set_bytes: usize = sets.iter().map(|set| Arena::size_of(set.bytes.len())).sum();
    let copies = options.rotated_bytes.div_ceil(set_bytes.max(1)).max(1);
    let mut arena = Arena::new(set_bytes * copies)?;
    for set in &mut sets {
        set.copy(pool, &mut arena, options, copies)?;
    }
    let mut scratch = LinearScratch::default();
    let mut x = Activations::new();
    let mut out = Vec::new();
    out.try_reserve_exact(rows.saturating_mul(batch)).map_err(|_| io::ErrorKind::OutOfMemory)?;
    out.resize(rows * batch, 0.0);
    let begin = Instant::now();
    let mut round = 0;
    while round < LEAST_ROUNDS || begin.elapsed() < options.time {
        for set in &mut sets {
            let weight = &set.copies[round % copies];
            let start = Instant::now();
            x.fill(exec, ActivationShape { n_tokens: batch, cols, needs: weight.needs() }, |t, x| {
                for (i, x) in x.iter_mut().enumerate() {
                    *x = ((i * 7 + t) % 31) as f32 / 16.0 - 1.0;
                }
            });
            let product = Linear { weight, bias: None, out: &mut out, stride: rows, accumulate: false };
            linear(exec, &mut scratch, &x, &mut [product]);
            set.best = set.best.min(start.elapsed());
        }
        round += 1;
    }
    let bf16 = sets.iter().find(|set| set.format == dense).map_or(Duration::ZERO, |set| set.best);
    Ok(sets
        .iter()
        .take(options.formats.len())
        .map(|set| Timing {
            format: set.format,
            level,
            best: set.best,
            bytes: set.copies[0].bytes(),
            speedup_vs_dense_bf16: bf16.as_secs_f64() / set.best.as_secs_f64(),
        })
        .collect())
}

/// The weights of one format.
struct Packed {
    format: BenchFormat,
    bytes: Vec<u8>,
    copies: Vec<Matrix>,
    best: Duration,
}

impl Packed {
    fn new(pool: &Pool, format: BenchFormat, options: &Options, weights: &[f32]) -> io::Result<Self> {
        let bytes = match format {
            BenchFormat::Packed(format) => {
                pack(pool, format, DenseMatrix { rows: options.rows, cols: options.cols, weights }, None)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?
            }
            BenchFormat::Plain(DType::F16) => {
                weights.iter().flat_map(|&w| half::f16::from_f32(w).to_le_bytes()).collect()
            }
            BenchFormat::Plain(_) => weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
            BenchFormat::Codebook(dtype) => encoded(dtype, weights, options.cols)?,
        };
        let bytes = if let BenchFormat::Plain(_) | BenchFormat::Codebook(_) = format {
            let mut bytes: Vec<u8> = bytes;
            bytes.resize(bytes.len() / options.rows * options.rows.next_multiple_of(16), 0);
            bytes
        } else {
            bytes
        };
        Ok(Self { format, bytes, copies: Vec::new(), best: Duration::MAX })
    }

    fn copy(&mut self, pool: &Pool, arena: &mut Arena, options: &Options, copies: usize) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        let Options { rows, cols, .. } = *options;
        for _ in 0..copies {
            self.copies.push(match self.format {
                BenchFormat::Packed(format) => {
                    let view = PackedView::new(format, rows, cols, &bytes)
                        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                    Matrix::from_packed(pool, arena, &view)?
                }
                BenchFormat::Plain(dtype) | BenchFormat::Codebook(dtype) => {
                    let stored = rows * dtype.row_bytes(cols).expect("encoded rows");
                    Matrix::pack(pool, arena, StoredRows { dtype, rows, cols, data: &bytes[..stored] })?
                }
            });
        }
        Ok(())
    }
}

/// The weights in a codebook format, with one scale for all.
///
/// # Errors
/// When the rows are no multiple of its groups.
fn encoded(dtype: DType, weights: &[f32], cols: usize) -> io::Result<Vec<u8>> {
    let (codebook, row_bytes) = Codebook::new(dtype).zip(dtype.row_bytes(cols)).ok_or_else(|| {
        let why = format!("{dtype} needs a multiple of {} columns", cb::COLUMNS);
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })?;
    let scale = codebook.scale(&weights[..cb::COLUMNS], &[1.0; cb::COLUMNS]);
    let mut bytes = vec![0; weights.len() / cols * row_bytes];
    for (row, to) in weights.chunks_exact(cols).zip(bytes.chunks_exact_mut(row_bytes)) {
        codebook.encode(row, &vec![scale; cols / cb::COLUMNS], to);
    }
    Ok(bytes)
}

/// `len` random numbers in `±scale`, of which a share of `sparsity` is 0; the same for a seed and any number of
/// threads.
///
/// # Errors
/// When memory cannot be had.
pub fn random_weights(pool: &Pool, len: usize, sparsity: f64, scale: f32, seed: u64) -> io::Result<Vec<f32>> {
    const CHUNK: usize = 1 << 16;
    let mut weights: Vec<f32> = Vec::new();
    weights.try_reserve_exact(len).map_err(|_| too_large())?;
    weights.resize(len, 0.0);
    let zero_below = (sparsity * f64::from(1u32 << 31)) as u64;
    let out = DisjointSliceMut::new(&mut weights);
    pool.run(len.div_ceil(CHUNK), |task, _| {
        // SAFETY: tasks have ranges of their own.
        let out = unsafe { out.slice(task * CHUNK..((task + 1) * CHUNK).min(len)) };
        let mut random = SplitMix64::new(mix(seed ^ task as u64));
        for w in out {
            let bits = random.next_u64();
            let value = (bits as u32 >> 8) as f32 / (1 << 23) as f32 - 1.0;
            // At least a fifth of the scale: `int4` rounds none of these to zero, so the share of zeros is the same
            // in every format.
            let value = 0.8 * value + 0.2 * value.signum();
            *w = if bits >> 33 < zero_below { 0.0 } else { scale * value };
        }
    });
    Ok(weights)
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, "there is no memory for the weights")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_timed() {
        let pool = Pool::new(2).unwrap();
        let options = Options {
            rows: 512,
            cols: 2048,
            batch: 1,
            sparsity: 0.5,
            formats: BenchFormat::ALL.to_vec(),
            rotated_bytes: 1,
            seed: 1,
            time: Duration::ZERO,
        };
        let timings = measure(Exec { pool: &pool, level: SimdLevel::detect() }, &options).unwrap();
        assert_eq!(timings.len(), BenchFormat::ALL.len());
        for timing in timings {
            assert_eq!(timing.format.name().parse(), Ok(timing.format));
            let bits = timing.bytes as f64 * 8.0 / (512.0 * 2048.0);
            let want = match timing.format.name() {
                "f32" => 32.0,
                "f16" | "bf16" => 16.0,
                "int8" => 8.0,
                "int4" => 4.5,
                "sparse-bf16" => 9.0,
                "sparse-int8" => 5.0,
                "cb4" => 4.25,
                "cb3" => 3.25,
                "cb2" => 2.25,
                _ => 3.5,
            };
            assert!((bits - want).abs() < 0.1, "{}: {bits}", timing.format.name());
        }
        assert!(
            measure(Exec { pool: &pool, level: SimdLevel::detect() }, &Options { rows: 0, ..options })
                .is_err()
        );
    }
}
