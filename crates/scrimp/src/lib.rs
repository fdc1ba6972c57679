//! The `scrimp` command as a library: [`main`] parses arguments, calls the libraries and prints their results.
//!
//! Exit status: 0 success, 1 failure, 2 wrong usage, 130 after Ctrl-C, 141 after the reader of stdout closed it.
#![forbid(unsafe_code)]

mod cli;
mod drafts;
mod format;
mod interrupt;
mod kv_args;
mod kv_settings;
mod loaded;
mod machine;
mod printer;
mod progress;
mod settings;
mod verbs;

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _};
use scrimp_kernels::{Pool, exec::available_threads};
use std::{ffi::OsString, io};

use cli::{Cli, GlobalArgs};
use printer::Printer;
use settings::Settings;

/// Context of every verb.
struct App {
    global: GlobalArgs,
    printer: Printer,
    /// The command line, program name first.
    args: Vec<OsString>,
}

impl App {
    /// `--threads`, or the number of CPU cores that the process may use.
    fn threads(&self) -> usize {
        self.global.threads.map_or_else(available_threads, usize::from)
    }

    /// A pool of [`App::threads`] threads.
    fn pool(&self) -> anyhow::Result<Pool> {
        Pool::new(self.threads()).context("cannot start threads: use fewer --threads")
    }
}

/// Runs the command line `args`, of which the first is the name of the program, and returns the exit status.
///
/// It installs a Ctrl-C handler and a panic hook: a process calls it once.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut command = Cli::command();
    let parsed = command.try_get_matches_from_mut(&args).and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))?;
        Ok((cli, Settings::new(&command, &matches)))
    });
    let (cli, settings) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => {
            // Help and version go to stdout with status 0, usage errors to stderr with status 2.
            let code = u8::try_from(e.exit_code()).unwrap_or(2);
            return match e.print() {
                Err(io) if io.kind() == io::ErrorKind::BrokenPipe => 141,
                _ => code,
            };
        }
    };
    scrimp_rec::data::hide_guarded_panics();
    interrupt::install();
    let app = App { printer: Printer::new(cli.global.json, settings), global: cli.global, args };
    match verbs::dispatch(&app, cli.verb) {
        Ok(()) if interrupt::requested() => 130,
        Ok(()) => 0,
        Err(e) => report(&app, &e),
    }
}

/// Prints `error:` and, where something can be done, `hint:`; returns the exit status.
fn report(app: &App, error: &anyhow::Error) -> u8 {
    let broken_pipe = |c: &(dyn std::error::Error + 'static)| {
        c.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.is::<printer::Stdout>() && error.chain().any(broken_pipe) {
        return 141;
    }
    if interrupt::requested() {
        return 130;
    }
    app.printer.error(error);
    if error.is::<cli::Usage>() { 2 } else { 1 }
}
