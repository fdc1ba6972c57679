//! `IQ4_NL`: 32 columns of 4 bits, which are indexes into 16 values.
//!
//! ```text
//! file, per row:    f16 scale, 16 bytes: low nibbles are columns 0..16, high nibbles 16..32
//! block of 16 rows: scale[16] q[4][16 rows][4] as in Q4_0
//! ```
//! 4.5 bits per weight, as in the file.

use super::{BlockFormat, Group, PANEL_ROWS, Symmetric, gather_u16, interleave4, q4};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// The values of the indexes.
pub(crate) const VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The same plus 128.
const QUANTS: [u8; 16] = plus(VALUES, 128);

/// `w = scale * (QUANTS[index] - 128)`.
pub(crate) struct Iq4Nl;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    scale: [u16; PANEL_ROWS],
    q: [[u8; 64]; 4],
}

/// Unsigned quants of signed values.
pub(super) const fn plus(values: [i8; 16], zero: i32) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (values[i] as i32 + zero) as u8;
        i += 1;
    }
    out
}

/// 32 columns of indexes, replaced by their quants.
#[inline(always)]
pub(super) fn lookup<S: Simd>(s: S, quants: &[u8; 16], mut indexes: [S::B; 8]) -> [S::B; 8] {
    for k in 0..8 {
        indexes[k] = s.lookup16(quants, indexes[k]);
    }
    indexes
}

impl BlockFormat for Iq4Nl {
    type Quants = Symmetric<128, 255>;
    type Block = Block;
    const GROUPS: usize = 1;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block) {
        block.scale = gather_u16(rows, 0);
        for (k, q) in block.q.iter_mut().enumerate() {
            interleave4(rows, 2 + 4 * k, q);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block, _: usize) -> Group<S> {
        let w = lookup(s, &QUANTS, q4::unpack(s, &block.q));
        Group::symmetric(s, w, s.load_f16(&block.scale))
    }
}
