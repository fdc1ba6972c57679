//! The `scrimp` command, for the entry point of the Python package.

use pyo3::prelude::*;
use scrimp_kernels::mem::ExitWhenOutOfMemory;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    ffi::OsString,
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether this process runs the command.
static IS_COMMAND: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static MEMORY: Allocator = Allocator;

/// [`ExitWhenOutOfMemory`] in a process of the command. Otherwise the system's allocator, so that Python sees a
/// `MemoryError` where the kernels report a failed allocation.
struct Allocator;

// SAFETY: both allocators forward to `System`, so that one may free the memory of the other.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller meets the contract of `GlobalAlloc::alloc`, which both allocators have.
        unsafe {
            if IS_COMMAND.load(Ordering::Relaxed) {
                ExitWhenOutOfMemory.alloc(layout)
            } else {
                System.alloc(layout)
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller meets the contract of `GlobalAlloc::alloc_zeroed`, which both allocators have.
        unsafe {
            if IS_COMMAND.load(Ordering::Relaxed) {
                ExitWhenOutOfMemory.alloc_zeroed(layout)
            } else {
                System.alloc_zeroed(layout)
            }
        }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller meets the contract of `GlobalAlloc::realloc`, and `old` came from `System`.
        unsafe {
            if IS_COMMAND.load(Ordering::Relaxed) {
                ExitWhenOutOfMemory.realloc(old, layout, size)
            } else {
                System.realloc(old, layout, size)
            }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `System` with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Runs the command line `args`, of which the first is the name of the program, and returns the exit status. A process
/// calls it once.
#[pyfunction]
pub(crate) fn command(py: Python<'_>, args: Vec<OsString>) -> u8 {
    IS_COMMAND.store(true, Ordering::Relaxed);
    py.detach(|| scrimp::main(args))
}
