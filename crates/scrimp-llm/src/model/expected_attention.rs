//! Expected attention of future queries (arXiv 2510.00636, §3): a sample of the prompt's queries, rotated to later
//! positions, attends to the cache.

use super::{Session, rope_and_append::apply_rope};
use crate::error::Result;
use scrimp_kernels::ops::RopeTable;
use scrimp_kv::{AttentionInputs, PostPrefillScores, Queries, ScoresWanted};

/// Number of sampled queries.
const SAMPLES: usize = 64;
/// Number of positions after the prompt, evenly spaced, to which the sampled queries are rotated.
const HORIZON: usize = 512;

/// A sample of the prompt's queries, after RoPE.
#[derive(Debug, Clone, Default)]
pub(super) struct SampledQueries {
    /// Every `every`-th token is sampled.
    every: usize,
    positions: Vec<u32>,
    /// `[layer][sample][q_dim]`.
    rows: Vec<Vec<f32>>,
}

impl SampledQueries {
    /// An empty sample of the tokens from position `from` to `len`, the end of the prompt.
    pub(super) fn new(from: usize, len: usize) -> Self {
        Self { every: (len.saturating_sub(from) / SAMPLES).max(1), ..Self::default() }
    }

    /// Samples from the queries `[n][q_dim]` of a layer. `position` is the position of the first one.
    pub(super) fn add(&mut self, layer: usize, position: usize, q: &[f32], q_dim: usize) {
        if self.rows.len() <= layer {
            self.rows.resize_with(layer + 1, Vec::new);
        }
        for (i, row) in q.chunks_exact(q_dim).enumerate() {
            if (position + i).is_multiple_of(self.every) {
                if layer == 0 {
                    self.positions.push((position + i) as u32);
                }
                self.rows[layer].extend_from_slice(row);
            }
        }
    }
}

impl Session {
    /// Computes the attention of the sampled queries at positions after the prompt.
    pub(super) fn compute_expected_attention(&mut self, sampled: &SampledQueries) -> Result<()> {
        let model = self.model.clone();
        let (config, exec) = (model.config(), model.exec());
        let (len, q_dim, n) = (self.len(), config.q_dim(), sampled.positions.len());
        let rotations: Vec<u32> =
            (0..n).map(|i| (len + i * HORIZON / n.max(1)) as u32 - sampled.positions[i]).collect();
        let mut table = RopeTable::default();
        table.fill(exec.pool, &rotations, &config.rope_for(self.rope_tokens).inv_freq, 1.0);
        let layers: Vec<usize> = self.kv.full_layers().collect();
        let mut out = vec![0.0; n * q_dim];
        for layer in layers {
            let Some(rows) = sampled.rows.get(layer).filter(|rows| rows.len() == n * q_dim && n > 0) else {
                continue;
            };
            let mut q = rows.clone();
            for (i, row) in q.chunks_exact_mut(q_dim).enumerate() {
                let (cos, sin) = table.row(i);
                row.chunks_exact_mut(config.head_dim)
                    .for_each(|head| apply_rope(exec.level, config, head, cos, sin));
            }
            let (accumulated, queries) = self.kv.take_accumulated_scores(layer);
            let inputs = AttentionInputs {
                q: &q,
                queries: Queries::Future,
                out: &mut out,
                n_heads: config.n_heads,
                scale: config.attn_scale,
                softcap: config.attn_logit_softcap,
                wanted_from: n,
                scores: Some(ScoresWanted { sum: true, ..ScoresWanted::default() }),
            };
            self.kv.attend(layer, inputs, exec, &mut self.buffers.attention)?;
            let (sums, _) = self.kv.take_accumulated_scores(layer);
            self.kv.set_accumulated_scores(layer, accumulated, queries)?;
            let mut expected = sums.sum;
            expected.iter_mut().flatten().for_each(|sum| *sum /= n as f32);
            let scores = PostPrefillScores { expected, ..self.kv.post_prefill_scores(layer).clone() };
            self.kv.set_post_prefill_scores(layer, scores)?;
        }
        Ok(())
    }
}
