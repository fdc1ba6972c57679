//! Encoders: transformers whose tokens attend to all tokens of their text (BERT, RoBERTa, Nomic).
//!
//! ```text
//! h = norm(token + position + type)
//! for each layer:   h = norm(h + O attention(Q h, K h, V h))
//!                   h = norm(h + down f(up h))                f = gelu; Nomic: silu(gate h) * up h, and rope(Q h)
//! ```
//! All texts of a batch go through one pass: matrices process the rows of all texts, attention each text alone. There
//! are no padding tokens, so the embedding of a text does not depend on the other texts.
//!
//! Sources: Devlin et al. 2018 (arXiv 1810.04805); Liu et al. 2019 (arXiv 1907.11692); Nussbaum et al. 2024 (arXiv
//! 2402.01613).

mod config;
mod weights;

pub use config::{EncoderConfig, MODEL_TYPES};
pub(crate) use weights::dense_layer;

use crate::{
    error::{Error, Result},
    families::HfConfig,
    load::HfDir,
    model::{LinearWeights, RunOptions, set_up},
};
use config::Activation;
use scrimp_kernels::{
    Exec, Pool, SimdLevel,
    linear::{ActivationShape, Activations, Linear, LinearScratch, linear},
    ops::{self, BidirectionalShape, Gate, LayerNorm, Qkv, RopeTable, bidirectional},
};
use std::{ops::Range, path::Path};
use weights::{Layer, Norm, Weights};

/// The most tokens of a pass; longer batches are cut between texts.
const PASS_TOKENS: usize = 4096;

/// The tokens of a text, or of a pair of texts, with the special ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedText {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each token 0 in the first text and 1 in the second.
    pub types: Vec<u32>,
}

/// An encoder's weights, ready to run.
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    weights: Weights,
    pool: Pool,
    level: SimdLevel,
}

/// Intermediate results, `[tokens][width]`.
#[derive(Default)]
struct Buffers {
    h: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attn: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    x: Activations,
    scratch: LinearScratch,
    rope: RopeTable,
}

impl Encoder {
    /// Loads the encoder in the Hugging Face directory `dir`; `None` if its model is none.
    ///
    /// # Errors
    /// When files are missing or damaged, or memory cannot be had.
    pub fn open(dir: &Path, options: &RunOptions) -> Result<Option<Self>> {
        let files = HfDir::open(dir)?;
        let hf = HfConfig::new(&files.config_path, &files.config)?;
        let Some(config) = EncoderConfig::read(&hf)? else { return Ok(None) };
        let (level, pool) = set_up(options)?;
        let weights = weights::load(&files, dir, &config, &pool)?;
        Ok(Some(Self { config, weights, pool, level }))
    }

    /// The configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Whether the model scores pairs of texts (a cross-encoder).
    pub fn has_classifier(&self) -> bool {
        self.weights.classifier.is_some()
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        self.weights.stored.parameters
    }

    /// Bytes of the tensors in the file.
    pub fn stored_bytes(&self) -> u64 {
        self.weights.stored.bytes
    }

