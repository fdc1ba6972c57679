//! Weight formats: how 16 rows of a matrix are laid out for the kernels, one file per format. Several types of files may
//! share a format.
//!
//! A matrix is cut into *panels* of 16 rows, so that a vector register holds one value of each row, an activation is
//! broadcast, and no horizontal sums are needed:
//!
//! ```text
//!            columns →
//!   rows   ┌ panel 0: block 0 │ block 1 │ …         block: 32 to 256 columns of 16 rows:
//!    ↓     ├ panel 1: block 0 │ …                          scales of 16 rows, then bytes in the order
//!          └ …                                            [4 columns at a time][16 rows][4 columns]
//! ```
//!
//! The order inside a block is the one that `vpdpbusd` reads: 64 bytes hold 4 neighboring columns of 16 rows.
//! Repacking changes no value: the quants and scales are those of the file. Rows beyond the matrix are zero.

pub mod cb;
pub(crate) mod codebook;
pub mod dequantize;
mod dtype;
pub(crate) mod float;
pub(crate) mod fp4;
pub(crate) mod group;
pub(crate) mod iq;
pub(crate) mod iq4_nl;
pub mod packed;
pub(crate) mod q1_0;
pub(crate) mod q2_0;
pub(crate) mod q2_k;
pub(crate) mod q3_k;
pub(crate) mod q4;
pub(crate) mod q4_k;
pub(crate) mod q5;
pub(crate) mod q5_k;
pub(crate) mod q6_k;
pub(crate) mod q8_0;
pub(crate) mod quants;
pub(crate) mod ternary;

pub(crate) use crate::arch::round_to_bf16;
pub use dtype::DType;
pub(crate) use group::QuantGroup;
pub(crate) use quants::{Minimum, Quants, Scaling, Symmetric, TwoMinima, TwoScales};

use crate::arch::Simd;

/// Rows of a panel: one per vector lane.
pub(crate) const PANEL_ROWS: usize = 16;
/// Columns that share one activation scale, and at least one weight scale.
pub(crate) const GROUP: usize = 32;

/// 32 columns of 16 rows, unpacked into registers.
#[derive(Clone, Copy)]
pub(crate) struct Group<S: Simd> {
    /// Unsigned quants, 4 columns each.
    pub(crate) w: [S::B; 8],
    pub(crate) scale: S::F,
    /// See [`Scaling`]; unused (zero) for symmetric formats.
    pub(crate) second: S::F,
    /// See [`Scaling::TwoMinima`]; unused (zero) otherwise.
    pub(crate) third: S::F,
}

impl<S: Simd> Group<S> {
    /// A group with one scale.
    #[inline(always)]
    pub(crate) fn symmetric(s: S, w: [S::B; 8], scale: S::F) -> Self {
        Self::two(s, w, scale, s.splat(0.0))
    }

    /// A group with a scale and a second number.
    #[inline(always)]
    pub(crate) fn two(s: S, w: [S::B; 8], scale: S::F, second: S::F) -> Self {
        Self { w, scale, second, third: s.splat(0.0) }
    }
}

/// A block-quantized weight format: one file of this folder each.
pub(crate) trait BlockFormat: Sized + 'static {
    /// The kind of its quants.
    type Quants: Quants;
    /// A block of 16 rows as it is stored.
    type Block: bytemuck::Pod;
    /// Groups per block.
    const GROUPS: usize;

    /// Interleaves one block of type `dtype` of each of 16 rows. The format is that of [`with_format`] for `dtype`.
    fn pack(dtype: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Self::Block);

    /// Unpacks group `g` of a block.
    fn group<S: Simd>(s: S, block: &Self::Block, g: usize) -> Group<S>;
}

