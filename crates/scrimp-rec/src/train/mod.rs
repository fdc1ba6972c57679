//! Training: epochs of steps, evaluation, early stopping, checkpoints.

mod curves;
mod evaluate;
mod id_counts;
mod options;

pub use curves::svg;
pub use evaluate::{Evaluation, evaluate};
pub use id_counts::count_ids;
pub use options::{OptimizerKind, Preset, TrainOptions};

use crate::{
    Error, Result,
    data::{Batch, RowSource},
    encoders::Exec,
    model::Model,
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// A point of the learning curves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Training rows so far.
    pub rows: u64,
    /// Mean log loss of the training rows since the last point, each before its step.
    pub train_logloss: f64,
    /// Accuracy on the validation data.
    pub valid: Option<Evaluation>,
}

/// The progress of a training.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Rows of all epochs so far.
    pub rows: u64,
    /// The finished part of this epoch, from 0 to 1; `None` if unknown.
    pub epoch_progress: Option<f64>,
    /// Exponential moving average of the log loss.
    pub logloss: f64,
    /// Rows per second of this run.
    pub rows_per_second: f64,
}

/// The result of a training.
#[derive(Debug, Clone)]
pub struct TrainReport {
    /// Accuracy of the returned model on the validation data.
    pub valid: Option<Evaluation>,
    /// The learning curves.
    pub curve: Vec<CurvePoint>,
    /// Training rows of all epochs.
    pub rows: u64,
    /// Duration of this run in seconds.
    pub seconds: f64,
    /// Rows per second of this run, without evaluations.
    pub rows_per_second: f64,
}

/// The data of a training.
pub struct TrainData<'a> {
    /// Training rows.
    pub train: &'a mut dyn RowSource,
    /// Validation rows.
    pub valid: Option<&'a mut dyn RowSource>,
    /// A hash of the rows and their order, which a checkpoint stores: it does not resume with other rows. `None`: not compared.
    pub digest: Option<u64>,
}

/// The state of a training. A checkpoint has it beside the model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    epoch: u64,
    /// Finished rows of this epoch.
    epoch_rows: u64,
    rows: u64,
    curve: Vec<CurvePoint>,
    /// Sum of log losses since the last point of the curve, and its number of rows.
    loss: f64,
    loss_rows: u64,
    /// Evaluations since the best one.
    bad: u32,
    best: Option<f64>,
    batch: usize,
    /// Absent in checkpoints of version 0.1.
    #[serde(default)]
    settings: Option<Settings>,
}

/// The settings that a resumed training must share with the interrupted one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Settings {
    lr: f32,
    dense_lr: f32,
    optimizer: String,
    /// [`TrainData::digest`], in hexadecimal.
    rows: Option<String>,
}

impl Settings {
    fn new(options: &TrainOptions, data: &TrainData<'_>) -> Self {
        Self {
            lr: options.lr,
            dense_lr: options.dense_lr,
            optimizer: options.optimizer.name().to_owned(),
            rows: data.digest.map(|digest| format!("{digest:016x}")),
        }
    }

    /// The first difference from those of a checkpoint.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let rows = |a: &Self| a.rows.clone().filter(|_| self.rows.is_some() && other.rows.is_some());
        if rows(self) != rows(other) {
            Some("a checkpoint of a training on other data, or in another order")
        } else if self.lr != other.lr {
            Some("a checkpoint with another `lr`")
        } else if self.dense_lr != other.dense_lr {
            Some("a checkpoint with another `dense_lr`")
        } else if self.optimizer != other.optimizer {
            Some("a checkpoint with another `optimizer`")
        } else {
            None
        }
    }
}

