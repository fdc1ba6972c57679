//! `scrimp pull`, and the download of MODEL for every other verb.

use crate::{App, cli::PullArgs, progress::Bars};
use scrimp_hub::{Hub, ModelRef};
use serde::Serialize;
use std::{fs, path::Path, path::PathBuf};

#[derive(Serialize)]
struct Pulled<'a> {
    model: &'a str,
    path: &'a Path,
    bytes: u64,
    /// False: the model was already in the cache.
    downloaded: bool,
}

/// Downloads a model into the cache.
pub(crate) fn run(app: &App, args: &PullArgs) -> anyhow::Result<()> {
    let reference = ModelRef::parse(&args.model)?;
    let hub = Hub::from_env()?;
    let downloaded = hub.cached(&reference).is_none();
    let path = hub.fetch(&reference, &mut Bars::new())?;
    let pulled = Pulled { model: &args.model, path: &path, bytes: size(&path), downloaded };
    app.printer.result(&pulled, |p| p.path.display().to_string())
}

/// Path of the file or directory of MODEL; downloads it if necessary.
pub(crate) fn fetch(_app: &App, model: &str) -> anyhow::Result<PathBuf> {
    let reference = ModelRef::parse(model)?;
    Ok(Hub::from_env()?.fetch(&reference, &mut Bars::new())?)
}

/// Bytes of a file, or of the files directly in a directory.
pub(crate) fn size(path: &Path) -> u64 {
    let of = |p: &Path| fs::metadata(p).ok().filter(fs::Metadata::is_file).map_or(0, |m| m.len());
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|e| of(&e.path())).sum(),
        Err(_) => of(path),
    }
}
