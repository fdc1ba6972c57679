//! Anonymous memory straight from the system, aligned for huge pages and unmapped when dropped.

use crate::system;
use std::{io, ptr::NonNull};

/// A zeroed private mapping. From [`system::LARGE`] bytes on it starts at a multiple of that, and huge pages are
/// requested; the system falls back to ordinary pages.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory, which no thread owns; `Arena` and `PageMemory` give out disjoint ranges.
unsafe impl Send for Mapping {}
// SAFETY: a shared `Mapping` gives only its address and length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// At least `bytes` bytes.
    ///
    /// # Errors
    /// When the system does not give the memory.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let (base, len) = system::map(bytes)?;
        Ok(Self { base, len })
    }

    /// The first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `system::map` returned this address and length, and nothing borrows from the mapping any more.
        unsafe { system::unmap(self.base, self.len) };
    }
}
