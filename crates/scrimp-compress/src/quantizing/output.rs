//! The format of the output matrix.
//!
//! The output matrix is a quarter of a small model's memory traffic, and every prediction depends on it. It therefore
//! stays dense, and its format is chosen by the loss increase: the divergence of the predictions when only the output
//! matrix is compressed, measured with the kernels of the final model. If it is also the embedding, both change and are
//! measured together.

use crate::{
    Calibration, Dense, Format, Inputs, MatrixConfig, Statistics,
    compress::{EMBEDDING, Packed as PackedTensor, linear},
    layer::{DenseLayer, matrix},
    layer_pass::{Unchanged, run_layer},
    matrix::{MatrixOptions, dense_bytes, round_matrix},
    pruning::sparsegpt::SparseGpt,
};
use scrimp_kernels::{
    DType, Exec, Pool, ops,
    quant::packed::{DenseMatrix, pack},
};
use scrimp_llm::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::{Error, Result},
    load::Encoding,
    logits::{kl_divergence, log_sum_exp},
    model::{
        LayerRunner, LinearWeights,
        projections::{stored_matrix, vector},
        rms_norm_rows,
    },
};
use std::borrow::Cow;

/// Number of tokens for the measurement of the divergence.
const TOKENS: usize = 1024;
/// The largest allowed divergence, nats per token.
pub const ALLOWED_KL: f64 = 0.005;
/// Rows of logits at once.
const LOGITS_ROWS: usize = 32;
/// Rows of the matrix that are rounded at once.
const ROUNDED_ROWS: usize = 1 << 14;

/// How the output matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// In the encoding of the original.
    Keep,
    /// In the encoding of the original, which is also the embedding.
    Shared,
    /// The smallest format whose divergence is allowed; in a file of a given size, the one with the least divergence of
    /// the whole model.
    Measured,
    /// This format.
    As(Format),
}

impl Output {
    /// Everything that a user can choose.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        [Self::Measured, Self::Keep].into_iter().chain(Format::all().map(Self::As))
    }

    /// The name that users and files see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Measured => "auto",
            Self::Keep => "keep",
            Self::Shared => "shared",
            Self::As(format) => format.name(),
        }
    }

    /// One line for lists.
    pub fn about(self) -> &'static str {
        match self {
            Self::Measured => "The smallest format with a small measured KL divergence",
            Self::Keep => "The format of the original",
            Self::Shared => "The format of the original, also for the embedding",
            Self::As(format) => format.about(),
        }
    }

    /// The choice called `name`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::all().chain([Self::Shared]).find(|output| output.name() == name)
    }
}

/// A measured candidate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measured {
    pub(crate) output: Output,
    /// Bytes of the output matrix and the embedding.
    pub(crate) bytes: usize,
    /// Divergence from the original's predictions, nats per token.
    pub(crate) kl: f64,
}

/// The largest relative squared difference of an embedding and an output matrix that are one matrix in two roundings.
/// That of 4 bits with a scale per 32 weights is 0.006.
const ROUNDING: f64 = 0.01;
/// Every how many rows are compared.
const COMPARED: usize = 97;

/// Whether the embedding and the output matrix differ by rounding only, in a model with both. Some files of models that
/// share one matrix have it twice.
fn is_stored_twice(checkpoint: &Checkpoint, pool: &Pool) -> Result<bool> {
    let [embedding, output] = [EMBEDDING, OUTPUT].map(|name| checkpoint.try_tensor(name));
    let (Some(embedding), Some(output)) = (embedding, output) else { return Ok(false) };
    if embedding.shape != output.shape {
        return Ok(false);
    }
    let (mut squares, mut differences) = (0.0, 0.0);
    for row in (0..output.shape[0]).step_by(COMPARED) {
        let [a, b] = [OUTPUT, EMBEDDING].map(|name| matrix(checkpoint, pool, name, row, 1));
        for (a, b) in a?.data.iter().zip(&b?.data) {
            squares += f64::from(*a).powi(2);
            differences += f64::from(a - b).powi(2);
        }
    }
    Ok(differences <= ROUNDING * squares)
}

