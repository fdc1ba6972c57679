//! `scrimp rec train`.

use super::bars::TrainingBar;
use crate::{
    App,
    cli::rec::{ColumnArgs, RecTrainArgs},
    format,
};
use scrimp_base::{AtomicFile, Error, check_outputs};
use scrimp_kernels::{Exec, SimdLevel};
use scrimp_rec::{
    data::{Data, Hints, OpenOptions, Split},
    encoders::{EncoderOptions, Precision},
    recipe::{Inputs, Recipe, TrainedModel, train},
    schema::Schema,
    train::{TrainOptions, remove_checkpoint, svg},
};
use serde::Serialize;
use std::{path::Path, time::Instant};

/// Memory and accuracy of a model.
#[derive(Serialize)]
pub(super) struct Accuracy {
    /// `None` without validation rows, or if all labels are equal.
    pub(super) auc: Option<f64>,
    pub(super) logloss: Option<f64>,
    pub(super) embedding_bytes: u64,
    pub(super) full_embedding_bytes: u64,
    pub(super) compression: f64,
    pub(super) rows: u64,
    pub(super) seconds: f64,
    #[serde(flatten)]
    pub(super) more: More,
}

/// Fields of one verb.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum More {
    Train { encoder: String, rows_per_second: f64, bad_rows: u64, model_bytes: u64 },
    Eval { calibration: Option<f64>, calibration_error: f64, bad_rows: u64 },
}

/// Trains and writes a model.
pub(super) fn run(app: &App, args: &RecTrainArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let options =
        OpenOptions { threads: 1, skip_bad_rows: args.rows.skip_bad_rows, ..OpenOptions::default() };
    let data = Data::find(&args.data, Split::Train)?;
    check_format(&data, args.columns.format.as_deref(), &args.data)?;
    let valid = match &args.columns.valid {
        Some(path) => Some(Data::find(path, Split::Valid)?),
        None => Data::beside(&args.data, Split::Valid)?,
    };
    check_files(args, &data, valid.as_ref())?;
    app.printer.note(format_args!("data: {}", data.describe()));
    let schema = schema(app, &args.data, &data, &args.columns, &options)?;
    let recipe = recipe(args, app.global.seed.unwrap_or(1))?;
    let inputs = Inputs { train: &data, valid: valid.as_ref(), schema: &schema, options: &options };
    let mut trained = train_with_bar(app, &recipe, inputs)?;
    trained.model.save(&args.output, None)?;
    if let Some(path) = &args.training.curves {
        let mut output = AtomicFile::create(path)?;
        output.append(svg(&trained.report.curve).as_bytes())?;
        output.commit()?;
    }
    if let Some(path) = &args.training.checkpoint {
        remove_checkpoint(path);
    }
    let result = accuracy(&trained, args, start.elapsed().as_secs_f64());
    app.printer.result(&result, |r| human(r, &args.output, trained.bad_rows))
}

/// Checks, before the training, that outputs can be written and replace no input.
fn check_files(args: &RecTrainArgs, data: &Data, valid: Option<&Data>) -> anyhow::Result<()> {
    let schema = args.columns.schema.clone().or_else(|| Data::schema_file(&args.data));
    let mut inputs: Vec<&Path> =
        data.paths().iter().chain(valid.map_or(&[][..], Data::paths)).map(|p| &**p).collect();
    inputs.extend([args.data.as_path()].into_iter().chain(schema.as_deref()));
    let (checkpoint, curves) = (args.training.checkpoint.as_deref(), args.training.curves.as_deref());
    let outputs: Vec<&Path> =
        [Some(args.output.as_path()), checkpoint, curves].into_iter().flatten().collect();
    check_outputs(&inputs, &outputs)?;
    for output in outputs {
        drop(AtomicFile::create(output)?);
    }
    Ok(())
}

/// Trains with a progress bar.
fn train_with_bar(app: &App, recipe: &Recipe, inputs: Inputs<'_>) -> anyhow::Result<TrainedModel> {
    let pool = app.pool()?;
    let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
    let mut bar = TrainingBar::new(recipe.train.epochs);
    Ok(train(recipe, inputs, exec, &mut |event| bar.show(&event))?)
}

fn accuracy(trained: &TrainedModel, args: &RecTrainArgs, seconds: f64) -> Accuracy {
    let (model, report) = (&trained.model, &trained.report);
    let (bytes, full) = (model.embedding_bytes(), model.config().full_embedding_bytes);
    Accuracy {
        auc: report.valid.map(|v| v.auc).filter(|a| a.is_finite()),
        logloss: report.valid.map(|v| v.logloss),
        embedding_bytes: bytes,
        full_embedding_bytes: full,
        compression: full as f64 / bytes.max(1) as f64,
        rows: report.rows,
        seconds,
        more: More::Train {
            encoder: model.config().encoder.encoder.clone(),
            rows_per_second: report.rows_per_second,
            bad_rows: trained.bad_rows,
            model_bytes: args.output.metadata().map_or(0, |m| m.len()),
        },
    }
}

