//! `scrimp rec generate`.

use super::bars::RowBar;
use crate::{App, cli::rec::RecGenerateArgs, format};
use scrimp_rec::{
    data::preset,
    generate::{Generator, GeneratorOptions, write_file},
};
use serde::Serialize;
use std::{path::Path, time::Instant};

/// Rows for the estimate of the best AUC.
const BAYES_ROWS: u64 = 1_000_000;

#[derive(Serialize)]
struct Generated<'a> {
    path: &'a Path,
    rows: u64,
    bytes: u64,
    features: usize,
    ids: u64,
    bayes_auc: f64,
    bayes_logloss: f64,
    positives: f64,
    seconds: f64,
    rows_per_second: f64,
}

/// Writes a file of generated rows.
pub(super) fn run(app: &App, args: &RecGenerateArgs) -> anyhow::Result<()> {
    let mut options = preset(args.preset.as_deref().unwrap_or("small"))?;
    if let Some(cardinalities) = &args.cardinalities {
        options.cardinalities.clone_from(cardinalities);
    }
    let options = GeneratorOptions {
        seed: app.global.seed.unwrap_or(1),
        first_row: args.first_row,
        rows: args.rows,
        numeric: args.numeric,
        zipf: args.zipf,
        ..options
    };
    let generator = Generator::new(options.clone(), 0)?;
    let start = Instant::now();
    let bar = RowBar::new("generating");
    let total = args.rows.max(1) as f64;
    let written = write_file(options.clone(), &args.output, app.threads(), &mut |rows| {
        bar.show(Some(rows as f64 / total), || format!("{rows} rows"));
        true
    })?;
    drop(bar);
    let seconds = start.elapsed().as_secs_f64();
    let bayes = generator.bayes(BAYES_ROWS);
    let result = Generated {
        path: &args.output,
        rows: written.rows,
        bytes: written.bytes,
        features: options.cardinalities.len(),
        ids: options.cardinalities.iter().sum(),
        bayes_auc: bayes.auc,
        bayes_logloss: bayes.logloss,
        positives: bayes.positives,
        seconds,
        rows_per_second: written.rows as f64 / seconds.max(1e-9),
    };
    app.printer.result(&result, |r| {
        format!(
            "{}: {} rows, {}\nbest possible AUC {:.4}, log loss {:.4} ({:.1}% of the labels are 1)",
            r.path.display(),
            r.rows,
            format::bytes(r.bytes),
            r.bayes_auc,
            r.bayes_logloss,
            100.0 * r.positives
        )
    })
}