/// Bytes of the output matrix and the embedding of the original.
pub(crate) fn original_bytes(checkpoint: &Checkpoint) -> usize {
    [EMBEDDING, OUTPUT].iter().map(|name| stored_bytes(checkpoint, name)).sum()
}

/// Bytes of a tensor of the original; 0 if there is none.
fn stored_bytes(checkpoint: &Checkpoint, name: &str) -> usize {
    checkpoint.try_tensor(name).map_or(0, |tensor| tensor.data.len())
}

/// Where the output matrix is.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The stored matrix that is compressed.
    source: &'static str,
    /// The name of the result: the embedding's, if the output matrix is also the embedding.
    name: &'static str,
}

impl Place {
    fn of(checkpoint: &Checkpoint, pool: &Pool) -> Result<Self> {
        let source = name(checkpoint);
        Ok(Self { source, name: if is_stored_twice(checkpoint, pool)? { EMBEDDING } else { source } })
    }

    /// Bytes of the embedding, if it is another matrix.
    fn beside(self, checkpoint: &Checkpoint) -> usize {
        if self.name == EMBEDDING { 0 } else { stored_bytes(checkpoint, EMBEDDING) }
    }
}

/// Bytes of the output matrix and the embedding if the output matrix is stored as `output`.
///
/// # Errors
/// When the checkpoint is damaged.
pub(crate) fn bytes(exec: Exec<'_>, checkpoint: &Checkpoint, output: Output) -> Result<usize> {
    let (place, config) = (Place::of(checkpoint, exec.pool)?, checkpoint.config());
    Ok(match output {
        Output::Keep | Output::Measured => original_bytes(checkpoint),
        Output::Shared => stored_bytes(checkpoint, place.source),
        Output::As(format) => {
            place.beside(checkpoint) + dense_bytes(format, config.vocab_size, config.hidden_size)
        }
    })
}

/// A compressed output matrix; `None` if the original stays.
///
/// # Errors
/// When the checkpoint is damaged, or cannot have the format.
pub(crate) fn compress(
    exec: Exec<'_>,
    checkpoint: &Checkpoint,
    wanted: Output,
    calibration: &Calibration,
) -> Result<Option<PackedTensor>> {
    match wanted {
        Output::Keep => Ok(None),
        Output::Measured => {
            let search = OutputSearch::new(exec, checkpoint, calibration)?;
            for output in [Output::As(Format::Codebook(DType::CB4)), Output::As(Format::INT8)] {
                if let Some((packed, measured)) = search.measure(output)?
                    && measured.bytes < original_bytes(checkpoint)
                    && measured.kl <= ALLOWED_KL
                {
                    return Ok(Some(packed));
                }
            }
            Ok(None)
        }
        Output::Shared | Output::As(_) => {
            OutputSearch::new(exec, checkpoint, calibration)?.compressed(wanted).map(Some)
        }
    }
}

/// The candidates for a file of a given size, with their divergences.
///
/// # Errors
/// When the checkpoint is damaged.
pub(crate) fn candidates(
    exec: Exec<'_>,
    checkpoint: &Checkpoint,
    calibration: &Calibration,
) -> Result<Vec<Measured>> {
    let search = OutputSearch::new(exec, checkpoint, calibration)?;
    let formats = [Format::INT8, Format::Codebook(DType::CB4), Format::Codebook(DType::CB3)];
    let shared = search.place.name != search.place.source;
    let outputs = formats.into_iter().map(Output::As).chain(shared.then_some(Output::Shared));
    let kept = Measured { output: Output::Keep, bytes: original_bytes(checkpoint), kl: 0.0 };
    let mut measured = vec![kept];
    for output in outputs {
        measured.extend(search.measure(output)?.map(|(_, measured)| measured));
    }
    Ok(measured)
}

