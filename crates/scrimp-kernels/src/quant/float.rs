//! `f32`, `f16` and `bf16` weights: a panel is `[columns][16 rows]`, so a column of 16 rows is one vector.
//!
//! ```text
//! acc[row] = fma(w[row][column], x[column], acc[row])       in column order; x is f32
//! ```
//! Every level gives the same bits.

use super::PANEL_ROWS;
use crate::arch::Simd;
use bytemuck::Pod;

/// A weight format of plain numbers.
pub(crate) trait FloatFormat: 'static {
    type Element: Pod;
    fn load<S: Simd>(s: S, x: &[Self::Element; PANEL_ROWS]) -> S::F;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

impl FloatFormat for F32 {
    type Element = f32;
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; PANEL_ROWS]) -> S::F {
        s.load(x)
    }
}

impl FloatFormat for F16 {
    type Element = u16;
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[u16; PANEL_ROWS]) -> S::F {
        s.load_f16(x)
    }
}

impl FloatFormat for Bf16 {
    type Element = u16;
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[u16; PANEL_ROWS]) -> S::F {
        s.load_bf16(x)
    }
}

/// Interleaves columns of 16 rows: `to[c][r] = rows[r][c]`, elements of `SIZE` bytes.
pub(crate) fn pack<const SIZE: usize>(rows: &[&[u8]; PANEL_ROWS], to: &mut [u8]) {
    for (c, to) in to.chunks_exact_mut(SIZE * PANEL_ROWS).enumerate() {
        for (to, row) in to.chunks_exact_mut(SIZE).zip(rows) {
            to.copy_from_slice(&row[c * SIZE..(c + 1) * SIZE]);
        }
    }
}