fn human(r: &Accuracy, output: &Path, bad_rows: u64) -> String {
    let accuracy = match (r.auc, r.logloss) {
        (Some(auc), Some(loss)) => format!("validation AUC {auc:.4}, log loss {loss:.4}"),
        (None, Some(loss)) => format!("validation log loss {loss:.4}"),
        _ => "not validated".to_owned(),
    };
    let skipped = match bad_rows {
        0 => String::new(),
        n => format!(", {n} unusable rows skipped"),
    };
    format!(
        "{}: {accuracy}\nembeddings {} instead of {} ({:.0} times smaller); {} rows in {:.0} s{skipped}",
        output.display(),
        format::bytes(r.embedding_bytes),
        format::bytes(r.full_embedding_bytes),
        r.compression,
        r.rows,
        r.seconds
    )
}

fn recipe(args: &RecTrainArgs, seed: u64) -> anyhow::Result<Recipe> {
    let (e, t) = (&args.encoder, &args.training);
    let precision = e.precision.unwrap_or(match e.encoder.as_str() {
        "full" => Precision::F32,
        _ => Precision::Int4,
    });
    if e.quantization_aware && precision == Precision::F32 {
        return Err(Error::bad_input("`quantization_aware`: rows of f32 are not rounded")
            .with_hint("use `precision` bf16, int8 or int4")
            .into());
    }
    let encoder = EncoderOptions {
        block_dim: e.block_dim,
        overlap: e.overlap,
        num_hashes: e.num_hashes,
        signs: e.signs,
        weight_share: e.weight_share,
        weight_num_hashes: e.weight_num_hashes,
        groups: e.groups,
        frequent_share: e.frequent_share,
        per_feature_tables: e.per_feature_tables,
        precision,
        // Without quantization-aware training, int4 loses more accuracy than its additional rows gain.
        quantization_aware: e.quantization_aware || precision == Precision::Int4,
        ..EncoderOptions::new(&e.encoder, e.dim, 0)
    };
    let default = TrainOptions::default();
    let train = TrainOptions {
        epochs: t.epochs,
        batch: t.batch.get(),
        lr: t.lr.unwrap_or(default.lr),
        dense_lr: t.dense_lr.unwrap_or(default.dense_lr),
        optimizer: t.optimizer,
        patience: 1,
        checkpoint: t.checkpoint.clone(),
        checkpoint_steps: t.checkpoint_steps,
        ..default
    };
    Ok(Recipe {
        encoder,
        budget: e.size.budget(),
        preset: t.layers.clone(),
        seed,
        shuffle: t.shuffle,
        hold_out: 20,
        train,
    })
}

/// The schema file, or a schema inferred from the data.
fn schema(
    app: &App,
    path: &Path,
    data: &Data,
    columns: &ColumnArgs,
    options: &OpenOptions,
) -> anyhow::Result<Schema> {
    let said = columns.label.is_some() || columns.categorical.is_some() || columns.numeric.is_some();
    let file = columns.schema.clone().or_else(|| Data::schema_file(path).filter(|_| !said));
    if let Some(file) = file {
        app.printer.note(format_args!("schema: {}", file.display()));
        let mut schema = Schema::from_toml_file(&file)?;
        if let Data::Files(files) = data {
            if let Some(note) = files.left_out(&schema, files.names().iter().map(String::as_str)) {
                app.printer.note(note);
            }
            files.fit(&mut schema, options)?;
        }
        return Ok(schema);
    }
    let hints = Hints {
        label: columns.label.clone(),
        numeric: columns.numeric.clone(),
        categorical: columns.categorical.clone(),
        crosses: columns.cross.iter().map(|c| c.split(':').map(str::to_owned).collect()).collect(),
    };
    let (schema, notes) = data.schema(&hints, options)?;
    for note in notes {
        app.printer.note(note);
    }
    Ok(schema)
}

fn check_format(data: &Data, wanted: Option<&str>, path: &Path) -> anyhow::Result<()> {
    let (Some(wanted), Data::Files(files)) = (wanted, data) else { return Ok(()) };
    let found = files.format();
    if found.name() == wanted {
        return Ok(());
    }
    Err(Error::bad_file(path, format!("its format is {found}, not {wanted}")).into())
}
