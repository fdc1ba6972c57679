//! bfloat16, pairs of elements to a step, which is what `vdpbf16ps` multiplies. Rounded to nearest-even.

use super::{Element, Plain, Storage, StorageKind};

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

/// The bits of the nearest bf16, ties to even; NaN stays NaN. Without branches, so that loops over it are vectorised.
#[inline(always)]
pub(crate) fn round_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    ((if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) >> 16) as u16
}
