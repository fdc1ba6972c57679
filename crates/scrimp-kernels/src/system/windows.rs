//! Facts about the machine, and advice on memory, on Windows.

use super::Memory;
use std::mem::size_of;
use windows_sys::Win32::System::{
    Memory::VirtualUnlock,
    ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS},
    SystemInformation::{GlobalMemoryStatusEx, MEMORYSTATUSEX},
    Threading::{ALL_PROCESSOR_GROUPS, GetActiveProcessorCount, GetCurrentProcess},
};

/// Physical memory, and its part that can be had without writing pages to disk.
pub(super) fn memory() -> Memory {
    let mut status = MEMORYSTATUSEX { dwLength: size_of::<MEMORYSTATUSEX>() as u32, ..Default::default() };
    // SAFETY: the call fills the structure, which has its length in `dwLength`.
    if unsafe { GlobalMemoryStatusEx(&raw mut status) } == 0 {
        return Memory::default();
    }
    Memory { total: Some(status.ullTotalPhys), available: Some(status.ullAvailPhys), limit: None }
}

/// Unknown beside the name that the CPU itself has.
pub(super) fn cpu_name() -> Option<String> {
    None
}

/// Number of active logical processors of all groups.
pub(super) fn online_cpus() -> Option<usize> {
    // SAFETY: the call only reads a number.
    let count = unsafe { GetActiveProcessorCount(ALL_PROCESSOR_GROUPS) };
    usize::try_from(count).ok().filter(|&n| n > 0)
}

/// Windows has no control groups.
pub(super) fn cpu_quota() -> Option<f64> {
    None
}

/// Windows has no transparent huge pages.
pub(super) fn huge_page_mode() -> Option<String> {
    None
}

/// Unknown.
pub(super) fn last_level_cache() -> Option<u64> {
    None
}

/// The peak working set.
pub(super) fn peak_rss_bytes() -> Option<u64> {
    working_set().map(|set| set.PeakWorkingSetSize as u64)
}

/// The working set.
pub(super) fn rss_bytes() -> Option<u64> {
    working_set().map(|set| set.WorkingSetSize as u64)
}

fn working_set() -> Option<PROCESS_MEMORY_COUNTERS> {
    let mut counters = PROCESS_MEMORY_COUNTERS::default();
    let bytes = size_of::<PROCESS_MEMORY_COUNTERS>() as u32;
    // SAFETY: the handle of this process is always valid, and the call writes at most `bytes` bytes to `counters`.
    let ok = unsafe { K32GetProcessMemoryInfo(GetCurrentProcess(), &raw mut counters, bytes) };
    (ok != 0).then_some(counters)
}

/// Windows enables tile registers with functions that this crate does not call.
#[cfg(target_arch = "x86_64")]
pub(super) fn permits_tile_registers() -> bool {
    false
}

/// Removes the whole pages `range` of a file's map from the working set: unlocking pages that are not locked does that.
pub(super) fn release(range: &[u8]) {
    // SAFETY: the call changes no contents, and removed pages are read again at the next access.
    unsafe { VirtualUnlock(range.as_ptr().cast(), range.len()) };
}
