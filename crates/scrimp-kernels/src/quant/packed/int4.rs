//! Groups of `int4` and `sparse-int4` in registers (layout: [`packed`](super)).
//!
//! ```text
//! w = scale (q - 8)         a sparse group is expanded to the dense one; weights that are not stored are q = 8
//! ```

use super::{INT4_BLOCK, INT4_INDEX};
use crate::{
    arch::Simd,
    quant::{Group, QuantGroup, Quants, Symmetric, group::fma_scaled},
};
use bytemuck::{Pod, Zeroable};

/// `w = scale * (q - 8)`, the scale being a bf16 for 32 columns.
pub(crate) type Int4 = Symmetric<8, 15>;

/// A dense group.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    scale: [u16; 16],
    q: [[u8; 64]; 4],
}

/// Scales and bitmap of a sparse group.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Index {
    scale: [u16; 16],
    /// Bytes, since packed bytes are not aligned for u64 in every file.
    bitmap: [[u8; 8]; 8],
}

const _: () = assert!(size_of::<Block>() == INT4_BLOCK && size_of::<Index>() == INT4_INDEX);

/// Unpacks a dense group.
#[inline(always)]
pub(crate) fn dense<S: Simd>(s: S, block: &Block) -> Group<S> {
    Group::symmetric(s, crate::quant::q4::unpack(s, &block.q), s.load_bf16(&block.scale))
}

/// Unpacks a sparse group, whose values are in the low or `HIGH` halves of the bytes from `values` on; returns where
/// they end.
///
/// # Safety
/// `values` points to the values of this group, with at least 64 readable bytes behind them.
#[inline(always)]
pub(crate) unsafe fn sparse<S: Simd, const HIGH: bool>(
    s: S,
    index: &Index,
    values: *const u8,
) -> (Group<S>, *const u8) {
    let mut at = values;
    let mut w = [s.load_b(&[0; 64]); 8];
    for k in 0..8 {
        let mask = u64::from_le_bytes(index.bitmap[k]);
        // SAFETY: the padding behind the values makes whole loads readable, and as many values are there.
        unsafe {
            w[k] = s.expand_nibbles::<HIGH>(mask, &*at.cast::<[u8; 64]>());
            at = at.add(s.expanded(mask));
        }
    }
    (Group::symmetric(s, w, s.load_bf16(&index.scale)), at)
}

/// Adds a sparse group's products with one token to `acc`, expanding and multiplying a step at a time; returns where
/// the values end. Values in `HIGH` halves stay there, and count 16 times until the sum is complete, which costs
/// nothing and saves two instructions a step. For levels whose sums are 32 bits wide.
///
/// # Safety
/// As for [`sparse`].
#[inline(always)]
pub(crate) unsafe fn add_sparse<S: Simd, const HIGH: bool>(
    s: S,
    index: &Index,
    values: *const u8,
    x: &QuantGroup,
    acc: S::F,
) -> (S::F, *const u8) {
    const { assert!(Int4::ZERO << 4 == 128, "the zero of `acc_init_wide`") };
    let start = |sums| if HIGH { s.acc_init_wide(sums) } else { s.acc_init(Int4::ZERO, sums) };
    let mut sums = [start(x.negated_sums), start([0; 2])];
    let mut at = values;
    for k in 0..8 {
        let mask = u64::from_le_bytes(index.bitmap[k]);
        // SAFETY: the padding behind the values makes whole loads readable, and as many values are there.
        let w = unsafe { s.expand_halves::<HIGH>(mask, &*at.cast::<[u8; 64]>()) };
        let dot = if HIGH { S::dot_wide } else { S::dot };
        sums[k % 2] = dot(s, sums[k % 2], w, x.q[k]);
        // SAFETY: the caller guarantees the group's values, and `count_ones` of them belong to this step.
        at = unsafe { at.add(s.expanded(mask)) };
    }
    let sum = s.add_i32(s.acc_finish(sums[0]), s.acc_finish(sums[1]));
    let sum = if HIGH { s.shr_i32::<4>(sum) } else { sum };
    (fma_scaled(s, acc, sum, x.scale, s.load_bf16(&index.scale)), at)
}
