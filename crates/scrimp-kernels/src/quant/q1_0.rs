//! `Q1_0`: 128 columns of -1 or 1.
//!
//! ```text
//! file, per row:    f16 d, 16 bytes: bit i of byte j is column 8j + i
//! block of 16 rows: d[16] q[4][16 rows][4]: byte j of q[k] has columns 4k + j of the four groups of 32 in its low and
//!                   columns 16 + 4k + j in its high nibble
//! ```
//! 1.125 bits per weight, as in the file. A set bit becomes the quant 2.

use super::{BlockFormat, GROUP, Group, PANEL_ROWS, Symmetric, gather_u16};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = d * (q - 1)`.
pub(crate) struct Q1_0;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u16; PANEL_ROWS],
    q: [[u8; 64]; 4],
}

/// The bit of `column`.
pub(super) fn bit(row: &[u8], column: usize) -> u8 {
    row[2 + column / 8] >> (column % 8) & 1
}

impl BlockFormat for Q1_0 {
    type Quants = Symmetric<1, 3>;
    type Block = Block;
    const GROUPS: usize = 4;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block) {
        block.d = gather_u16(rows, 0);
        for (k, q) in block.q.iter_mut().enumerate() {
            for (i, q) in q.iter_mut().enumerate() {
                let (row, first) = (rows[i / 4], 4 * k + i % 4);
                let nibble = |from: usize| (0..4).fold(0, |n, g| n | bit(row, GROUP * g + from) << g);
                *q = nibble(first) | nibble(16 + first) << 4;
            }
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block, g: usize) -> Group<S> {
        let mut w = [s.load_b(&block.q[0]); 8];
        for k in 0..4 {
            let both = s.load_b(&block.q[k]);
            (w[k], w[k + 4]) = (s.bits_at(both, g, 1, 1), s.bits_at(both, 4 + g, 1, 1));
        }
        Group::symmetric(s, w, s.load_f16(&block.d))
    }
}
