//! IEEE half precision with one element per step; arithmetic is f32. Elements are rounded half to even (relative error
//! 2^-11); beyond 65504 they are infinite.

use super::{Element, Plain, Storage, StorageKind, TILE};
use half::slice::HalfFloatSliceExt;

/// The format.
pub static STORAGE: &dyn Storage = &Plain::<F16, 1>::new();

#[derive(Debug)]
struct F16;

impl Element for F16 {
    type Bits = u16;
    const NAME: &'static str = "f16";
    const KIND: StorageKind = StorageKind::F16;
    #[inline(always)]
    fn encode(x: f32) -> u16 {
        half::f16::from_f32(x).to_bits()
    }
    #[inline(always)]
    fn encode_tile(x: &[f32; TILE]) -> [u16; TILE] {
        // Uses the CPU's conversion instructions, which `half` finds at run time.
        let mut bits = [half::f16::ZERO; TILE];
        bits.convert_from_f32_slice(x);
        bits.map(half::f16::to_bits)
    }
    #[inline(always)]
    fn decode(bits: u16) -> f32 {
        half::f16::from_bits(bits).to_f32()
    }
}
