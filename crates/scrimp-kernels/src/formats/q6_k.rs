//! `Q6_K`: 256 columns of 6 bits, 16 groups of 16 with 8-bit scales.
//!
//! ```text
//! file, per row:    128 bytes of nibbles, 64 bytes of 2 bits, 16 × i8 scales, f16 d. For each half of 128 columns:
//!                   nibble plane A (32 bytes): columns 0..32 low, 64..96 high; plane B: 32..64 low, 96..128 high;
//!                   2 bits (32 bytes): columns 0..32, 32..64, 64..96, 96..128 at bits 0, 2, 4, 6
//! block of 16 rows: d[16] (and padding to a cache line) scale[16][16] high[2][8][16 rows][4] q[2 halves][A, B][8][16 rows][4]
//! ```
//! 6.625 bits per weight against the file's 6.5625: padded so that no vector straddles two cache lines.

use super::{BlockFormat, Group, Scaling, TILE_ROWS, gather_u16, interleave4};
use crate::{DType, isa::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = d * scale * (q - 32)`.
pub(crate) struct Q6K;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u16; TILE_ROWS],
    _padding: [u16; TILE_ROWS],
    scale: [[i8; TILE_ROWS]; 16],
    high: [[[u8; 64]; 8]; 2],
    q: [[[u8; 64]; 8]; 4],
}

impl BlockFormat for Q6K {
    type Block = Block;
    const DTYPE: DType = DType::Q6_K;
    const SCALING: Scaling = Scaling::TwoScales;
    const ZERO: i32 = 32;

    fn pack(rows: &[&[u8]; TILE_ROWS], block: &mut Block) {
        for (i, q) in block.q.as_flattened_mut().iter_mut().enumerate() {
            interleave4(rows, 4 * i, q);
        }
        for (i, high) in block.high.as_flattened_mut().iter_mut().enumerate() {
            interleave4(rows, 128 + 4 * i, high);
        }
        for (r, row) in rows.iter().enumerate() {
            for (g, scale) in block.scale.iter_mut().enumerate() {
                scale[r] = row[192 + g] as i8;
            }
        }
        block.d = gather_u16(rows, 208);
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block, g: usize) -> Group<S> {
        // Quarters 0 and 1 of a half are the low nibbles of planes A and B, 2 and 3 the high ones.
        let (half, quarter) = (g / 4, g % 4);
        let (plane, high) = (&block.q[2 * half + quarter % 2], &block.high[half]);
        let mut w = [s.load_b(&plane[0]); 8];
        for k in 0..8 {
            let low = s.nibbles(s.load_b(&plane[k]), quarter / 2);
            w[k] = s.with_high_bits(low, s.load_b(&high[k]), 2 * quarter, 3);
        }
        let d = s.load_f16(&block.d);
        Group {
            w,
            scale: s.mul(d, s.load_i8(&block.scale[2 * g])),
            second: s.mul(d, s.load_i8(&block.scale[2 * g + 1])),
        }
    }
}
