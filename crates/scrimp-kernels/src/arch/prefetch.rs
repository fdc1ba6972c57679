//! Loading cache lines before they are read.

/// The first-level cache, and those behind it.
pub(crate) const L1: u8 = 1;
/// The second-level cache, and those behind it.
pub(crate) const L2: u8 = 2;

/// Starts to load the cache line at `at` into the cache `CACHE` ([`L1`] or [`L2`]). The address need not be valid.
#[inline(always)]
pub(crate) fn prefetch<const CACHE: u8>(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is part of every x86-64 CPU, and accesses no memory architecturally, whatever the
    // address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if CACHE == L1 {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T1>(at.cast());
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: every aarch64 CPU has the instruction, which accesses no memory architecturally, whatever the address.
    unsafe {
        use std::arch::asm;
        if CACHE == L1 {
            asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
        } else {
            asm!("prfm pldl2keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// [`prefetch`] of `n` neighboring lines of a stream that is read front to back, where the hardware needs that. ARM's
/// prefetchers find such streams themselves.
#[inline(always)]
pub(crate) fn prefetch_stream<const CACHE: u8>(at: *const u8, n: usize) {
    if cfg!(not(target_arch = "aarch64")) {
        for i in 0..n {
            prefetch::<CACHE>(at.wrapping_add(64 * i));
        }
    }
}
