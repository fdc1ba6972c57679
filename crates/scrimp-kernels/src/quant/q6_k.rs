//! `Q6_K`: 256 columns of 6 bits, 16 groups of 16 with 8-bit scales.
//!
//! ```text
//! file, per row:    128 bytes of nibbles, 64 bytes of 2 bits, 16 × i8 scales, f16 d. For each half of 128 columns:
//!                   nibble plane A (32 bytes): columns 0..32 low, 64..96 high; plane B: 32..64 low, 96..128 high;
//!                   2 bits (32 bytes): columns 0..32, 32..64, 64..96, 96..128 at bits 0, 2, 4, 6
//! block of 16 rows: d[16] (and padding to a cache line) scale[16][16] then for each half, for k in 0..8:
//!                   A[16 rows][4] B[16 rows][4] high[16 rows][4] of columns 4k..
//! ```
//! 6.625 bits per weight against the file's 6.5625: padded so that no vector straddles two cache lines. The three
//! planes alternate because they are needed together: apart, the hardware's prefetchers lose track of three streams
//! (measured: 9 instead of 30 GB/s from memory).

use super::{BlockFormat, Group, PANEL_ROWS, TwoScales, gather_u16, interleave4};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = d * scale * (q - 32)`.
pub(crate) struct Q6K;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u16; PANEL_ROWS],
    _padding: [u16; PANEL_ROWS],
    scale: [[i8; PANEL_ROWS]; 16],
    halves: [[Planes; 8]; 2],
}

/// 4 columns of each quarter of a half.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Planes {
    /// Nibbles of planes A and B.
    q: [[u8; 64]; 2],
    /// Two bits for each quarter.
    high: [u8; 64],
}

impl BlockFormat for Q6K {
    type Quants = TwoScales<32, 63>;
    type Block = Block;
    const GROUPS: usize = 8;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block) {
        for (half, planes) in block.halves.iter_mut().enumerate() {
            for (k, planes) in planes.iter_mut().enumerate() {
                interleave4(rows, 64 * half + 4 * k, &mut planes.q[0]);
                interleave4(rows, 64 * half + 32 + 4 * k, &mut planes.q[1]);
                interleave4(rows, 128 + 32 * half + 4 * k, &mut planes.high);
            }
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
        let planes = &block.halves[half];
        let mut w = [s.load_b(&planes[0].high); 8];
        for k in 0..8 {
            let low = s.nibbles(s.load_b(&planes[k].q[quarter % 2]), quarter / 2);
            w[k] = s.with_high_bits(low, s.load_b(&planes[k].high), 2 * quarter, 3);
        }
        let d = s.load_f16(&block.d);
        let scale = s.mul(d, s.load_i8(&block.scale[2 * g]));
        Group::two(s, w, scale, s.mul(d, s.load_i8(&block.scale[2 * g + 1])))
    }
}
