//! Compression of a trained model: the small model learns from the predictions of the whole one. Before, its tables can be
//! fitted to the trained ones.
//!
//! ```text
//! rows ── ids ──┬─ trained embeddings ── targets ──┐
//!               └─ small embeddings ───────────────┴─ regression            1. fit, dense layers copied
//! rows ── trained model ── probabilities ── labels of a training            2. distillation
//! ```
//! Encoded rows are linear in the tables, so the fit is a least-squares problem. Rows of data weight each id by its
//! frequency. Distillation (Hinton et al., arXiv 1503.02531) then trains all layers; probabilities say more than labels of
//! 0 and 1. With all rows of the training, the distillation is as good without the fit; with a few percent of them, the fit
//! decides.

use crate::{
    Error, Result,
    data::{Batch, RowSource},
    encoders::{Exec, keys_for, plan},
    model::Model,
    recipe::{Event, Inputs, Recipe},
    schema::Schema,
    train::{self, Evaluation, TrainData},
};
use scrimp_kernels::embedding::Optimizer;

/// Learning rate of the fit.
const FIT_LR: f32 = 0.05;

/// Options of [`compress`] beside those of its [`Recipe`].
#[derive(Debug, Clone, Copy)]
pub struct DistillOptions {
    /// Passes of the fit over the rows.
    pub fit_passes: u64,
    /// Share of the labels in the targets of the distillation, from 0 to 1; the predictions of the whole model have the
    /// rest.
    pub label_share: f32,
}

impl Default for DistillOptions {
    fn default() -> Self {
        Self { fit_passes: 0, label_share: 0.2 }
    }
}

/// A compressed model and its accuracy on the validation rows.
pub struct Distilled {
    /// The small model.
    pub model: Model,
    /// Accuracy of the whole model.
    pub whole: Option<Evaluation>,
    /// Accuracy after the fit.
    pub fitted: Option<Evaluation>,
    /// Accuracy of the small model.
    pub small: Option<Evaluation>,
    /// Squared error of the embeddings after the fit, relative to their squares, over the rows of the last pass.
    pub fit_error: f64,
    /// Rows of all passes.
    pub rows: u64,
    /// Invalid rows, which were left out.
    pub bad_rows: u64,
}

