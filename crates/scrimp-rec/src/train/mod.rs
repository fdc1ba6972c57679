//! Training: epochs of steps, evaluation, early stopping, checkpoints.

mod curves;
mod id_counts;

pub use curves::svg;
pub use id_counts::count_ids;

use crate::{
    Error, Result,
    data::{Batch, RowSource},
    encoders::{EncoderConfig, Exec},
    metrics,
    model::{Interaction, Model, ModelConfig, StepOptions},
};
use scrimp_kernels::embedding::Optimizer;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// How to train.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Passes over the data.
    pub epochs: u64,
    /// Rows of a step.
    pub batch: usize,
    /// Learning rate of the embeddings.
    pub lr: f32,
    /// Learning rate of the dense layers.
    pub dense_lr: f32,
    /// How embeddings learn.
    pub optimizer: OptimizerKind,
    /// Evaluate after so many steps [default: after each epoch]; only with validation data.
    pub eval_steps: Option<u64>,
    /// Stop after so many evaluations without a better AUC, and keep the best model; 0: never.
    pub patience: u32,
    /// Write a checkpoint here, and go on from one that is here.
    pub checkpoint: Option<PathBuf>,
    /// Steps between checkpoints.
    pub checkpoint_steps: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            epochs: 1,
            batch: 2048,
            lr: 0.05,
            dense_lr: 1e-3,
            optimizer: OptimizerKind::Adagrad,
            eval_steps: None,
            patience: 2,
            checkpoint: None,
            checkpoint_steps: 1000,
        }
    }
}

/// How embeddings learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptimizerKind {
    /// A learning rate for each value.
    Adagrad,
    /// One for each row.
    RowWiseAdagrad,
    /// One for all.
    Sgd,
}

impl TrainOptions {
    /// How a step changes the parameters.
    pub fn step(&self) -> StepOptions {
        let (lr, eps) = (self.lr, 1e-8);
        let embedding = match self.optimizer {
            OptimizerKind::Adagrad => Optimizer::Adagrad { lr, eps },
            OptimizerKind::RowWiseAdagrad => Optimizer::RowWiseAdagrad { lr, eps },
            OptimizerKind::Sgd => Optimizer::Sgd { lr },
        };
        StepOptions { embedding, dense_lr: self.dense_lr }
    }
}

/// Sizes of the dense layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// How vectors meet.
    pub interaction: Interaction,
    /// Hidden layers of the bottom MLP.
    pub bottom: Vec<usize>,
    /// Hidden layers of the top MLP.
    pub top: Vec<usize>,
}

impl Preset {
    /// Names that [`Preset::named`] knows.
    pub const NAMES: [&'static str; 4] = ["dlrm", "dlrm-mlperf", "lr", "fm"];

    /// `dlrm` (small layers), `dlrm-mlperf` (those of MLPerf: 512-256 and 1024-1024-512-256), `lr` (logistic
    /// regression, with `--dim 1`), `fm` (a factorization machine).
    pub fn named(name: &str) -> Option<Self> {
        let preset = |interaction, bottom: &[usize], top: &[usize]| {
            Some(Self { interaction, bottom: bottom.to_vec(), top: top.to_vec() })
        };
        match name {
            "dlrm" => preset(Interaction::Dot, &[128], &[256, 128]),
            "dlrm-mlperf" => preset(Interaction::Dot, &[512, 256], &[1024, 1024, 512, 256]),
            "lr" => preset(Interaction::Concat, &[], &[]),
            "fm" => preset(Interaction::Dot, &[], &[]),
            _ => None,
        }
    }

    /// The model's configuration. Bagged encoders have too few vectors for products: they are put side by side.
    pub fn config(
        &self,
        schema: crate::schema::Schema,
        encoder: EncoderConfig,
        seed: u64,
        full_embedding_bytes: u64,
    ) -> ModelConfig {
        let interaction = if encoder.bagged { Interaction::Concat } else { self.interaction };
        let (bottom, top) = (self.bottom.clone(), self.top.clone());
        ModelConfig { schema, encoder, interaction, bottom, top, seed, full_embedding_bytes }
    }
}

/// Accuracy on some rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Area under the ROC curve.
    pub auc: f64,
    /// Mean negative log likelihood.
    pub logloss: f64,
    /// Rows.
    pub rows: u64,
}

/// A point of the learning curves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Rows learnt from so far.
    pub rows: u64,
    /// Mean log loss of the training rows since the last point, before they were learnt from.
    pub train_logloss: f64,
    /// On the validation data.
    pub valid: Option<Evaluation>,
}