/// What the measurement of output matrices needs.
struct OutputSearch<'a> {
    exec: Exec<'a>,
    checkpoint: &'a Checkpoint,
    place: Place,
    text: Calibration,
    norm: Vec<f32>,
    /// The inputs of the output matrix in the original, `[tokens][hidden_size]`.
    reference: Vec<f32>,
    inputs: Inputs,
    /// The output matrix of the original.
    original: LinearWeights,
}

impl<'a> OutputSearch<'a> {
    fn new(exec: Exec<'a>, checkpoint: &'a Checkpoint, calibration: &Calibration) -> Result<Self> {
        let place = Place::of(checkpoint, exec.pool)?;
        let text = calibration.first(TOKENS);
        let norm = vector(checkpoint, "output_norm.weight")?;
        let reference = hidden(exec, checkpoint, None, &text, &norm)?;
        let mut inputs = Inputs::new(norm.len(), Statistics::Gram);
        inputs.add(exec, &reference)?;
        let original = output_matrix(exec, checkpoint)?;
        Ok(Self { exec, checkpoint, place, text, norm, reference, inputs, original })
    }

    fn compressed(&self, output: Output) -> Result<PackedTensor> {
        let Self { exec, checkpoint, place: Place { source, name }, .. } = *self;
        let mut packed = match output {
            Output::As(format) => round(exec, checkpoint, source, format, &self.inputs)?,
            _ => {
                let (encoding, data) = checkpoint.stored(source).ok_or_else(|| {
                    Error::damaged_file(checkpoint.path(), format!("tensor {source} is missing"))
                })?;
                let shape = checkpoint.tensor(source)?.shape.clone();
                PackedTensor { name: String::new(), encoding, shape, bytes: data.to_vec() }
            }
        };
        name.clone_into(&mut packed.name);
        Ok(packed)
    }

    /// A candidate and its divergence; `None` if the matrix cannot have the format.
    fn measure(&self, output: Output) -> Result<Option<(PackedTensor, Measured)>> {
        let Self { exec, checkpoint, .. } = *self;
        if let Output::As(format) = output
            && !self.fits(format)?
        {
            return Ok(None);
        }
        let packed = self.compressed(output)?;
        let candidate = linear(exec, packed.encoding, &packed.shape, &packed.bytes)?;
        let x = if self.place.name == EMBEDDING {
            Cow::Owned(hidden(exec, checkpoint, Some(&candidate), &self.text, &self.norm)?)
        } else {
            Cow::Borrowed(&self.reference[..])
        };
        let kl = divergence(exec, checkpoint.config(), (&self.original, &self.reference), (&candidate, &x));
        let bytes = packed.bytes.len() + self.place.beside(checkpoint);
        let measured = Measured { output, bytes, kl: kl.max(0.0) };
        Ok(Some((packed, measured)))
    }