/// Makes a small copy of `whole`. The recipe has the encoder, its budget and the options of the distillation, whose
/// [`epochs`](crate::train::TrainOptions::epochs) may be 0; the layers are those of `whole`.
///
/// # Errors
/// As [`crate::recipe::train`], and when the encoder does not fit the layers of `whole`.
pub fn compress(
    whole: &mut Model,
    recipe: &Recipe,
    options: DistillOptions,
    inputs: Inputs<'_>,
    exec: Exec<'_>,
    on: &mut dyn FnMut(Event<'_>),
) -> Result<Distilled> {
    if !(0.0..=1.0).contains(&options.label_share) {
        return Err(Error::bad_input(format!(
            "`label_share` is {}: 0 to 1 is expected",
            options.label_share
        )));
    }
    let mut model = small_model(whole, recipe, inputs, on)?;
    let (mut rows, mut valid) = (inputs.training_rows(recipe)?, inputs.validation_rows(recipe)?);
    let batch = recipe.train.batch;
    let before = accuracy(whole, exec, &mut valid, batch)?;
    let (fit_error, mut total) = fit(&mut model, whole, &mut *rows, (recipe, options), exec, on)?;
    // Adagrad's sums would make the steps of the distillation small.
    model.reset_embedding_optimizer();
    let fitted = if options.fit_passes > 0 { accuracy(&mut model, exec, &mut valid, batch)? } else { None };
    if recipe.train.epochs > 0 {
        let rows = &mut *rows;
        let mut taught = Taught { rows, whole, exec, share: options.label_share, predictions: Vec::new() };
        let valid = valid.as_mut().map(|valid| &mut **valid as &mut dyn RowSource);
        let data = TrainData { train: &mut taught, valid, digest: None };
        let report = train::train(&mut model, exec, data, &recipe.train, &mut |p| on(Event::Training(p)))?;
        total += report.rows;
    }
    model.quantize();
    let small = accuracy(&mut model, exec, &mut valid, batch)?;
    Ok(Distilled { model, whole: before, fitted, small, fit_error, rows: total, bad_rows: rows.bad_rows() })
}

/// The accuracy of a model on the validation rows; `None` without them.
fn accuracy(
    model: &mut Model,
    exec: Exec<'_>,
    valid: &mut Option<Box<dyn RowSource>>,
    batch: usize,
) -> Result<Option<Evaluation>> {
    valid.as_mut().map(|valid| train::evaluate(model, exec, &mut **valid, batch)).transpose()
}

/// A model with the layers of `whole` and the encoder of `recipe`.
fn small_model(
    whole: &Model,
    recipe: &Recipe,
    inputs: Inputs<'_>,
    on: &mut dyn FnMut(Event<'_>),
) -> Result<Model> {
    let mut encoder = recipe.encoder.clone();
    (encoder.seed, encoder.dim) = (recipe.seed, whole.config().encoder.dim);
    let mut source = inputs.open(inputs.train)?;
    let mut counting = |rows, part| on(Event::Counting(rows, part));
    let (id_counts, _) = train::count_ids(&mut *source, encoder.encoder == "full", &mut counting)?;
    encoder.budget = recipe.budget.bytes(whole.config().full_embedding_bytes);
    let config = plan(&encoder, &id_counts)?;
    on(Event::Planned(&id_counts, &config));
    whole.with_encoder(config.clone(), &keys_for(&config, &id_counts))
}

/// Fits the embeddings of `model` to those of `whole`. Returns the relative error and the number of rows.
fn fit(
    model: &mut Model,
    whole: &Model,
    rows: &mut dyn RowSource,
    (recipe, options): (&Recipe, DistillOptions),
    exec: Exec<'_>,
    on: &mut dyn FnMut(Event<'_>),
) -> Result<(f64, u64)> {
    let optimizer = Optimizer::Adagrad { lr: FIT_LR, eps: 1e-8 };
    let (mut batch, mut total, mut relative) = (Batch::default(), 0, f64::NAN);
    for pass in 0..options.fit_passes {
        rows.rewind(pass)?;
        let (mut error, mut norm) = (0.0, 0.0);
        loop {
            let n = rows.next_batch(recipe.train.batch, &mut batch)?;
            if n == 0 {
                break;
            }
            let sums = model.fit_embeddings(exec, whole, &batch, optimizer);
            (error, norm) = (error + sums.0, norm + sums.1);
            total += n as u64;
            on(Event::Fitting(total, rows.progress(), error / norm.max(f64::MIN_POSITIVE)));
        }
        relative = error / norm.max(f64::MIN_POSITIVE);
    }
    Ok((relative, total))
}

/// Rows whose labels are mixed with the predictions of a model.
struct Taught<'a> {
    rows: &'a mut dyn RowSource,
    whole: &'a mut Model,
    exec: Exec<'a>,
    /// Share of the labels.
    share: f32,
    predictions: Vec<f32>,
}

impl RowSource for Taught<'_> {
    fn schema(&self) -> &Schema {
        self.rows.schema()
    }

    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<usize> {
        let n = self.rows.next_batch(rows, batch)?;
        if n > 0 {
            self.whole.predict(self.exec, batch, &mut self.predictions);
            for (label, p) in batch.labels.iter_mut().zip(&self.predictions) {
                *label = self.share * *label + (1.0 - self.share) * p;
            }
        }
        Ok(n)
    }

    fn rewind(&mut self, epoch: u64) -> Result<()> {
        self.rows.rewind(epoch)
    }

    fn rows(&self) -> Option<u64> {
        self.rows.rows()
    }

    fn progress(&self) -> Option<f64> {
        self.rows.progress()
    }

    fn bad_rows(&self) -> u64 {
        self.rows.bad_rows()
    }
}
