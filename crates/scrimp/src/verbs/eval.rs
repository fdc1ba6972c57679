//! `scrimp eval`.

use crate::{App, cli::EvalVerb};

/// Runs the verb.
pub(crate) fn run(_app: &App, _args: &EvalVerb) -> anyhow::Result<()> {
    anyhow::bail!("`scrimp eval` is not in this build")
}
