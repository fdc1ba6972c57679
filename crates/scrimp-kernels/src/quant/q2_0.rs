//! `Q2_0`: 64 columns of 2 bits.
//!
//! ```text
//! file, per row:    f16 d, 16 bytes: column i is in bits 2 (i mod 4) of byte i / 4
//! block of 16 rows: d[16] q[4][16 rows][4]: byte j of q[k] has columns 4k + j and 16 + 4k + j of the first group of 32,
//!                   then those of the second
//! ```
//! 2.25 bits per weight, as in the file.

use super::{BlockFormat, GROUP, Group, PANEL_ROWS, Symmetric, gather_u16};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = d * (q - 1)`.
pub(crate) struct Q2_0;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u16; PANEL_ROWS],
    q: [[u8; 64]; 4],
}

/// The bits of `column`.
pub(super) fn bits(row: &[u8], column: usize) -> u8 {
    row[2 + column / 4] >> (2 * (column % 4)) & 3
}

impl BlockFormat for Q2_0 {
    type Quants = Symmetric<1, 3>;
    type Block = Block;
    const GROUPS: usize = 2;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block) {
        block.d = gather_u16(rows, 0);
        for (k, q) in block.q.iter_mut().enumerate() {
            for (i, q) in q.iter_mut().enumerate() {
                let (row, first) = (rows[i / 4], 4 * k + i % 4);
                let columns = [first, 16 + first, GROUP + first, GROUP + 16 + first];
                *q = columns.into_iter().rev().fold(0, |byte, column| byte << 2 | bits(row, column));
            }
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block, g: usize) -> Group<S> {
        let mut w = [s.load_b(&block.q[0]); 8];
        for k in 0..4 {
            let both = s.load_b(&block.q[k]);
            (w[k], w[k + 4]) = (s.bits_at(both, 4 * g, 0, 3), s.bits_at(both, 4 * g + 2, 0, 3));
        }
        Group::symmetric(s, w, s.load_f16(&block.d))
    }
}
