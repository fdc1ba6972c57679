//! The complete training of `scrimp rec train`: count the ids, size the encoder, shuffle, train, quantize.

use crate::{
    Error, Result,
    data::{Data, Digested, Fold, Folded, Memory, OpenOptions, RowSource, Shuffled},
    encoders::{EncoderConfig, EncoderOptions, Exec, IdCounts, Precision, keys_for, plan},
    model::Model,
    schema::Schema,
    train::{self, Preset, Progress, TrainOptions, TrainReport},
};
use xxhash_rust::xxh3::xxh3_64;

/// The largest size of the embeddings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// The size of a full f32 table (distinct training ids x dimension x 4 bytes) divided by this factor.
    Compression(f64),
    /// A number of bytes.
    Bytes(u64),
}

impl Budget {
    /// The number of bytes, where full f32 tables have `full`.
    pub fn bytes(self, full: u64) -> u64 {
        match self {
            Self::Compression(by) => (full as f64 / by) as u64,
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The settings of a training.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Options of the encoder. [`Recipe::budget`] and [`Recipe::seed`] override the fields of the same name.
    pub encoder: EncoderOptions,
    /// Size of the embeddings.
    pub budget: Budget,
    /// The dense layers: one of [`Preset::NAMES`].
    pub preset: String,
    /// Seed of hashes, initial values and shuffling.
    pub seed: u64,
    /// Rows of a shuffled window; 0: no shuffling.
    pub shuffle: usize,
    /// Without validation data, one in this many training rows becomes validation data; 0: none.
    pub hold_out: u64,
    /// Options of the training.
    pub train: TrainOptions,
}

/// The data of a training.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Training rows.
    pub train: &'a Data,
    /// Validation rows, for early stopping and the choice of the best model.
    pub valid: Option<&'a Data>,
    /// The columns of both.
    pub schema: &'a Schema,
    /// Options of both.
    pub options: &'a OpenOptions,
}

/// An event of a training.
#[derive(Debug)]
pub enum Event<'a> {
    /// Ids are being counted: rows so far, and the finished part if it is known.
    Counting(u64, Option<f64>),
    /// The embeddings are being fitted to those of another model: rows of all passes so far, the finished part of this
    /// pass if it is known, and the relative squared error ([`crate::distill`]).
    Fitting(u64, Option<f64>, f64),
    /// Ids are counted, and the model has a shape.
    Planned(&'a IdCounts, &'a EncoderConfig),
    /// A step is finished.
    Training(&'a Progress),
}

/// A trained model.
pub struct TrainedModel {
    /// The model, with embeddings in their stored precision.
    pub model: Model,
    /// The report of the training.
    pub report: TrainReport,
    /// Invalid training rows, which were left out.
    pub bad_rows: u64,
}

/// Trains a model.
///
/// # Errors
/// Those of the data; options that fit no encoder; a failed allocation; a file that cannot be written.
pub fn train(
    recipe: &Recipe,
    inputs: Inputs<'_>,
    exec: Exec<'_>,
    on: &mut dyn FnMut(Event<'_>),
) -> Result<TrainedModel> {
    recipe.train.check()?;
    let NewModel { mut model, encoder, digest } = new_model(recipe, inputs, on)?;
    let digest = digest.map(|rows| inputs.digest(recipe, rows)).transpose()?;
    let (mut rows, mut valid) = (inputs.training_rows(recipe)?, inputs.validation_rows(recipe)?);
    let valid_rows = valid.as_mut().map(|v| &mut **v as &mut dyn RowSource);
    let data = train::TrainData { train: &mut *rows, valid: valid_rows, digest };
    let mut report = train::train(&mut model, exec, data, &recipe.train, &mut |p| on(Event::Training(p)))?;
    model.quantize();
    // The report has the accuracy of the stored model.
    let changed = encoder.precision != Precision::F32 && !encoder.quantization_aware;
    if let Some(source) = valid.as_mut().filter(|_| changed && report.valid.is_some()) {
        report.valid = Some(train::evaluate(&mut model, exec, &mut **source, recipe.train.batch)?);
    }
    Ok(TrainedModel { model, report, bad_rows: rows.bad_rows() })
}

impl Inputs<'_> {
    /// A hash of the training rows, which have the digest `train`, of the validation rows and of the order of both.
    fn digest(&self, recipe: &Recipe, train: u64) -> Result<u64> {
        let valid = match self.valid {
            Some(data) => {
                let mut rows = Digested::new(self.open(data)?);
                rows.skip(u64::MAX)?;
                rows.digest()
            }
            None => recipe.hold_out,
        };
        let all = [train, valid, recipe.shuffle as u64, recipe.seed];
        Ok(xxh3_64(&all.map(u64::to_le_bytes).concat()))
    }

    pub(crate) fn open(&self, data: &Data) -> Result<Box<dyn RowSource>> {
        data.open(self.schema, self.options)
    }

    /// Training rows without the held-out ones, shuffled.
    pub(crate) fn training_rows(&self, recipe: &Recipe) -> Result<Box<dyn RowSource>> {
        let mut rows = self.open(self.train)?;
        if recipe.hold_out > 0 && self.valid.is_none() {
            rows = Box::new(Folded::new(rows, Fold::Rest(recipe.hold_out)));
        }
        Ok(match recipe.shuffle {
            0 => rows,
            window => Box::new(Shuffled::new(rows, window, recipe.seed)),
        })
    }

    /// Validation rows. Held-out rows are few and stay in memory: every evaluation reads them again.
    pub(crate) fn validation_rows(&self, recipe: &Recipe) -> Result<Option<Box<dyn RowSource>>> {
        if let Some(data) = self.valid {
            return self.open(data).map(Some);
        }
        if recipe.hold_out == 0 {
            return Ok(None);
        }
        let mut held_out = Folded::new(self.open(self.train)?, Fold::OneIn(recipe.hold_out));
        Ok(Some(Box::new(Memory::read(&mut held_out)?)))
    }
}

struct NewModel {
    model: Model,
    /// The options of its encoder.
    encoder: EncoderOptions,
    /// The digest of the training rows, if checkpoints need it.
    digest: Option<u64>,
}

/// Counts the ids and makes a model of the right size.
fn new_model(recipe: &Recipe, inputs: Inputs<'_>, on: &mut dyn FnMut(Event<'_>)) -> Result<NewModel> {
    let schema = inputs.schema;
    if schema.n_categorical() == 0 {
        return Err(Error::bad_input("there is no categorical column, so there is nothing to embed")
            .with_hint("name some with `categorical`"));
    }
    let mut encoder = recipe.encoder.clone();
    encoder.seed = recipe.seed;
    let mut source = Digested::new(inputs.open(inputs.train)?);
    let keep_keys = encoder.encoder == "full";
    let mut counting = |rows, part| on(Event::Counting(rows, part));
    let (id_counts, _) = match recipe.train.checkpoint {
        Some(_) => train::count_ids(&mut source, keep_keys, &mut counting)?,
        None => train::count_ids(source.source(), keep_keys, &mut counting)?,
    };
    let digest = recipe.train.checkpoint.as_ref().map(|_| source.digest());
    drop(source);
    let full = id_counts.full_bytes(encoder.dim);
    encoder.budget = match recipe.budget {
        Budget::Compression(_) if encoder.encoder == "full" => u64::MAX,
        budget => budget.bytes(full),
    };
    let config = plan(&encoder, &id_counts)?;
    on(Event::Planned(&id_counts, &config));
    let preset = Preset::named(&recipe.preset).ok_or_else(|| {
        Error::bad_input(format!("there are no layers called '{}'", recipe.preset))
            .with_hint(format!("the presets are {}", Preset::NAMES.join(", ")))
    })?;
    let keys = keys_for(&config, &id_counts);
    let model = Model::new(preset.config(schema.clone(), config, recipe.seed, full), &keys)?;
    Ok(NewModel { model, encoder, digest })
}
