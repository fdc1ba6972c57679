//! The forward pass: from token ids to the residual stream after the last layer, and from there to logits.
//!
//! ```text
//! h = embed(token)
//! for each layer:   h += norm'(O · attention(rope(norm(Q x)), rope(norm(K x)), V x))      x = norm(h)
//!                   h += norm'(down · (f(gate x) * up x))                                 x = norm(h)
//! logits = output · norm(h)
//! ```
//! `norm'` (after the block) and the norms of queries and keys exist in some families only.

use super::{
    Session,
    passes::rotate,
    weights::{Layer, Projection},
};
use crate::{
    checkpoint::Checkpoint,
    config::{Activation, ModelConfig, Rope},
    error::{Error, Result},
};
use scrimp_kernels::{
    Tier,
    formats::dequantize::dequantize_row,
    linear::{Activations, Linear, LinearScratch, linear},
    ops::{self, Gate, RmsNorm, RopeTable},
    threads::Pool,
};
use scrimp_kv::{AttentionInputs, AttentionScratch, Queries, StatsWanted};
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
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Attention's result, and what a block adds where a norm follows it.
    attn: Vec<f32>,
    block: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    logits: Vec<f32>,
    x: Activations,
    rope: RopeTable,
    rope_local: RopeTable,
    linear: LinearScratch,
    pub(super) attention: AttentionScratch,
}

/// Makes `buffer` `n` long without clearing what is overwritten anyway.
fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

/// What a row-wise step needs to know.
#[derive(Clone, Copy)]
struct Context<'a> {
    pool: &'a Pool,
    tier: Tier,
    config: &'a ModelConfig,
}

impl Context<'_> {
    fn norm<'w>(&self, weight: &'w [f32]) -> RmsNorm<'w> {
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

fn product<'a>(p: &'a Projection, out: &'a mut [f32], accumulate: bool) -> Linear<'a> {
    Linear { weight: &p.weight, bias: p.bias.as_deref(), out, stride: p.weight.rows(), accumulate }
}

