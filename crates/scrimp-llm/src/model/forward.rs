//! The forward pass: from token ids to the residual stream after the last layer, and from there to logits.
//!
//! It takes many sequences at once, each with one token or more: all but attention ([`super::attention`]) sees rows, one per
//! token, whoever's they are.
//!
//! ```text
//! h = embed(token)
//! for each layer:   h += norm'(O · attention(rope(norm(Q x)), rope(norm(K x)), V x))      x = norm(h)
//!                   h += norm'(down · (f(gate x) * up x))                                 x = norm(h)
//! logits = output · norm(h)
//! ```
//! `norm'` (after the block) and the norms of queries and keys exist in some families only.

use super::{
    Model, Session,
    weights::{Layer, LinearWeights},
};
use crate::{
    checkpoint::Checkpoint,
    config::{Activation, ModelConfig, Rope},
    error::{Error, Result},
};
use scrimp_kernels::{
    Exec, Pool, SimdLevel,
    linear::{ActivationShape, Activations, Linear, LinearScratch, linear},
    ops::{self, Gate, RmsNorm, RopeTable},
    quant::dequantize::dequantize_row,
};
use scrimp_kv::{AttentionScratch, ScoresWanted};
use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

/// Tokens per unit of row-wise work.
const ROWS_PER_UNIT: usize = 4;

/// Intermediate results, kept between calls. All are `[n_tokens][width]`.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Residual stream.
    h: Vec<f32>,
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// Attention's result, and what a block adds where a norm follows it.
    pub(super) attn: Vec<f32>,
    block: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    logits: Vec<f32>,
    x: Activations,
    pub(super) rope: RopeTable,
    pub(super) rope_local: RopeTable,
    linear: LinearScratch,
    pub(super) attention: AttentionScratch,
}

/// Makes `buffer` `n` long without clearing what is overwritten anyway.
pub(super) fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

/// One sequence's part of a forward pass.
pub(super) struct SequenceChunk<'a, 'm> {
    pub(super) session: &'a mut Session<'m>,
    /// Tokens that are appended.
    pub(super) tokens: &'a [u32],
    /// Of so many last tokens, the residual stream after the last layer is wanted.
    pub(super) wanted: usize,
    /// What went wrong with it; the other parts go on.
    pub(super) error: Option<Error>,
    /// First row.
    pub(super) first: usize,
    /// The attention scores to accumulate.
    pub(super) scores: Option<ScoresWanted>,
}

impl<'a, 'm> SequenceChunk<'a, 'm> {
    pub(super) fn new(session: &'a mut Session<'m>, tokens: &'a [u32], wanted: usize) -> Self {
        Self { session, tokens, wanted, error: None, first: 0, scores: None }
    }

    /// Its rows.
    pub(super) fn rows(&self) -> Range<usize> {
        self.first..self.first + self.tokens.len()
    }
}

/// What a row-wise step needs to know.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) pool: &'a Pool,
    pub(super) level: SimdLevel,
    pub(super) config: &'a ModelConfig,
}

impl<'a> Context<'a> {
    pub(super) fn exec(&self) -> Exec<'a> {
        Exec { pool: self.pool, level: self.level }
    }

    pub(super) fn norm<'w>(&self, weight: &'w [f32]) -> RmsNorm<'w> {
        let offset = if self.config.norm_plus_one { 1.0 } else { 0.0 };
        RmsNorm { weight, eps: self.config.rms_norm_eps, offset }
    }

    /// Calls `step(token, row)` for every row of `width` elements.
    fn rows(&self, rows: &mut [f32], width: usize, step: impl Fn(usize, &mut [f32]) + Sync) {
        self.pool.chunks(rows, width * ROWS_PER_UNIT, |unit, rows| {
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                step(unit * ROWS_PER_UNIT + i, row);
            }
        });
    }
}

fn product<'a>(p: &'a LinearWeights, out: &'a mut [f32], accumulate: bool) -> Linear<'a> {
    Linear { weight: &p.weight, bias: p.bias.as_deref(), out, stride: p.weight.rows(), accumulate }
}

impl Buffers {
    /// Runs all parts through all layers and appends their tokens to their caches. Afterwards `h` holds the residual
    /// stream of the wanted tokens, part after part; the last layer computes nothing else for the others.
    ///
    /// A part that fails has its error in it, and rows of any value.
    ///
    /// # Errors
    /// When the embedding of a token is damaged; then nothing was appended.
    pub(super) fn layers(&mut self, model: &Model, parts: &mut [SequenceChunk<'_, '_>]) -> Result<()> {
        let config = model.config();
        let context = Context { pool: &model.pool, level: model.level, config };
        let (mut n, mut wanted) = (0, Vec::new());
        for part in &mut *parts {
            part.first = n;
            n += part.tokens.len();
            wanted.extend(n - part.wanted..n);
            part.scores = part.session.scores_wanted(part.tokens.len());
        }
        self.embed(context, model, n, parts)?;
        self.fill_rope(context, parts);
        for (index, layer) in model.weights.layers.iter().enumerate() {
            let last = index + 1 == model.weights.layers.len();
            let wanted = (last && wanted.len() < n).then_some(&wanted[..]);
            self.attention_block(context, layer, index, n, parts, wanted);
            let n = wanted.map_or(n, <[usize]>::len);
            if n > 0 {
                self.feed_forward(context, layer, n);
            }
        }
        Ok(())
    }

