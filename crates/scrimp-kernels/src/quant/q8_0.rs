//! `Q8_0`: 32 columns of 8 bits.
//!
//! ```text
//! file, per row:    f16 scale, 32 × i8
//! block of 16 rows: scale[16] q[8][16 rows][4], each quant plus 128 (`vpdpbusd` wants unsigned weights)
//! ```
//! 8.5 bits per weight, as in the file.

use super::{BlockFormat, Group, PANEL_ROWS, Symmetric, gather_u16, interleave4};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = scale * (q - 128)`, q being the file's signed quant plus 128.
pub(crate) struct Q8_0;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    scale: [u16; PANEL_ROWS],
    q: [[u8; 64]; 8],
}

impl BlockFormat for Q8_0 {
    type Quants = Symmetric<128, 255>;
    type Block = Block;
    const GROUPS: usize = 1;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block) {
        block.scale = gather_u16(rows, 0);
        for (k, q) in block.q.iter_mut().enumerate() {
            interleave4(rows, 2 + 4 * k, q);
            q.iter_mut().for_each(|q| *q ^= 0x80);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block, _: usize) -> Group<S> {
        let mut w = [s.load_b(&block.q[0]); 8];
        for k in 1..8 {
            w[k] = s.load_b(&block.q[k]);
        }
        Group::symmetric(s, w, s.load_f16(&block.scale))
    }
}
