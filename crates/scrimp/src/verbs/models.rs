//! `scrimp models`.

use crate::{App, format};
use scrimp_hub::{ALIASES, Hub, ModelRef};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Serialize)]
struct Row {
    model: &'static str,
    about: &'static str,
    bytes: u64,
    cached: bool,
    path: Option<PathBuf>,
    sha256: &'static str,
    sources: &'static [&'static str],
}

/// Lists the aliases, with `--json` one per line.
pub(crate) fn run(app: &App) -> anyhow::Result<()> {
    let hub = Hub::from_env()?;
    let rows: Vec<Row> = ALIASES
        .iter()
        .map(|alias| {
            let path = hub.cached(&ModelRef::Alias(alias));
            Row {
                model: alias.name,
                about: alias.about,
                bytes: alias.size,
                cached: path.is_some(),
                path,
                sha256: alias.sha256,
                sources: alias.sources,
            }
        })
        .collect();
    if app.printer.is_json() {
        return rows.iter().try_for_each(|row| app.printer.result(row, |_| ""));
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let here = if r.cached { "yes" } else { "no" };
            vec![r.model.to_owned(), format::bytes(r.bytes), here.to_owned(), r.about.to_owned()]
        })
        .collect();
    app.printer.result(&(), |()| format::table(&["MODEL", "SIZE", "CACHED", "DESCRIPTION"], &cells))?;
    app.printer.note(format_args!("cache: {}", hub.cache.display()));
    Ok(())
}
