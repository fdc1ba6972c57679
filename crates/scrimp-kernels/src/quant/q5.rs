//! `Q5_0` and `Q5_1`: 32 columns of 5 bits.
//!
//! ```text
//! file, per row:    f16 scale [f16 minimum] u32 fifth bits, 16 bytes of nibbles as in Q4
//! block of 16 rows: scale[16] [minimum[16]] q[4][16 rows][4] as in Q4,
//!                   high[16 rows][4]: bit k of byte j is the fifth bit of column 4k + j
//! ```
//! 5.5 and 6 bits per weight, as in the file.

use super::{BlockFormat, Group, Minimum, PANEL_ROWS, Symmetric, gather_u16, interleave4, q4};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = scale * (q - 16)`.
pub(crate) struct Q5_0;
/// `w = scale * q + minimum`.
pub(crate) struct Q5_1;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block5_0 {
    scale: [u16; PANEL_ROWS],
    high: [u8; 64],
    q: [[u8; 64]; 4],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block5_1 {
    scale: [u16; PANEL_ROWS],
    minimum: [u16; PANEL_ROWS],
    high: [u8; 64],
    q: [[u8; 64]; 4],
}

/// Turns `bit 4k + j` of `x` into `byte j, bit k`: an 8 × 4 transposition of bits.
#[inline(always)]
fn transpose_bits(x: u32) -> [u8; 4] {
    // Gather every fourth bit: spread over a u64, the bits of one column end up 8 apart after three merging steps.
    let column = |j: u32| {
        let x = (x >> j) & 0x1111_1111;
        let x = (x | x >> 3) & 0x0303_0303;
        let x = (x | x >> 6) & 0x000F_000F;
        (x | x >> 12) as u8
    };
    [column(0), column(1), column(2), column(3)]
}

#[inline(always)]
fn pack_high(rows: &[&[u8]; PANEL_ROWS], at: usize, high: &mut [u8; 64]) {
    for (to, row) in high.chunks_exact_mut(4).zip(rows) {
        let bits = u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
        to.copy_from_slice(&transpose_bits(bits));
    }
}

#[inline(always)]
fn unpack<S: Simd>(s: S, q: &[[u8; 64]; 4], high: &[u8; 64]) -> [S::B; 8] {
    let (mut w, high) = (q4::unpack(s, q), s.load_b(high));
    for k in 0..8 {
        w[k] = s.with_high_bits(w[k], high, k, 1);
    }
    w
}

impl BlockFormat for Q5_0 {
    type Quants = Symmetric<16, 31>;
    type Block = Block5_0;
    const GROUPS: usize = 1;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block5_0) {
        block.scale = gather_u16(rows, 0);
        pack_high(rows, 2, &mut block.high);
        for (k, q) in block.q.iter_mut().enumerate() {
            interleave4(rows, 6 + 4 * k, q);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block5_0, _: usize) -> Group<S> {
        Group::symmetric(s, unpack(s, &block.q, &block.high), s.load_f16(&block.scale))
    }
}

impl BlockFormat for Q5_1 {
    type Quants = Minimum<31>;
    type Block = Block5_1;
    const GROUPS: usize = 1;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block5_1) {
        block.scale = gather_u16(rows, 0);
        block.minimum = gather_u16(rows, 2);
        pack_high(rows, 4, &mut block.high);
        for (k, q) in block.q.iter_mut().enumerate() {
            interleave4(rows, 8 + 4 * k, q);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block5_1, _: usize) -> Group<S> {
        let w = unpack(s, &block.q, &block.high);
        Group::two(s, w, s.load_f16(&block.scale), s.load_f16(&block.minimum))
    }
}
