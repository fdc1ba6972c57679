//! Facts from `sysctl` and Mach, and advice on memory, on macOS.

use super::Memory;
use std::{
    ffi::{CStr, c_void},
    mem::size_of,
    ptr::null_mut,
};

/// The bytes of a value of `sysctl` that has at most `bytes` bytes.
fn sysctl(name: &CStr, bytes: usize) -> Option<Vec<u8>> {
    let (mut value, mut len) = (vec![0_u8; bytes], bytes);
    // SAFETY: the name is NUL-terminated; the call writes at most `len` bytes to `value`, and their number to `len`.
    let status = unsafe {
        libc::sysctlbyname(name.as_ptr(), value.as_mut_ptr().cast::<c_void>(), &raw mut len, null_mut(), 0)
    };
    value.truncate(len);
    (status == 0).then_some(value)
}

/// A whole number of `sysctl`, which has 4 or 8 bytes.
fn number(name: &CStr) -> Option<u64> {
    let value = sysctl(name, 8)?;
    match value.len() {
        4 => Some(u32::from_ne_bytes(value.try_into().ok()?).into()),
        _ => Some(u64::from_ne_bytes(value.try_into().ok()?)),
    }
}

/// Installed memory, and the free, inactive and purgeable pages.
pub(super) fn memory() -> Memory {
    Memory { total: number(c"hw.memsize"), available: available(), limit: None }
}

fn available() -> Option<u64> {
    let mut pages = std::mem::MaybeUninit::<libc::vm_statistics64>::zeroed();
    let mut words =
        (size_of::<libc::vm_statistics64>() / size_of::<libc::integer_t>()) as libc::mach_msg_type_number_t;
    // SAFETY: the call writes at most `words` words to `pages`; zeros are a valid value.
    let pages = unsafe {
        #[allow(deprecated, reason = "the alternative is another dependency")]
        let host = libc::mach_host_self();
        if libc::host_statistics64(host, libc::HOST_VM_INFO64, pages.as_mut_ptr().cast(), &raw mut words) != 0
        {
            return None;
        }
        pages.assume_init()
    };
    let usable =
        u64::from(pages.free_count) + u64::from(pages.inactive_count) + u64::from(pages.purgeable_count);
    usable.checked_mul(super::page_bytes() as u64)
}

/// The CPU's name.
pub(super) fn cpu_name() -> Option<String> {
    let name = sysctl(c"machdep.cpu.brand_string", 256)?;
    Some(CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy().into_owned())
}

/// Number of active CPUs.
pub(super) fn online_cpus() -> Option<usize> {
    usize::try_from(number(c"hw.activecpu")?).ok()
}

/// macOS has no control groups.
pub(super) fn cpu_quota() -> Option<f64> {
    None
}

/// macOS has no transparent huge pages.
pub(super) fn huge_page_mode() -> Option<String> {
    None
}

/// Size in bytes of the largest cache; for Apple's CPUs, of the second-level cache of the fast cores.
pub(super) fn last_level_cache() -> Option<u64> {
    number(c"hw.l3cachesize").filter(|&n| n > 0).or_else(|| number(c"hw.perflevel0.l2cachesize"))
}

/// The largest resident memory so far.
pub(super) fn peak_rss_bytes() -> Option<u64> {
    super::process::peak_rss(1)
}

/// Unknown.
pub(super) fn rss_bytes() -> Option<u64> {
    None
}

/// No Mac has AMX of x86.
#[cfg(target_arch = "x86_64")]
pub(super) fn permits_tile_registers() -> bool {
    false
}

/// Drops the whole pages `range` of a file's read-only map from resident memory.
pub(super) fn release(range: &[u8]) {
    // SAFETY: `super::release` passes whole pages of a read-only map of a file. DONTNEED drops clean pages, which the
    // next access reads from the file again.
    unsafe { libc::madvise(range.as_ptr().cast_mut().cast(), range.len(), libc::MADV_DONTNEED) };
}
