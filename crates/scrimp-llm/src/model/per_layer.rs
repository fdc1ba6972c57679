//! The inputs of each layer beside the residual stream (Gemma 3n, "per-layer embeddings"; transformers 5.24,
//! `Gemma4TextModel.project_per_layer_inputs`).
//!
//! ```text
//! e           = embed(token)                                           the first residual stream
//! p[layer]    = (norm(projection[layer] e / sqrt(hidden)) + sqrt(width) table[token][layer]) / sqrt(2)
//! h          += norm(out · (gelu(gate · h) * p[layer]))                at the end of each layer
//! ```
//! The table is only used for lookups, so it stays in the mapped file.

use super::{
    embed::bad_table,
    forward::{Pass, each_row, product, sized},
    weights::LinearWeights,
};
use crate::{checkpoint::Checkpoint, error::Result};
use scrimp_kernels::{
    linear::{ActivationShape, linear},
    ops,
    quant::dequantize::dequantize_row,
};
use std::{
    f32::consts::FRAC_1_SQRT_2,
    sync::atomic::{AtomicBool, Ordering},
};

/// GGUF's name of the table.
pub(super) const TABLE: &str = "per_layer_token_embd.weight";

/// The weights that all layers share.
#[derive(Debug)]
pub(super) struct PerLayerWeights {
    /// `[layers * width][hidden_size]`.
    pub(super) projection: LinearWeights,
    /// `[width]`.
    pub(super) norm: Vec<f32>,
}

/// The weights of a layer.
#[derive(Debug)]
pub(super) struct LayerInputWeights {
    /// `[width][hidden_size]`.
    pub(super) gate: LinearWeights,
    /// `[hidden_size][width]`.
    pub(super) out: LinearWeights,
    /// `[hidden_size]`.
    pub(super) norm: Vec<f32>,
}

impl Pass<'_> {
    /// Computes the inputs of all layers for `tokens`, whose embeddings are the residual stream.
    ///
    /// # Errors
    /// A row of the table holds a NaN or an infinity.
    pub(super) fn layer_inputs(
        &mut self,
        weights: &PerLayerWeights,
        checkpoint: &Checkpoint,
        tokens: &[u32],
    ) -> Result<()> {
        let Self { exec, config, buffers, .. } = self;
        let (n, hidden, width) = (tokens.len(), config.hidden_size, weights.norm.len());
        let h = &buffers.h[..n * hidden];
        let shape = ActivationShape { n_tokens: n, cols: hidden, needs: weights.projection.needs() };
        buffers.x.fill(*exec, shape, |t, x| x.copy_from_slice(&h[t * hidden..(t + 1) * hidden]));
        let row = weights.projection.weight.rows();
        let inputs = sized(&mut buffers.per_layer, n * row);
        linear(*exec, &mut buffers.linear, &buffers.x, &mut [product(&weights.projection, inputs, false)]);
        let (dtype, table) = checkpoint.table(TABLE)?;
        let rows = config.per_layer_input.map_or(1, |inputs| inputs.vocab_size);
        let bytes = table.len() / rows;
        let (norm, finite) = (config.rms_norm(&weights.norm), AtomicBool::new(true));
        let (scale, table_scale) = (1.0 / (hidden as f32).sqrt(), (width as f32).sqrt());
        each_row(exec.pool, &mut buffers.per_layer[..n * row], row, |t, inputs| {
            // Tokens behind the table have its first row.
            let token = Some(tokens[t] as usize).filter(|&token| token < rows).unwrap_or(0);
            let mut entry = vec![0.0; row];
            dequantize_row(dtype, &table[token * bytes..(token + 1) * bytes], &mut entry);
            if entry.iter().any(|x| !x.is_finite()) {
                finite.store(false, Ordering::Relaxed);
            }
            ops::scale(exec.level, scale, inputs);
            for (input, entry) in inputs.chunks_exact_mut(width).zip(entry.chunks_exact(width)) {
                norm.apply_in_place(exec.level, input);
                ops::add_scaled(input, table_scale, entry);
                ops::scale(exec.level, FRAC_1_SQRT_2, input);
            }
        });
        if finite.into_inner() { Ok(()) } else { Err(bad_table(checkpoint, TABLE)) }
    }

    /// Adds the input of layer `index` to the residual stream of `n` rows.
    pub(super) fn add_layer_input(&mut self, weights: &LayerInputWeights, index: usize, n: usize) {
        self.layer_input(weights, index, n);
        self.add_block(&weights.out, Some(&weights.norm), n);
    }

    /// The gated input of layer `index` as activations of its output projection, of `n` rows.
    pub(super) fn layer_input(&mut self, weights: &LayerInputWeights, index: usize, n: usize) {
        let Self { exec, config, buffers, .. } = self;
        let (hidden, width) = (config.hidden_size, weights.gate.weight.rows());
        let h = &buffers.h[..n * hidden];
        let shape = ActivationShape { n_tokens: n, cols: hidden, needs: weights.gate.needs() };
        buffers.x.fill(*exec, shape, |t, x| x.copy_from_slice(&h[t * hidden..(t + 1) * hidden]));
        let gate = sized(&mut buffers.gate, n * width);
        linear(*exec, &mut buffers.linear, &buffers.x, &mut [product(&weights.gate, gate, false)]);
        let (all, inputs) = (&buffers.per_layer, config.n_layers * width);
        each_row(exec.pool, sized(&mut buffers.up, n * width), width, |t, up| {
            up.copy_from_slice(&all[t * inputs + index * width..][..width]);
        });
        self.fill_gated(&weights.out, n);
    }
}
