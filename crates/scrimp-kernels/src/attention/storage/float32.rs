//! IEEE single precision with one element per step: the exact reference for the other formats.

use super::{Element, Plain, Storage, StorageKind};

/// The format.
pub static STORAGE: &dyn Storage = &Plain::<F32, 1>::new();

#[derive(Debug)]
struct F32;

impl Element for F32 {
    type Bits = f32;
    const NAME: &'static str = "f32";
    const KIND: StorageKind = StorageKind::F32;
    #[inline(always)]
    fn encode(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn decode(bits: f32) -> f32 {
        bits
    }
}
