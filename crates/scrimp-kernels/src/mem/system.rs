//! Calls of the operating system for memory and for the end of the process. Every call that Unix has and other systems
//! lack is in this file, beside a portable fallback.

use std::{io, ops::Range, ptr::NonNull};

/// The alignment of large mappings, in bytes: a huge page of kernels with ordinary pages of 4 KiB, and a multiple of
/// the ordinary page of others (16 and 64 KiB on some ARM systems).
pub(crate) const HUGE_PAGE: usize = 2 << 20;

#[cfg(unix)]
pub use unix::peak_rss_bytes;
#[cfg(unix)]
pub(crate) use unix::*;

#[cfg(unix)]
mod unix {
    use super::{HUGE_PAGE, NonNull, Range, io};
    use std::sync::OnceLock;

    /// Bytes of an ordinary page.
    pub(crate) fn page_bytes() -> usize {
        static BYTES: OnceLock<usize> = OnceLock::new();
        *BYTES.get_or_init(|| {
            // SAFETY: the call only reads a constant of the system.
            let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
            usize::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two()).unwrap_or(4096)
        })
    }

    /// At least `bytes` zeroed bytes, and their exact number. From [`HUGE_PAGE`] bytes on, they start at a multiple of
    /// that, and huge pages are requested.
    ///
    /// # Errors
    /// When the system does not give the memory.
    pub(crate) fn map(bytes: usize) -> io::Result<(NonNull<u8>, usize)> {
        let slack = if bytes >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let len = bytes.max(1).checked_next_multiple_of(page_bytes()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapped = len.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: an anonymous private mapping at an address of the system's choice touches no existing memory.
        let base = unsafe {
            let (access, kind) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(std::ptr::null_mut(), mapped, access, kind, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        if slack == 0 {
            return Ok((base, len));
        }
        let before = base.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: `before + len <= mapped`, so the ranges are whole pages of the mapping before, in and after the range
        // that is kept; the advice changes no contents, and may be refused.
        unsafe {
            let kept = base.add(before);
            if before > 0 {
                unmap(base, before);
            }
            if mapped > before + len {
                unmap(kept.add(len), mapped - before - len);
            }
            #[cfg(target_os = "linux")]
            libc::madvise(kept.as_ptr().cast(), len, libc::MADV_HUGEPAGE);
            Ok((kept, len))
        }
    }

    /// Frees memory of [`map`].
    ///
    /// # Safety
    /// The range is whole pages of a mapping, and nothing borrows from it.
    pub(crate) unsafe fn unmap(base: NonNull<u8>, len: usize) {
        // SAFETY: the caller guarantees the range.
        unsafe { libc::munmap(base.as_ptr().cast(), len) };
    }

    /// Makes accesses to a range end the process.
    ///
    /// # Safety
    /// The range is whole pages of a mapping, and nothing borrows from it.
    #[cfg(test)]
    pub(crate) unsafe fn forbid(base: *mut u8, len: usize) {
        // SAFETY: the caller guarantees the range.
        assert_eq!(unsafe { libc::mprotect(base.cast(), len, libc::PROT_NONE) }, 0);
    }

    /// Tells the system that a range of a file is not needed soon. The bytes stay readable. Pages that are only partly
    /// in the range are kept.
    pub(crate) fn release(map: &memmap2::Mmap, range: Range<usize>) {
        let page = page_bytes();
        let (start, end) = (range.start.next_multiple_of(page), range.end.min(map.len()) / page * page);
        if start < end {
            // SAFETY: the range lies inside the map and is page aligned; for a read-only file mapping DONTNEED only
            // drops clean pages, which are read again from the file on the next access.
            unsafe {
                libc::madvise(map.as_ptr().add(start).cast_mut().cast(), end - start, libc::MADV_DONTNEED);
            }
        }
    }

    /// Writes `text` to stderr and ends the process with status 1, without an allocation.
    pub(crate) fn exit_with(text: &[u8]) -> ! {
        // SAFETY: the bytes are those of `text`; ending the process needs nothing.
        unsafe {
            libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
            libc::_exit(1);
        }
    }

    /// The largest resident memory of this process so far, in bytes.
    pub fn peak_rss_bytes() -> Option<u64> {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the call writes one `rusage`; zeros are a valid one.
        let peak = unsafe {
            if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
                return None;
            }
            usage.assume_init().ru_maxrss
        };
        // KiB, except on macOS.
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        u64::try_from(peak).ok()?.checked_mul(unit)
    }
}

#[cfg(not(unix))]
pub use portable::peak_rss_bytes;
#[cfg(not(unix))]
pub(crate) use portable::*;

#[cfg(not(unix))]
mod portable {
    use super::{HUGE_PAGE, NonNull, Range, io};
    use std::{
        alloc::{GlobalAlloc, Layout, System},
        io::Write,
    };

    /// Bytes of an ordinary page.
    pub(crate) fn page_bytes() -> usize {
        4096
    }

    fn layout(bytes: usize) -> Option<Layout> {
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { page_bytes() };
        Layout::from_size_align(bytes.max(1), align).ok()
    }

    /// `bytes` zeroed bytes of the system's allocator (at least 1), and their number. From [`HUGE_PAGE`] bytes on, they
    /// start at a multiple of that.
    ///
    /// # Errors
    /// When the system does not give the memory.
    pub(crate) fn map(bytes: usize) -> io::Result<(NonNull<u8>, usize)> {
        let layout = layout(bytes).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the size is not 0.
        let base = unsafe { System.alloc_zeroed(layout) };
        Ok((NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?, layout.size()))
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

    /// Does nothing: the system manages the pages of files without advice.
    pub(crate) fn release(_: &memmap2::Mmap, _: Range<usize>) {}

    /// Writes `text` to stderr and ends the process with status 1.
    pub(crate) fn exit_with(text: &[u8]) -> ! {
        let _ = io::stderr().write_all(text);
        std::process::exit(1);
    }

    /// The largest resident memory of this process so far: unknown.
    pub fn peak_rss_bytes() -> Option<u64> {
        None
    }
}
