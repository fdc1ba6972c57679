//! Memory, the process and loaded libraries on Unix.

use super::{alignment, not_null, refused};
use std::{
    ffi::{CStr, CString, c_void},
    io,
    ptr::NonNull,
    sync::OnceLock,
};

/// Bytes of an ordinary page.
pub(crate) fn page_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        // SAFETY: the call only reads a constant of the system.
        let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two()).unwrap_or(4096)
    })
}

/// At least `bytes` zeroed bytes, and their exact number. They start at a multiple of [`alignment`], and huge pages are
/// requested for large ones.
///
/// # Errors
/// When the system does not give the memory.
pub(crate) fn map(bytes: usize) -> io::Result<(NonNull<u8>, usize)> {
    let (page, align) = (page_bytes(), alignment(bytes, page_bytes()));
    let slack = if align > page { align } else { 0 };
    let len = bytes.max(1).checked_next_multiple_of(page).ok_or_else(refused)?;
    let mapped = len.checked_add(slack).ok_or_else(refused)?;
    // SAFETY: an anonymous private mapping at an address of the system's choice touches no existing memory.
    let base = unsafe {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), mapped, access, kind, -1, 0)
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let base = not_null(base.cast())?;
    if slack == 0 {
        return Ok((base, len));
    }
    let before = base.as_ptr().align_offset(align);
    // SAFETY: `before + len <= mapped`, so the ranges are whole pages of the mapping before, in and after the range
    // that is kept.
    unsafe {
        let kept = base.add(before);
        if before > 0 {
            unmap(base, before);
        }
        if mapped > before + len {
            unmap(kept.add(len), mapped - before - len);
        }
        #[cfg(target_os = "linux")]
        super::machine::request_huge_pages(kept, len);
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

/// Writes `text` to stderr and ends the process with status 1, without an allocation.
pub(crate) fn exit_with(text: &[u8]) -> ! {
    // SAFETY: the bytes are those of `text`; ending the process needs nothing.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::_exit(1);
    }
}

/// The largest resident memory of this process so far, in bytes; with `unit`, the unit of the system's figure.
pub(super) fn peak_rss(unit: u64) -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call writes one `rusage`; zeros are a valid one.
    let peak = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init().ru_maxrss
    };
    u64::try_from(peak).ok()?.checked_mul(unit)
}

/// The address of `name` in the library at `path` or in the libraries that it links to; `None` if the process has not
/// loaded the library, or it has no such name.
pub fn loaded_symbol(path: &str, name: &CStr) -> Option<NonNull<c_void>> {
    let path = CString::new(path).ok()?;
    // SAFETY: `path` is a NUL-terminated string. RTLD_NOLOAD finds loaded libraries only, so that no initializer runs.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
    let library = NonNull::new(library)?;
    // SAFETY: `library` is an open handle, which is never closed; `name` is NUL-terminated.
    NonNull::new(unsafe { libc::dlsym(library.as_ptr(), name.as_ptr()) })
}
