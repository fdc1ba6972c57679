//! The parts of a pass: the tokens of each sequence, and the place of a layer.

use super::{Session, future_queries::SampledQueries, reconstruction::Reconstruction};
use crate::{
    config::{HeadShape, ModelConfig},
    error::Error,
};
use scrimp_kernels::ops::StateChunk;
use scrimp_kv::{ScoresWanted, Sequence};
use std::ops::Range;

/// Consecutive tokens of one sequence in a pass.
pub(super) struct SequenceChunk<'a> {
    pub(super) kv: &'a mut Sequence,
    pub(super) sampled_queries: Option<&'a mut SampledQueries>,
    pub(super) reconstruction: Option<&'a mut Reconstruction>,
    /// Position of the first token.
    pub(super) position: usize,
    /// The length of the sequence for which RoPE is chosen (see [`ModelConfig::rope_for`]).
    pub(super) rope_tokens: usize,
    /// Tokens of the chunk.
    pub(super) n: usize,
    /// The number of last tokens for which the residual stream after the last layer is needed.
    pub(super) wanted: usize,
    /// The error of this chunk. The other chunks of a pass are not affected.
    pub(super) error: Option<Error>,
    /// Its first row in the pass.
    pub(super) first: usize,
    /// The attention scores to accumulate.
    pub(super) scores: Option<ScoresWanted>,
    /// Each token has the bits of a decode step. Its attention is a call of its own.
    pub(super) as_decoded: bool,
}

/// Advances recurrent state `state` of each chunk without an error by the chunk's tokens. Returns the chunks' rows and
/// states. A chunk whose state cannot be advanced gets the error.
pub(super) fn advance_states<'a>(
    chunks: &'a mut [SequenceChunk<'_>],
    state: usize,
) -> impl Iterator<Item = StateChunk<'a>> {
    chunks.iter_mut().filter(|chunk| chunk.error.is_none()).filter_map(move |chunk| {
        let SequenceChunk { kv, error, first, n, .. } = chunk;
        match kv.advance_state(state, *n) {
            Ok(state) => Some(StateChunk { rows: *first..*first + *n, state }),
            Err(e) => {
                *error = Some(e.into());
                None
            }
        }
    })
}

impl<'a> SequenceChunk<'a> {
    /// The next `n` tokens of `session`.
    pub(super) fn new(session: &'a mut Session, n: usize, wanted: usize) -> Self {
        let (position, scores) = (session.len(), session.scores_wanted(n));
        Self {
            kv: &mut session.kv,
            sampled_queries: session.sampled_queries.as_mut(),
            reconstruction: session.reconstruction.as_mut(),
            position,
            rope_tokens: session.rope_tokens,
            n,
            wanted,
            error: None,
            first: 0,
            scores,
            as_decoded: false,
        }
    }

    /// A window of `n` tokens in an empty sequence, without accumulated attention scores.
    pub(super) fn window(kv: &'a mut Sequence, n: usize) -> Self {
        Self {
            kv,
            sampled_queries: None,
            reconstruction: None,
            position: 0,
            rope_tokens: n,
            n,
            wanted: n,
            error: None,
            first: 0,
            scores: None,
            as_decoded: false,
        }
    }

    /// Restricts the chunk to its wanted tokens, from row `first` of the pass on, for layers that write no keys and
    /// values. Returns the row behind them.
    pub(super) fn keep_wanted(&mut self, first: usize) -> usize {
        self.position += self.n - self.wanted;
        (self.first, self.n) = (first, self.wanted);
        (self.scores, self.reconstruction) = (None, None);
        first + self.n
    }

    /// Its rows.
    pub(super) fn rows(&self) -> Range<usize> {
        self.first..self.first + self.n
    }
}

/// The place of a layer in the model and in a KV cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerPlace {
    /// Whether RoPE rotates its queries and keys.
    pub(super) rope: bool,
    /// Whether it uses the RoPE of layers with a sliding window.
    pub(super) local_rope: bool,
    /// Its heads.
    pub(super) heads: HeadShape,
    /// Its index in the KV cache.
    pub(super) kv: usize,
    /// Whether its queries see all tokens before them.
    pub(super) full: bool,
    /// Whether it reads the keys and values of an earlier layer.
    pub(super) shares_kv: bool,
}

impl LayerPlace {
    /// Layer `index` of the model, at index `kv` of the cache.
    pub(super) fn new(config: &ModelConfig, index: usize, kv: usize) -> Self {
        let local_rope = config.sliding_window[index].is_some() && config.rope_local.is_some();
        let (rope, heads) = (config.rope_layers[index], config.heads(index));
        let full = config.sliding_window[index].is_none();
        Self { rope, local_rope, heads, kv, full, shares_kv: config.shares_kv(index) }
    }
}
