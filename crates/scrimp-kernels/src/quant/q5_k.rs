//! `Q5_K`: 256 columns of 5 bits, 8 groups of 32 with 6-bit scales and minima.
//!
//! ```text
//! file, per row:    f16 d, f16 dmin, 12 bytes as in Q4_K, 32 bytes of fifth bits, 4 × 32 bytes as in Q4_K:
//!                   bit g of byte i is the fifth bit of column i of group g
//! block of 16 rows: scales as in Q4_K, high[8][16 rows][4], q[4 planes][8][16 rows][4]
//! ```
//! 5.625 bits per weight against the file's 5.5.

use super::{BlockFormat, Group, Minimum, PANEL_ROWS, interleave4, nibble_plane, q4_k::KScales};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = d * scale * q - dmin * minimum`.
pub(crate) struct Q5K;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    scales: KScales,
    high: [[u8; 64]; 8],
    q: [[[u8; 64]; 8]; 4],
}

impl BlockFormat for Q5K {
    type Quants = Minimum<31>;
    type Block = Block;
    const GROUPS: usize = 8;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block) {
        block.scales.pack(rows);
        for (i, high) in block.high.iter_mut().enumerate() {
            interleave4(rows, 16 + 4 * i, high);
        }
        for (i, q) in block.q.as_flattened_mut().iter_mut().enumerate() {
            interleave4(rows, 48 + 4 * i, q);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block, g: usize) -> Group<S> {
        let (scale, second) = block.scales.load(s, g);
        let mut w = nibble_plane(s, &block.q, g);
        for k in 0..8 {
            w[k] = s.with_high_bits(w[k], s.load_b(&block.high[k]), g, 1);
        }
        Group::two(s, w, scale, second)
    }
}
