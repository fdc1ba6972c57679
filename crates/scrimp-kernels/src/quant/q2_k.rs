//! `Q2_K`: 256 columns of 2 bits, 16 groups of 16 with 4-bit scales and minima.
//!
//! ```text
//! file, per row:    16 bytes: scales in the low, minima in the high nibbles; 64 bytes of 2 bits; f16 d, f16 dmin
//! block of 16 rows: d[16] dmin[16] scale[16][16] (scale and minimum in a byte) q[2 halves][8][16 rows][4]: each byte
//!                   has a column of each quarter of the half
//! ```
//! 2.625 bits per weight, as in the file. The quants are multiplied by their 4-bit scales in the registers (at most
//! `3 * 15 = 45`), so that both halves of a group have one scale, `d`; each has a minimum of its own.

use super::{BlockFormat, Group, PANEL_ROWS, TwoMinima, gather_u16, pack_two_bits, two_bit_plane};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = d * (scale * q) - dmin * minimum`.
pub(crate) struct Q2K;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u16; PANEL_ROWS],
    dmin: [u16; PANEL_ROWS],
    scale: [[u8; PANEL_ROWS]; 16],
    q: [[[u8; 64]; 8]; 2],
}

impl BlockFormat for Q2K {
    type Quants = TwoMinima<45>;
    type Block = Block;
    const GROUPS: usize = 8;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block) {
        for (r, row) in rows.iter().enumerate() {
            for (g, scale) in block.scale.iter_mut().enumerate() {
                scale[r] = row[g];
            }
        }
        pack_two_bits(rows, 16, &mut block.q);
        block.d = gather_u16(rows, 80);
        block.dmin = gather_u16(rows, 82);
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block, g: usize) -> Group<S> {
        let mut w = two_bit_plane(s, &block.q[g / 4], g % 4);
        let (mut scales, mut minima) = ([[0; PANEL_ROWS]; 2], [[0; PANEL_ROWS]; 2]);
        for half in 0..2 {
            for r in 0..PANEL_ROWS {
                let both = block.scale[2 * g + half][r];
                (scales[half][r], minima[half][r]) = (both & 15, both >> 4);
            }
        }
        for k in 0..4 {
            w[k] = s.scale_quants(w[k], &scales[0]);
            w[k + 4] = s.scale_quants(w[k + 4], &scales[1]);
        }
        let dmin = s.sub(s.splat(0.0), s.load_f16(&block.dmin));
        Group {
            w,
            scale: s.load_f16(&block.d),
            second: s.mul(dmin, s.load_u8(&minima[0])),
            third: s.mul(dmin, s.load_u8(&minima[1])),
        }
    }
}
