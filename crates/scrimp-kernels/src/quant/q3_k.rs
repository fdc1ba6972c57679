//! `Q3_K`: 256 columns of 3 bits, 16 groups of 16 with 6-bit scales.
//!
//! ```text
//! file, per row:    32 bytes of third bits: bit g of byte i is that of column i of group g of 32 columns; 64 bytes of
//!                   2 bits as in Q2_K; 12 bytes of 6-bit scales; f16 d
//! block of 16 rows: d[16] (and padding to a cache line) scale[16][16] q[2 halves][8][16 rows][4] as in Q2_K,
//!                   high[8][16 rows][4]: the third bits
//! ```
//! The scales are stored in a byte each: 3.625 bits per weight against the file's 3.4375.

use super::{
    BlockFormat, Group, PANEL_ROWS, TwoScales, gather_u16, interleave4, pack_two_bits, two_bit_plane,
};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = d * scale * (q - 4)`.
pub(crate) struct Q3K;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u16; PANEL_ROWS],
    _padding: [u16; PANEL_ROWS],
    scale: [[i8; PANEL_ROWS]; 16],
    q: [[[u8; 64]; 8]; 2],
    high: [[u8; 64]; 8],
}

/// The scale of 16 columns, -32 to 31, in the 12 bytes that the file packs them into: four bits of each, then the upper
/// two bits.
pub(super) fn scale(packed: &[u8], group: usize) -> i8 {
    let low = packed[group % 8] >> (4 * (group / 8)) & 15;
    let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
    (low | high << 4) as i8 - 32
}

impl BlockFormat for Q3K {
    type Quants = TwoScales<4, 7>;
    type Block = Block;
    const GROUPS: usize = 8;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block) {
        for (k, high) in block.high.iter_mut().enumerate() {
            interleave4(rows, 4 * k, high);
        }
        pack_two_bits(rows, 32, &mut block.q);
        for (r, row) in rows.iter().enumerate() {
            for (g, to) in block.scale.iter_mut().enumerate() {
                to[r] = scale(&row[96..108], g);
            }
        }
        block.d = gather_u16(rows, 108);
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block, g: usize) -> Group<S> {
        let mut w = two_bit_plane(s, &block.q[g / 4], g % 4);
        for k in 0..8 {
            w[k] = s.with_bits(w[k], s.load_b(&block.high[k]), g, 2, 1);
        }
        let d = s.load_f16(&block.d);
        let scale = s.mul(d, s.load_i8(&block.scale[2 * g]));
        Group::two(s, w, scale, s.mul(d, s.load_i8(&block.scale[2 * g + 1])))
    }
}
