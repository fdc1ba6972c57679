//! Tables of embedding rows in the types that they are stored in.
//!
//! ```text
//! values   | row 0: block_dim values | row 1 | ...        stride = block_dim
//!          | row 0 ..... |                            stride < block_dim: rows overlap (ROBE: stride 1)
//!            | row 1 ..... |
//! ```
//!
//! int8 and int4 values have one scale for the whole table: sums of rows stay integers, exact in any order and level.
//! The halves of a byte of int4 are `len / 2` values apart ([`Int4`]), so that a row is neighboring bytes wherever it
//! begins.

use super::gather::Rows;
use crate::arch::{EmbeddingSimd, Simd};
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
        /// The quantized values.
        q: &'a [i8],
        /// The step of quantization.
        scale: f32,
    },
    /// `scale * q`, packed by [`Int4`].
    Int4 {
        /// The quantized values.
        q: &'a [u8],
        /// How many.
        len: usize,
        /// The step of quantization.
        scale: f32,
    },
}

/// How `len` values of 4 bits (-8 to 7) lie in bytes, for rows of `block_dim` values, one every `stride` values:
///
/// ```text
/// byte               0    1   ...                       half - 1 |  half       ...
/// low half     value 0    1   ...                       half - 1 |  half       ...    half + block_dim - stride - 1
/// high half    value half ...                           len - 1  |
/// ```
/// A row is `block_dim` neighboring bytes, of which it has the low or the high halves. Where rows overlap, the first
/// values of the high halves are there twice, for rows that begin before `half` and end behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int4 {
    /// Values.
    pub len: usize,
    /// Values of a row.
    pub block_dim: usize,
    /// Values from the start of a row to the start of the next, at most `block_dim`.
    pub stride: usize,
}

impl Int4 {
    /// Values in the low halves, before those that are there twice.
    pub(crate) fn half(self) -> usize {
        self.len.div_ceil(2).next_multiple_of(self.stride.max(1))
    }

    /// Bytes of all values.
    pub fn bytes(self) -> usize {
        let half = self.half();
        half + self.block_dim.saturating_sub(self.stride).min(self.len.saturating_sub(half))
    }

    /// Values of such rows that fit in `bytes`.
    pub fn fitting(bytes: usize, block_dim: usize, stride: usize) -> usize {
        (bytes.saturating_sub(block_dim.saturating_sub(stride)) / stride.max(1) * stride).saturating_mul(2)
    }

    /// Writes the bytes from `first` on: `quantized` makes 4 bits of a value.
    ///
    /// # Panics
    /// When there are other than `len` values.
    #[inline]
    pub fn fill(self, first: usize, q: &mut [u8], values: &[f32], quantized: impl Fn(f32) -> i8) {
        assert_eq!(values.len(), self.len);
        let half = self.half();
        // Bytes that have two values, then those that have one.
        let (low, high) = values.split_at(half.min(self.len));
        let both = high.len().clamp(first, first + q.len()) - first;
        let (q, rest) = q.split_at_mut(both);
        if both > 0 {
            for ((byte, &low), &high) in q.iter_mut().zip(&low[first..]).zip(&high[first..]) {
                *byte = quantized(low) as u8 & 15 | (quantized(high) as u8) << 4;
            }
        }
        for (j, byte) in (first + both..).zip(rest) {
            *byte = values.get(j).map_or(0, |&v| quantized(v) as u8 & 15);
        }
    }

    /// Writes value `i`.
    ///
    /// # Panics
    /// When there is none, or `q` is too short.
    #[inline]
    pub fn set(self, q: &mut [u8], i: usize, value: i8) {
        let (half, bits) = (self.half(), value as u8 & 15);
        assert!(i < self.len, "value {i} of {}", self.len);
        if i < q.len() {
            q[i] = q[i] & 0xf0 | bits;
        }
        if i >= half {
            q[i - half] = q[i - half] & 15 | bits << 4;
        }
    }
}

impl Values<'_> {
    /// Values stored.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::Int8 { q, .. } => q.len(),
            Self::Int4 { len, .. } => *len,
        }
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Rows of `block_dim` values, one every `stride` values.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// The stored values.
    pub values: Values<'a>,
    /// Values of a row.
    pub block_dim: usize,
    /// Values from the start of a row to the start of the next.
    pub stride: usize,
}

impl<'a> Table<'a> {
    /// Rows that do not overlap.
    pub const fn new(values: Values<'a>, block_dim: usize) -> Self {
        Self { values, block_dim, stride: block_dim }
    }

