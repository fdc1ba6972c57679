//! AMX: tile registers, the instructions that use them, and two stand-ins for CPUs without AMX (tests only).

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(target_arch = "x86_64")]
pub(crate) mod asm;
#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod emulator;
#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod emulator_tests;
mod registers;
#[cfg(test)]
pub(crate) mod soft;
#[cfg(test)]
pub(crate) mod testing;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use absent::Amx;
#[cfg(target_arch = "x86_64")]
pub(crate) use asm::Amx;
pub(crate) use registers::{Configured, Shape, Tile, clear};

/// Bytes of an AMX tile.
pub(crate) const TILE_BYTES: usize = 1024;
/// Rows of a B tile, each of which is a step of 2 or 4 columns.
pub(crate) const TILE_STEPS: usize = 16;
/// Tile registers: C of token block `t` and row tile `r` is `2 t + r`.
pub(crate) const A: [u8; 2] = [4, 5];
pub(crate) const B: [u8; 2] = [6, 7];
