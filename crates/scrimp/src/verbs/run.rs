//! `scrimp run`.

use crate::{App, cli::RunArgs};

/// Runs the verb.
pub(crate) fn run(_app: &App, _args: &RunArgs) -> anyhow::Result<()> {
    anyhow::bail!("`scrimp run` is not in this build")
}