    /// Values in the low halves of [`Int4`].
    pub(crate) fn half(&self) -> usize {
        Int4 { len: self.values.len(), block_dim: self.block_dim, stride: self.stride }.half()
    }

    /// Rows that lie wholly inside the values.
    pub fn rows(&self) -> usize {
        let len = self.values.len();
        if len < self.block_dim || self.stride == 0 { 0 } else { (len - self.block_dim) / self.stride + 1 }
    }
}

/// How one stored type becomes lanes of `f32`.
pub(crate) trait Stored: Copy + Send + Sync + 'static {
    /// Rows may lie in the high halves ([`Int4`]); `shift` is 4 for those below, and 0 for all others and all other
    /// types.
    const HALVES: bool = false;
    fn lanes<S: Simd>(s: S, from: &[Self; 16], shift: u32) -> S::F;
    fn float(self, shift: u32) -> f32;
    /// The sums of 64 values of the rows of `indices`, from `at` on; see [`Rows::lanes`].
    #[inline(always)]
    fn sum<S: EmbeddingSimd, const K: usize>(
        s: S,
        rows: &Rows<'_, Self>,
        indices: &[u32],
        weights: &[f32],
        at: usize,
    ) -> [S::F; 4] {
        rows.lanes::<S, 4, K>(s, indices, weights, at)
    }
}

impl Stored for f32 {
    #[inline(always)]
    fn lanes<S: Simd>(s: S, from: &[f32; 16], _: u32) -> S::F {
        s.load(from)
    }
    #[inline(always)]
    fn float(self, _: u32) -> f32 {
        self
    }
}

impl Stored for u16 {
    #[inline(always)]
    fn lanes<S: Simd>(s: S, from: &[u16; 16], _: u32) -> S::F {
        s.load_bf16(from)
    }
    #[inline(always)]
    fn float(self, _: u32) -> f32 {
        bf16::from_bits(self).to_f32_const()
    }
}

impl Stored for i8 {
    #[inline(always)]
    fn lanes<S: Simd>(s: S, from: &[i8; 16], _: u32) -> S::F {
        s.load_i8(from)
    }
    #[inline(always)]
    fn float(self, _: u32) -> f32 {
        f32::from(self)
    }
    #[inline(always)]
    fn sum<S: EmbeddingSimd, const K: usize>(
        s: S,
        rows: &Rows<'_, i8>,
        indices: &[u32],
        weights: &[f32],
        at: usize,
    ) -> [S::F; 4] {
        rows.bytes::<S, K>(s, indices, weights, at)
    }
}

/// A half of a byte, from -8 to 7. (A shift and no branch: half of the rows lie in either half, and would be guessed
/// wrong.)
#[inline(always)]
fn half_of(byte: u8, shift: u32) -> i8 {
    ((byte >> shift & 15) ^ 8) as i8 - 8
}

/// The same of neighboring bytes. (A loop: closures are not inlined reliably in kernels.)
#[inline(always)]
fn halves_of<const N: usize>(from: &[u8; N], shift: u32) -> [i8; N] {
    let mut row = [0; N];
    for i in 0..N {
        row[i] = half_of(from[i], shift);
    }
    row
}

/// The halves of bytes: see [`Int4`].
impl Stored for u8 {
    const HALVES: bool = true;

    #[inline(always)]
    fn lanes<S: Simd>(s: S, from: &[u8; 16], shift: u32) -> S::F {
        s.load_i8(&halves_of(from, shift))
    }
    #[inline(always)]
    fn float(self, shift: u32) -> f32 {
        f32::from(half_of(self, shift))
    }
    #[inline(always)]
    fn sum<S: EmbeddingSimd, const K: usize>(
        s: S,
        rows: &Rows<'_, u8>,
        indices: &[u32],
        weights: &[f32],
        at: usize,
    ) -> [S::F; 4] {
        rows.bytes::<S, K>(s, indices, weights, at)
    }
}

/// A stored type whose values are integers of at most 8 bits.
pub(crate) trait Bytes: Stored {
    fn bytes(from: &[Self; 64], shift: u32) -> [i8; 64];
}

impl Bytes for i8 {
    #[inline(always)]
    fn bytes(from: &[i8; 64], _: u32) -> [i8; 64] {
        *from
    }
}

impl Bytes for u8 {
    #[inline(always)]
    fn bytes(from: &[u8; 64], shift: u32) -> [i8; 64] {
        halves_of(from, shift)
    }
}