/// Calls `$f::<F>($args)` with the [`BlockFormat`] of a [`DType`], or `$float::<F>($args)` with its float format.
macro_rules! with_format {
    ($dtype:expr, $block:ident, $float:ident, ($($arg:expr),* $(,)?)) => {
        match $dtype {
            $crate::DType::F32 => $float::<$crate::quant::float::F32>($($arg),*),
            $crate::DType::F16 => $float::<$crate::quant::float::F16>($($arg),*),
            $crate::DType::BF16 => $float::<$crate::quant::float::Bf16>($($arg),*),
            $crate::DType::Q4_0 => $block::<$crate::quant::q4::Q4_0>($($arg),*),
            $crate::DType::Q4_1 => $block::<$crate::quant::q4::Q4_1>($($arg),*),
            $crate::DType::Q5_0 => $block::<$crate::quant::q5::Q5_0>($($arg),*),
            $crate::DType::Q5_1 => $block::<$crate::quant::q5::Q5_1>($($arg),*),
            $crate::DType::Q8_0 => $block::<$crate::quant::q8_0::Q8_0>($($arg),*),
            $crate::DType::Q4_K => $block::<$crate::quant::q4_k::Q4K>($($arg),*),
            $crate::DType::Q5_K => $block::<$crate::quant::q5_k::Q5K>($($arg),*),
            $crate::DType::Q6_K => $block::<$crate::quant::q6_k::Q6K>($($arg),*),
            $crate::DType::Q2_K => $block::<$crate::quant::q2_k::Q2K>($($arg),*),
            $crate::DType::Q3_K => $block::<$crate::quant::q3_k::Q3K>($($arg),*),
            $crate::DType::IQ4_NL => $block::<$crate::quant::iq4_nl::Iq4Nl>($($arg),*),
            $crate::DType::IQ4_XS | $crate::DType::IQ3_S | $crate::DType::IQ3_XXS => {
                $block::<$crate::quant::codebook::Codebook4>($($arg),*)
            }
            $crate::DType::IQ2_S
            | $crate::DType::IQ2_XS
            | $crate::DType::IQ2_XXS
            | $crate::DType::IQ1_M
            | $crate::DType::IQ1_S => $block::<$crate::quant::codebook::Codebook3>($($arg),*),
            $crate::DType::TQ1_0 | $crate::DType::TQ2_0 => $block::<$crate::quant::ternary::Ternary>($($arg),*),
            $crate::DType::Q1_0 => $block::<$crate::quant::q1_0::Q1_0>($($arg),*),
            $crate::DType::Q2_0 => $block::<$crate::quant::q2_0::Q2_0>($($arg),*),
            $crate::DType::MXFP4 => $block::<$crate::quant::fp4::Mxfp4>($($arg),*),
            $crate::DType::NVFP4 => $block::<$crate::quant::fp4::Nvfp4>($($arg),*),
            $crate::DType::CB4 => $block::<$crate::quant::cb::Cb4>($($arg),*),
            $crate::DType::CB3 => $block::<$crate::quant::cb::Cb3>($($arg),*),
            $crate::DType::CB2 => $block::<$crate::quant::cb::Cb2>($($arg),*),
        }
    };
}
pub(crate) use with_format;

/// Copies 4 bytes of each row: `to[4 r..4 r + 4] = rows[r][at..at + 4]`, the basic step of every interleaving.
#[inline(always)]
pub(crate) fn interleave4(rows: &[&[u8]; PANEL_ROWS], at: usize, to: &mut [u8; 64]) {
    for (to, row) in to.chunks_exact_mut(4).zip(rows) {
        to.copy_from_slice(&row[at..at + 4]);
    }
}

/// The two bytes at `at` of each row as u16.
#[inline(always)]
pub(crate) fn gather_u16(rows: &[&[u8]; PANEL_ROWS], at: usize) -> [u16; PANEL_ROWS] {
    rows.map(|row| u16::from_le_bytes([row[at], row[at + 1]]))
}

/// The nibbles of group `g` of a k-quant: group `2 i` is in the low and `2 i + 1` in the high nibbles of plane `i`.
#[inline(always)]
pub(crate) fn nibble_plane<S: Simd>(s: S, planes: &[[[u8; 64]; 8]; 4], g: usize) -> [S::B; 8] {
    let plane = &planes[g / 2];
    let mut w = [s.load_b(&plane[0]); 8];
    for k in 0..8 {
        w[k] = s.nibbles(s.load_b(&plane[k]), g % 2);
    }
    w
}

/// Group `j` of four whose columns share 8 registers: 2 bits each, from bit `2 j` of each byte.
#[inline(always)]
pub(crate) fn two_bit_plane<S: Simd>(s: S, plane: &[[u8; 64]; 8], j: usize) -> [S::B; 8] {
    let mut w = [s.load_b(&plane[0]); 8];
    for k in 0..8 {
        w[k] = s.bits_at(s.load_b(&plane[k]), 2 * j, 0, 3);
    }
    w
}

/// Interleaves the two-bit planes of 256 columns, which are at byte `at` of each row: for each half of 128 columns, byte
/// `i` has columns `i`, `32 + i`, `64 + i` and `96 + i` in bits 0, 2, 4 and 6.
pub(crate) fn pack_two_bits(rows: &[&[u8]; PANEL_ROWS], at: usize, planes: &mut [[[u8; 64]; 8]; 2]) {
    for (i, plane) in planes.as_flattened_mut().iter_mut().enumerate() {
        interleave4(rows, at + 4 * i, plane);
    }
}