    fn embed(
        &mut self,
        context: Context<'_>,
        model: &Model,
        n: usize,
        parts: &[SequenceChunk<'_, '_>],
    ) -> Result<()> {
        let Context { config, level, .. } = context;
        let (weights, width) = (&model.weights, config.hidden_size);
        let checkpoint = model.checkpoint().filter(|_| !weights.tied);
        let stored = checkpoint.map(Checkpoint::embedding).transpose()?;
        let tokens: Vec<u32> = parts.iter().flat_map(|part| part.tokens).copied().collect();
        let h = sized(&mut self.h, n * width);
        let finite = AtomicBool::new(true);
        context.rows(h, width, |t, row| {
            let token = tokens[t] as usize;
            match &stored {
                None => weights.output.row(level, token, row),
                Some((dtype, stored)) => {
                    let bytes = stored.len() / config.vocab_size;
                    dequantize_row(*dtype, &stored[token * bytes..(token + 1) * bytes], row);
                    // Unlike matrices, this tensor was not read when the model was loaded.
                    if row.iter().any(|x| !x.is_finite()) {
                        finite.store(false, Ordering::Relaxed);
                    }
                }
            }
            if config.embedding_scale != 1.0 {
                ops::scale(level, config.embedding_scale, row);
            }
        });
        match checkpoint {
            Some(checkpoint) if !finite.into_inner() => {
                let what = "tensor token_embd.weight holds a NaN or an infinity";
                Err(Error::damaged_file(checkpoint.path(), what))
            }
            _ => Ok(()),
        }
    }

    fn fill_rope(&mut self, context: Context<'_>, parts: &[SequenceChunk<'_, '_>]) {
        let Context { config, pool, .. } = context;
        self.rope.clear(config.rope.inv_freq.len());
        self.rope_local.clear(config.rope_local.as_ref().map_or(0, |rope| rope.inv_freq.len()));
        for part in parts {
            let first = part.session.len();
            let positions: Vec<u32> = (first..first + part.tokens.len()).map(|p| p as u32).collect();
            let push = |table: &mut RopeTable, rope: &Rope| {
                table.push(pool, &positions, &rope.inv_freq, rope.magnitude);
            };
            push(&mut self.rope, config.rope_for(part.session.rope_tokens));
            if let Some(local) = &config.rope_local {
                push(&mut self.rope_local, local);
            }
        }
    }

    /// Adds the attention block of a layer to the residual stream of `n` rows; only the `wanted` ones stay, if not all.
    fn attention_block(
        &mut self,
        context: Context<'_>,
        layer: &Layer,
        index: usize,
        n: usize,
        parts: &mut [SequenceChunk<'_, '_>],
        wanted: Option<&[usize]>,
    ) {
        let Context { level, config, .. } = context;
        let (hidden, q_dim, kv_dim) = (config.hidden_size, config.q_dim(), config.kv_dim());
        let needs = layer.q.needs().and(layer.k.needs()).and(layer.v.needs());
        let (h, attn_norm) = (&self.h[..n * hidden], context.norm(&layer.attn_norm));
        self.x.fill(context.exec(), ActivationShape { n_tokens: n, cols: hidden, needs }, |t, x| {
            attn_norm.apply(level, &h[t * hidden..(t + 1) * hidden], x);
        });
        let (q, k) = (sized(&mut self.q, n * q_dim), sized(&mut self.k, n * kv_dim));
        let v = sized(&mut self.v, n * kv_dim);
        linear(
            context.exec(),
            &mut self.linear,
            &self.x,
            &mut [product(&layer.q, q, false), product(&layer.k, k, false), product(&layer.v, v, false)],
        );
        self.rope_and_append(context, layer, index, parts);
        self.attend(context, index, n, parts, wanted.is_some());
        if let Some(wanted) = wanted {
            // Rows only move towards the front.
            for (to, &from) in wanted.iter().enumerate() {
                self.h.copy_within(from * hidden..(from + 1) * hidden, to * hidden);
                self.attn.copy_within(from * q_dim..(from + 1) * q_dim, to * q_dim);
            }
        }
        let n = wanted.map_or(n, <[usize]>::len);
        if n == 0 {
            return;
        }
        let attn = &self.attn;
        self.x.fill(
            context.exec(),
            ActivationShape { n_tokens: n, cols: q_dim, needs: layer.o.needs() },
            |t, x| {
                x.copy_from_slice(&attn[t * q_dim..(t + 1) * q_dim]);
            },
        );
        self.add_block(context, &layer.o, layer.post_attn_norm.as_deref(), n);
    }

