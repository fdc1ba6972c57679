//! Attention of a forward pass: each sequence reads its own cache, to which its keys and values were appended.

use super::forward::{Buffers, Context, SequenceChunk, sized};
use crate::error::Result;
use scrimp_kv::{AttentionInputs, BatchEntry, Queries, ScoresWanted, attend_all};

impl SequenceChunk<'_, '_> {
    /// Whether it attends in a call of its own, because it accumulates scores.
    fn alone(&self) -> bool {
        self.scores.is_some() || self.session.reconstruction.is_some()
    }
}

impl Buffers {
    /// Attention of a layer, from `q`, `k` and `v` of `n` rows to `attn`. If `only_wanted`, the rows of tokens whose result
    /// nobody wants hold anything afterwards.
    pub(super) fn attend(
        &mut self,
        context: Context<'_>,
        layer: usize,
        n: usize,
        parts: &mut [SequenceChunk<'_, '_>],
        only_wanted: bool,
    ) {
        let q_dim = context.config.q_dim();
        sized(&mut self.attn, n * q_dim);
        for part in parts.iter_mut().filter(|part| part.error.is_none() && part.alone()) {
            part.error = self.attend_alone(context, layer, part, only_wanted).err();
        }
        let (mut rest, mut at) = (&mut self.attn[..n * q_dim], 0);
        let mut entries = Vec::with_capacity(parts.len());
        for part in parts.iter().filter(|part| part.error.is_none() && !part.alone()) {
            let rows = part.rows();
            let queries = if only_wanted { part.wanted } else { rows.len() };
            let first = (rows.end - queries) * q_dim;
            let out = rest.split_off_mut(first - at..).expect("parts follow each other");
            let (out, behind) = out.split_at_mut(queries * q_dim);
            (rest, at) = (behind, rows.end * q_dim);
            if queries > 0 {
                let q = &self.q[first..rows.end * q_dim];
                entries.push(BatchEntry {
                    sequence: &part.session.kv,
                    inputs: inputs(context, q, out, Queries::Last, 0, None),
                });
            }
        }
        let attended = attend_all(layer, &mut entries, context.exec(), &mut self.attention);
        if let Err(e) = attended {
            // Shapes come from the model and fit all sequences or none.
            let e = crate::error::Error::from(e);
            for part in parts.iter_mut().filter(|part| part.error.is_none() && !part.alone()) {
                part.error = Some(crate::error::Error::bad_input(e.to_string()));
            }
        }
    }

    /// Attention of one sequence that accumulates scores, which needs every query.
    fn attend_alone(
        &mut self,
        context: Context<'_>,
        layer: usize,
        part: &mut SequenceChunk<'_, '_>,
        only_wanted: bool,
    ) -> Result<()> {
        let (rows, q_dim) = (part.rows(), context.config.q_dim());
        let (queries, session) = (rows.len(), &mut *part.session);
        let wanted = if only_wanted { part.wanted } else { queries };
        let all = rows.start * q_dim..rows.end * q_dim;
        let (q, out) = (&self.q[all.clone()], &mut self.attn[all]);
        let inputs = inputs(context, q, out, Queries::Last, queries - wanted, part.scores);
        session.kv.attend(layer, inputs, context.exec(), &mut self.attention)?;
        if let Some(reconstruction) = &mut session.reconstruction {
            reconstruction.merge(layer, &session.kv.take_accumulated_scores(layer).0.peak);
        }
        Ok(())
    }
}

fn inputs<'a>(
    context: Context<'_>,
    q: &'a [f32],
    out: &'a mut [f32],
    queries: Queries,
    wanted_from: usize,
    scores: Option<ScoresWanted>,
) -> AttentionInputs<'a> {
    let config = context.config;
    AttentionInputs {
        q,
        queries,
        out,
        n_heads: config.n_heads,
        scale: config.attn_scale,
        softcap: config.attn_logit_softcap,
        wanted_from,
        scores,
    }
}
