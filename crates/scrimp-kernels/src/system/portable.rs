//! Memory, the process and loaded libraries with Rust's standard library.

use super::{alignment, not_null, refused};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    ffi::{CStr, c_void},
    io::{self, Write},
    ptr::NonNull,
};

/// Bytes of an ordinary page.
pub(crate) fn page_bytes() -> usize {
    4096
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), alignment(bytes, page_bytes())).ok()
}

/// `bytes` zeroed bytes of the system's allocator (at least 1), and their number. They start at a multiple of
/// [`alignment`].
///
/// # Errors
/// When the system does not give the memory.
pub(crate) fn map(bytes: usize) -> io::Result<(NonNull<u8>, usize)> {
    let layout = layout(bytes).ok_or_else(refused)?;
    // SAFETY: the size is not 0.
    let base = unsafe { System.alloc_zeroed(layout) };
    Ok((not_null(base)?, layout.size()))
}

/// Frees memory of [`map`].
///
/// # Safety
/// [`map`] has returned these arguments, and nothing borrows from the memory.
pub(crate) unsafe fn unmap(base: NonNull<u8>, len: usize) {
    if let Some(layout) = layout(len) {
        // SAFETY: the caller guarantees that `map` allocated `len` bytes here, with this layout.
        unsafe { System.dealloc(base.as_ptr(), layout) };
    }
}

/// Does nothing.
///
/// # Safety
/// None is required.
#[cfg(test)]
pub(crate) unsafe fn forbid(_: *mut u8, _: usize) {}

/// Writes `text` to stderr and ends the process with status 1.
pub(crate) fn exit_with(text: &[u8]) -> ! {
    let _ = io::stderr().write_all(text);
    std::process::exit(1);
}

/// The address of a name in a loaded library: unknown.
pub fn loaded_symbol(_: &str, _: &CStr) -> Option<NonNull<c_void>> {
    None
}
