//! `TQ1_0` and `TQ2_0`: 256 columns of -1, 0 or 1.
//!
//! ```text
//! TQ2_0, per row:   64 bytes of 2 bits as in Q2_K, f16 d
//! TQ1_0, per row:   48 bytes of 5 digits to base 3, 4 bytes of 4 digits, f16 d: digit n is the integer part of
//!                   3 ((byte 3^n mod 256) / 256); byte i has columns i, 32 + i, ... (the first 32), 160 + i, 176 + i,
//!                   ... (the next 16), 240 + i, 244 + i, ... (the last 4)
//! block of 16 rows: d[16] q[2 halves][8][16 rows][4] as in Q2_K
//! ```
//! 2.0625 bits per weight, as in a file of `TQ2_0`; a file of `TQ1_0` has 1.6875.

use super::{BlockFormat, Group, PANEL_ROWS, Symmetric, gather_u16, pack_two_bits, two_bit_plane};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = d * (q - 1)`.
pub(crate) struct Ternary;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u16; PANEL_ROWS],
    q: [[[u8; 64]; 8]; 2],
}

/// The 64 bytes of `TQ2_0` with the values of a block of `TQ1_0`.
fn to_two_bits(row: &[u8]) -> [u8; 64] {
    let mut out = [0; 64];
    let mut put = |column: usize, byte: u8, digit: u32| {
        let q = ((u16::from(byte.wrapping_mul(3_u8.wrapping_pow(digit))) * 3) >> 8) as u8;
        out[32 * (column / 128) + column % 32] |= q << (2 * (column % 128 / 32));
    };
    for n in 0..5 {
        for i in 0..32 {
            put(32 * n + i, row[i], n as u32);
        }
        for i in 0..16 {
            put(160 + 16 * n + i, row[32 + i], n as u32);
        }
    }
    for n in 0..4 {
        for i in 0..4 {
            put(240 + 4 * n + i, row[48 + i], n as u32);
        }
    }
    out
}

/// The value of `column` of a block, without its scale.
pub(super) fn values(dtype: DType, row: &[u8]) -> [i8; 256] {
    let packed = if dtype == DType::TQ1_0 { to_two_bits(row) } else { *row.first_chunk().expect("64 bytes") };
    std::array::from_fn(|c| (packed[32 * (c / 128) + c % 32] >> (2 * (c % 128 / 32)) & 3) as i8 - 1)
}

impl BlockFormat for Ternary {
    type Quants = Symmetric<1, 3>;
    type Block = Block;
    const GROUPS: usize = 8;

    fn pack(dtype: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block) {
        if dtype == DType::TQ1_0 {
            let planes = rows.map(to_two_bits);
            pack_two_bits(&planes.each_ref().map(|plane| &plane[..]), 0, &mut block.q);
            block.d = gather_u16(rows, 52);
        } else {
            pack_two_bits(rows, 0, &mut block.q);
            block.d = gather_u16(rows, 64);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block, g: usize) -> Group<S> {
        Group::symmetric(s, two_bit_plane(s, &block.q[g / 4], g % 4), s.load_f16(&block.d))
    }
}
