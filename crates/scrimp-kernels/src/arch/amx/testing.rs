//! Levels with AMX for the tests of kernels.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::emulator;
use crate::arch::SimdLevel;
use std::sync::Mutex;

/// Counts of executed instructions are of one test at a time.
pub(crate) static ONE: Mutex<()> = Mutex::new(());

/// A level whose tile instructions the CPU (`true`) or the emulator executes; `None`, with a message, without AVX-512.
pub(crate) fn amx() -> Option<(SimdLevel, bool)> {
    if let Some(level) = SimdLevel::amx() {
        return Some((level, true));
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if let Some(level) = SimdLevel::emulated_amx() {
        emulator::install();
        return Some((level, false));
    }
    eprintln!("SKIPPED: the compiled AMX kernels need AVX-512, which this CPU lacks");
    None
}

/// Sets the count of [`executed`] to 0.
pub(crate) fn reset() {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    emulator::EXECUTED.store(0, std::sync::atomic::Ordering::Relaxed);
}

/// Tile instructions that the emulator has executed, over all threads.
pub(crate) fn executed() -> usize {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return emulator::EXECUTED.load(std::sync::atomic::Ordering::Relaxed);
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    return 0;
}
