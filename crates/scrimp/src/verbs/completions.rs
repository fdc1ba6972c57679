//! `scrimp completions`.

use crate::{
    App,
    cli::{Cli, CompletionsArgs},
};
use clap::CommandFactory as _;

/// Prints the completion script of a shell.
pub(crate) fn run(app: &App, args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "scrimp", &mut script);
    app.printer.raw(&String::from_utf8_lossy(&script))
}
