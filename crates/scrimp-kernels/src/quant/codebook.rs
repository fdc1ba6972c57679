//! Blocks of 256 columns whose quants are indexes into at most 16 values that the block itself stores: the formats of
//! `IQ4_XS` and of the types that combine indexes, signs and offsets ([`iq`](super::iq)).
//!
//! ```text
//! header, 64 bytes: d[16] values[16] (plus 128) factor, padding
//! Codebook4:        header scale[8][16] q[8][4][16 rows][4]                one scale per 32 columns; nibbles as in Q4_0
//! Codebook3:        header scale[16][16] q[2][8][16 rows][4] high[8][16 rows][4]      one scale per 16; bits as in Q3_K
//! ```
//! 4.375 and 3.625 bits per weight. In the file, `IQ4_XS` has 4.25, `IQ3_S` 3.44, `IQ3_XXS` 3.06, `IQ2_S` 2.56,
//! `IQ2_XS` 2.31, `IQ2_XXS` 2.06, `IQ1_M` 1.75 and `IQ1_S` 1.56.

use super::{BlockFormat, GROUP, Group, PANEL_ROWS, Symmetric, TwoScales, iq, iq4_nl, q4, two_bit_plane};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = d * factor * scale * (values[index] - 128)`, 16 values.
pub(crate) struct Codebook4;
/// The same with 8 values.
pub(crate) struct Codebook3;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    d: [u16; PANEL_ROWS],
    values: [u8; 16],
    factor: f32,
    _padding: [u8; 12],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block4 {
    header: Header,
    scale: [[i8; PANEL_ROWS]; 8],
    q: [[[u8; 64]; 4]; 8],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block3 {
    header: Header,
    scale: [[i8; PANEL_ROWS]; 16],
    q: [[[u8; 64]; 8]; 2],
    high: [[u8; 64]; 8],
}

impl Header {
    fn new(dtype: DType, codes: &[iq::Codes; PANEL_ROWS]) -> Self {
        Self {
            d: codes.each_ref().map(|codes| codes.d),
            values: iq4_nl::plus(iq::values(dtype), 128),
            factor: iq::factor(dtype),
            _padding: [0; 12],
        }
    }

    /// `d * factor`.
    #[inline(always)]
    fn factor<S: Simd>(&self, s: S) -> S::F {
        s.mul(s.load_f16(&self.d), s.splat(self.factor))
    }
}

/// The index of each value, by the bits of the value.
fn indexes(dtype: DType) -> [u8; 256] {
    let mut out = [0; 256];
    // Values that are there twice have the first index.
    for (i, value) in iq::values(dtype).into_iter().enumerate().rev() {
        out[usize::from(value as u8)] = i as u8;
    }
    out
}

impl BlockFormat for Codebook4 {
    type Quants = Symmetric<128, 255>;
    type Block = Block4;
    const GROUPS: usize = 8;

    fn pack(dtype: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block4) {
        let codes = rows.map(|row| iq::decode(dtype, row));
        let index = indexes(dtype);
        block.header = Header::new(dtype, &codes);
        for (g, (scale, q)) in block.scale.iter_mut().zip(&mut block.q).enumerate() {
            *scale = codes.each_ref().map(|codes| codes.scale[2 * g]);
            for (i, q) in q.as_flattened_mut().iter_mut().enumerate() {
                let (k, row, j) = (i / 64, i % 64 / 4, i % 4);
                let at = |column: usize| index[usize::from(codes[row].q[GROUP * g + column] as u8)];
                *q = at(4 * k + j) | at(16 + 4 * k + j) << 4;
            }
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block4, g: usize) -> Group<S> {
        let w = iq4_nl::lookup(s, &block.header.values, q4::unpack(s, &block.q[g]));
        Group::symmetric(s, w, s.mul(block.header.factor(s), s.load_i8(&block.scale[g])))
    }
}

impl BlockFormat for Codebook3 {
    type Quants = TwoScales<128, 255>;
    type Block = Block3;
    const GROUPS: usize = 8;

    fn pack(dtype: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block3) {
        let codes = rows.map(|row| iq::decode(dtype, row));
        let index = indexes(dtype);
        block.header = Header::new(dtype, &codes);
        for (g, scale) in block.scale.iter_mut().enumerate() {
            *scale = codes.each_ref().map(|codes| codes.scale[g]);
        }
        for (i, (row, j)) in (0..8 * 64).map(|i| (i, (i % 64 / 4, i % 4))) {
            let at = |g: usize| index[usize::from(codes[row].q[GROUP * g + 4 * (i / 64) + j] as u8)];
            for half in 0..2 {
                block.q[half][i / 64][i % 64] =
                    (0..4).fold(0, |bits, g| bits | (at(4 * half + g) & 3) << (2 * g));
            }
            block.high[i / 64][i % 64] = (0..8).fold(0, |bits, g| bits | (at(g) >> 2) << g);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block3, g: usize) -> Group<S> {
        let mut w = two_bit_plane(s, &block.q[g / 4], g % 4);
        for k in 0..8 {
            w[k] = s.with_bits(w[k], s.load_b(&block.high[k]), g, 2, 1);
        }
        let (w, factor) = (iq4_nl::lookup(s, &block.header.values, w), block.header.factor(s));
        let scale = s.mul(factor, s.load_i8(&block.scale[2 * g]));
        Group::two(s, w, scale, s.mul(factor, s.load_i8(&block.scale[2 * g + 1])))
    }
}
