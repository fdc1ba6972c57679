//! AMX for CPUs without it: executes the *compiled* kernels, one illegal instruction after another.
//!
//! Such a CPU raises #UD at a tile instruction. A handler of SIGILL decodes the instruction at RIP, executes it on the
//! thread's tile file ([`Soft`]), counts it, and continues behind it. Tests only; takes some 10 microseconds an
//! instruction.

use super::soft::Soft;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use std::{
    cell::UnsafeCell,
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
};

thread_local! {
    static TILES: UnsafeCell<Soft> = const { UnsafeCell::new(Soft::new()) };
}

/// Tile instructions that were executed, over all threads.
pub(crate) static EXECUTED: AtomicUsize = AtomicUsize::new(0);

/// From here on, tile instructions are executed by this process, by the CPU or by the emulator.
pub(crate) fn install() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // SAFETY: the handler touches nothing but the registers of the instruction that raised the signal, the memory
        // that the instruction names, and the thread's tile file.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
        }
    });
}

extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the third argument of a SA_SIGINFO handler is a ucontext.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize];
    // SAFETY: the CPU has just fetched an instruction from there; tile instructions have at most 11 bytes, and code is
    // followed by more code or data of its mapping.
    let code = unsafe { std::slice::from_raw_parts(rip as *const u8, 11) };
    let instruction = Decoder::with_ip(64, code, rip as u64, DecoderOptions::NONE).decode();
    let executed = TILES.with(|tiles| {
        // SAFETY: the signal is synchronous, and nothing else on this thread looks at the tiles.
        let tiles = unsafe { &mut *tiles.get() };
        execute(tiles, &instruction, registers)
    });
    if executed {
        EXECUTED.fetch_add(1, Ordering::Relaxed);
        registers[libc::REG_RIP as usize] += instruction.len() as i64;
    } else {
        // Something else is wrong: the next attempt ends the process.
        // SAFETY: restores the default action.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}

fn execute(tiles: &mut Soft, instruction: &Instruction, registers: &[i64; 23]) -> bool {
    let tile = |i: u32| instruction.op_register(i) as usize - Register::TMM0 as usize;
    let value = |register: Register| general(register).map_or(0, |r| registers[r as usize] as usize);
    let base = value(instruction.memory_base()).wrapping_add(instruction.memory_displacement64() as usize);
    // For tile loads and stores, the index is the distance of rows.
    let stride = value(instruction.memory_index()).wrapping_mul(instruction.memory_index_scale() as usize);
    // SAFETY: the instruction's own memory; a wrong address is as fatal here as there.
    unsafe {
        match instruction.mnemonic() {
            Mnemonic::Ldtilecfg => tiles.load_config(&*(base.wrapping_add(stride) as *const [u8; 64])),
            Mnemonic::Tilerelease => *tiles = Soft::new(),
            Mnemonic::Tilezero => tiles.clear(tile(0)),
            Mnemonic::Tileloadd => tiles.read(tile(0), base as *const u8, stride),
            Mnemonic::Tilestored => tiles.write(tile(1), base as *mut u8, stride),
            Mnemonic::Tdpbf16ps => tiles.bf16(tile(0), tile(1), tile(2)),
            Mnemonic::Tdpbssd => tiles.i8(tile(0), tile(1), tile(2)),
            Mnemonic::Tdpbsud => tiles.i8u8(tile(0), tile(1), tile(2)),
            _ => return false,
        }
    }
    true
}

fn general(register: Register) -> Option<i32> {
    Some(match register {
        Register::RAX => libc::REG_RAX,
        Register::RBX => libc::REG_RBX,
        Register::RCX => libc::REG_RCX,
        Register::RDX => libc::REG_RDX,
        Register::RSI => libc::REG_RSI,
        Register::RDI => libc::REG_RDI,
        Register::RBP => libc::REG_RBP,
        Register::RSP => libc::REG_RSP,
        Register::R8 => libc::REG_R8,
        Register::R9 => libc::REG_R9,
        Register::R10 => libc::REG_R10,
        Register::R11 => libc::REG_R11,
        Register::R12 => libc::REG_R12,
        Register::R13 => libc::REG_R13,
        Register::R14 => libc::REG_R14,
        Register::R15 => libc::REG_R15,
        _ => return None,
    })
}