/// Trains `model`. If `options.checkpoint` exists, `model` is replaced by the checkpoint and the training resumes: its result is
/// that of an uninterrupted training.
///
/// # Errors
/// Those of the sources; a checkpoint of another training; a file that cannot be written; a loss that is not finite.
pub fn train(
    model: &mut Model,
    exec: Exec<'_>,
    data: TrainData<'_>,
    options: &TrainOptions,
    progress: &mut dyn FnMut(&Progress),
) -> Result<TrainReport> {
    evaluate::check_schema(model, data.train)?;
    options.check()?;
    let start = Instant::now();
    let state = match options.checkpoint.as_deref().filter(|path| path.exists()) {
        Some(path) => resume(model, path, options, &data)?,
        None => {
            State { batch: options.batch, settings: Some(Settings::new(options, &data)), ..State::default() }
        }
    };
    let best = BestModel::new(options.checkpoint.as_deref());
    let steps = state.rows.div_ceil(options.batch as u64);
    let meter = Meter { rows: 0, seconds: 0.0, logloss: f64::NAN };
    let mut training = Training { model, exec, data, options, progress, state, best, steps, meter };
    while training.state.epoch < options.epochs {
        if training.epoch()? {
            break;
        }
    }
    training.finish(start)
}

/// Replaces `model` by the checkpoint at `path` and returns the state of its training.
fn resume(model: &mut Model, path: &Path, options: &TrainOptions, data: &TrainData<'_>) -> Result<State> {
    let (loaded, training) = Model::load(path)?;
    let other = |what: &str| {
        Error::bad_file(path, what).with_hint("delete it, or choose another file for the checkpoint")
    };
    if loaded.config() != model.config() {
        return Err(other("a checkpoint of another model: other columns, embeddings, layers or `seed`"));
    }
    let training = training.ok_or_else(|| other("a model, not a checkpoint"))?;
    let state: State =
        serde_json::from_value(training).map_err(|e| other(&format!("not a checkpoint: {e}")))?;
    if state.batch != options.batch {
        return Err(other("a checkpoint with another `batch`"));
    }
    let settings = Settings::new(options, data);
    if let Some(difference) = state.settings.as_ref().and_then(|stored| settings.difference(stored)) {
        return Err(other(difference));
    }
    *model = loaded;
    Ok(state)
}

struct Training<'a, 'd> {
    model: &'a mut Model,
    exec: Exec<'a>,
    data: TrainData<'d>,
    options: &'a TrainOptions,
    progress: &'a mut dyn FnMut(&Progress),
    state: State,
    best: BestModel,
    /// Steps of all epochs.
    steps: u64,
    meter: Meter,
}

/// The speed of this run, and the average loss for the progress.
struct Meter {
    rows: u64,
    seconds: f64,
    logloss: f64,
}

impl Meter {
    fn rows_per_second(&self) -> f64 {
        self.rows as f64 / self.seconds.max(1e-9)
    }
}

impl Training<'_, '_> {
    /// Trains on the rest of an epoch. Returns true if the training should stop.
    fn epoch(&mut self) -> Result<bool> {
        if self.steps_of_epoch()? {
            return Ok(true);
        }
        let stop = self.state.loss_rows > 0 && self.add_point()?;
        self.state.epoch += 1;
        self.state.epoch_rows = 0;
        if !stop && self.state.epoch < self.options.epochs {
            self.model.between_epochs(self.exec);
        }
        self.save_checkpoint()?;
        Ok(stop)
    }

    /// The steps of an epoch. Returns true if the training should stop.
    fn steps_of_epoch(&mut self) -> Result<bool> {
        self.data.train.rewind(self.state.epoch)?;
        self.data.train.skip(self.state.epoch_rows)?;
        let mut batch = Batch::default();
        loop {
            let before = Instant::now();
            let rows = self.data.train.next_batch(self.options.batch, &mut batch)? as u64;
            if rows == 0 {
                return Ok(false);
            }
            let loss = self.step(&batch)?;
            self.meter.seconds += before.elapsed().as_secs_f64();
            self.meter.rows += rows;
            self.record(loss, rows);
            if self.options.eval_steps.is_some_and(|n| self.steps.is_multiple_of(n.max(1)))
                && self.add_point()?
            {
                return Ok(true);
            }
            if self.steps.is_multiple_of(self.options.checkpoint_steps.max(1)) {
                self.save_checkpoint()?;
            }
        }
    }

