//! The output matrix: how small it may be stored.
//!
//! It is a quarter of a small model's traffic, and every token's prediction goes through it, so it stays dense, and the
//! format is chosen by what it costs: the divergence of the model's predictions with the output matrix alone compressed,
//! measured with the kernels that will run it. Where it is the embedding, too, both change, and both are measured.

use crate::{
    Calibration, Dense, Inputs, LayerConfig, Statistics,
    compress::Packed as PackedTensor,
    layer::{DenseLayer, matrix},
    matrix::round_matrix,
    pruning::sparsegpt::SparseGpt,
    runner::{Machine, Packed, Runner, Scratch, Unchanged},
};
use scrimp_kernels::{
    Exec, ops,
    quant::packed::{DenseMatrix, PackedView, WeightFormat, pack},
};
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    load::Encoding,
    logits::{kl_divergence, log_sum_exp},
    model::projections::{StoredMatrix, stored_matrix, vector},
};
use std::borrow::Cow;

/// Tokens that the divergence is measured on.
const TOKENS: usize = 1024;
/// Largest allowed divergence, nats per token.
pub const ALLOWED_KL: f64 = 0.005;
/// Rows of logits at once.
const LOGITS_ROWS: usize = 32;
/// Rows of the matrix that are rounded at once.
const ROUNDED_ROWS: usize = 1 << 14;

/// How the output matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// As the original has it.
    Keep,
    /// The smallest format whose divergence is allowed.
    Measured,
    /// This format.
    As(WeightFormat),
}

/// A candidate that was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The format.
    pub format: WeightFormat,
    /// Its bytes.
    pub bytes: usize,
    /// Divergence from the original's predictions, nats per token.
    pub kl: f64,
}

/// Name of the output matrix: the embedding's where that is it.
pub(crate) fn name(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.try_tensor("output.weight").is_some() { "output.weight" } else { "token_embd.weight" }
}

/// Compresses the output matrix. `None`: it stays as it is.
pub(crate) fn compress(
    machine: Machine<'_>,
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
    let reference = hidden(machine, checkpoint, None, &text, &norm)?;
    let mut inputs = Inputs::new(norm.len(), Statistics::Gram);
    inputs.add(Exec { pool: machine.pool, level: machine.level }, &reference)?;
    let mut measured = Vec::new();
    for &format in formats {
        let packed = round(machine, checkpoint, name, format, &inputs)?;
        if wanted == Output::As(format) {
            return Ok((Some(packed), measured));
        }
        let view = PackedView::new(format, packed.shape[0], packed.shape[1], &packed.bytes)
            .map_err(|e| Error::bad_input(e.to_string()))?;
        let candidate = Packed::new(machine, &StoredMatrix::Packed(view))?;
        let x = if name == "token_embd.weight" {
            hidden(machine, checkpoint, Some(&candidate), &text, &norm)?
        } else {
            reference.clone()
        };
        let stored = output_matrix(machine, checkpoint)?;
        let kl = divergence(machine, (&stored, &reference), (&candidate, &x));
        measured.push(Measured { format, bytes: packed.bytes.len(), kl });
        if packed.bytes.len() < original && kl <= ALLOWED_KL {
            return Ok((Some(packed), measured));
        }
    }
    Ok((None, measured))
}

/// The output matrix as the original has it.
///
/// # Errors
/// When it is damaged.
pub(crate) fn output_matrix(machine: Machine<'_>, checkpoint: &Checkpoint) -> Result<Packed> {
    let all = 0..machine.config.vocab_size;
    Packed::new(machine, &stored_matrix(checkpoint, name(checkpoint), &all)?)
}

/// What the output matrix gets, `[tokens][hidden_size]`, from the original's layers.
fn hidden(
    machine: Machine<'_>,
    checkpoint: &Checkpoint,
    embedding: Option<&Packed>,
    text: &Calibration,
    norm: &[f32],
) -> Result<Vec<f32>> {
    let embedding = embedding.map(|packed| &packed.matrix);
    let mut runner = Runner::embed(machine, checkpoint, embedding, &text.tokens, text.window)?;
    for index in 0..machine.config.n_layers {
        let mut layer = DenseLayer::read(checkpoint, machine.pool, index)?;
        runner.layer(&mut layer, index, &mut Unchanged)?;
    }
    Ok(machine.normed(runner.hidden(), norm))
}

/// The matrix in `format`, rounding made up for, some rows at a time.
fn round(
    machine: Machine<'_>,
    checkpoint: &Checkpoint,
    name: &str,
    format: WeightFormat,
    inputs: &Inputs,
) -> Result<PackedTensor> {
    let (rows, cols) = (machine.config.vocab_size, machine.config.hidden_size);
    let (mut weights, mut scales) = (Vec::with_capacity(rows * cols), Vec::new());
    for first in (0..rows).step_by(ROUNDED_ROWS) {
        let n = ROUNDED_ROWS.min(rows - first);
        let mut part: Dense = matrix(checkpoint, machine.pool, name, first, n)?;
        let choice = LayerConfig { format, sparsity: 0.0 };
        let rounding = round_matrix(machine.pool, &mut part, inputs, &SparseGpt, choice, false);
        scales.extend_from_slice(rounding.scales().unwrap_or_default());
        weights.append(&mut part.data);
    }
    let scales = (!scales.is_empty()).then_some(&scales[..]);
    let bytes = pack(machine.pool, format, DenseMatrix { rows, cols, weights: &weights }, scales)
        .map_err(|e| Error::bad_input(format!("tensor {name} cannot be {format}: {e}")))?;
    Ok(PackedTensor {
        name: name.to_owned(),
        encoding: Encoding::Packed(format),
        shape: vec![rows, cols],
        bytes,
    })
}

fn capped<'a>(machine: Machine<'_>, logits: &'a [f32]) -> Cow<'a, [f32]> {
    match machine.config.final_logit_softcap {
        None => Cow::Borrowed(logits),
        Some(cap) => {
            let mut logits = logits.to_vec();
            ops::softcap(machine.level, cap, &mut logits);
            Cow::Owned(logits)
        }
    }
}

/// Mean divergence of the candidate's predictions from the reference's.
pub(crate) fn divergence(
    machine: Machine<'_>,
    (reference, x): (&Packed, &[f32]),
    (candidate, y): (&Packed, &[f32]),
) -> f64 {
    let (vocab, hidden) = (machine.config.vocab_size, machine.config.hidden_size);
    let mut scratch = Scratch::default();
    let (mut sum, mut n) = (0.0, 0);
    for (x, y) in x.chunks(LOGITS_ROWS * hidden).zip(y.chunks(LOGITS_ROWS * hidden)) {
        let a = reference.apply(machine, &mut scratch, x);
        let b = candidate.apply(machine, &mut scratch, y);
        for (a, b) in a.chunks_exact(vocab).zip(b.chunks_exact(vocab)) {
            let (a, b) = (capped(machine, a), capped(machine, b));
            sum += kl_divergence(&a, log_sum_exp(&a), &b, log_sum_exp(&b));
            n += 1;
        }
    }
    sum / f64::from(n.max(1))
}
