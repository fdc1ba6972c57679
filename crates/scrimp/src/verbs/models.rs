//! `scrimp models`.

use crate::App;

/// Runs the verb.
pub(crate) fn run(_app: &App) -> anyhow::Result<()> {
    anyhow::bail!("`scrimp models` is not in this build")
}