    /// One step. Returns the sum of the log losses of its rows.
    fn step(&mut self, batch: &Batch) -> Result<f64> {
        if batch.labels.iter().any(|l| l.is_nan()) {
            return Err(Error::bad_input("the training data has rows without a label"));
        }
        let loss = self.model.step(self.exec, batch, self.options.step());
        if !loss.is_finite() {
            return Err(Error::bad_input("training diverged: the loss is not a number")
                .with_hint("use a smaller `lr`"));
        }
        Ok(loss)
    }

    /// Counts a step and reports the progress.
    fn record(&mut self, loss: f64, rows: u64) {
        let state = &mut self.state;
        self.steps += 1;
        state.rows += rows;
        state.epoch_rows += rows;
        state.loss += loss;
        state.loss_rows += rows;
        let (mean, average) = (loss / rows as f64, &mut self.meter.logloss);
        *average = if average.is_nan() { mean } else { 0.95 * *average + 0.05 * mean };
        (self.progress)(&Progress {
            epoch: state.epoch,
            rows: state.rows,
            epoch_progress: self.data.train.progress(),
            logloss: *average,
            rows_per_second: self.meter.rows_per_second(),
        });
    }

    /// Evaluates the model and adds a point to the learning curves. Returns true if the training should stop.
    fn add_point(&mut self) -> Result<bool> {
        let evaluation = match &mut self.data.valid {
            Some(valid) => Some(evaluate(self.model, self.exec, &mut **valid, self.options.batch)?),
            None => None,
        };
        let state = &mut self.state;
        let train_logloss = state.loss / state.loss_rows.max(1) as f64;
        state.curve.push(CurvePoint { rows: state.rows, train_logloss, valid: evaluation });
        (state.loss, state.loss_rows) = (0.0, 0);
        let Some(evaluation) = evaluation.filter(|_| self.options.patience > 0) else { return Ok(false) };
        if state.best.is_none_or(|best| evaluation.auc > best) {
            state.best = Some(evaluation.auc);
            state.bad = 0;
            self.model.save(&self.best.path, None)?;
            return Ok(false);
        }
        state.bad += 1;
        Ok(state.bad >= self.options.patience)
    }

    fn save_checkpoint(&mut self) -> Result<()> {
        let Some(path) = &self.options.checkpoint else { return Ok(()) };
        let state = serde_json::to_value(&self.state).map_err(|e| Error::bad_input(e.to_string()))?;
        self.model.save(path, Some(&state))
    }

    /// Restores the best model if later evaluations were worse, and makes the report.
    fn finish(self, start: Instant) -> Result<TrainReport> {
        let state = self.state;
        if state.rows == 0 {
            return Err(Error::bad_input("the training data has no rows"));
        }
        let mut evaluated = state.curve.iter().filter_map(|p| p.valid);
        let valid = if state.bad > 0 {
            evaluated.max_by(|a, b| a.auc.total_cmp(&b.auc))
        } else {
            evaluated.next_back()
        };
        if state.bad > 0 && self.best.path.exists() {
            (*self.model, _) = Model::load(&self.best.path)?;
        }
        Ok(TrainReport {
            valid,
            curve: state.curve,
            rows: state.rows,
            seconds: start.elapsed().as_secs_f64(),
            rows_per_second: self.meter.rows_per_second(),
        })
    }
}

/// The file of the best model so far: beside the checkpoint, or a temporary file, which `drop` removes.
struct BestModel {
    path: PathBuf,
    temporary: bool,
}

impl BestModel {
    fn new(checkpoint: Option<&Path>) -> Self {
        match checkpoint {
            Some(checkpoint) => Self { path: best_path(checkpoint), temporary: false },
            None => Self { path: temporary_path(), temporary: true },
        }
    }
}

impl Drop for BestModel {
    fn drop(&mut self) {
        if self.temporary {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The path of the best model for the checkpoint at `path`.
fn best_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".best");
    path.with_file_name(name)
}

/// Removes the checkpoint at `path` and its best model.
pub fn remove_checkpoint(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_file(best_path(path));
}

/// A new path for the best model of a training without checkpoints.
fn temporary_path() -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("scrimp-best-{}-{n}.safetensors", std::process::id()))
}
