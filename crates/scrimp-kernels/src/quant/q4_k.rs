//! `Q4_K`: 256 columns of 4 bits, 8 groups of 32 with 6-bit scales and minima.
//!
//! ```text
//! file, per row:    f16 d, f16 dmin, 12 bytes of 6-bit scales and minima, 4 × 32 bytes:
//!                   plane i holds group 2i in its low and 2i + 1 in its high nibbles
//! block of 16 rows: d[16] dmin[16] scale[8][16] minimum[8][16] q[4 planes][8][16 rows][4]
//! ```
//! The 6-bit numbers are stored in a byte each: 4.625 bits per weight against the file's 4.5.

use super::{BlockFormat, Group, Minimum, PANEL_ROWS, gather_u16, interleave4, nibble_plane};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};

/// `w = d * scale * q - dmin * minimum`.
pub(crate) struct Q4K;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    pub(super) scales: KScales,
    q: [[[u8; 64]; 8]; 4],
}

/// Scales and minima of 8 groups of 16 rows, as `Q4_K` and `Q5_K` have them.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct KScales {
    d: [u16; PANEL_ROWS],
    dmin: [u16; PANEL_ROWS],
    scale: [[u8; PANEL_ROWS]; 8],
    minimum: [[u8; PANEL_ROWS]; 8],
}

/// The 6-bit scale and minimum of `group` in the 12 bytes that k-quants pack them into.
pub(super) fn scale_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
    }
}

impl KScales {
    pub(super) fn pack(&mut self, rows: &[&[u8]; PANEL_ROWS]) {
        self.d = gather_u16(rows, 0);
        self.dmin = gather_u16(rows, 2);
        for (r, row) in rows.iter().enumerate() {
            for g in 0..8 {
                (self.scale[g][r], self.minimum[g][r]) = scale_min(&row[4..16], g);
            }
        }
    }

    /// `(d * scale, -(dmin * minimum))` of a group.
    #[inline(always)]
    pub(super) fn load<S: Simd>(&self, s: S, group: usize) -> (S::F, S::F) {
        let scale = s.mul(s.load_f16(&self.d), s.load_u8(&self.scale[group]));
        let minimum = s.mul(s.load_f16(&self.dmin), s.load_u8(&self.minimum[group]));
        (scale, s.sub(s.splat(0.0), minimum))
    }
}

impl BlockFormat for Q4K {
    type Quants = Minimum<15>;
    type Block = Block;
    const GROUPS: usize = 8;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block) {
        block.scales.pack(rows);
        for (i, q) in block.q.as_flattened_mut().iter_mut().enumerate() {
            interleave4(rows, 16 + 4 * i, q);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block, g: usize) -> Group<S> {
        let (scale, second) = block.scales.load(s, g);
        Group::two(s, nibble_plane(s, &block.q, g), scale, second)
    }
}
