//! The operating system: memory, the end of the process, and facts about the machine. No other folder and no other crate
//! calls an operating system or reads its special files.
//!
//! | file | systems | content |
//! |---|---|---|
//! | `unix` | Linux, macOS and others | memory, the process, loaded libraries |
//! | `portable` | Windows and others | the same with Rust's standard library |
//! | `linux`, `apple`, `windows` | one each | [facts about the machine](self#functions), advice on memory |
//! | `unknown` | others | facts that are unknown |

use std::{io, ops::Range, ptr::NonNull};

#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(target_vendor = "apple", path = "apple.rs")]
#[cfg_attr(windows, path = "windows.rs")]
#[cfg_attr(not(any(target_os = "linux", target_vendor = "apple", windows)), path = "unknown.rs")]
mod machine;
#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(not(unix), path = "portable.rs")]
mod process;

#[cfg(test)]
pub(crate) use process::forbid;
pub use process::loaded_symbol;
pub(crate) use process::{exit_with, map, page_bytes, unmap};

/// The unit of large mappings, in bytes: a multiple of the ordinary page of every system (4, 16 or 64 KiB), and the huge
/// page of systems with ordinary pages of 4 KiB.
pub(crate) const LARGE: usize = 2 << 20;

/// Memory of the machine in bytes; `None`: unknown, or no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Installed memory.
    pub total: Option<u64>,
    /// Memory that processes can get without swapping.
    pub available: Option<u64>,
    /// The limit of this process' control group, if it is below `total`.
    pub limit: Option<u64>,
}

/// Memory of the machine.
pub fn memory() -> Memory {
    machine::memory()
}

/// The system's name of the CPU.
pub(crate) fn cpu_name() -> Option<String> {
    machine::cpu_name()
}

/// Number of online CPUs, including those that this process may not use.
pub fn online_cpus() -> Option<usize> {
    machine::online_cpus()
}

/// CPU quota of the control group in CPUs; `None`: no limit.
pub fn cpu_quota() -> Option<f64> {
    machine::cpu_quota()
}

/// The kernel's mode of transparent huge pages: `always`, `madvise` or `never`. `None`: the system has no such mode.
pub fn huge_page_mode() -> Option<String> {
    machine::huge_page_mode()
}

/// Size in bytes of the largest cache of a CPU.
pub fn last_level_cache() -> Option<u64> {
    machine::last_level_cache()
}

/// The largest resident memory of this process so far, in bytes.
pub fn peak_rss_bytes() -> Option<u64> {
    machine::peak_rss_bytes()
}

/// The resident memory of this process, in bytes.
pub fn rss_bytes() -> Option<u64> {
    machine::rss_bytes()
}

/// Whether the system lets this process use the tile registers of AMX.
#[cfg(target_arch = "x86_64")]
pub(crate) fn permits_tile_registers() -> bool {
    machine::permits_tile_registers()
}

/// Tells the system that a range of a file is not needed soon. The bytes stay readable. Pages that are only partly in
/// the range are kept.
pub(crate) fn release(map: &memmap2::Mmap, range: Range<usize>) {
    let range = whole_pages(range, map.len(), page_bytes());
    if !range.is_empty() {
        machine::release(&map[range]);
    }
}

/// The part of `range`, in a map of `len` bytes, that is whole pages of `page` bytes. The map starts at a page.
fn whole_pages(range: Range<usize>, len: usize, page: usize) -> Range<usize> {
    let start = range.start.checked_next_multiple_of(page).unwrap_or(len);
    let end = range.end.min(len) / page * page;
    start..end.max(start)
}

/// Bytes of a huge page. A table of page numbers has 8 bytes for each and fills one ordinary page of `page` bytes; a
/// huge page replaces such a table: 2 MiB for pages of 4 KiB, 32 MiB for 16 KiB, 512 MiB for 64 KiB.
fn huge_page_bytes(page: usize) -> usize {
    page.saturating_mul(page / 8)
}

