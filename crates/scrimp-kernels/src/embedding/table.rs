//! Tables of embedding rows in the types that they are stored in.
//!
//! ```text
//! values   | row 0: width values | row 1 | ...        stride = width
//!          | row 0 ..... |                            stride < width: rows overlap (ROBE: stride 1)
//!            | row 1 ..... |
//! ```
//!
//! int8 values have one scale for the whole table: sums of rows stay integers, exact in any order and tier.

use super::{gather::Rows, lanes::Lanes};
use crate::isa::Simd;
use half::bf16;

/// The values of a table.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16, as bits.
    Bf16(&'a [u16]),
    /// `scale * q`.
    Int8 {
        /// The quantised values.
        q: &'a [i8],
        /// The step of quantisation.
        scale: f32,
    },
}

impl Values<'_> {
    /// Values stored.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::Int8 { q, .. } => q.len(),
        }
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Rows of `width` values, one every `stride` values.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// What is stored.
    pub values: Values<'a>,
    /// Values of a row.
    pub width: usize,
    /// Values from the start of a row to the start of the next.
    pub stride: usize,
}

impl<'a> Table<'a> {
    /// Rows that do not overlap.
    pub const fn new(values: Values<'a>, width: usize) -> Self {
        Self { values, width, stride: width }
    }

    /// Rows that lie wholly inside the values.
    pub fn rows(&self) -> usize {
        let len = self.values.len();
        if len < self.width || self.stride == 0 { 0 } else { (len - self.width) / self.stride + 1 }
    }
}

/// How one stored type becomes lanes of `f32`.
pub(crate) trait Stored: Copy + Send + Sync + 'static {
    fn lanes<S: Simd>(s: S, from: &[Self; 16]) -> S::F;
    fn float(self) -> f32;
    /// The sums of 64 values of the rows of `probes`, from `at` on; see [`Rows::lanes`].
    #[inline(always)]
    fn sum<S: Lanes, const K: usize>(
        s: S,
        rows: &Rows<'_, Self>,
        probes: &[u32],
        weights: &[f32],
        at: usize,
    ) -> [S::F; 4] {
        rows.lanes::<S, 4, K>(s, probes, weights, at)
    }
}

impl Stored for f32 {
    #[inline(always)]
    fn lanes<S: Simd>(s: S, from: &[f32; 16]) -> S::F {
        s.load(from)
    }
    #[inline(always)]
    fn float(self) -> f32 {
        self
    }
}

impl Stored for u16 {
    #[inline(always)]
    fn lanes<S: Simd>(s: S, from: &[u16; 16]) -> S::F {
        s.load_bf16(from)
    }
    #[inline(always)]
    fn float(self) -> f32 {
        bf16::from_bits(self).to_f32_const()
    }
}

impl Stored for i8 {
    #[inline(always)]
    fn lanes<S: Simd>(s: S, from: &[i8; 16]) -> S::F {
        s.load_i8(from)
    }
    #[inline(always)]
    fn float(self) -> f32 {
        f32::from(self)
    }
    #[inline(always)]
    fn sum<S: Lanes, const K: usize>(
        s: S,
        rows: &Rows<'_, i8>,
        probes: &[u32],
        weights: &[f32],
        at: usize,
    ) -> [S::F; 4] {
        if weights.is_empty() {
            rows.bytes::<S, K>(s, probes, at)
        } else {
            rows.lanes::<S, 4, K>(s, probes, weights, at)
        }
    }
}
