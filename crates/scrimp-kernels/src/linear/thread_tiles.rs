//! The AMX tile registers of a thread during a parallel region.

use super::Activations;
use crate::arch::{
    SimdLevel,
    amx::{Amx, Configured},
};

/// A thread's tile registers, where products use them.
pub(super) type ThreadTiles = Option<Configured<Amx>>;

/// Tile registers for products of the batches `x`, where the level has them and a batch is stored for them.
pub(super) fn thread_tiles<'a>(
    level: SimdLevel,
    mut x: impl Iterator<Item = &'a Activations>,
) -> ThreadTiles {
    x.find_map(|x| x.layout().amx_rows()).and_then(|_| Amx::of(level)).map(Configured::new)
}
