//! Access to the attention scores of a sequence.

use super::{Sequence, no_layer};
use crate::{attention_scores::PostPrefillScores, error::KvError};
use scrimp_kernels::attention::AccumulatedScores;
use std::ops::Range;

impl Sequence {
    /// The scores that a layer's attention calls have accumulated: one row per query head or per KV head
    /// ([`ScoresWanted::per_query_head`](crate::ScoresWanted::per_query_head)), one number per kept token. A row may
    /// be shorter than the head's tokens; the missing scores are 0.
    pub fn accumulated_scores(&self, layer: usize) -> &AccumulatedScores {
        &self.layers[layer].scores.accumulated
    }

    /// How many of the queries in the layer's sums could see a token at `position`.
    pub fn queries_from(&self, layer: usize, position: u32) -> u32 {
        self.layers[layer].scores.queries_from(position)
    }

    /// Replaces the accumulated scores of a layer. `queries` are the positions of the queries in the sums over all
    /// queries.
    ///
    /// # Errors
    /// When there is no such layer, or a row is longer than the tokens of its KV head.
    pub fn set_accumulated_scores(
        &mut self,
        layer: usize,
        scores: AccumulatedScores,
        queries: Vec<Range<u32>>,
    ) -> Result<(), KvError> {
        let Some(state) = self.layers.get_mut(layer) else { return Err(no_layer(layer)) };
        state.scores.set_accumulated(&state.heads, scores, queries)
    }

    /// Removes and returns the accumulated scores of a layer, with the positions of the queries in the sums over all
    /// queries.
    pub fn take_accumulated_scores(&mut self, layer: usize) -> (AccumulatedScores, Vec<Range<u32>>) {
        let scores = &mut self.layers[layer].scores;
        (std::mem::take(&mut scores.accumulated), std::mem::take(&mut scores.queries))
    }

    /// The scores that were computed after the prefill.
    pub fn post_prefill_scores(&self, layer: usize) -> &PostPrefillScores {
        &self.layers[layer].scores.post_prefill
    }

    /// Replaces the scores that were computed after the prefill.
    ///
    /// # Errors
    /// When there is no such layer, or the rows do not fit its KV heads and tokens.
    pub fn set_post_prefill_scores(
        &mut self,
        layer: usize,
        scores: PostPrefillScores,
    ) -> Result<(), KvError> {
        let Some(state) = self.layers.get_mut(layer) else { return Err(no_layer(layer)) };
        state.scores.set_post_prefill(&state.heads, scores)
    }

    /// Clears the accumulated scores of recent queries in all layers.
    pub fn clear_recent_scores(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.scores.accumulated.recent.clear());
    }

    /// Clears all accumulated scores in all layers.
    pub fn clear_accumulated_scores(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.scores.clear_accumulated());
    }
}