/// What training tells while it runs.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Which pass, from 0.
    pub epoch: u64,
    /// Rows of all passes so far.
    pub rows: u64,
    /// Part of this pass that is done, where it can be told.
    pub epoch_progress: Option<f64>,
    /// Recent log loss.
    pub logloss: f64,
    /// Rows per second of this run.
    pub rows_per_second: f64,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct TrainReport {
    /// Accuracy of the model as it is returned, on the validation data.
    pub valid: Option<Evaluation>,
    /// The learning curves.
    pub curve: Vec<CurvePoint>,
    /// Rows learnt from, all passes together.
    pub rows: u64,
    /// Seconds of this run.
    pub seconds: f64,
    /// Rows per second of this run, evaluation not counted.
    pub rows_per_second: f64,
}

/// Where a training stands; with the model it is a checkpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    epoch: u64,
    /// Rows of this epoch that are done.
    epoch_rows: u64,
    rows: u64,
    curve: Vec<CurvePoint>,
    /// Sum of log losses since the last point of the curve, and rows.
    loss: f64,
    loss_rows: u64,
    bad: u32,
    best: Option<f64>,
    batch: usize,
}

/// Accuracy of `model` on all rows of `source`.
///
/// # Errors
/// Those of the source; rows without a label; labels of one kind only.
pub fn evaluate(
    model: &mut Model,
    exec: Exec<'_>,
    source: &mut dyn RowSource,
    batch: usize,
) -> Result<Evaluation> {
    check_schema(model, source)?;
    let (mut labels, mut predictions) = (Vec::new(), Vec::new());
    let (mut rows, mut some) = (Batch::default(), Vec::new());
    source.rewind(0)?;
    while source.next_batch(batch.max(1), &mut rows)? > 0 {
        model.predict(exec, &rows, &mut some);
        labels.extend_from_slice(&rows.labels);
        predictions.extend_from_slice(&some);
    }
    if labels.is_empty() {
        return Err(Error::bad_input("the data to evaluate on has no rows"));
    }
    if labels.iter().any(|l| l.is_nan()) {
        return Err(Error::bad_input("the data to evaluate on has no labels"));
    }
    Ok(Evaluation {
        auc: metrics::auc(&labels, &predictions).unwrap_or(f64::NAN),
        logloss: metrics::log_loss(&labels, &predictions),
        rows: labels.len() as u64,
    })
}

fn check_schema(model: &Model, source: &dyn RowSource) -> Result<()> {
    let (a, b) = (model.schema(), source.schema());
    if (a.n_numeric(), a.n_categorical()) != (b.n_numeric(), b.n_categorical()) {
        return Err(Error::bad_input(format!(
            "the model has {} numeric and {} categorical columns, the data {} and {}",
            a.n_numeric(),
            a.n_categorical(),
            b.n_numeric(),
            b.n_categorical()
        ))
        .with_hint("use data with the columns that the model was trained with"));
    }
    Ok(())
}

