//! The forward pass: from token ids to the residual stream after the last layer, and from there to logits.
//!
//! A pass has chunks of one or more sequences. All steps except attention ([`super::attention`]) process rows, one per
//! token.
//!
//! ```text
//! h = embed(token)
//! for each layer:   h += norm'(O · attention(rope(norm(Q x)), rope(norm(K x)), V x))      x = norm(h)
//!                   h += norm'(down · (f(gate x) * up x))                                 x = norm(h)
//!                   or the sum of some experts of that kind ([`super::experts`])
//! logits = output · norm(h)
//! ```
//! Some layers have a recurrent state instead of attention ([`super::recurrence`]). Only some families have `norm'`
//! (after the block) and the norms of queries and keys. A few have no norm before the block. Some scale the output of a
//! block, queries or logits.
//!
//! [`Pass`] has one function for each step. [`Pass::layers`] runs them for all layers of a loaded model;
//! [`super::LayerRunner`] runs them for one layer at a time, with matrices that its caller supplies.

use super::{
    Model,
    chunk::{LayerPlace, SequenceChunk},
    embed::{Embedding, bad_embedding},
    experts::ExpertBuffers,
    recurrence::StateInputs,
    weights::{AttentionWeights, FeedForward, Layer, LayerNorms, LinearWeights, Mixer},
};
use crate::{
    config::{Activation, GATE_CUTOFF, HeadShape, ModelConfig, Rope},
    error::Result,
};
use scrimp_kernels::{
    Exec, Pool, SimdLevel,
    linear::{ActivationShape, Activations, Linear, LinearScratch, Needs, linear},
    ops::{self, Gate, RmsNorm, RopeTable},
};
use scrimp_kv::AttentionScratch;
use std::ops::Range;

/// Rows per task of row-wise work.
const ROWS_PER_TASK: usize = 4;

/// Intermediate results, kept between calls. All are `[n_tokens][width]`.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Residual stream.
    pub(super) h: Vec<f32>,
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// The output of attention, or of a recurrent layer.
    pub(super) attn: Vec<f32>,
    /// Its gate.
    pub(super) attn_gate: Vec<f32>,
    pub(super) beta: Vec<f32>,
    pub(super) alpha: Vec<f32>,
    /// The inputs of the recurrent layers of the pass, in their order; `None`: they are not kept.
    pub(super) state_inputs: Option<Vec<StateInputs>>,
    /// The output of a block, if a norm follows it, or of experts.
    pub(super) block: Vec<f32>,
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    logits: Vec<f32>,
    pub(super) x: Activations,
    pub(super) experts: ExpertBuffers,
    pub(super) rope: RopeTable,
    pub(super) rope_local: RopeTable,
    /// Factors on the queries of each row; empty where there are none.
    pub(super) temperature: Vec<f32>,
    /// The inputs of each layer beside the residual stream, `[n_tokens][layers][width]` ([`super::per_layer`]).
    pub(super) per_layer: Vec<f32>,
    /// All residual streams, `[n_tokens][streams][hidden_size]` ([`super::altup`]).
    pub(super) streams: Vec<f32>,
    /// The learned residual of a layer.
    pub(super) laurel: Vec<f32>,
    pub(super) linear: LinearScratch,
    pub(super) attention: AttentionScratch,
}

/// Resizes `buffer` to `n` elements. The caller overwrites its content.
pub(super) fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

/// Calls `step(token, row)` for every row of `width` elements.
pub(super) fn each_row(pool: &Pool, rows: &mut [f32], width: usize, step: impl Fn(usize, &mut [f32]) + Sync) {
    pool.chunks(rows, width * ROWS_PER_TASK, |task, rows| {
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            step(task * ROWS_PER_TASK + i, row);
        }
    });
}

pub(super) fn product<'a>(p: &'a LinearWeights, out: &'a mut [f32], accumulate: bool) -> Linear<'a> {
    Linear { weight: &p.weight, bias: p.bias.as_deref(), out, stride: p.weight.rows(), accumulate }
}

/// The steps of a forward pass over the rows in `buffers`.
pub(super) struct Pass<'a> {
    pub(super) exec: Exec<'a>,
    /// The level of the steps behind the attention of the last layer.
    pub(super) end_level: SimdLevel,
    pub(super) config: &'a ModelConfig,
    pub(super) buffers: &'a mut Buffers,
}

