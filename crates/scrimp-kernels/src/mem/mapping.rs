//! Anonymous memory straight from the system, aligned for huge pages and unmapped when dropped.

use std::{io, ptr::NonNull};

/// Bytes of a huge page.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// A zeroed private mapping. From [`HUGE_PAGE`] bytes on it starts at a multiple of that, and huge pages are requested;
/// the system falls back to ordinary pages.
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
        let slack = if bytes >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let page = 4096;
        let len = bytes
            .max(1)
            .checked_next_multiple_of(page)
            .and_then(|len| len.checked_add(slack))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: an anonymous private mapping at an address of the system's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut mapping = Self { base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?, len };
        if slack > 0 {
            mapping.align(len - slack);
        }
        Ok(mapping)
    }

    /// Keeps `len` bytes from the first multiple of a huge page on, unmaps the rest and requests huge pages.
    fn align(&mut self, len: usize) {
        let before = self.base.as_ptr().align_offset(HUGE_PAGE);
        let after = self.len - before - len;
        // SAFETY: what is given back are whole pages of the mapping, before and after the range that is kept; the
        // advice changes no contents, and may be refused.
        unsafe {
            if before > 0 {
                libc::munmap(self.base.as_ptr().cast(), before);
            }
            let base = self.base.add(before);
            if after > 0 {
                libc::munmap(base.add(len).as_ptr().cast(), after);
            }
            #[cfg(target_os = "linux")]
            libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE);
            (self.base, self.len) = (base, len);
        }
    }

    /// The first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping has this address and length, and nothing borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
