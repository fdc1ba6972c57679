//! The tile registers that a thread holds while it takes part in a parallel region.

use super::Activations;
use crate::arch::SimdLevel;
#[cfg(target_arch = "x86_64")]
use crate::arch::amx::{Configured, asm};

/// What a thread holds while it takes part in a region.
#[cfg(target_arch = "x86_64")]
pub(super) type ThreadTiles = Option<Configured<asm::Amx>>;
/// What a thread holds while it takes part in a region.
#[cfg(not(target_arch = "x86_64"))]
pub(super) type ThreadTiles = ();

/// Tile registers for products of `x`, where the tier has them and the batch is worth it.
#[cfg(target_arch = "x86_64")]
pub(super) fn thread_tiles(level: SimdLevel, x: &Activations) -> ThreadTiles {
    // SAFETY: the tier says that there are tile registers.
    (level.has_amx() && x.block() > 0).then(|| Configured::new(unsafe { asm::Amx::new() }))
}
/// Nothing: the CPU has no tile registers.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn thread_tiles(_: SimdLevel, _: &Activations) -> ThreadTiles {}
