//! bfloat16 with pairs of elements per step: the operands of `vdpbf16ps`. Elements are rounded half to even (relative
//! error 2^-9).

use super::{Element, Plain, Storage, StorageKind};
use crate::quant::round_to_bf16;

/// The format.
pub static STORAGE: &dyn Storage = &Plain::<Bf16, 2>::new();

#[derive(Debug)]
struct Bf16;

impl Element for Bf16 {
    type Bits = u16;
    const NAME: &'static str = "bf16";
    const KIND: StorageKind = StorageKind::Bf16;
    #[inline(always)]
    fn encode(x: f32) -> u16 {
        round_to_bf16(x)
    }
    #[inline(always)]
    fn decode(bits: u16) -> f32 {
        half::bf16::from_bits(bits).to_f32_const()
    }
}