impl Session<'_> {
    /// Runs `tokens` (at most a chunk) through all layers and appends them to the cache. Afterwards `buffers.h` holds the
    /// residual stream of the last `wanted` tokens; the last layer computes nothing else for the others.
    pub(super) fn layers(&mut self, tokens: &[u32], wanted: usize) -> Result<()> {
        let model = self.model;
        let (config, n) = (model.config(), tokens.len());
        let context = Context { pool: &model.pool, tier: model.tier, config };
        self.embed(context, tokens)?;
        self.fill_rope(context, n);
        let stats = self.wanted_stats(n);
        for (index, layer) in model.weights.layers.iter().enumerate() {
            let wanted = if index + 1 == model.weights.layers.len() { wanted } else { n };
            self.attention(context, layer, index, n, wanted, stats)?;
            if wanted == 0 {
                break;
            }
            self.feed_forward(context, layer, wanted);
        }
        Ok(())
    }

    fn embed(&mut self, context: Context<'_>, tokens: &[u32]) -> Result<()> {
        let Context { config, tier, .. } = context;
        let (weights, width) = (&self.model.weights, config.hidden_size);
        let checkpoint = self.model.checkpoint().filter(|_| !weights.tied);
        let stored = checkpoint.map(Checkpoint::embedding).transpose()?;
        let h = sized(&mut self.buffers.h, tokens.len() * width);
        let finite = AtomicBool::new(true);
        context.rows(h, width, |t, row| {
            let token = tokens[t] as usize;
            match &stored {
                None => weights.output.row(tier, token, row),
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
                ops::scale(tier, config.embedding_scale, row);
            }
        });
        match checkpoint {
            Some(checkpoint) if !finite.into_inner() => {
                let what = "tensor token_embd.weight holds a NaN or an infinity";
                Err(Error::bad_file(checkpoint.path(), what))
            }
            _ => Ok(()),
        }
    }

    fn fill_rope(&mut self, context: Context<'_>, n: usize) {
        let positions: Vec<u32> = (self.len()..self.len() + n).map(|p| p as u32).collect();
        let rope = context.config.rope_for(self.rope_tokens);
        let fill = |table: &mut RopeTable, rope: &Rope| {
            table.fill(context.pool, &positions, &rope.inv_freq, rope.magnitude);
        };
        fill(&mut self.buffers.rope, rope);
        if let Some(local) = &context.config.rope_local {
            fill(&mut self.buffers.rope_local, local);
        }
    }

    /// Adds the attention block of a layer to the residual stream of the last `wanted` tokens.
    fn attention(
        &mut self,
        context: Context<'_>,
        layer: &Layer,
        index: usize,
        n: usize,
        wanted: usize,
        stats: Option<StatsWanted>,
    ) -> Result<()> {
        let Context { pool, tier, config } = context;
        let (hidden, q_dim, kv_dim) = (config.hidden_size, config.q_dim(), config.kv_dim());
        let position = self.kv.next_position(index);
        let b = &mut self.buffers;
        let needs = layer.q.needs().and(layer.k.needs()).and(layer.v.needs());
        let (h, attn_norm) = (&b.h[..n * hidden], context.norm(&layer.attn_norm));
        b.x.fill(pool, tier, n, hidden, needs, |t, x| {
            attn_norm.apply(tier, &h[t * hidden..(t + 1) * hidden], x);
        });
        let (q, k) = (sized(&mut b.q, n * q_dim), sized(&mut b.k, n * kv_dim));
        let v = sized(&mut b.v, n * kv_dim);
        linear(
            pool,
            tier,
            &mut b.linear,
            &b.x,
            &mut [product(&layer.q, q, false), product(&layer.k, k, false), product(&layer.v, v, false)],
        );
        let window = config.sliding_window[index];
        let rope = if window.is_some() && config.rope_local.is_some() { &b.rope_local } else { &b.rope };
        let heads = |norm: Option<&[f32]>, t: usize, row: &mut [f32]| {
            let (cos, sin) = rope.row(t);
            for head in row.chunks_exact_mut(config.head_dim) {
                if let Some(weight) = norm {
                    context.norm(weight).apply_in_place(tier, head);
                }
                rotate(tier, config, head, cos, sin);
            }
        };
        context.rows(k, kv_dim, |t, row| heads(layer.k_norm.as_deref(), t, row));
        // Gathering attention needs every query; otherwise those whose result nobody wants are left out.
        let gathers = stats.is_some() || self.repeated.is_some() || self.sampled.is_some();
        let queries = if gathers { n } else { wanted };
        let q = &mut q[(n - queries) * q_dim..];
        if queries > 0 {
            context.rows(q, q_dim, |t, row| heads(layer.q_norm.as_deref(), n - queries + t, row));
        }
        if let Some(sampled) = &mut self.sampled {
            sampled.take(index, position, q, q_dim);
        }
        self.kv.append(index, k, v, pool)?;
        if queries > 0 {
            let inputs = AttentionInputs {
                tier,
                q,
                queries: Queries::Last,
                out: sized(&mut b.attn, queries * q_dim),
                n_heads: config.n_heads,
                scale: config.attn_scale,
                softcap: config.attn_logit_softcap,
                wanted_from: queries - wanted,
                stats,
            };
            self.kv.attend(index, inputs, pool, &mut b.attention)?;
            if let Some(repeated) = &mut self.repeated {
                repeated.take(index, &self.kv.take_stats(index).0.peak);
            }
        }
        if wanted == 0 {
            return Ok(());
        }
        if wanted < n {
            b.h.copy_within((n - wanted) * hidden..n * hidden, 0);
        }
        let attn = &b.attn[(queries - wanted) * q_dim..queries * q_dim];
        b.x.fill(pool, tier, wanted, q_dim, layer.o.needs(), |t, x| {
            x.copy_from_slice(&attn[t * q_dim..(t + 1) * q_dim]);
        });
        b.add_block(context, &layer.o, layer.post_attn_norm.as_deref(), wanted);
        Ok(())
    }

    /// Adds the feed-forward block of a layer to the residual stream of `n` tokens.
    fn feed_forward(&mut self, context: Context<'_>, layer: &Layer, n: usize) {
        let Context { pool, tier, config } = context;
        let (hidden, width) = (config.hidden_size, config.intermediate_size);
        let b = &mut self.buffers;
        let (h, ffn_norm) = (&b.h[..n * hidden], context.norm(&layer.ffn_norm));
        b.x.fill(pool, tier, n, hidden, layer.gate.needs().and(layer.up.needs()), |t, x| {
            ffn_norm.apply(tier, &h[t * hidden..(t + 1) * hidden], x);
        });
        let (gate, up) = (sized(&mut b.gate, n * width), sized(&mut b.up, n * width));
        linear(
            pool,
            tier,
            &mut b.linear,
            &b.x,
            &mut [product(&layer.gate, gate, false), product(&layer.up, up, false)],
        );
        let f = match config.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::GeluTanh,
        };
        let (gate, up) = (&*gate, &*up);
        b.x.fill(pool, tier, n, width, layer.down.needs(), |t, x| {
            let row = t * width..(t + 1) * width;
            ops::gated(tier, f, &gate[row.clone()], &up[row], x);
        });
        b.add_block(context, &layer.down, layer.post_ffn_norm.as_deref(), n);
    }

    /// Logits of `rows` of the residual stream that [`Session::layers`] left, `[rows][vocab_size]`.
    pub(super) fn logits(&mut self, rows: Range<usize>) -> &[f32] {
        let model = self.model;
        let config = model.config();
        let context = Context { pool: &model.pool, tier: model.tier, config };
        let (output, hidden, vocab) = (&model.weights.output, config.hidden_size, config.vocab_size);
        let b = &mut self.buffers;
        let h = &b.h[rows.start * hidden..rows.end * hidden];
        let output_norm = context.norm(&model.weights.output_norm);
        b.x.fill(context.pool, context.tier, rows.len(), hidden, output.needs(), |t, x| {
            output_norm.apply(context.tier, &h[t * hidden..(t + 1) * hidden], x);
        });
        let logits = sized(&mut b.logits, rows.len() * vocab);
        let product =
            Linear { weight: output, bias: None, out: &mut *logits, stride: vocab, accumulate: false };
        linear(context.pool, context.tier, &mut b.linear, &b.x, &mut [product]);
        if let Some(cap) = config.final_logit_softcap {
            context.rows(logits, vocab, |_, row| ops::softcap(context.tier, cap, row));
        }
        logits
    }
}

impl Buffers {
    /// `h += norm(projection x)` for `n` tokens, the norm where there is one.
    fn add_block(&mut self, context: Context<'_>, projection: &Projection, norm: Option<&[f32]>, n: usize) {
        let Context { pool, tier, config } = context;
        let hidden = config.hidden_size;
        let h = &mut self.h[..n * hidden];
        let Some(weight) = norm else {
            linear(pool, tier, &mut self.linear, &self.x, &mut [product(projection, h, true)]);
            return;
        };
        let block = sized(&mut self.block, n * hidden);
        linear(pool, tier, &mut self.linear, &self.x, &mut [product(projection, block, false)]);
        let (block, norm) = (&*block, context.norm(weight));
        context.rows(h, hidden, |t, h| norm.add_to(tier, &block[t * hidden..(t + 1) * hidden], h));
    }
}
