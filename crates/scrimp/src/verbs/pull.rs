//! `scrimp pull`, and how every other verb gets at its MODEL.

use crate::{App, cli::PullArgs, progress::Bars};
use scrimp_llm::hub::{Hub, ModelRef};
use std::path::PathBuf;

/// Downloads a model into the cache.
pub(crate) fn run(app: &App, args: &PullArgs) -> anyhow::Result<()> {
    let path = fetch(app, &args.model)?;
    let value = serde_json::json!({ "model": args.model, "path": path });
    app.printer.result(&value, |_| path.display().to_string())
}

/// Path of the file or directory behind MODEL, downloaded first where it is not here yet.
pub(crate) fn fetch(_app: &App, model: &str) -> anyhow::Result<PathBuf> {
    let reference = ModelRef::parse(model)?;
    Ok(Hub::from_env()?.fetch(&reference, &mut Bars::new())?)
}
