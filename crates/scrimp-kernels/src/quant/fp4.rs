//! `MXFP4` and `NVFP4`: floats of 4 bits (a sign, 2 bits of exponent, 1 of mantissa), whose doubles are the integers
//! of [`VALUES`].
//!
//! ```text
//! MXFP4, per row:   exponent e of the scale 2^(e - 127), 16 bytes: low nibbles are columns 0..16, high nibbles 16..32
//! block of 16 rows: e[16] q[4][16 rows][4] as in Q4_0                                    32 columns
//!
//! NVFP4, per row:   4 scales (4 bits of exponent, 3 of mantissa, no sign), for each 8 bytes: low nibbles are columns
//!                   0..8, high nibbles 8..16 of the 16 columns of the scale
//! block of 16 rows: scale[4][16] q[2][4][16 rows][4] as in Q4_0                          64 columns
//! ```
//! 4.25 and 4.5 bits per weight, as in the file.
//!
//! Source: OCP Microscaling Formats (MX) 1.0, section 5; for the scales of `NVFP4`, `ggml_ue4m3_to_fp32` of llama.cpp,
//! which reads the byte 0x7f as 0.

use super::{BlockFormat, Group, PANEL_ROWS, Symmetric, TwoScales, interleave4, iq4_nl, q4};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// Twice the values of the 16 floats.
pub(crate) const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// The same plus 16.
const QUANTS: [u8; 16] = iq4_nl::plus(VALUES, 16);
/// The largest exponent with which every weight is finite.
pub(crate) const LARGEST_E8M0: u8 = 252;

/// `w = scale / 2 * (QUANTS[index] - 16)`, the scale being a power of two.
pub(crate) struct Mxfp4;
/// The same with two scales per 32 columns.
pub(crate) struct Nvfp4;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct MxBlock {
    e: [u8; PANEL_ROWS],
    q: [[u8; 64]; 4],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct NvBlock {
    scale: [[u8; PANEL_ROWS]; 4],
    q: [[[u8; 64]; 4]; 2],
}

/// The bf16 with the value `2^(e - 128)`, half the scale of `MXFP4`. Exponents 0 and 1 give subnormal numbers.
#[inline(always)]
pub(super) fn half_e8m0(e: u8) -> u16 {
    let smallest = if e == 0 { 0x20 } else { 0x40 };
    (u16::from(e) << 7).saturating_sub(0x80).max(smallest)
}

/// The f16 with 1/256 of a scale of `NVFP4`: the byte is its upper half, shifted by the sign.
#[inline(always)]
fn e4m3_as_f16(scale: u8) -> u16 {
    u16::from(scale) << 7
}

/// The scale byte of `NVFP4` without its unused bit, or 0 for the byte 0x7f.
fn known_e4m3(scale: u8) -> u8 {
    if scale == 0x7f { 0 } else { scale & 0x7f }
}

/// Half the scale of `NVFP4`.
pub(super) fn half_e4m3(scale: u8) -> f32 {
    half::f16::from_bits(e4m3_as_f16(known_e4m3(scale))).to_f32() * 128.0
}

impl BlockFormat for Mxfp4 {
    type Quants = Symmetric<16, 31>;
    type Block = MxBlock;
    const GROUPS: usize = 1;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut MxBlock) {
        block.e = rows.map(|row| row[0]);
        for (k, q) in block.q.iter_mut().enumerate() {
            interleave4(rows, 1 + 4 * k, q);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &MxBlock, _: usize) -> Group<S> {
        let mut scale = [0; PANEL_ROWS];
        for r in 0..PANEL_ROWS {
            scale[r] = half_e8m0(block.e[r]);
        }
        let w = iq4_nl::lookup(s, &QUANTS, q4::unpack(s, &block.q));
        Group::symmetric(s, w, s.load_bf16(&scale))
    }
}

impl BlockFormat for Nvfp4 {
    type Quants = TwoScales<16, 31>;
    type Block = NvBlock;
    const GROUPS: usize = 2;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut NvBlock) {
        for (i, scale) in block.scale.iter_mut().enumerate() {
            *scale = rows.map(|row| known_e4m3(row[i]));
        }
        for (g, q) in block.q.iter_mut().enumerate() {
            for (k, q) in q.iter_mut().enumerate() {
                for (i, q) in q.iter_mut().enumerate() {
                    // Columns 4k + j of the first and of the second 16 of the group.
                    let (row, column) = (rows[i / 4], 4 * k + i % 4);
                    let nibble =
                        |half: usize| row[4 + 8 * (2 * g + half) + column % 8] >> (4 * (column / 8)) & 15;
                    *q = nibble(0) | nibble(1) << 4;
                }
            }
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &NvBlock, g: usize) -> Group<S> {
        let mut scales = [s.splat(0.0); 2];
        for half in 0..2 {
            let mut bits = [0; PANEL_ROWS];
            for r in 0..PANEL_ROWS {
                bits[r] = e4m3_as_f16(block.scale[2 * g + half][r]);
            }
            scales[half] = s.mul(s.load_f16(&bits), s.splat(128.0));
        }
        let w = iq4_nl::lookup(s, &QUANTS, q4::unpack(s, &block.q[g]));
        Group::two(s, w, scales[0], scales[1])
    }
}
