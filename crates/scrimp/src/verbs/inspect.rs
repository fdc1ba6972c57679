//! `scrimp inspect`.

use crate::{App, cli::InspectArgs};

/// Runs the verb.
pub(crate) fn run(_app: &App, _args: &InspectArgs) -> anyhow::Result<()> {
    anyhow::bail!("`scrimp inspect` is not in this build")
}