    /// Type of the weights in the file: `f32`, `f16` or `bf16`.
    pub fn stored_type(&self) -> &'static str {
        self.weights.stored.dtype
    }

    pub(crate) fn exec(&self) -> Exec<'_> {
        Exec { pool: &self.pool, level: self.level }
    }

    /// Calls `visit(text, rows)` with the final states of each text's tokens, `[tokens][hidden_size]`.
    ///
    /// # Errors
    /// When a text is empty or too long, or an id is outside the vocabulary.
    pub fn each_text(&self, texts: &[EncodedText], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        for text in texts {
            self.check(text)?;
        }
        let (mut buffers, mut first) = (Buffers::default(), 0);
        while first < texts.len() {
            let (mut end, mut tokens) = (first, 0);
            while end < texts.len() && (end == first || tokens + texts[end].ids.len() <= PASS_TOKENS) {
                tokens += texts[end].ids.len();
                end += 1;
            }
            let ranges = self.pass(&mut buffers, &texts[first..end]);
            let hidden = self.config.hidden_size;
            for (i, range) in ranges.iter().enumerate() {
                visit(first + i, &buffers.h[range.start * hidden..range.end * hidden]);
            }
            first = end;
        }
        Ok(())
    }

    /// The classifier's outputs for each text or pair, `[labels]` each.
    ///
    /// # Errors
    /// As [`Encoder::each_text`], and when the model has no classifier.
    pub fn classify(&self, texts: &[EncodedText]) -> Result<Vec<Vec<f32>>> {
        let classifier = self.weights.classifier.as_ref().ok_or_else(|| {
            Error::unsupported(
                "the model has no classifier, so it does not score pairs of texts",
                "use a reranker",
            )
        })?;
        let mut scores = Vec::with_capacity(texts.len());
        self.each_text(texts, &mut |_, rows| {
            let mut state = rows[..self.config.hidden_size].to_vec();
            if let Some(pooler) = &classifier.pooler {
                state = pooler.apply(self.exec(), &state);
                state.iter_mut().for_each(|x| *x = x.tanh());
            }
            scores.push(classifier.output.apply(self.exec(), &state));
        })?;
        Ok(scores)
    }

    fn check(&self, EncodedText { ids, types }: &EncodedText) -> Result<()> {
        let (vocab, most) = (self.weights.tokens.rows, self.config.max_tokens);
        if ids.is_empty() || ids.len() > most {
            return Err(Error::bad_input(format!("a text of {} tokens; 1 to {most} are allowed", ids.len())));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::bad_input(format!("token {id} is outside the vocabulary of {vocab}")));
        }
        let kinds = self.weights.types.as_ref().map_or(1, |types| types.rows);
        if types.len() != ids.len() || (kinds > 1 && types.iter().any(|&kind| kind as usize >= kinds)) {
            return Err(Error::bad_input("the types of the tokens do not fit the model"));
        }
        Ok(())
    }

    /// Runs all layers; returns the rows of each text in `buffers.h`.
    fn pass(&self, buffers: &mut Buffers, texts: &[EncodedText]) -> Vec<Range<usize>> {
        let mut n = 0;
        let ranges: Vec<Range<usize>> = texts
            .iter()
            .map(|text| {
                n += text.ids.len();
                n - text.ids.len()..n
            })
            .collect();
        self.embed(buffers, texts, n);
        for layer in &self.weights.layers {
            self.attention(buffers, layer, &ranges, n);
            self.feed_forward(buffers, layer, n);
        }
        ranges
    }

    fn embed(&self, buffers: &mut Buffers, texts: &[EncodedText], n: usize) {
        let (config, weights, hidden) = (&self.config, &self.weights, self.config.hidden_size);
        let tokens: Vec<(u32, u32, usize)> = texts
            .iter()
            .flat_map(|text| {
                text.ids.iter().zip(&text.types).enumerate().map(|(i, (&id, &kind))| (id, kind, i))
            })
            .collect();
        buffers.h.clear();
        buffers.h.resize(n * hidden, 0.0);
        self.pool.chunks(&mut buffers.h, hidden, |row, h| {
            let (id, kind, position) = tokens[row];
            let mut scratch = vec![0.0; hidden];
            weights.tokens.add_row(id as usize, &mut scratch, h);
            if let Some(positions) = &weights.positions {
                positions.add_row(config.first_position + position, &mut scratch, h);
            }
            if let Some(types) = &weights.types {
                // RoBERTa has one type for both texts.
                types.add_row((kind as usize).min(types.rows - 1), &mut scratch, h);
            }
        });
        self.norm(&weights.embedding_norm, &mut buffers.h);
        if let Some(base) = config.rope_base {
            let d = config.head_dim();
            let inv_freq: Vec<f32> =
                (0..d / 2).map(|i| base.powf(-2.0 * i as f64 / d as f64) as f32).collect();
            let positions: Vec<u32> = tokens.iter().map(|&(_, _, position)| position as u32).collect();
            buffers.rope.fill(&self.pool, &positions, &inv_freq, 1.0);
        }
    }

    fn norm(&self, norm: &Norm, rows: &mut [f32]) {
        let norm = LayerNorm { weight: &norm.weight, bias: &norm.bias, eps: self.config.layer_norm_eps };
        let level = self.level;
        self.pool.chunks(rows, self.config.hidden_size, |_, row| norm.apply_in_place(level, row));
    }

    fn attention(&self, buffers: &mut Buffers, layer: &Layer, texts: &[Range<usize>], n: usize) {
        let (config, exec, hidden) = (&self.config, self.exec(), self.config.hidden_size);
        let Buffers { h, q, k, v, attn, x, scratch, rope, .. } = buffers;
        fill(exec, x, &[&layer.q, &layer.k, &layer.v], n, |t, row| {
            row.copy_from_slice(&h[t * hidden..(t + 1) * hidden]);
        });
        for out in [&mut *q, &mut *k, &mut *v, &mut *attn] {
            out.resize(n * hidden, 0.0);
        }
        linear(
            exec,
            scratch,
            x,
            &mut [product(&layer.q, q, false), product(&layer.k, k, false), product(&layer.v, v, false)],
        );
        if config.rope_base.is_some() {
            for rows in [&mut *q, &mut *k] {
                self.pool.chunks(rows, hidden, |t, row| {
                    let (cos, sin) = rope.row(t);
                    row.chunks_exact_mut(config.head_dim())
                        .for_each(|head| ops::rotate_halves(exec.level, head, cos, sin));
                });
            }
        }
        let shape = BidirectionalShape {
            n_heads: config.n_heads,
            n_kv_heads: config.n_heads,
            head_dim: config.head_dim(),
            scale: 1.0 / (config.head_dim() as f32).sqrt(),
            window: None,
        };
        bidirectional(exec, shape, texts, Qkv { q, k, v }, attn);
        fill(exec, x, &[&layer.o], n, |t, row| row.copy_from_slice(&attn[t * hidden..(t + 1) * hidden]));
        linear(exec, scratch, x, &mut [product(&layer.o, h, true)]);
        self.norm(&layer.attn_norm, &mut buffers.h);
    }

    fn feed_forward(&self, buffers: &mut Buffers, layer: &Layer, n: usize) {
        let (config, exec) = (&self.config, self.exec());
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let Buffers { h, gate, up, x, scratch, .. } = buffers;
        let first: Vec<&LinearWeights> = layer.gate.iter().chain([&layer.up]).collect();
        fill(exec, x, &first, n, |t, row| row.copy_from_slice(&h[t * hidden..(t + 1) * hidden]));
        up.resize(n * inner, 0.0);
        gate.resize(if layer.gate.is_some() { n * inner } else { 0 }, 0.0);
        let mut products = vec![product(&layer.up, up, false)];
        if let Some(weights) = &layer.gate {
            products.push(product(weights, gate, false));
        }
        linear(exec, scratch, x, &mut products);
        let level = exec.level;
        fill(exec, x, &[&layer.down], n, |t, row| {
            let range = t * inner..(t + 1) * inner;
            match config.activation {
                Activation::Swiglu => {
                    ops::gated(level, Gate::Silu, &gate[range.clone()], &up[range], row);
                }
                activation => {
                    row.copy_from_slice(&up[range]);
                    ops::gelu(level, activation == Activation::GeluTanh, row);
                }
            }
        });
        linear(exec, scratch, x, &mut [product(&layer.down, h, true)]);
        self.norm(&layer.ffn_norm, &mut buffers.h);
    }
}

fn fill(
    exec: Exec<'_>,
    x: &mut Activations,
    weights: &[&LinearWeights],
    n_tokens: usize,
    row: impl Fn(usize, &mut [f32]) + Sync,
) {
    let needs = weights.iter().skip(1).fold(weights[0].needs(), |needs, w| needs.and(w.needs()));
    x.fill(exec, ActivationShape { n_tokens, cols: weights[0].weight.cols(), needs }, row);
}

fn product<'a>(p: &'a LinearWeights, out: &'a mut [f32], accumulate: bool) -> Linear<'a> {
    Linear { weight: &p.weight, bias: p.bias.as_deref(), out, stride: p.weight.rows(), accumulate }
}