impl Pass<'_> {
    /// Runs all chunks through all layers and appends them to their caches. `tokens` has the ids of all chunks, one
    /// after another. Afterwards, `h` has the residual stream of the wanted tokens in the same order; the last layer
    /// computes only these.
    ///
    /// A failed chunk has its error; its rows are unspecified.
    ///
    /// # Errors
    /// The embedding of a token is damaged. Then no tokens were appended.
    pub(super) fn layers(
        &mut self,
        model: &Model,
        tokens: &[u32],
        chunks: &mut [SequenceChunk<'_>],
    ) -> Result<()> {
        let (mut n, mut wanted) = (0, Vec::new());
        for chunk in &mut *chunks {
            chunk.first = n;
            n += chunk.n;
            wanted.extend(n - chunk.wanted..n);
        }
        self.embed(model, tokens)?;
        self.fill_rope(chunks);
        let layers = &model.weights().layers;
        // Later layers change no cache. So this one and they compute the wanted rows only.
        let end = self.config.shared_kv.map_or(layers.len(), |shared| shared.first) - 1;
        let mut recurrent = 0;
        for (index, layer) in layers.iter().enumerate() {
            if let (Some(altup), Some(weights)) = (self.config.altup, &layer.altup) {
                self.predict(altup, weights, n);
            }
            let last = index == end;
            let wanted = (last && wanted.len() < n).then_some(&wanted[..]);
            let out = match &layer.mixer {
                Mixer::Attention(weights) => {
                    let place = LayerPlace::new(self.config, index, self.config.kv_layer(index));
                    self.attention((&layer.norms, weights), place, n, chunks, wanted);
                    &weights.o
                }
                Mixer::ShortConv(weights) => {
                    self.short_conv(&layer.norms, weights, recurrent, n, chunks);
                    recurrent += 1;
                    self.keep_rows(wanted, weights.width());
                    &weights.out
                }
                Mixer::Mamba2(weights) => {
                    self.mamba2(&layer.norms, weights, recurrent, n, chunks);
                    recurrent += 1;
                    self.keep_rows(wanted, weights.width());
                    &weights.out
                }
                Mixer::Delta(weights) => {
                    self.delta(&layer.norms, weights, recurrent, n, chunks);
                    recurrent += 1;
                    self.keep_rows(wanted, weights.width());
                    &weights.out
                }
            };
            if last {
                self.exec.level = self.end_level;
                n = wanted.map_or(n, <[usize]>::len);
            }
            if n == 0 {
                return Ok(());
            }
            if let Some(weights) = &layer.laurel {
                self.laurel(&layer.norms, weights, n);
            }
            self.mixer_output(&layer.norms, out, n);
            if layer.laurel.is_some() {
                self.add_laurel(n);
            }
            self.second_block(layer, index, n);
            if last && index + 1 < layers.len() {
                chunks.iter_mut().fold(0, |first, chunk| chunk.keep_wanted(first));
                self.fill_rope(chunks);
            }
        }
        if let (Some(altup), Some(weights)) = (self.config.altup, &model.weights().streams) {
            self.gather(altup, weights, n);
        }
        Ok(())
    }

    /// The feed-forward block or the experts of layer `index`, and its input beside the residual stream, of `n` rows.
    fn second_block(&mut self, layer: &Layer, index: usize, n: usize) {
        match &layer.feed_forward {
            FeedForward::Dense(weights) => {
                self.gate_and_up(&layer.norms, [&weights.gate, &weights.up], n);
                if index < self.config.sparse_gates {
                    self.cut_gates(weights.gate.weight.rows(), n);
                }
                self.down(&layer.norms, &weights.down, n);
            }
            FeedForward::Experts(weights) => self.experts(&layer.norms, weights, n),
        }
        match (&layer.per_layer, self.config.altup.zip(layer.altup.as_ref())) {
            (Some(input), Some((altup, weights))) => self.correct(altup, weights, input, (index, n)),
            (Some(input), None) => self.add_layer_input(input, index, n),
            _ => {}
        }
        if let Some(scale) = layer.scale {
            let Self { exec, config, buffers, .. } = self;
            let hidden = config.hidden_size;
            each_row(exec.pool, &mut buffers.h[..n * hidden], hidden, |_, row| {
                ops::scale(exec.level, scale, row);
            });
        }
    }

    /// Sets the gates of `n` rows of `width` elements below their cutoff to 0 ([`ModelConfig::sparse_gates`]).
    fn cut_gates(&mut self, width: usize, n: usize) {
        each_row(self.exec.pool, &mut self.buffers.gate[..n * width], width, |_, gate| {
            let mean = gate.iter().sum::<f32>() / width as f32;
            let variance = gate.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / width as f32;
            let cutoff = mean + GATE_CUTOFF * variance.sqrt();
            gate.iter_mut().for_each(|x| *x = (*x - cutoff).max(0.0));
        });
    }

    fn embed(&mut self, model: &Model, tokens: &[u32]) -> Result<()> {
        let weights = model.weights();
        let checkpoint = model.checkpoint().filter(|_| !weights.tied);
        let embedding = match checkpoint {
            Some(checkpoint) => Embedding::stored(checkpoint)?,
            None => Embedding::Packed(&weights.output),
        };
        let h = sized(&mut self.buffers.h, tokens.len() * self.config.hidden_size);
        let finite = embedding.embed(self.exec, self.config, tokens, h);
        // Unlike matrices, this tensor is not checked when the model is loaded.
        checkpoint.filter(|_| !finite).map_or(Ok(()), |checkpoint| Err(bad_embedding(checkpoint)))?;
        if let (Some(weights), Some(checkpoint)) = (&weights.per_layer, model.checkpoint()) {
            self.layer_inputs(weights, checkpoint, tokens)?;
        }
        if let (Some(altup), Some(weights)) = (self.config.altup, &weights.streams) {
            self.spread(altup, weights, tokens.len());
        }
        Ok(())
    }

    /// Computes the angles of RoPE for the rows of all chunks.
    pub(super) fn fill_rope(&mut self, chunks: &[SequenceChunk<'_>]) {
        let Self { exec, config, buffers, .. } = self;
        buffers.rope.clear(config.rope.inv_freq.len());
        buffers.rope_local.clear(config.rope_local.as_ref().map_or(0, |rope| rope.inv_freq.len()));
        buffers.temperature.clear();
        if let Some(temperature) = &config.attn_temperature {
            let positions = chunks.iter().flat_map(|chunk| chunk.position..chunk.position + chunk.n);
            buffers.temperature.extend(positions.map(|position| temperature.at(position)));
        }
        for chunk in chunks {
            let positions: Vec<u32> =
                (chunk.position..chunk.position + chunk.n).map(|position| position as u32).collect();
            let push = |table: &mut RopeTable, rope: &Rope| {
                table.push(exec.pool, &positions, &rope.inv_freq, rope.magnitude);
            };
            push(&mut buffers.rope, config.rope_for(chunk.rope_tokens));
            if let Some(local) = &config.rope_local {
                push(&mut buffers.rope_local, local);
            }
        }
    }

    /// The attention of `n` rows, before its output projection. With `wanted`, only these rows remain.
    fn attention(
        &mut self,
        (norms, weights): (&LayerNorms, &AttentionWeights),
        place: LayerPlace,
        n: usize,
        chunks: &mut [SequenceChunk<'_>],
        wanted: Option<&[usize]>,
    ) {
        self.qkv(norms, weights.projections(), place.heads, n);
        self.rope_and_append(norms, place, chunks);
        self.attend(place, n, chunks, norms.sinks.as_deref(), wanted.is_some());
        let q_dim = place.heads.q_dim();
        self.keep_rows(wanted, q_dim);
        if weights.gate.is_some() {
            let Self { exec, buffers, .. } = self;
            let (gate, n) = (&buffers.attn_gate, wanted.map_or(n, <[usize]>::len));
            each_row(exec.pool, &mut buffers.attn[..n * q_dim], q_dim, |t, row| {
                ops::sigmoid_gate(exec.level, &gate[t * q_dim..(t + 1) * q_dim], row);
            });
        }
    }

    /// Keeps only the wanted rows of the residual stream, of the inputs of each layer, and of the block's output and gate,
    /// which have `width` elements.
    fn keep_rows(&mut self, wanted: Option<&[usize]>, width: usize) {
        let hidden = self.config.hidden_size;
        let inputs = self.config.per_layer_input.map_or(0, |inputs| self.config.n_layers * inputs.width);
        let row = self.config.altup.map_or(0, |altup| altup.streams * hidden);
        let Buffers { h, attn, attn_gate, per_layer, streams, .. } = &mut *self.buffers;
        let gated = self.config.attn_gate;
        // Rows only move towards the front.
        for (to, &from) in wanted.into_iter().flatten().enumerate() {
            h.copy_within(from * hidden..(from + 1) * hidden, to * hidden);
            attn.copy_within(from * width..(from + 1) * width, to * width);
            per_layer.copy_within(from * inputs..(from + 1) * inputs, to * inputs);
            streams.copy_within(from * row..(from + 1) * row, to * row);
            if gated {
                attn_gate.copy_within(from * width..(from + 1) * width, to * width);
            }
        }
    }

    /// The normed residual stream of `n` rows as activations.
    pub(super) fn normed_input(&mut self, norms: &LayerNorms, needs: Needs, n: usize) {
        let Self { exec, config, buffers, .. } = self;
        let hidden = config.hidden_size;
        let h = &buffers.h[..n * hidden];
        let norm = norms.attn_norm.as_deref().map(|weight| config.rms_norm(weight));
        buffers.x.fill(*exec, ActivationShape { n_tokens: n, cols: hidden, needs }, |t, x| {
            norm_or_copy(exec.level, norm.as_ref(), &h[t * hidden..(t + 1) * hidden], x);
        });
    }

    /// The projections of `n` rows before attention: queries, keys, values and gates, as far as the layer has them.
    /// Without a projection of values, the keys are the values.
    pub(super) fn qkv(
        &mut self,
        norms: &LayerNorms,
        projections: [Option<&LinearWeights>; 4],
        heads: HeadShape,
        n: usize,
    ) {
        let needs = projections.iter().flatten().map(|p| p.needs());
        self.normed_input(norms, needs.fold(Needs::default(), Needs::and), n);
        let Self { exec, buffers, .. } = self;
        let (q_dim, kv_dim) = (heads.q_dim(), heads.kv_dim());
        let Buffers { q, k, v, attn_gate, linear: scratch, x, .. } = &mut **buffers;
        let outputs = [(q, q_dim), (k, kv_dim), (v, kv_dim), (attn_gate, q_dim)];
        let products = projections.into_iter().zip(outputs).filter_map(|(projection, (out, width))| {
            projection.map(|projection| product(projection, sized(out, n * width), false))
        });
        linear(*exec, scratch, x, &mut products.collect::<Vec<_>>());
        if let [_, Some(_), None, _] = projections {
            sized(&mut buffers.v, n * kv_dim).copy_from_slice(&buffers.k[..n * kv_dim]);
        }
    }

    /// Adds the output projection of attention or of a recurrent layer to the residual stream of `n` rows.
    fn mixer_output(&mut self, norms: &LayerNorms, wo: &LinearWeights, n: usize) {
        let Self { exec, buffers, .. } = self;
        let cols = wo.weight.cols();
        let attn = &buffers.attn;
        buffers.x.fill(*exec, ActivationShape { n_tokens: n, cols, needs: wo.needs() }, |t, x| {
            x.copy_from_slice(&attn[t * cols..(t + 1) * cols]);
        });
        self.add_block(wo, norms.post_attn_norm.as_deref(), n);
    }

    /// The two projections before the gate, of `n` rows.
    pub(super) fn gate_and_up(&mut self, norms: &LayerNorms, [gate, up]: [&LinearWeights; 2], n: usize) {
        let Self { exec, config, buffers, .. } = self;
        let hidden = config.hidden_size;
        let h = &buffers.h[..n * hidden];
        let norm = norms.ffn_norm.as_deref().map(|weight| config.rms_norm(weight));
        buffers.x.fill(
            *exec,
            ActivationShape { n_tokens: n, cols: hidden, needs: gate.needs().and(up.needs()) },
            |t, x| norm_or_copy(exec.level, norm.as_ref(), &h[t * hidden..(t + 1) * hidden], x),
        );
        self.gate_and_up_products([gate, up], None, n);
    }

    /// The two projections before the gate of the `n` rows of activations, and the gate of a shared expert.
    pub(super) fn gate_and_up_products(
        &mut self,
        [gate, up]: [&LinearWeights; 2],
        shared: Option<&LinearWeights>,
        n: usize,
    ) {
        let Self { exec, buffers, .. } = self;
        let width = gate.weight.rows();
        let outputs = (sized(&mut buffers.gate, n * width), sized(&mut buffers.up, n * width));
        let block = [product(gate, outputs.0, false), product(up, outputs.1, false)];
        let shared = shared.map(|gate| product(gate, sized(&mut buffers.experts.shared, n), false));
        let mut products: Vec<_> = block.into_iter().chain(shared).collect();
        linear(*exec, &mut buffers.linear, &buffers.x, &mut products);
    }

    /// The gated rows as activations of the down projection, of `n` rows.
    pub(super) fn fill_gated(&mut self, down: &LinearWeights, n: usize) {
        let Self { exec, config, buffers, .. } = self;
        let cols = down.weight.cols();
        let gated = Gated::new(exec.level, config, cols, [&buffers.gate, &buffers.up]);
        let shape = ActivationShape { n_tokens: n, cols, needs: down.needs() };
        buffers.x.fill(*exec, shape, |t, x| gated.row(t, x));
    }

    /// The product of `projection` and the `n` rows of activations in `block`.
    pub(super) fn block_output(&mut self, projection: &LinearWeights, n: usize) {
        let Self { exec, config, buffers, .. } = self;
        let block = sized(&mut buffers.block, n * config.hidden_size);
        linear(*exec, &mut buffers.linear, &buffers.x, &mut [product(projection, block, false)]);
    }

    /// Adds the down projection of the gated rows to the residual stream of `n` rows.
    fn down(&mut self, norms: &LayerNorms, down: &LinearWeights, n: usize) {
        self.fill_gated(down, n);
        self.add_block(down, norms.post_ffn_norm.as_deref(), n);
    }

    /// The gated rows, `[n][intermediate_size]`: the inputs of the down projection.
    pub(super) fn gated_rows(&self, out: &mut [f32]) {
        let width = self.config.intermediate_size;
        let gated = Gated::new(self.exec.level, self.config, width, [&self.buffers.gate, &self.buffers.up]);
        each_row(self.exec.pool, out, width, |t, row| gated.row(t, row));
    }

    /// `h += norm(projection x)` for the rows `x`; without a norm, `h += projection x`.
    pub(super) fn add_projection(&mut self, projection: &LinearWeights, norm: Option<&[f32]>, x: &[f32]) {
        let Self { exec, buffers, .. } = self;
        let cols = projection.weight.cols();
        let n = x.len() / cols;
        buffers.x.fill(*exec, ActivationShape { n_tokens: n, cols, needs: projection.needs() }, |t, row| {
            row.copy_from_slice(&x[t * cols..(t + 1) * cols]);
        });
        self.add_block(projection, norm, n);
    }

    /// Logits of `rows` of the residual stream that [`Pass::layers`] left, `[rows][vocab_size]`.
    pub(super) fn logits(&mut self, model: &Model, rows: Range<usize>) {
        let Self { exec, config, buffers, .. } = self;
        let (output, hidden, vocab) = (&model.weights().output, config.hidden_size, config.vocab_size);
        let h = &buffers.h[rows.start * hidden..rows.end * hidden];
        let norm = config.rms_norm(&model.weights().output_norm);
        buffers.x.fill(
            *exec,
            ActivationShape { n_tokens: rows.len(), cols: hidden, needs: output.needs() },
            |t, x| {
                norm.apply(exec.level, &h[t * hidden..(t + 1) * hidden], x);
            },
        );
        let logits = sized(&mut buffers.logits, rows.len() * vocab);
        let product =
            Linear { weight: output, bias: None, out: &mut *logits, stride: vocab, accumulate: false };
        linear(*exec, &mut buffers.linear, &buffers.x, &mut [product]);
        if config.logit_scale != 1.0 {
            each_row(exec.pool, logits, vocab, |_, row| ops::scale(exec.level, config.logit_scale, row));
        }
        if let Some(cap) = config.final_logit_softcap {
            each_row(exec.pool, logits, vocab, |_, row| ops::softcap(exec.level, cap, row));
        }
    }

    /// The residual stream of `rows`, after the output norm, `[rows][hidden_size]`.
    pub(super) fn hidden(&self, model: &Model, rows: Range<usize>) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let h = &self.buffers.h[rows.start * hidden..rows.end * hidden];
        rms_norm_rows(self.exec, self.config, &model.weights().output_norm, h)
    }

    /// `h += norm(projection x)` for the `n` rows of activations; without a norm, `h += residual_scale * projection x`.
    pub(super) fn add_block(&mut self, projection: &LinearWeights, norm: Option<&[f32]>, n: usize) {
        let Self { exec, config, buffers, .. } = self;
        let hidden = config.hidden_size;
        if norm.is_none() && config.residual_scale == 1.0 {
            let h = &mut buffers.h[..n * hidden];
            linear(*exec, &mut buffers.linear, &buffers.x, &mut [product(projection, h, true)]);
            return;
        }
        self.block_output(projection, n);
        let Self { exec, config, buffers, .. } = self;
        let (block, scale) = (&buffers.block, config.residual_scale);
        each_row(exec.pool, &mut buffers.h[..n * hidden], hidden, |t, h| {
            let block = &block[t * hidden..(t + 1) * hidden];
            match norm {
                Some(weight) => config.rms_norm(weight).add_to(exec.level, block, h),
                None => ops::add_scaled(h, scale, block),
            }
        });
    }
}

impl Buffers {
    /// The logits of `rows` of a pass over `model`, `[rows][vocab_size]`.
    pub(super) fn logits(&mut self, model: &Model, rows: Range<usize>) -> &[f32] {
        let n = rows.len() * model.vocab_size();
        model.pass(self).logits(model, rows);
        &self.logits[..n]
    }

    /// As [`Buffers::logits`], at an exact level: the number of rows changes nothing.
    pub(super) fn exact_logits(&mut self, model: &Model, rows: Range<usize>) -> &[f32] {
        let n = rows.len() * model.vocab_size();
        let mut pass = model.pass(self);
        pass.exec.level = pass.exec.level.exact();
        pass.logits(model, rows);
        &self.logits[..n]
    }

    /// Copies a row of the residual stream to an earlier row.
    pub(super) fn move_row(&mut self, config: &ModelConfig, from: usize, to: usize) {
        let hidden = config.hidden_size;
        self.h.copy_within(from * hidden..(from + 1) * hidden, to * hidden);
    }
}

/// `norm(row)` of every row of `rows`, `[n][weight.len()]`, with the root-mean-square norm of the model.
pub fn rms_norm_rows(exec: Exec<'_>, config: &ModelConfig, weight: &[f32], rows: &[f32]) -> Vec<f32> {
    let (width, norm) = (weight.len(), config.rms_norm(weight));
    let mut out = vec![0.0; rows.len()];
    each_row(exec.pool, &mut out, width, |t, row| {
        norm.apply(exec.level, &rows[t * width..(t + 1) * width], row);
    });
    out
}

/// `norm(row)`, or the row where there is no norm.
pub(super) fn norm_or_copy(level: SimdLevel, norm: Option<&RmsNorm<'_>>, row: &[f32], out: &mut [f32]) {
    match norm {
        Some(norm) => norm.apply(level, row, out),
        None => out.copy_from_slice(row),
    }
}

/// The gated non-linearity `f(gate) * up`, row by row.
pub(super) struct Gated<'a> {
    level: SimdLevel,
    gate: Gate,
    /// Elements of a row.
    width: usize,
    rows: [&'a [f32]; 2],
}

impl<'a> Gated<'a> {
    /// `rows` are gate and up, of `width` elements each.
    pub(super) fn new(level: SimdLevel, config: &ModelConfig, width: usize, rows: [&'a [f32]; 2]) -> Self {
        let f = match config.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::GeluTanh,
            Activation::ClampedSilu => Gate::ClampedSilu,
        };
        Self { level, gate: f, width, rows }
    }

    pub(super) fn row(&self, t: usize, out: &mut [f32]) {
        let row = t * self.width..(t + 1) * self.width;
        ops::gated(self.level, self.gate, &self.rows[0][row.clone()], &self.rows[1][row], out);
    }
}
