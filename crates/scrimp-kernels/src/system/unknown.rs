//! Facts about a machine whose system has no file in this folder.

use super::Memory;

pub(super) fn memory() -> Memory {
    Memory::default()
}

pub(super) fn cpu_name() -> Option<String> {
    None
}

pub(super) fn online_cpus() -> Option<usize> {
    None
}

pub(super) fn cpu_quota() -> Option<f64> {
    None
}

pub(super) fn huge_page_mode() -> Option<String> {
    None
}

pub(super) fn last_level_cache() -> Option<u64> {
    None
}

pub(super) fn peak_rss_bytes() -> Option<u64> {
    #[cfg(unix)]
    return super::process::peak_rss(1024);
    #[cfg(not(unix))]
    None
}

/// Unknown.
pub(super) fn rss_bytes() -> Option<u64> {
    None
}

#[cfg(target_arch = "x86_64")]
pub(super) fn permits_tile_registers() -> bool {
    false
}

pub(super) fn release(_: &[u8]) {}
