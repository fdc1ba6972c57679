//! The attention of future queries, estimated by queries of the prompt: a sample of them, rotated to positions after the
//! prompt, attends to the cache. Their mean is expected attention (arXiv 2510.00636, §3). Their maximum scores tokens for
//! `expected-max`, and their outputs are the reference of fitted values.

use super::{Session, forward::each_row, rope_and_append::apply_rope};
use crate::{config::ModelConfig, error::Result};
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
/// Queries of each head whose maximum attention scores tokens. With more tokens per query head (see [`Sample`]), half as
/// many queries measure as well as 1,024 queries of all heads of a token.
const MAX_SAMPLES: usize = 512;
/// They are rotated to random positions among this many after the prompt.
const MAX_HORIZON: usize = 256;
/// Those of them to whose outputs values are fitted.
const FIT_SAMPLES: usize = 64;

/// Whether item `i` of `n` is one of `samples` evenly spaced ones.
fn is_sample(i: usize, n: usize, samples: usize) -> bool {
    let samples = samples.min(n);
    (i + 1) * samples / n.max(1) > i * samples / n.max(1)
}

/// Queries of some tokens, after RoPE. The query heads of a KV head take their queries from different tokens: attention
/// computes each head on its own, and more tokens say more about the future than more heads of one token.
#[derive(Debug, Clone)]
struct Sample {
    /// Tokens to sample from.
    tokens: usize,
    /// Queries of each head.
    n: usize,
    /// Query heads of a KV head.
    group: usize,
    head_dim: usize,
    /// `[layer][query][member of the group][KV head][head_dim]`.
    rows: Vec<Vec<f32>>,
}

impl Sample {
    /// A sample of at most `most` queries per head of the queries of `tokens` tokens.
    fn new(tokens: usize, most: usize, config: &ModelConfig) -> Self {
        let group = config.n_heads / config.n_kv_heads;
        Self { tokens, n: most.min(tokens), group, head_dim: config.head_dim, rows: Vec::new() }
    }

    /// The token of member `member` of query `query`.
    fn token(&self, query: usize, member: usize) -> usize {
        (query * self.group + member) * self.tokens / (self.n * self.group)
    }

    /// Adds the sampled ones of the queries `[n][n_heads][head_dim]` of a layer, those of the tokens from `first` on.
    fn add(&mut self, layer: usize, first: usize, q: &[f32], q_dim: usize) {
        if self.rows.len() <= layer {
            self.rows.resize_with(layer + 1, Vec::new);
        }
        let entries = self.n * self.group;
        for (token, row) in (first..).zip(q.chunks_exact(q_dim)).take_while(|(token, _)| *token < self.tokens)
        {
            for entry in
                (token * entries).div_ceil(self.tokens)..((token + 1) * entries).div_ceil(self.tokens)
            {
                let heads = row.chunks_exact(self.head_dim).skip(entry % self.group).step_by(self.group);
                heads.for_each(|head| self.rows[layer].extend_from_slice(head));
            }
        }
    }

    /// The layer's queries, if it has all of them.
    fn layer(&self, layer: usize, q_dim: usize) -> Option<&[f32]> {
        self.rows.get(layer).filter(|rows| self.n > 0 && rows.len() == self.n * q_dim).map(Vec::as_slice)
    }
}

/// The samples of a prompt's queries.
#[derive(Debug, Clone)]
pub(super) struct SampledQueries {
    needs: Needs,
    /// Position of the first token to sample from.
    from: usize,
    mean: Sample,
    max: Sample,
}

impl SampledQueries {
    /// Empty samples of the tokens from position `from` to `len`, the end of the prompt; `None` if `needs` reads none.
    pub(super) fn new(needs: Needs, from: usize, len: usize, config: &ModelConfig) -> Option<Self> {
        let any = needs.expected || needs.expected_max || needs.future_outputs;
        let tokens = len.saturating_sub(from);
        let most = if needs.expected_max { MAX_SAMPLES } else { FIT_SAMPLES };
        any.then(|| Self {
            needs,
            from,
            mean: Sample::new(tokens, MEAN_SAMPLES, config),
            max: Sample::new(tokens, most, config),
        })
    }

    /// Samples from the queries `[n][n_heads][head_dim]` of a layer. `position` is the position of the first one.
    pub(super) fn add(&mut self, layer: usize, position: usize, q: &[f32], q_dim: usize) {
        let first = position.saturating_sub(self.from);
        if self.needs.expected {
            self.mean.add(layer, first, q, q_dim);
        }
        if self.needs.expected_max || self.needs.future_outputs {
            self.max.add(layer, first, q, q_dim);
        }
    }
}

