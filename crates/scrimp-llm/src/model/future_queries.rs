//! The attention of future queries, estimated by queries of the prompt: a sample of them, rotated to positions after the
//! prompt, attends to the cache. Their mean is expected attention (arXiv 2510.00636, §3). Their maximum scores tokens for
//! `expected-max`, and their outputs are the reference of fitted values.

use super::{Session, rope_and_append::apply_rope};
use crate::error::Result;
use scrimp_base::random::mix;
use scrimp_kernels::ops::RopeTable;
use scrimp_kv::{
    AttentionInputs, FutureQueries, LayerQueries, PostPrefillScores, Queries, ScoresWanted, policy::Needs,
};
use std::sync::Arc;

/// Number of queries whose mean attention is the expected attention.
const MEAN_SAMPLES: usize = 64;
/// They are rotated to this many positions after the prompt, evenly spaced.
const MEAN_HORIZON: usize = 512;
/// Queries whose maximum attention scores tokens.
const MAX_SAMPLES: usize = 1024;
/// They are rotated to random positions among this many after the prompt.
const MAX_HORIZON: usize = 256;
/// Those of them to whose outputs values are fitted.
const FIT_SAMPLES: usize = 64;

/// Whether item `i` of `n` is one of `samples` evenly spaced ones.
fn is_sample(i: usize, n: usize, samples: usize) -> bool {
    let samples = samples.min(n);
    (i + 1) * samples / n.max(1) > i * samples / n.max(1)
}

/// Queries of some tokens, after RoPE.
#[derive(Debug, Clone, Default)]
struct Sample {
    positions: Vec<u32>,
    /// `[layer][sample][q_dim]`.
    rows: Vec<Vec<f32>>,
}

impl Sample {
    /// Adds the tokens that `chosen` by position from the queries `[n][q_dim]` of a layer. `position` is that of the
    /// first one.
    fn add(
        &mut self,
        layer: usize,
        position: usize,
        q: &[f32],
        q_dim: usize,
        chosen: impl Fn(usize) -> bool,
    ) {
        if self.rows.len() <= layer {
            self.rows.resize_with(layer + 1, Vec::new);
        }
        for (i, row) in q.chunks_exact(q_dim).enumerate() {
            if chosen(position + i) {
                if layer == 0 {
                    self.positions.push((position + i) as u32);
                }
                self.rows[layer].extend_from_slice(row);
            }
        }
    }

    /// The layer's queries, if there are any.
    fn layer(&self, layer: usize, q_dim: usize) -> Option<&[f32]> {
        let n = self.positions.len();
        self.rows.get(layer).filter(|rows| n > 0 && rows.len() == n * q_dim).map(Vec::as_slice)
    }
}

/// The samples of a prompt's queries.
#[derive(Debug, Clone)]
pub(super) struct SampledQueries {
    needs: Needs,
    /// The tokens to sample from: from the first position to the end of the prompt.
    from: usize,
    len: usize,
    mean: Sample,
    max: Sample,
}

impl SampledQueries {
    /// Empty samples of the tokens from position `from` to `len`, the end of the prompt; `None` if `needs` reads none.
    pub(super) fn new(needs: Needs, from: usize, len: usize) -> Option<Self> {
        let any = needs.expected || needs.expected_max || needs.future_outputs;
        any.then(|| Self { needs, from, len, mean: Sample::default(), max: Sample::default() })
    }

    /// Samples from the queries `[n][q_dim]` of a layer. `position` is the position of the first one.
    pub(super) fn add(&mut self, layer: usize, position: usize, q: &[f32], q_dim: usize) {
        let tokens = self.len.saturating_sub(self.from);
        if self.needs.expected {
            let every = (tokens / MEAN_SAMPLES).max(1);
            self.mean.add(layer, position, q, q_dim, |position| position.is_multiple_of(every));
        }
        if self.needs.expected_max || self.needs.future_outputs {
            let samples = if self.needs.expected_max { MAX_SAMPLES } else { FIT_SAMPLES };
            self.max.add(layer, position, q, q_dim, |position| {
                is_sample(position.saturating_sub(self.from), tokens, samples)
            });
        }
    }
}

/// A sample and the order of its queries.
struct Ordered<'a> {
    sample: &'a Sample,
    order: Vec<usize>,
}

/// Queries of a layer that attend from positions after the prompt.
struct Rotated<'a> {
    layer: usize,
    q: &'a [f32],
    out: &'a mut [f32],
    /// The number of last queries whose outputs are wanted.
    outputs: usize,
    wanted: ScoresWanted,
}

