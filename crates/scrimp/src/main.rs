//! The `scrimp` command: parses arguments, calls the libraries, prints. No logic of its own.
//!
//! Exit status: 0 success, 1 failure, 2 wrong usage, 130 after Ctrl-C, 141 when the reader of stdout went away.
#![forbid(unsafe_code)]

mod cli;
mod eval_args;
mod format;
mod interrupt;
mod kv_args;
mod kv_settings;
mod loaded;
mod machine;
mod printer;
mod progress;
mod verbs;

use clap::Parser;
use scrimp_kernels::mem::ExitWhenOutOfMemory;
use std::{io, process::ExitCode};

use cli::{Cli, GlobalArgs};
use printer::Printer;

#[global_allocator]
static MEMORY: ExitWhenOutOfMemory = ExitWhenOutOfMemory;

/// What every verb gets: the global options and the one way to stdout.
struct App {
    global: GlobalArgs,
    printer: Printer,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version go to stdout with status 0, usage errors to stderr with status 2.
            let code = u8::try_from(e.exit_code()).unwrap_or(2);
            return match e.print() {
                Err(io) if io.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(141),
                _ => ExitCode::from(code),
            };
        }
    };
    scrimp_rec::data::hide_guarded_panics();
    interrupt::install();
    let app = App { printer: Printer::new(cli.global.json), global: cli.global };
    match verbs::dispatch(&app, cli.verb) {
        Ok(()) if interrupt::requested() => ExitCode::from(130),
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => report(&app, &e),
    }
}

/// Prints `error:` and, where something can be done, `hint:`; returns the exit status.
fn report(app: &App, error: &anyhow::Error) -> ExitCode {
    let broken_pipe = |c: &(dyn std::error::Error + 'static)| {
        c.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.is::<printer::Stdout>() && error.chain().any(broken_pipe) {
        return ExitCode::from(141);
    }
    if interrupt::requested() {
        return ExitCode::from(130);
    }
    app.printer.error(error);
    ExitCode::from(if error.is::<cli::Usage>() { 2 } else { 1 })
}