/// A sample and the order of its queries.
struct Ordered<'a> {
    sample: &'a Sample,
    /// Position of the first token of the sample.
    from: usize,
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
            let n = sampled.mean.n.max(1);
            let target = |i: usize| len + i * MEAN_HORIZON / n;
            let wanted = ScoresWanted { sum: true, ..ScoresWanted::default() };
            let order = (0..sampled.mean.n).collect();
            let sample = Ordered { sample: &sampled.mean, from: sampled.from, order };
            self.attend_from_future(&sample, target, 0, wanted, |scores, sums| {
                scores.expected = sums.0;
                scores.expected.iter_mut().flatten().for_each(|sum| *sum /= n as f32);
            })?;
        }
        if needs.expected_max || needs.future_outputs {
            let target = |i: usize| len + mix(i as u64) as usize % MAX_HORIZON;
            let wanted = ScoresWanted { max: needs.expected_max, ..ScoresWanted::default() };
            let n = sampled.max.n;
            let fits = if needs.future_outputs { FIT_SAMPLES.min(n) } else { 0 };
            let (last, first): (Vec<usize>, Vec<usize>) = (0..n).partition(|&i| is_sample(i, n, fits));
            let order = [first, last].concat();
            let sample = Ordered { sample: &sampled.max, from: sampled.from, order };
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
        Ordered { sample, from, order }: &Ordered<'_>,
        target: impl Fn(usize) -> usize,
        outputs: usize,
        wanted: ScoresWanted,
        store: impl Fn(&mut PostPrefillScores, (Vec<Vec<f32>>, Vec<Vec<f32>>)),
    ) -> Result<Vec<LayerQueries>> {
        let model = self.model.clone();
        let (config, exec) = (model.config(), model.exec());
        let (q_dim, dim, group, n) = (config.q_dim(), config.head_dim, sample.group, sample.n);
        let position = |query: usize, member: usize| from + sample.token(query, member);
        let members = order.iter().flat_map(|&i| (0..group).map(move |member| (i, member)));
        let rotations: Vec<u32> = members.map(|(i, m)| (target(i) - position(i, m)) as u32).collect();
        let mut table = RopeTable::default();
        table.fill(exec.pool, &rotations, &config.rope_for(self.rope_tokens).inv_freq, 1.0);
        let layers: Vec<usize> = self.kv.full_layers().collect();
        let mut kept = Vec::new();
        kept.resize_with(if outputs > 0 { self.kv.n_layers() } else { 0 }, LayerQueries::default);
        let (mut out, mut q) = (vec![0.0; n * q_dim], vec![0.0; n * q_dim]);
        for layer in layers {
            let Some(rows) = sample.layer(layer, q_dim) else { continue };
            let of_model = model.attention_layer(layer);
            each_row(exec.pool, &mut q, q_dim, |i, row| {
                let entries = &rows[order[i] * q_dim..(order[i] + 1) * q_dim];
                for (head, query) in row.chunks_exact_mut(dim).enumerate() {
                    let (kv_head, member) = (head / group, head % group);
                    let entry = member * (q_dim / dim / group) + kv_head;
                    query.copy_from_slice(&entries[entry * dim..(entry + 1) * dim]);
                    // Queries of a layer without RoPE are the same at every position.
                    if config.rope_layers[of_model] {
                        let (cos, sin) = table.row(i * group + member);
                        apply_rope(exec.level, config, query, cos, sin);
                    }
                }
            });
            self.attend_rotated(Rotated { layer, q: &q, out: &mut out, outputs, wanted }, &store)?;
            if let Some(kept) = kept.get_mut(layer) {
                let from = (n - outputs) * q_dim;
                let sinks = model.weights().layers[of_model].norms.sinks.clone().unwrap_or_default();
                *kept = LayerQueries { q: q[from..].to_vec(), out: out[from..].to_vec(), sinks };
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
            sinks: model.weights().layers[model.attention_layer(layer)].norms.sinks.as_deref(),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample of `tokens` tokens in chunks of 7. The query of head `h` of token `t` is `100 t + h`, with `head_dim` 1.
    fn sample(tokens: usize, most: usize, group: usize, kv_heads: usize) -> Sample {
        let mut sample = Sample { tokens, n: most.min(tokens), group, head_dim: 1, rows: Vec::new() };
        let n_heads = group * kv_heads;
        let rows: Vec<f32> =
            (0..tokens + 3).flat_map(|t| (0..n_heads).map(move |h| (100 * t + h) as f32)).collect();
        for (chunk, rows) in rows.chunks(7 * n_heads).enumerate() {
            sample.add(0, 7 * chunk, rows, n_heads);
        }
        sample
    }

    #[test]
    fn each_head_has_its_queries_of_evenly_spaced_tokens() {
        for (tokens, most, group, kv_heads) in
            [(1, 512, 1, 1), (50, 8, 3, 2), (50, 50, 4, 1), (20, 512, 7, 2), (1000, 64, 2, 3)]
        {
            let sample = sample(tokens, most, group, kv_heads);
            let rows = sample.layer(0, group * kv_heads).expect("all queries");
            for (entry, heads) in rows.chunks_exact(kv_heads).enumerate() {
                let (query, member) = (entry / group, entry % group);
                let token = sample.token(query, member);
                assert_eq!(token, entry * tokens / (sample.n * group));
                for (kv_head, &value) in heads.iter().enumerate() {
                    assert_eq!(value, (100 * token + kv_head * group + member) as f32);
                }
            }
        }
        let all = sample(20, 512, 7, 2);
        assert!(
            (0..20).all(|query| (0..7).all(|member| all.token(query, member) == query)),
            "all heads of all tokens"
        );
    }

    #[test]
    fn a_sample_without_tokens_has_no_queries() {
        assert_eq!(sample(0, 512, 2, 1).layer(0, 2), None);
    }
}