/// Trains `model` on `source`. With a checkpoint at `options.checkpoint`, `model` is replaced by it and training goes on where
/// it was: to the same result as without the interruption.
///
/// # Errors
/// Those of the sources; a checkpoint that cannot be written or belongs to another training.
pub fn train(
    model: &mut Model,
    exec: Exec<'_>,
    source: &mut dyn RowSource,
    mut valid: Option<&mut dyn RowSource>,
    options: &TrainOptions,
    progress: &mut dyn FnMut(&Progress),
) -> Result<TrainReport> {
    check_schema(model, source)?;
    if options.batch == 0 {
        return Err(Error::bad_input("a batch has at least one row"));
    }
    let mut state = State { batch: options.batch, ..State::default() };
    if let Some(path) = options.checkpoint.as_deref().filter(|p| p.exists()) {
        let (loaded, training) = Model::load(path)?;
        let other = |what: &str| {
            Error::bad_file(path, what).with_hint("delete it, or choose another file for the checkpoint")
        };
        if loaded.config() != model.config() {
            return Err(other("a checkpoint of a model of another shape"));
        }
        let training = training.ok_or_else(|| other("a model, not a checkpoint"))?;
        state = serde_json::from_value(training).map_err(|e| other(&format!("not a checkpoint: {e}")))?;
        if state.batch != options.batch {
            return Err(other("a checkpoint with another `batch`"));
        }
        *model = loaded;
    }
    let best_path = options.checkpoint.as_deref().map(best_path);
    // The best model so far, where a later one may be worse.
    let scratch = tempfile_path();
    let best_path = best_path.unwrap_or_else(|| scratch.clone());
    let start = Instant::now();
    let (mut learnt, mut learning) = (0_u64, 0.0);
    let step = options.step();
    let mut batch = Batch::default();
    let mut steps = state.rows.div_ceil(options.batch as u64);
    let mut recent = f64::NAN;
    let mut stopped = false;
    while state.epoch < options.epochs && !stopped {
        source.rewind(state.epoch)?;
        source.skip(state.epoch_rows)?;
        loop {
            let before = Instant::now();
            let n = source.next_batch(options.batch, &mut batch)?;
            if n == 0 {
                break;
            }
            if batch.labels.iter().any(|l| l.is_nan()) {
                return Err(Error::bad_input("the training data has rows without a label"));
            }
            let loss = model.step(exec, &batch, step);
            if !loss.is_finite() {
                return Err(Error::bad_input("training diverged: the loss is not a number")
                    .with_hint("use a smaller `lr`"));
            }
            learning += before.elapsed().as_secs_f64();
            learnt += n as u64;
            steps += 1;
            state.rows += n as u64;
            state.epoch_rows += n as u64;
            state.loss += loss;
            state.loss_rows += n as u64;
            let mean = loss / n as f64;
            recent = if recent.is_nan() { mean } else { 0.95 * recent + 0.05 * mean };
            progress(&Progress {
                epoch: state.epoch,
                rows: state.rows,
                epoch_progress: source.progress(),
                logloss: recent,
                rows_per_second: learnt as f64 / learning.max(1e-9),
            });
            if options.eval_steps.is_some_and(|n| steps.is_multiple_of(n.max(1))) {
                stopped = point(model, exec, &mut valid, options, &mut state, &best_path)?;
                if stopped {
                    break;
                }
            }
            if let Some(path) = &options.checkpoint
                && steps.is_multiple_of(options.checkpoint_steps.max(1))
            {
                save_state(model, path, &state)?;
            }
        }
        if !stopped {
            if state.loss_rows > 0 {
                stopped = point(model, exec, &mut valid, options, &mut state, &best_path)?;
            }
            state.epoch += 1;
            state.epoch_rows = 0;
            if !stopped && state.epoch < options.epochs {
                model.between_epochs(exec);
            }
            if let Some(path) = &options.checkpoint {
                save_state(model, path, &state)?;
            }
        }
    }
    if state.rows == 0 {
        return Err(Error::bad_input("the training data has no rows"));
    }
    // A later model may be worse than the best one.
    if state.bad > 0 && best_path.exists() {
        (*model, _) = Model::load(&best_path)?;
    }
    let _ = std::fs::remove_file(&scratch);
    let mut evaluated = state.curve.iter().filter_map(|p| p.valid);
    let valid =
        if state.bad > 0 { evaluated.max_by(|a, b| a.auc.total_cmp(&b.auc)) } else { evaluated.next_back() };
    Ok(TrainReport {
        valid,
        curve: state.curve,
        rows: state.rows,
        seconds: start.elapsed().as_secs_f64(),
        rows_per_second: learnt as f64 / learning.max(1e-9),
    })
}

/// Where the best model so far is kept beside the checkpoint at `path`.
fn best_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".best");
    path.with_file_name(name)
}

/// Removes the checkpoint at `path` and what belongs to it, when the model has been written.
pub fn remove_checkpoint(path: &Path) {
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_file(best_path(path));
}

/// A name for the best model of a training without checkpoints.
fn tempfile_path() -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("scrimp-best-{}-{n}.safetensors", std::process::id()))
}

fn save_state(model: &mut Model, path: &Path, state: &State) -> Result<()> {
    let state = serde_json::to_value(state).map_err(|e| Error::bad_input(e.to_string()))?;
    model.save(path, Some(&state))
}

/// Adds a point to the curves; true where training should stop.
fn point(
    model: &mut Model,
    exec: Exec<'_>,
    valid: &mut Option<&mut dyn RowSource>,
    options: &TrainOptions,
    state: &mut State,
    best_path: &Path,
) -> Result<bool> {
    let evaluation = match valid {
        Some(valid) => Some(evaluate(model, exec, &mut **valid, options.batch)?),
        None => None,
    };
    let train_logloss = state.loss / state.loss_rows.max(1) as f64;
    state.curve.push(CurvePoint { rows: state.rows, train_logloss, valid: evaluation });
    (state.loss, state.loss_rows) = (0.0, 0);
    let Some(evaluation) = evaluation.filter(|_| options.patience > 0) else { return Ok(false) };
    if state.best.is_none_or(|best| evaluation.auc > best) {
        state.best = Some(evaluation.auc);
        state.bad = 0;
        model.save(best_path, None)?;
        return Ok(false);
    }
    state.bad += 1;
    Ok(state.bad >= options.patience)
}
