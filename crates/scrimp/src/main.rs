//! The `scrimp` program.
#![forbid(unsafe_code)]

use scrimp_kernels::mem::ExitWhenOutOfMemory;
use std::process::ExitCode;

#[global_allocator]
static MEMORY: ExitWhenOutOfMemory = ExitWhenOutOfMemory;

fn main() -> ExitCode {
    scrimp::main(std::env::args_os()).into()
}
