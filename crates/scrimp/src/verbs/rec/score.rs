//! `scrimp rec eval`, `score` and `inspect`.

use super::{
    bars::RowBar,
    train::{Accuracy, More},
};
use crate::{
    App,
    cli::rec::{RecEvalArgs, RecInspectArgs, RecScoreArgs},
    format,
};
use scrimp_base::{AtomicFile, check_outputs};
use scrimp_kernels::{Exec, SimdLevel};
use scrimp_rec::{
    data::{Batch, Data, OpenOptions, Split},
    metrics::{Calibration, auc, log_loss},
    model::Model,
};
use serde::Serialize;
use std::{fmt::Write as _, path::Path, time::Instant};

/// Rows per batch.
const ROWS: usize = 2048;

/// Measures accuracy on labeled rows.
pub(super) fn eval(app: &App, args: &RecEvalArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let (mut model, _) = Model::load(&args.model)?;
    let pool = app.pool()?;
    let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
    let options =
        OpenOptions { threads: 1, skip_bad_rows: args.rows.skip_bad_rows, ..OpenOptions::default() };
    let mut rows = Data::find(&args.data, Split::Test)?.open(model.schema(), &options)?;
    let (mut labels, mut predictions) = (Vec::new(), Vec::new());
    let (mut batch, mut some) = (Batch::default(), Vec::new());
    let bar = RowBar::new("evaluating");
    while rows.next_batch(ROWS, &mut batch)? > 0 {
        model.predict(exec, &batch, &mut some);
        labels.extend_from_slice(&batch.labels);
        predictions.extend_from_slice(&some);
        bar.show(rows.progress(), || format!("{} rows", labels.len()));
    }
    drop(bar);
    let auc = auc(&labels, &predictions);
    if auc.is_none() {
        app.printer.note("warning: all labels are the same, so there is no AUC");
    }
    let calibration = Calibration::new(&labels, &predictions, 20);
    let (bytes, full) = (model.embedding_bytes(), model.config().full_embedding_bytes);
    let result = Accuracy {
        auc,
        logloss: Some(log_loss(&labels, &predictions)),
        embedding_bytes: bytes,
        full_embedding_bytes: full,
        compression: full as f64 / bytes.max(1) as f64,
        rows: labels.len() as u64,
        seconds: start.elapsed().as_secs_f64(),
        more: More::Eval {
            calibration: calibration.ratio,
            calibration_error: calibration.error,
            bad_rows: rows.bad_rows(),
        },
    };
    app.printer.result(&result, |r| {
        let auc = r.auc.map_or_else(|| "none".to_owned(), |a| format!("{a:.4}"));
        let ratio = calibration.ratio.map_or_else(|| "none".to_owned(), |a| format!("{a:.3}"));
        format!(
            "AUC {auc}, log loss {:.4}, predicted over actual {ratio}, calibration error {:.4}  ({} rows)",
            r.logloss.unwrap_or(f64::NAN),
            calibration.error,
            r.rows
        )
    })
}

#[derive(Serialize)]
struct Scored<'a> {
    path: Option<&'a Path>,
    rows: u64,
    mean: f64,
    seconds: f64,
    rows_per_second: f64,
}

/// Writes probabilities, one per line, in the order of the rows.
pub(super) fn score(app: &App, args: &RecScoreArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let (mut model, _) = Model::load(&args.model)?;
    let pool = app.pool()?;
    let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
    let options = OpenOptions { threads: app.threads().min(4), labels: false, ..OpenOptions::default() };
    let data = Data::find(&args.data, Split::Test)?;
    let inputs: Vec<&Path> = data.paths().iter().map(|p| &**p).chain([args.model.as_path()]).collect();
    check_outputs(&inputs, args.output.as_deref().as_slice())?;
    let mut rows = data.open(model.schema(), &options)?;
    let mut output = args.output.as_deref().map(AtomicFile::create).transpose()?;
    let (mut batch, mut some, mut text) = (Batch::default(), Vec::new(), String::new());
    let (mut count, mut sum) = (0u64, 0f64);
    let bar = RowBar::new("scoring");
    while rows.next_batch(ROWS, &mut batch)? > 0 {
        model.predict(exec, &batch, &mut some);
        text.clear();
        for p in &some {
            sum += f64::from(*p);
            // Writing to a String does not fail.
            let _ = writeln!(text, "{p}");
        }
        count += some.len() as u64;
        match &mut output {
            Some(output) => output.append(text.as_bytes())?,
            None => app.printer.stream(&text)?,
        }
        bar.show(rows.progress(), || format!("{count} rows"));
    }
    drop(bar);
    let written = output.is_some();
    if let Some(output) = output {
        output.commit()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let result = Scored {
        path: args.output.as_deref(),
        rows: count,
        mean: sum / count.max(1) as f64,
        seconds,
        rows_per_second: count as f64 / seconds.max(1e-9),
    };
    let words = |r: &Scored<'_>| {
        format!(
            "{} rows in {:.1} s ({:.0} per second), mean {:.4}",
            r.rows, r.seconds, r.rows_per_second, r.mean
        )
    };
    if written || app.printer.is_json() {
        return app.printer.result(&result, words);
    }
    // stdout has the probabilities.
    app.printer.note(words(&result));
    Ok(())
}

/// Prints a model's schema, encoder and layers.
pub(super) fn inspect(app: &App, args: &RecInspectArgs) -> anyhow::Result<()> {
    let (model, training) = Model::load(&args.model)?;
    let config = model.config();
    let value = serde_json::json!({
        "config": config,
        "embedding_bytes": model.embedding_bytes(),
        "checkpoint": training.is_some(),
    });
    app.printer.result(&value, |_| {
        format!(
            "{} with {} dimensions: {} instead of {}; layers {:?} and {:?}\n\n{}",
            config.encoder.encoder,
            config.encoder.dim,
            format::bytes(model.embedding_bytes()),
            format::bytes(config.full_embedding_bytes),
            config.dense_layer_sizes,
            config.over_layer_sizes,
            config.schema.to_toml()
        )
    })
}