/// The alignment of a mapping of `bytes` bytes: the largest unit (ordinary page, [`LARGE`], huge page) that it fills.
fn alignment(bytes: usize, page: usize) -> usize {
    [huge_page_bytes(page), LARGE].into_iter().filter(|&unit| bytes >= unit).max().unwrap_or(page).max(page)
}

/// The error for memory that the system does not give.
fn refused() -> io::Error {
    io::ErrorKind::OutOfMemory.into()
}

/// The address of a pointer that is not null.
fn not_null(base: *mut u8) -> io::Result<NonNull<u8>> {
    NonNull::new(base).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: [usize; 3] = [4 << 10, 16 << 10, 64 << 10];

    #[test]
    fn mappings_are_aligned_to_the_unit_that_they_fill() {
        assert_eq!(PAGES.map(huge_page_bytes), [2 << 20, 32 << 20, 512 << 20]);
        for page in PAGES {
            for bytes in [0, 1, 4096, 5000, LARGE - 1, LARGE, 33 << 20, 1 << 30, usize::MAX] {
                let align = alignment(bytes, page);
                assert!(align.is_power_of_two() && align.is_multiple_of(page), "{bytes} {page}: {align}");
                assert!(align == page || align <= bytes, "{bytes} {page}: {align}");
            }
            assert_eq!(alignment(LARGE, page), LARGE);
            assert_eq!(alignment(1 << 30, page), huge_page_bytes(page));
        }
    }

    #[test]
    fn only_whole_pages_are_released() {
        for page in PAGES {
            let len = 10 * page + 1;
            assert_eq!(whole_pages(0..len, len, page), 0..10 * page);
            assert_eq!(whole_pages(1..2 * page, len, page), page..2 * page);
            assert_eq!(whole_pages(page..usize::MAX, len, page), page..10 * page);
            assert!(whole_pages(1..page, len, page).is_empty());
            assert!(whole_pages(usize::MAX - 1..usize::MAX, len, page).is_empty());
            assert!(whole_pages(20 * page..30 * page, len, page).is_empty());
        }
    }

    #[test]
    fn memory_of_every_size_is_zeroed_and_aligned() {
        for bytes in [1, 5000, LARGE, LARGE + 1, 3 * LARGE] {
            let (base, len) = map(bytes).unwrap();
            assert!(len >= bytes);
            // SAFETY: `map` returned `len` bytes of initialized memory, which are unmapped once, below.
            let memory = unsafe { std::slice::from_raw_parts_mut(base.as_ptr(), len) };
            assert!(
                memory.iter().all(|&b| b == 0)
                    && base.as_ptr().addr().is_multiple_of(alignment(bytes, page_bytes()))
            );
            memory.fill(1);
            // SAFETY: the address and the length are those of `map`, and the slice is used no longer.
            unsafe { unmap(base, len) };
        }
        assert!(map(usize::MAX).is_err() && map(1 << 60).is_err());
    }

    #[test]
    fn facts_are_plausible() {
        let known = cfg!(any(target_os = "linux", target_vendor = "apple", windows));
        assert!(page_bytes().is_power_of_two());
        assert!(peak_rss_bytes().map_or(!known, |bytes| bytes > 1 << 20));
        assert!(rss_bytes().is_none_or(|bytes| bytes > 1 << 20));
        assert!(rss_bytes().is_some() || !cfg!(target_os = "linux"));
        let Memory { total, available, .. } = memory();
        assert!(total.map_or(!known, |bytes| bytes > 1 << 24));
        assert!(available.is_none_or(|bytes| bytes <= total.unwrap()));
        assert!(online_cpus().is_none_or(|n| n >= 1));
        assert!(cpu_name().is_none_or(|name| !name.is_empty()));
    }

    #[test]
    fn symbols_of_missing_libraries_are_none() {
        assert_eq!(loaded_symbol("no/such/library", c"f"), None);
        assert_eq!(loaded_symbol("nul\0", c"f"), None);
    }
}