    /// Whether the matrix can have `format`.
    fn fits(&self, format: Format) -> Result<bool> {
        let rows = self.checkpoint.config().vocab_size;
        for first in (0..rows).step_by(ROUNDED_ROWS) {
            let n = ROUNDED_ROWS.min(rows - first);
            if !format.fits(&matrix(self.checkpoint, self.exec.pool, self.place.source, first, n)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Name of the output matrix, if it is not the embedding.
pub(crate) const OUTPUT: &str = "output.weight";

/// Name of the stored output matrix. Models that share it with the embedding use the embedding's name.
fn name(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.try_tensor(OUTPUT).is_some() { OUTPUT } else { EMBEDDING }
}

/// The output matrix of the original.
///
/// # Errors
/// When it is damaged.
pub(crate) fn output_matrix(exec: Exec<'_>, checkpoint: &Checkpoint) -> Result<LinearWeights> {
    let all = 0..checkpoint.config().vocab_size;
    LinearWeights::pack(exec.pool, &stored_matrix(checkpoint, name(checkpoint), &all)?)
}

/// The inputs of the output matrix, `[tokens][hidden_size]`, computed by the original's layers.
fn hidden(
    exec: Exec<'_>,
    checkpoint: &Checkpoint,
    embedding: Option<&LinearWeights>,
    text: &Calibration,
    norm: &[f32],
) -> Result<Vec<f32>> {
    let embedding = embedding.map(|packed| &packed.weight);
    let mut runner = LayerRunner::embed(exec, checkpoint, embedding, &text.tokens, text.window)?;
    for index in 0..checkpoint.config().n_layers {
        let mut layer = DenseLayer::read(checkpoint, exec.pool, index)?;
        run_layer(exec, &mut runner, index, &mut layer, &mut Unchanged)?;
    }
    Ok(rms_norm_rows(exec, checkpoint.config(), norm, runner.hidden()))
}

/// The matrix in `format`, with compensated rounding, some rows at a time.
fn round(
    exec: Exec<'_>,
    checkpoint: &Checkpoint,
    name: &str,
    format: Format,
    inputs: &Inputs,
) -> Result<PackedTensor> {
    let config = checkpoint.config();
    let (rows, cols) = (config.vocab_size, config.hidden_size);
    let (mut weights, mut scales, mut encoded) = (Vec::new(), Vec::new(), Vec::new());
    for first in (0..rows).step_by(ROUNDED_ROWS) {
        let n = ROUNDED_ROWS.min(rows - first);
        let mut part: Dense = matrix(checkpoint, exec.pool, name, first, n)?;
        let cannot = |e| Error::bad_input(format!("tensor {name} cannot be {format}: {e}"));
        format.check(&part).map_err(cannot)?;
        let config = MatrixConfig { format, sparsity: 0.0 };
        let options = MatrixOptions { method: &SparseGpt, inputs, config, keep_zeros: false };
        let rounding = round_matrix(exec.pool, &mut part, &options);
        if let Some(mut rows) = rounding.encode(exec.pool, &part) {
            encoded.append(&mut rows);
            continue;
        }
        scales.extend_from_slice(rounding.scales().unwrap_or_default());
        weights.append(&mut part.data);
    }
    let (name, shape) = (name.to_owned(), vec![rows, cols]);
    let format = match format {
        Format::Codebook(dtype) if !encoded.is_empty() => {
            return Ok(PackedTensor { name, encoding: Encoding::Rows(dtype), shape, bytes: encoded });
        }
        Format::Packed(packed) => packed,
        _ => return Err(Error::bad_input(format!("tensor {name} cannot be {format}"))),
    };
    let scales = (!scales.is_empty()).then_some(&scales[..]);
    let bytes = pack(exec.pool, format, DenseMatrix { rows, cols, weights: &weights }, scales)
        .map_err(|e| Error::bad_input(format!("tensor {name} cannot be {format}: {e}")))?;
    Ok(PackedTensor { name, encoding: Encoding::Packed(format), shape, bytes })
}

fn capped<'a>(exec: Exec<'_>, config: &ModelConfig, logits: &'a [f32]) -> Cow<'a, [f32]> {
    match config.final_logit_softcap {
        None => Cow::Borrowed(logits),
        Some(cap) => {
            let mut logits = logits.to_vec();
            ops::softcap(exec.level, cap, &mut logits);
            Cow::Owned(logits)
        }
    }
}

/// Mean divergence of the candidate's predictions from the reference's.
pub(crate) fn divergence(
    exec: Exec<'_>,
    config: &ModelConfig,
    (reference, x): (&LinearWeights, &[f32]),
    (candidate, y): (&LinearWeights, &[f32]),
) -> f64 {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let (mut sum, mut n) = (0.0, 0);
    for (x, y) in x.chunks(LOGITS_ROWS * hidden).zip(y.chunks(LOGITS_ROWS * hidden)) {
        let a = reference.apply(exec, x);
        let b = candidate.apply(exec, y);
        for (a, b) in a.chunks_exact(vocab).zip(b.chunks_exact(vocab)) {
            let (a, b) = (capped(exec, config, a), capped(exec, config, b));
            sum += kl_divergence(&a, log_sum_exp(&a), &b, log_sum_exp(&b));
            n += 1;
        }
    }
    sum / f64::from(n.max(1))
}
