//! `scrimp bench`.

use crate::{App, cli::BenchVerb};

/// Runs the verb.
pub(crate) fn run(_app: &App, _args: &BenchVerb) -> anyhow::Result<()> {
    anyhow::bail!("`scrimp bench` is not in this build")
}
