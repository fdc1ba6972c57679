//! `scrimp rec compress`.

use super::bars::TrainingBar;
use crate::{App, cli::rec::RecCompressArgs, format};
use scrimp_base::{AtomicFile, check_outputs};
use scrimp_kernels::{Exec, SimdLevel};
use scrimp_rec::{
    data::{Data, OpenOptions, Split},
    distill::{DistillOptions, Distilled, compress},
    encoders::{EncoderOptions, Precision},
    model::Model,
    recipe::{Inputs, Recipe},
    train::{Evaluation, TrainOptions},
};
use serde::Serialize;
use std::{path::Path, time::Instant};

#[derive(Serialize)]
struct Result {
    /// Validation AUC of the trained model, after the fit, and of the small model.
    auc_full: Option<f64>,
    auc_fitted: Option<f64>,
    auc: Option<f64>,
    logloss_full: Option<f64>,
    logloss: Option<f64>,
    /// Squared error of the embeddings after the fit, relative to their squares.
    fit_error: f64,
    embedding_bytes: u64,
    full_embedding_bytes: u64,
    compression: f64,
    rows: u64,
    bad_rows: u64,
    seconds: f64,
    model_bytes: u64,
}

/// Compresses a model and writes the small one.
pub(super) fn run(app: &App, args: &RecCompressArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let (mut whole, _) = Model::load(&args.model)?;
    let options =
        OpenOptions { threads: 1, skip_bad_rows: args.rows.skip_bad_rows, ..OpenOptions::default() };
    let data = Data::find(&args.data, Split::Train)?;
    let valid = Data::beside(&args.data, Split::Valid)?;
    let inputs: Vec<&Path> =
        data.paths().iter().chain(valid.as_ref().map_or(&[][..], Data::paths)).map(|p| &**p).collect();
    let inputs: Vec<&Path> = inputs.into_iter().chain([args.data.as_path(), args.model.as_path()]).collect();
    check_outputs(&inputs, &[&args.output])?;
    drop(AtomicFile::create(&args.output)?);
    app.printer.note(format_args!("data: {}", data.describe()));
    let recipe = recipe(args, app.global.seed.unwrap_or(1));
    let how = DistillOptions { fit_passes: args.fit_passes, label_share: args.label_share };
    let schema = whole.schema().clone();
    let inputs = Inputs { train: &data, valid: valid.as_ref(), schema: &schema, options: &options };
    let mut small = compress_with_bar(app, &mut whole, &recipe, how, inputs)?;
    small.model.save(&args.output, None)?;
    let (bytes, full) = (small.model.embedding_bytes(), small.model.config().full_embedding_bytes);
    let auc = |e: Option<Evaluation>| e.map(|e| e.auc).filter(|auc| auc.is_finite());
    let result = Result {
        auc_full: auc(small.whole),
        auc_fitted: auc(small.fitted),
        auc: auc(small.small),
        logloss_full: small.whole.map(|e| e.logloss),
        logloss: small.small.map(|e| e.logloss),
        fit_error: small.fit_error,
        embedding_bytes: bytes,
        full_embedding_bytes: full,
        compression: full as f64 / bytes.max(1) as f64,
        rows: small.rows,
        bad_rows: small.bad_rows,
        seconds: start.elapsed().as_secs_f64(),
        model_bytes: args.output.metadata().map_or(0, |m| m.len()),
    };
    app.printer.result(&result, |r| human(r, &args.output))
}

fn compress_with_bar(
    app: &App,
    whole: &mut Model,
    recipe: &Recipe,
    how: DistillOptions,
    inputs: Inputs<'_>,
) -> anyhow::Result<Distilled> {
    let pool = app.pool()?;
    let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
    let mut bar = TrainingBar::new(recipe.train.epochs);
    Ok(compress(whole, recipe, how, inputs, exec, &mut |event| bar.show(&event))?)
}

fn recipe(args: &RecCompressArgs, seed: u64) -> Recipe {
    let encoder = EncoderOptions {
        precision: args.precision,
        quantization_aware: args.precision == Precision::Int4,
        ..EncoderOptions::new(&args.encoder, 1, 0)
    };
    let default = TrainOptions::default();
    let train = TrainOptions {
        epochs: args.epochs,
        batch: args.batch.get(),
        lr: args.lr.unwrap_or(default.lr),
        dense_lr: args.dense_lr.unwrap_or(default.dense_lr),
        patience: 1,
        ..default
    };
    Recipe {
        encoder,
        budget: args.size.budget(),
        preset: String::new(),
        seed,
        shuffle: 262_144,
        hold_out: 20,
        train,
    }
}

fn human(r: &Result, output: &Path) -> String {
    let auc = |auc: Option<f64>| auc.map_or("-".to_owned(), |auc| format!("{auc:.4}"));
    format!(
        "{}: validation AUC {}, of the trained model {} (after the fit {})\n\
         embeddings {} instead of {} ({:.0} times smaller); {} rows in {:.0} s",
        output.display(),
        auc(r.auc),
        auc(r.auc_full),
        auc(r.auc_fitted),
        format::bytes(r.embedding_bytes),
        format::bytes(r.full_embedding_bytes),
        r.compression,
        r.rows,
        r.seconds
    )
}