impl Session {
    /// Computes the attention that the sampled queries pay from positions after the prompt.
    pub(super) fn compute_future_attention(&mut self, sampled: &SampledQueries) -> Result<()> {
        let (needs, len) = (sampled.needs, self.len());
        if needs.expected {
            let n = sampled.mean.positions.len().max(1);
            let target = |i: usize| (len + i * MEAN_HORIZON / n) as u32;
            let wanted = ScoresWanted { sum: true, ..ScoresWanted::default() };
            let sample =
                Ordered { sample: &sampled.mean, order: (0..sampled.mean.positions.len()).collect() };
            self.attend_from_future(&sample, target, 0, wanted, |scores, sums| {
                scores.expected = sums.0;
                scores.expected.iter_mut().flatten().for_each(|sum| *sum /= n as f32);
            })?;
        }
        if needs.expected_max || needs.future_outputs {
            let target = |i: usize| (len + mix(i as u64) as usize % MAX_HORIZON) as u32;
            let wanted = ScoresWanted { max: needs.expected_max, ..ScoresWanted::default() };
            let n = sampled.max.positions.len();
            let fits = if needs.future_outputs { FIT_SAMPLES.min(n) } else { 0 };
            let (last, first): (Vec<usize>, Vec<usize>) = (0..n).partition(|&i| is_sample(i, n, fits));
            let sample = Ordered { sample: &sampled.max, order: [first, last].concat() };
            let layers = self.attend_from_future(&sample, target, fits, wanted, |scores, (_, peak)| {
                if needs.expected_max {
                    scores.expected_max = peak;
                }
            })?;
            let config = self.model.config();
            self.future_queries = needs.future_outputs.then(|| {
                Arc::new(FutureQueries {
                    n_heads: config.n_heads,
                    scale: config.attn_scale,
                    softcap: config.attn_logit_softcap,
                    layers,
                })
            });
        }
        Ok(())
    }

    /// Rotates the queries of `sample` to the positions `target(index)` and computes their attention to the cache.
    /// `store` stores the sums and the maxima of a layer's attention. Returns the last `outputs` queries of each layer
    /// with their outputs.
    fn attend_from_future(
        &mut self,
        Ordered { sample, order }: &Ordered<'_>,
        target: impl Fn(usize) -> u32,
        outputs: usize,
        wanted: ScoresWanted,
        store: impl Fn(&mut PostPrefillScores, (Vec<Vec<f32>>, Vec<Vec<f32>>)),
    ) -> Result<Vec<LayerQueries>> {
        let model = self.model.clone();
        let (config, exec) = (model.config(), model.exec());
        let (q_dim, n) = (config.q_dim(), sample.positions.len());
        let rotations: Vec<u32> = order.iter().map(|&i| target(i) - sample.positions[i]).collect();
        let mut table = RopeTable::default();
        table.fill(exec.pool, &rotations, &config.rope_for(self.rope_tokens).inv_freq, 1.0);
        let layers: Vec<usize> = self.kv.full_layers().collect();
        let mut kept = Vec::new();
        kept.resize_with(if outputs > 0 { self.kv.n_layers() } else { 0 }, LayerQueries::default);
        let mut out = vec![0.0; n * q_dim];
        for layer in layers {
            let Some(rows) = sample.layer(layer, q_dim) else { continue };
            let mut q: Vec<f32> =
                order.iter().flat_map(|&i| &rows[i * q_dim..(i + 1) * q_dim]).copied().collect();
            // Queries of a layer without RoPE are the same at every position.
            for (i, row) in q.chunks_exact_mut(q_dim).enumerate().filter(|_| config.rope_layers[layer]) {
                let (cos, sin) = table.row(i);
                row.chunks_exact_mut(config.head_dim)
                    .for_each(|head| apply_rope(exec.level, config, head, cos, sin));
            }
            self.attend_rotated(Rotated { layer, q: &q, out: &mut out, outputs, wanted }, &store)?;
            if let Some(kept) = kept.get_mut(layer) {
                let from = (n - outputs) * q_dim;
                *kept = LayerQueries { q: q[from..].to_vec(), out: out[from..].to_vec() };
            }
        }
        Ok(kept)
    }

    fn attend_rotated(
        &mut self,
        rotated: Rotated<'_>,
        store: impl Fn(&mut PostPrefillScores, (Vec<Vec<f32>>, Vec<Vec<f32>>)),
    ) -> Result<()> {
        let Rotated { layer, q, out, outputs, wanted } = rotated;
        let model = self.model.clone();
        let (config, exec) = (model.config(), model.exec());
        let (accumulated, queries) = self.kv.take_accumulated_scores(layer);
        let inputs = AttentionInputs {
            q,
            queries: Queries::Future,
            out,
            n_heads: config.n_heads,
            scale: config.attn_scale,
            softcap: config.attn_logit_softcap,
            wanted_from: q.len() / config.q_dim() - outputs,
            scores: Some(wanted),
        };
        self.kv.attend(layer, inputs, exec, &mut self.buffers.attention)?;
        let (sums, _) = self.kv.take_accumulated_scores(layer);
        self.kv.set_accumulated_scores(layer, accumulated, queries)?;
        let mut scores = self.kv.post_prefill_scores(layer).clone();
        store(&mut scores, (sums.sum, sums.peak));
        Ok(self.kv.set_post_prefill_scores(layer, scores)?)
    }
}
