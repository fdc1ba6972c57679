//! `scrimp rec prepare`.

use crate::{App, cli::rec::RecPrepareArgs, progress::Bars};
use scrimp_hub::{Progress as _, download_sdist};
use scrimp_rec::prepare::flights::{self, PACKAGE, Prepared};
use serde::Serialize;
use std::{fs, path::Path};

#[derive(Serialize)]
struct Result<'a> {
    path: &'a Path,
    #[serde(flatten)]
    prepared: Prepared,
}

/// Downloads the data, unless an archive is given, and writes the files.
pub(super) fn run(app: &App, args: &RecPrepareArgs) -> anyhow::Result<()> {
    let prepared = match &args.archive {
        Some(archive) => flights::prepare(archive, &args.output)?,
        None => {
            let work = std::env::temp_dir().join(format!("scrimp-flights-{}", std::process::id()));
            fs::create_dir_all(&work)?;
            let prepared = download(&work).and_then(|archive| Ok(flights::prepare(&archive, &args.output)?));
            let _ = fs::remove_dir_all(&work);
            prepared?
        }
    };
    app.printer.result(&Result { path: &args.output, prepared }, |r| {
        let p = &r.prepared;
        format!(
            "{}: {} rows to train, {} to validate, {} to test ({} flights without an arrival left out)\n\
             scrimp rec train {0} -o flights.model",
            r.path.display(),
            p.train,
            p.valid,
            p.test,
            p.left_out
        )
    })
}

fn download(work: &Path) -> anyhow::Result<std::path::PathBuf> {
    let mut bars = Bars::new();
    bars.begin(PACKAGE.0, Some(8_717_407), 0);
    let mut shown = 0;
    let archive = download_sdist(None, PACKAGE, work, &mut |bytes| {
        bars.advance(bytes.saturating_sub(shown));
        shown = shown.max(bytes);
    })?;
    Ok(archive)
}
