//! The allocator of commands: where memory runs out, the process ends with a message instead of an abort.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::Write as _,
};

/// The system's allocator, except that a request that cannot be met writes one `error:` line to stderr and ends the
/// process with status 1.
///
/// This includes requests that the caller could have recovered from (`Vec::try_reserve`). Memory whose size a model or
/// a conversation decides (weights, pages of the KV cache) does not come from here and fails with an ordinary error.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExitWhenOutOfMemory;

// SAFETY: every call is passed on to `System` unchanged, and what it returns is returned unless it is null.
unsafe impl GlobalAlloc for ExitWhenOutOfMemory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: `GlobalAlloc` requires of the caller what `System` requires, and the arguments are the same.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: `GlobalAlloc` requires of the caller what `System` requires, and the arguments are the same.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: `GlobalAlloc` requires of the caller what `System` requires, and the arguments are the same.
        given(unsafe { System.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `GlobalAlloc` requires of the caller what `System` requires, and the arguments are the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[inline(always)]
fn given(memory: *mut u8, bytes: usize) -> *mut u8 {
    if memory.is_null() {
        exit(bytes);
    }
    memory
}

/// Must not allocate.
#[cold]
fn exit(bytes: usize) -> ! {
    const SIZE: usize = 160;
    let mut text = [0; SIZE];
    let mut rest = &mut text[..];
    let _ = writeln!(rest, "error: out of memory: the system refuses {bytes} more bytes");
    let _ = writeln!(rest, "hint: a smaller model, a shorter context or a higher memory limit may help");
    let len = SIZE - rest.len();
    crate::system::exit_with(&text[..len])
}
