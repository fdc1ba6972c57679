//! Storage types of tables: sizes and rounding.

use scrimp_kernels::{Pool, embedding::Int4};
use serde::{Deserialize, Serialize};

/// The type in which rows are stored after training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats, as in training.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// 8-bit integers with one quantization step per table, chosen for the least squared error.
    Int8,
    /// 4-bit integers from -7 to 7, likewise.
    Int4,
}

impl Precision {
    /// Every precision, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Int4];

    /// One line for lists of precisions.
    pub const fn about(self) -> &'static str {
        match self {
            Self::F32 => "32-bit floats, as trained",
            Self::Bf16 => "bfloat16",
            Self::Int8 => "8 bits, one scale per table",
            Self::Int4 => "4 bits, one scale per table",
        }
    }

    /// The name that the command line accepts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bytes of a table of `len` values with rows of `block_dim`, one every `stride` values.
    pub fn bytes(self, len: usize, block_dim: usize, stride: usize) -> usize {
        match self {
            Self::F32 => len.saturating_mul(4),
            Self::Bf16 => len.saturating_mul(2),
            Self::Int8 => len,
            Self::Int4 => Int4 { len, block_dim, stride }.bytes(),
        }
    }

    /// The number of values of such a table that fit into `bytes`.
    pub fn fitting(self, bytes: u64, block_dim: usize, stride: usize) -> u64 {
        match self {
            Self::F32 => bytes / 4,
            Self::Bf16 => bytes / 2,
            Self::Int8 => bytes,
            Self::Int4 => {
                Int4::fitting(usize::try_from(bytes).unwrap_or(usize::MAX >> 2), block_dim, stride) as u64
            }
        }
    }

    /// The number of rows of `dim` values, side by side, that fit into `bytes`.
    pub fn rows_in(self, bytes: u64, dim: usize) -> u64 {
        self.fitting(bytes, dim, dim) / dim as u64
    }

    /// The largest quantized value of an integer type.
    const fn max_quantized(self) -> f32 {
        match self {
            Self::Int4 => 7.0,
            _ => 127.0,
        }
    }
}

/// Stored values.
#[derive(Debug)]
pub enum Stored {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// bfloat16, as bits.
    Bf16(Vec<u16>),
    /// `scale * q`.
    Int8 {
        /// The quantized values.
        q: Vec<i8>,
        /// The step.
        scale: f32,
    },
    /// `scale * q`, packed by [`Int4`].
    Int4 {
        /// The quantized values.
        q: Vec<u8>,
        /// Number of values.
        len: usize,
        /// The step.
        scale: f32,
    },
}

impl Stored {
    /// The quantization step of an integer type.
    pub fn scale(&self) -> Option<f32> {
        match self {
            Self::F32(_) | Self::Bf16(_) => None,
            Self::Int8 { scale, .. } | Self::Int4 { scale, .. } => Some(*scale),
        }
    }

    pub(super) fn scale_mut(&mut self) -> Option<(&mut f32, Precision)> {
        match self {
            Self::F32(_) | Self::Bf16(_) => None,
            Self::Int8 { scale, .. } => Some((scale, Precision::Int8)),
            Self::Int4 { scale, .. } => Some((scale, Precision::Int4)),
        }
    }
}

/// `values` in `precision`, in rows of `block_dim`, one every `stride` values.
pub(super) fn rounded(values: &[f32], precision: Precision, block_dim: usize, stride: usize) -> Stored {
    let n = values.len();
    let shape = Int4 { len: n, block_dim, stride };
    let mut stored = match precision {
        Precision::F32 => Stored::F32(vec![0.0; n]),
        Precision::Bf16 => Stored::Bf16(vec![0; n]),
        Precision::Int8 => Stored::Int8 { q: vec![0; n], scale: best_step(values, precision) },
        Precision::Int4 => {
            Stored::Int4 { q: vec![0; shape.bytes()], len: n, scale: best_step(values, precision) }
        }
    };
    round(values, 0, shape, &mut stored);
    stored
}

/// Stores `values` from index `at` on.
pub(super) fn round(values: &[f32], at: usize, shape: Int4, stored: &mut Stored) {
    match stored {
        Stored::F32(v) => v[at..at + values.len()].copy_from_slice(values),
        Stored::Bf16(v) => bf16s(values, &mut v[at..]),
        Stored::Int8 { q, scale } => int8s(values, *scale, &mut q[at..]),
        Stored::Int4 { q, scale, .. } => {
            for (i, &v) in (at..).zip(values) {
                shape.set(q, i, quantized(v, *scale, Precision::Int4));
            }
        }
    }
}

/// Stores all values, on all threads.
pub(super) fn round_all(pool: &Pool, values: &[f32], shape: Int4, stored: &mut Stored) {
    const CHUNK: usize = 1 << 14;
    match stored {
        Stored::F32(v) => v.copy_from_slice(values),
        Stored::Bf16(v) => pool.chunks(v, CHUNK, |chunk, v| bf16s(&values[chunk * CHUNK..], v)),
        Stored::Int8 { q, scale } => {
            let scale = *scale;
            pool.chunks(q, CHUNK, |chunk, q| int8s(&values[chunk * CHUNK..], scale, q));
        }
        Stored::Int4 { q, scale, .. } => {
            let scale = *scale;
            let bits = |v| quantized(v, scale, Precision::Int4);
            pool.chunks(q, CHUNK, |chunk, q| shape.fill(chunk * CHUNK, q, values, bits));
        }
    }
}

fn bf16s(values: &[f32], to: &mut [u16]) {
    for (to, &v) in to.iter_mut().zip(values) {
        *to = half::bf16::from_f32(v).to_bits();
    }
}

fn int8s(values: &[f32], scale: f32, to: &mut [i8]) {
    for (to, &v) in to.iter_mut().zip(values) {
        *to = quantized(v, scale, Precision::Int8);
    }
}

/// The nearest multiple of the quantization step, ties to even.
#[inline]
pub(super) fn quantized(v: f32, scale: f32, precision: Precision) -> i8 {
    // Adding this to a number below 2^22 and subtracting it again rounds to an integer, without a call.
    const WHOLE: f32 = 12_582_912.0;
    ((v / scale).clamp(-precision.max_quantized(), precision.max_quantized()) + WHOLE - WHOLE) as i8
}

/// The quantization step with the least squared error, among 24 that clip more and more of the largest values.
pub(super) fn best_step(values: &[f32], precision: Precision) -> f32 {
    let max = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    if max == 0.0 {
        return 1.0;
    }
    // At most 400,000 values are sampled.
    let every = (values.len() / 200_000).max(1);
    let mut best = (f64::INFINITY, max / precision.max_quantized());
    let mut clip = max;
    for _ in 0..24 {
        let scale = clip / precision.max_quantized();
        let error: f64 = values
            .iter()
            .step_by(every)
            .map(|&v| f64::from(v - f32::from(quantized(v, scale, precision)) * scale).powi(2))
            .sum();
        if error < best.0 {
            best = (error, scale);
        }
        clip *= 0.85;
    }
    best.1
}
