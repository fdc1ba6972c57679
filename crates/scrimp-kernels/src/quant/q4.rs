//! `Q4_0` and `Q4_1`: 32 columns of 4 bits.
//!
//! ```text
//! file, per row:   f16 scale [f16 minimum] 16 bytes: low nibbles are columns 0..16, high nibbles 16..32
//! block of 16 rows: scale[16] [minimum[16]] q[4][16 rows][4]: q[k] holds columns 4k.. (low) and 16 + 4k.. (high)
//! ```
//! 4.5 and 5 bits per weight, as in the file.

use super::{BlockFormat, Group, Minimum, PANEL_ROWS, Symmetric, gather_u16, interleave4};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = scale * (q - 8)`.
pub(crate) struct Q4_0;
/// `w = scale * q + minimum`.
pub(crate) struct Q4_1;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block4_0 {
    scale: [u16; PANEL_ROWS],
    q: [[u8; 64]; 4],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block4_1 {
    scale: [u16; PANEL_ROWS],
    minimum: [u16; PANEL_ROWS],
    q: [[u8; 64]; 4],
}

/// The 8 × 4 columns that 4 registers of nibbles hold.
#[inline(always)]
pub(crate) fn unpack<S: Simd>(s: S, q: &[[u8; 64]; 4]) -> [S::B; 8] {
    let mut w = [s.load_b(&q[0]); 8];
    for k in 0..4 {
        let b = s.load_b(&q[k]);
        (w[k], w[k + 4]) = (s.low_nibbles(b), s.high_nibbles(b));
    }
    w
}

impl BlockFormat for Q4_0 {
    type Quants = Symmetric<8, 15>;
    type Block = Block4_0;
    const GROUPS: usize = 1;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block4_0) {
        block.scale = gather_u16(rows, 0);
        for (k, q) in block.q.iter_mut().enumerate() {
            interleave4(rows, 2 + 4 * k, q);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block4_0, _: usize) -> Group<S> {
        Group::symmetric(s, unpack(s, &block.q), s.load_f16(&block.scale))
    }
}

impl BlockFormat for Q4_1 {
    type Quants = Minimum<15>;
    type Block = Block4_1;
    const GROUPS: usize = 1;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block4_1) {
        block.scale = gather_u16(rows, 0);
        block.minimum = gather_u16(rows, 2);
        for (k, q) in block.q.iter_mut().enumerate() {
            interleave4(rows, 4 + 4 * k, q);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block4_1, _: usize) -> Group<S> {
        Group::two(s, unpack(s, &block.q), s.load_f16(&block.scale), s.load_f16(&block.minimum))
    }
}
