//! From data to a trained model, as `scrimp rec train` does it: count the ids, size the encoder, shuffle, train.

use crate::{
    Error, Result,
    data::{Data, Fold, Folded, Memory, OpenOptions, RowSource, Shuffled},
    encoders::{EncoderConfig, EncoderOptions, Exec, IdCounts, Precision, keys_for, plan},
    model::Model,
    schema::Schema,
    train::{self, Preset, Progress, TrainOptions, TrainReport},
};

/// How large the embeddings may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// A part of a full f32 table: distinct training ids x dimension x 4 bytes, divided by this.
    Compression(f64),
    /// Bytes.
    Bytes(u64),
}

/// Everything but the data.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The encoder's options; its budget is set from [`Recipe::budget`].
    pub encoder: EncoderOptions,
    /// Size of the embeddings.
    pub budget: Budget,
    /// The dense layers: a name that [`Preset::named`] knows.
    pub preset: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Rows that are shuffled at a time; 0: the order of the file.
    pub shuffle: usize,
    /// One in so many training rows is held out where there is no validation data; 0: none.
    pub hold_out: u64,
    /// How to train.
    pub train: TrainOptions,
}

/// What is going on.
#[derive(Debug)]
pub enum Event<'a> {
    /// Ids are being counted: rows so far, and the part of all where it is known.
    Counting(u64, Option<f64>),
    /// Ids have been counted, and the model has a shape.
    Planned(&'a IdCounts, &'a EncoderConfig),
    /// A step was made.
    Training(&'a Progress),
}

/// A trained model.
pub struct Trained {
    /// The model, its embeddings stored as they are used.
    pub model: Model,
    /// How training went.
    pub report: TrainReport,
    /// Training rows that could not be used.
    pub bad_rows: u64,
}

/// Trains on `data` with `schema`; `valid`, or the rows held out, decide when to stop and which state is the best.
///
/// # Errors
/// Those of the data; options that fit no encoder; memory or disk that cannot be had.
pub fn train(
    recipe: &Recipe,
    data: &Data,
    valid: Option<&Data>,
    schema: &Schema,
    options: &OpenOptions,
    exec: Exec<'_>,
    on: &mut dyn FnMut(Event<'_>),
) -> Result<Trained> {
    if schema.n_categorical() == 0 {
        return Err(Error::bad_input("there is no categorical column, so there is nothing to embed")
            .with_hint("name some with `categorical`"));
    }
    let mut encoder = recipe.encoder.clone();
    encoder.seed = recipe.seed;
    let mut source = data.open(schema, options)?;
    let keep_keys = encoder.encoder == "full";
    let (id_counts, _) =
        train::count_ids(&mut *source, keep_keys, &mut |rows, part| on(Event::Counting(rows, part)))?;
    drop(source);
    let full = id_counts.full_bytes(encoder.dim);
    encoder.budget = match recipe.budget {
        Budget::Bytes(bytes) => bytes,
        Budget::Compression(_) if encoder.encoder == "full" => u64::MAX,
        Budget::Compression(by) => (full as f64 / by) as u64,
    };
    let config = plan(&encoder, &id_counts)?;
    on(Event::Planned(&id_counts, &config));
    let preset = Preset::named(&recipe.preset).ok_or_else(|| {
        Error::bad_input(format!("there are no layers called '{}'", recipe.preset))
            .with_hint(format!("the presets are {}", Preset::NAMES.join(", ")))
    })?;
    let keys = keys_for(&config, &id_counts);
    let mut model = Model::new(preset.config(schema.clone(), config, recipe.seed, full), &keys)?;
    drop(id_counts);

    let fold = |fold| -> Result<Box<dyn RowSource>> {
        let source = data.open(schema, options)?;
        Ok(if recipe.hold_out > 0 && valid.is_none() { Box::new(Folded::new(source, fold)) } else { source })
    };
    let rows = fold(Fold::Rest(recipe.hold_out))?;
    let mut held_out: Option<Box<dyn RowSource>> = match valid {
        Some(data) => Some(data.open(schema, options)?),
        // The same few rows again and again: they are kept, not parsed again.
        None if recipe.hold_out > 0 => {
            Some(Box::new(Memory::read(&mut *fold(Fold::OneIn(recipe.hold_out))?)?))
        }
        None => None,
    };
    let mut rows: Box<dyn RowSource> = match recipe.shuffle {
        0 => rows,
        window => Box::new(Shuffled::new(rows, window, recipe.seed)),
    };
    let checked = held_out.as_mut().map(|v| &mut **v as &mut dyn RowSource);
    let mut report =
        train::train(&mut model, exec, &mut *rows, checked, &recipe.train, &mut |p| on(Event::Training(p)))?;
    model.quantize();
    // What is reported is the accuracy of the model as it is stored.
    let rounds = encoder.precision != Precision::F32 && !encoder.quantization_aware;
    if let Some(source) = held_out.as_mut().filter(|_| rounds && report.valid.is_some()) {
        report.valid = Some(train::evaluate(&mut model, exec, &mut **source, recipe.train.batch)?);
    }
    Ok(Trained { model, report, bad_rows: rows.bad_rows() })
}
