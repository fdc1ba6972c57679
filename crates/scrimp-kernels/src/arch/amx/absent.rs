//! The place of the CPU's tile registers on architectures that have none.

use super::{Shape, Tile};
use crate::arch::{Kernel, SimdLevel};

/// Tile registers; no value of it is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx(());

impl Amx {
    /// `None`.
    pub(crate) fn of(_: SimdLevel) -> Option<Self> {
        None
    }

    /// A value whose methods do not return.
    ///
    /// # Safety
    /// Must not be called: no level of this architecture has tile registers.
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

impl Tile for Amx {
    fn run<K: Kernel>(_: SimdLevel, _: K) -> K::Output {
        unreachable!("no tile registers on this architecture")
    }
    fn configure(&mut self, _: Shape) {
        unreachable!("no tile registers on this architecture")
    }
    fn release(&mut self) {
        unreachable!("no tile registers on this architecture")
    }
    fn zero<const T: u8>(&mut self) {
        unreachable!("no tile registers on this architecture")
    }
    unsafe fn load<const T: u8>(&mut self, _: *const u8, _: usize) {
        unreachable!("no tile registers on this architecture")
    }
    unsafe fn store<const T: u8>(&mut self, _: *mut u8, _: usize) {
        unreachable!("no tile registers on this architecture")
    }
    fn dot_bf16<const C: u8, const A: u8, const B: u8>(&mut self) {
        unreachable!("no tile registers on this architecture")
    }
    fn dot_i8u8<const C: u8, const A: u8, const B: u8>(&mut self) {
        unreachable!("no tile registers on this architecture")
    }
    fn dot_i8<const C: u8, const A: u8, const B: u8>(&mut self) {
        unreachable!("no tile registers on this architecture")
    }
}
