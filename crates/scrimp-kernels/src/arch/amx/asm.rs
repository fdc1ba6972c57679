//! Tile registers of the CPU. Rust's intrinsics for them are not stable, so these are the instructions themselves.
//!
//! The kernel saves tiles with the rest of a thread's registers, once the process has requested permission, and saves
//! less while they are released.

use super::{Shape, Tile};
use crate::arch::{Kernel, SimdLevel};
use std::{arch::asm, sync::OnceLock};

/// The registers; a value is the proof that they may be used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx(());

/// Whether the CPU has AMX with bf16 and int8, the system saves its registers, and gives this process permission.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| cpu_has_amx() && crate::system::permits_tile_registers())
}

fn cpu_has_amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const OSXSAVE: u32 = 1 << 27;
    const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const XTILECFG_XTILEDATA: u32 = 1 << 17 | 1 << 18;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    if __cpuid_count(7, 0).edx & BF16_TILE_INT8 != BF16_TILE_INT8 {
        return false;
    }
    let xcr0: u32;
    // SAFETY: OSXSAVE says that `xgetbv` exists; it only reads.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") xcr0, out("edx") _, options(nomem, nostack)) };
    xcr0 & XTILECFG_XTILEDATA == XTILECFG_XTILEDATA
}

impl Amx {
    /// The registers, in a level with AMX.
    pub(crate) fn of(level: SimdLevel) -> Option<Self> {
        level.has_amx().then_some(Self(()))
    }

    /// The registers, without a check.
    ///
    /// # Safety
    /// The CPU has them and the system lets this process use them ([`available`]), or the test emulator executes their
    /// instructions.
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    _reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl Tile for Amx {
    fn run<K: Kernel>(level: SimdLevel, kernel: K) -> K::Output {
        level.run_with_amx(kernel)
    }
    #[inline(always)]
    fn configure(&mut self, shape: Shape) {
        let mut config =
            Config { palette: 1, start_row: 0, _reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
        for (t, (width, rows)) in shape.registers().into_iter().enumerate() {
            (config.bytes_per_row[t], config.rows[t]) = (width.into(), rows);
        }
        // SAFETY: `self` proves that the instruction exists; it reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(readonly, nostack)) };
    }
    #[inline(always)]
    fn release(&mut self) {
        // SAFETY: `self` proves that the instruction exists.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
    #[inline(always)]
    fn zero<const T: u8>(&mut self) {
        // SAFETY: `self` proves that the instruction exists; the compiler allocates no tile registers.
        unsafe { asm!("tilezero tmm{}", const T, options(nomem, nostack)) };
    }
    #[inline(always)]
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: `self` proves that the instruction exists; the caller guarantees that the rows can be read.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}*1]", t = const T, from = in(reg) from, stride = in(reg) stride,
                options(readonly, nostack));
        }
    }
    #[inline(always)]
    unsafe fn store<const T: u8>(&mut self, to: *mut u8, stride: usize) {
        // SAFETY: `self` proves that the instruction exists; the caller guarantees that the rows can be written.
        unsafe {
            asm!("tilestored [{to} + {stride}*1], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) stride,
                options(nostack));
        }
    }
    #[inline(always)]
    fn dot_bf16<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: `self` proves that the instruction exists; it touches tile registers only.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nomem, nostack));
        }
    }
    #[inline(always)]
    fn dot_i8u8<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: `self` proves that the instruction exists; it accesses tile registers only.
        unsafe {
            asm!("tdpbsud tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nomem, nostack));
        }
    }
    #[inline(always)]
    fn dot_i8<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: `self` proves that the instruction exists; it accesses tile registers only.
        unsafe {
            asm!("tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nomem, nostack));
        }
    }
}