    /// Adds the feed-forward block of a layer to the residual stream of `n` rows.
    fn feed_forward(&mut self, context: Context<'_>, layer: &Layer, n: usize) {
        let Context { level, config, .. } = context;
        let (hidden, width) = (config.hidden_size, config.intermediate_size);
        let (h, ffn_norm) = (&self.h[..n * hidden], context.norm(&layer.ffn_norm));
        self.x.fill(
            context.exec(),
            ActivationShape { n_tokens: n, cols: hidden, needs: layer.gate.needs().and(layer.up.needs()) },
            |t, x| {
                ffn_norm.apply(level, &h[t * hidden..(t + 1) * hidden], x);
            },
        );
        let (gate, up) = (sized(&mut self.gate, n * width), sized(&mut self.up, n * width));
        linear(
            context.exec(),
            &mut self.linear,
            &self.x,
            &mut [product(&layer.gate, gate, false), product(&layer.up, up, false)],
        );
        let f = match config.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::GeluTanh,
        };
        let (gate, up) = (&*gate, &*up);
        self.x.fill(
            context.exec(),
            ActivationShape { n_tokens: n, cols: width, needs: layer.down.needs() },
            |t, x| {
                let row = t * width..(t + 1) * width;
                ops::gated(level, f, &gate[row.clone()], &up[row], x);
            },
        );
        self.add_block(context, &layer.down, layer.post_ffn_norm.as_deref(), n);
    }

    /// Logits of `rows` of the residual stream that [`Buffers::layers`] left, `[rows][vocab_size]`.
    pub(super) fn logits(&mut self, model: &Model, rows: Range<usize>) -> &[f32] {
        let config = model.config();
        let context = Context { pool: &model.pool, level: model.level, config };
        let (output, hidden, vocab) = (&model.weights.output, config.hidden_size, config.vocab_size);
        let h = &self.h[rows.start * hidden..rows.end * hidden];
        let output_norm = context.norm(&model.weights.output_norm);
        self.x.fill(
            context.exec(),
            ActivationShape { n_tokens: rows.len(), cols: hidden, needs: output.needs() },
            |t, x| {
                output_norm.apply(context.level, &h[t * hidden..(t + 1) * hidden], x);
            },
        );
        let logits = sized(&mut self.logits, rows.len() * vocab);
        let product =
            Linear { weight: output, bias: None, out: &mut *logits, stride: vocab, accumulate: false };
        linear(context.exec(), &mut self.linear, &self.x, &mut [product]);
        if let Some(cap) = config.final_logit_softcap {
            context.rows(logits, vocab, |_, row| ops::softcap(context.level, cap, row));
        }
        logits
    }

    /// Copies a row of the residual stream to a place before it.
    pub(super) fn move_row(&mut self, model: &Model, from: usize, to: usize) {
        let hidden = model.config().hidden_size;
        self.h.copy_within(from * hidden..(from + 1) * hidden, to * hidden);
    }

    /// The residual stream of `rows`, after the output norm, `[rows][hidden_size]`: what an embedding of a text is made of.
    pub(super) fn hidden(&self, model: &Model, rows: Range<usize>) -> Vec<f32> {
        let config = model.config();
        let context = Context { pool: &model.pool, level: model.level, config };
        let (hidden, norm) = (config.hidden_size, context.norm(&model.weights.output_norm));
        let mut out = vec![0.0; rows.len() * hidden];
        let h = &self.h[rows.start * hidden..rows.end * hidden];
        context.rows(&mut out, hidden, |t, row| {
            norm.apply(context.level, &h[t * hidden..(t + 1) * hidden], row);
        });
        out
    }

    /// `h += norm(projection x)` for `n` tokens, the norm where there is one.
    fn add_block(
        &mut self,
        context: Context<'_>,
        projection: &LinearWeights,
        norm: Option<&[f32]>,
        n: usize,
    ) {
        let Context { level, config, .. } = context;
        let hidden = config.hidden_size;
        let h = &mut self.h[..n * hidden];
        let Some(weight) = norm else {
            linear(context.exec(), &mut self.linear, &self.x, &mut [product(projection, h, true)]);
            return;
        };
        let block = sized(&mut self.block, n * hidden);
        linear(context.exec(), &mut self.linear, &self.x, &mut [product(projection, block, false)]);
        let (block, norm) = (&*block, context.norm(weight));
        context.rows(h, hidden, |t, h| norm.add_to(level, &block[t * hidden..(t + 1) * hidden], h));
    }
}
