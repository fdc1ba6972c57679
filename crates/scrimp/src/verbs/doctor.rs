//! `scrimp doctor`.

use crate::{App, cli::DoctorArgs};

/// Runs the verb.
pub(crate) fn run(_app: &App, _args: &DoctorArgs) -> anyhow::Result<()> {
    anyhow::bail!("`scrimp doctor` is not in this build")
}
