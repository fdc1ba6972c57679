//! Attention of a forward pass. Each sequence reads its own cache, which already has its new keys and values.

use super::{
    chunk::{LayerPlace, SequenceChunk},
    forward::{Pass, sized},
};
use crate::{
    config::ModelConfig,
    error::{Error, Result},
};
use scrimp_kernels::ops::{BidirectionalShape, Qkv, bidirectional};
use scrimp_kv::{AttentionInputs, BatchEntry, Queries, attend_all};

impl SequenceChunk<'_> {
    /// Whether it needs a call of its own, because it accumulates attention scores.
    fn alone(&self) -> bool {
        self.scores.is_some() || self.reconstruction.is_some()
    }
}

impl Pass<'_> {
    /// Attention of the layer at `place`, from the queries of `n` rows to `attn`, with the layer's `sinks`. With `only_wanted`, the rows of the other tokens are unspecified afterwards.
    pub(super) fn attend(
        &mut self,
        place: LayerPlace,
        n: usize,
        chunks: &mut [SequenceChunk<'_>],
        sinks: Option<&[f32]>,
        only_wanted: bool,
    ) {
        let (layer, q_dim) = (place.kv, place.heads.q_dim());
        sized(&mut self.buffers.attn, n * q_dim);
        if self.config.bidirectional {
            return self.attend_to_all(layer, chunks);
        }
        for chunk in chunks.iter_mut().filter(|chunk| chunk.error.is_none() && chunk.alone()) {
            chunk.error = self.attend_alone(place, chunk, sinks, only_wanted).err();
        }
        let Self { exec, config, buffers, .. } = self;
        let (mut rest, mut at) = (&mut buffers.attn[..n * q_dim], 0);
        let mut entries = Vec::with_capacity(chunks.len());
        for chunk in chunks.iter().filter(|chunk| chunk.error.is_none() && !chunk.alone()) {
            let rows = chunk.rows();
            let queries = if only_wanted { chunk.wanted } else { rows.len() };
            let first = (rows.end - queries) * q_dim;
            let out = rest.split_off_mut(first - at..).expect("chunks follow each other");
            let (out, behind) = out.split_at_mut(queries * q_dim);
            (rest, at) = (behind, rows.end * q_dim);
            let q = &buffers.q[first..rows.end * q_dim];
            // A call has the queries of the whole chunk, or of one token.
            let per_call = if chunk.as_decoded { 1 } else { queries.max(1) };
            let calls = q.chunks_exact(per_call * q_dim).zip(out.chunks_exact_mut(per_call * q_dim));
            for (call, (q, out)) in calls.enumerate() {
                let queries = Queries::Before(queries - (call + 1) * per_call);
                let inputs = AttentionInputs { queries, sinks, ..inputs(config, q, out) };
                entries.push(BatchEntry { sequence: &*chunk.kv, inputs });
            }
        }
        let attended = attend_all(layer, &mut entries, *exec, &mut buffers.attention);
        if let Err(e) = attended {
            // The shapes are those of the model, the same for all sequences.
            let e = Error::from(e);
            for chunk in chunks.iter_mut().filter(|chunk| chunk.error.is_none() && !chunk.alone()) {
                chunk.error = Some(Error::bad_input(e.to_string()));
            }
        }
    }

    /// Attention of all tokens of each chunk, which is a whole text, to each other.
    fn attend_to_all(&mut self, layer: usize, chunks: &[SequenceChunk<'_>]) {
        let Self { exec, config, buffers, .. } = self;
        let texts: Vec<_> =
            chunks.iter().filter(|chunk| chunk.error.is_none()).map(SequenceChunk::rows).collect();
        let shape = BidirectionalShape {
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            scale: config.attn_scale,
            window: config.sliding_window[layer],
        };
        let qkv = Qkv { q: &buffers.q, k: &buffers.k, v: &buffers.v };
        bidirectional(*exec, shape, &texts, qkv, &mut buffers.attn);
    }

    /// One sequence with accumulated attention scores, over all queries of the chunk.
    fn attend_alone(
        &mut self,
        place: LayerPlace,
        chunk: &mut SequenceChunk<'_>,
        sinks: Option<&[f32]>,
        only_wanted: bool,
    ) -> Result<()> {
        let Self { exec, config, buffers, .. } = self;
        let (layer, rows, q_dim) = (place.kv, chunk.rows(), place.heads.q_dim());
        let queries = rows.len();
        let wanted = if only_wanted { chunk.wanted } else { queries };
        let all = rows.start * q_dim..rows.end * q_dim;
        let (q, out) = (&buffers.q[all.clone()], &mut buffers.attn[all]);
        let inputs = AttentionInputs {
            wanted_from: queries - wanted,
            scores: chunk.scores,
            sinks,
            ..inputs(config, q, out)
        };
        chunk.kv.attend(layer, inputs, *exec, &mut buffers.attention)?;
        if let Some(reconstruction) = &mut chunk.reconstruction {
            reconstruction.merge(layer, &chunk.kv.take_accumulated_scores(layer).0.peak);
        }
        Ok(())
    }
}

/// All queries are wanted, and no scores; without sinks.
fn inputs<'a>(config: &ModelConfig, q: &'a [f32], out: &'a mut [f32]) -> AttentionInputs<'a> {
    AttentionInputs {
        q,
        queries: Queries::Last,
        out,
        n_heads: config.n_heads,
        scale: config.attn_scale,
        softcap: config.attn_logit_softcap,
        sinks: None,
        wanted_from: 0,
        scores: None,
    }
}
