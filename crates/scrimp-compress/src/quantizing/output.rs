//! The format of the output matrix.
//!
//! The output matrix is a quarter of a small model's memory traffic, and every prediction depends on it. It therefore
//! stays dense, and its format is chosen by the loss increase: the divergence of the predictions when only the output
//! matrix is compressed, measured with the kernels of the final model. If it is also the embedding, both change and are
//! measured together.

use crate::{
    Calibration, Dense, Inputs, LayerConfig, Statistics,
    compress::Packed as PackedTensor,
    layer::{DenseLayer, matrix},
    layer_pass::{Unchanged, run_layer},
    matrix::{MatrixOptions, round_matrix},
    pruning::sparsegpt::SparseGpt,
};
use scrimp_kernels::{
    Exec, ops,
    quant::packed::{DenseMatrix, PackedView, WeightFormat, pack},
};
use scrimp_llm::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::{Error, Result},
    load::Encoding,
    logits::{kl_divergence, log_sum_exp},
    model::{
        LayerRunner, LinearWeights,
        projections::{StoredMatrix, stored_matrix, vector},
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
    /// The smallest format whose divergence is allowed.
    Measured,
    /// This format.
    As(WeightFormat),
}

/// A measured candidate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The format.
    pub format: WeightFormat,
    /// Its bytes.
    pub bytes: usize,
    /// Divergence from the original's predictions, nats per token.
    pub kl: f64,
}

/// Name of the output matrix. Models that share it with the embedding use the embedding's name.
pub(crate) fn name(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.try_tensor("output.weight").is_some() { "output.weight" } else { "token_embd.weight" }
}

/// Compresses the output matrix. `None`: the original stays.
pub(crate) fn compress(
    exec: Exec<'_>,
    checkpoint: &Checkpoint,
    wanted: Output,
    calibration: &Calibration,
) -> Result<(Option<PackedTensor>, Vec<Measured>)> {
    let name = name(checkpoint);
    let original = checkpoint.tensor(name)?.data.len();
    let formats: &[WeightFormat] = match &wanted {
        Output::Keep => return Ok((None, Vec::new())),
        Output::Measured => &[WeightFormat::Int4, WeightFormat::Int8],
        Output::As(format) => std::slice::from_ref(format),
    };
    let text = calibration.first(TOKENS);
    let norm = vector(checkpoint, "output_norm.weight")?;
    let reference = hidden(exec, checkpoint, None, &text, &norm)?;
    let mut inputs = Inputs::new(norm.len(), Statistics::Gram);
    inputs.add(exec, &reference)?;
    let mut measured = Vec::new();
    for &format in formats {
        let packed = round(exec, checkpoint, name, format, &inputs)?;
        if wanted == Output::As(format) {
            return Ok((Some(packed), measured));
        }
        let view = PackedView::new(format, packed.shape[0], packed.shape[1], &packed.bytes)
            .map_err(|e| Error::bad_input(e.to_string()))?;
        let candidate = LinearWeights::pack(exec.pool, &StoredMatrix::Packed(view))?;
        let x = if name == "token_embd.weight" {
            hidden(exec, checkpoint, Some(&candidate), &text, &norm)?
        } else {
            reference.clone()
        };
        let stored = output_matrix(exec, checkpoint)?;
        let kl = divergence(exec, checkpoint.config(), (&stored, &reference), (&candidate, &x));
        measured.push(Measured { format, bytes: packed.bytes.len(), kl });
        if packed.bytes.len() < original && kl <= ALLOWED_KL {
            return Ok((Some(packed), measured));
        }
    }
    Ok((None, measured))
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
    format: WeightFormat,
    inputs: &Inputs,
) -> Result<PackedTensor> {
    let config = checkpoint.config();
    let (rows, cols) = (config.vocab_size, config.hidden_size);
    let (mut weights, mut scales) = (Vec::with_capacity(rows * cols), Vec::new());
    for first in (0..rows).step_by(ROUNDED_ROWS) {
        let n = ROUNDED_ROWS.min(rows - first);
        let mut part: Dense = matrix(checkpoint, exec.pool, name, first, n)?;
        let config = LayerConfig { format, sparsity: 0.0 };
        let options = MatrixOptions { method: &SparseGpt, inputs, config, keep_zeros: false };
        let rounding = round_matrix(exec.pool, &mut part, &options);
        scales.extend_from_slice(rounding.scales().unwrap_or_default());
        weights.append(&mut part.data);
    }
    let scales = (!scales.is_empty()).then_some(&scales[..]);
    let bytes = pack(exec.pool, format, DenseMatrix { rows, cols, weights: &weights }, scales)
        .map_err(|e| Error::bad_input(format!("tensor {name} cannot be {format}: {e}")))?;
    Ok(PackedTensor {
        name: name.to_owned(),
        encoding: Encoding::Packed(format),
        shape: vec![rows, cols],
        bytes,
    })
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
