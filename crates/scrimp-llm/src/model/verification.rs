//! Verification of drafts: several tokens in one pass, with the bits of decode steps.
//!
//! Linear layers give a row the same bits in every small batch at an [exact level](scrimp_kernels::SimdLevel::exact).
//! Attention splits the keys of a decode step differently from those of a prompt; each token of a draft therefore gets
//! the attention call of a decode step, over the keys up to its own. The cache must be the one that the decode step
//! would see: a pass ends where a page would be packed or dropped, or the cache compressed. Recurrent states return to those
//! before the draft, and accepted tokens update them again.

use super::{Session, chunk::SequenceChunk, forward::Buffers};
use crate::error::Result;

/// Maximum number of tokens: batches up to this size have the bits of one row.
const MAX_TOKENS: usize = 32;

impl Session {
    /// The number of tokens, at most `most` and at least 1, that [`Session::verify`] can append now.
    pub fn verifiable(&self, most: usize) -> usize {
        let most = most.min(MAX_TOKENS).min(self.model.context_length() - self.len());
        let mut most = most.min(self.compression.tokens_before_next(self.len()));
        let in_prompt = self.len() < self.compression.unpacked_until() || self.sampled_queries.is_some();
        if most < 2 || in_prompt || self.reconstruction.is_some() {
            return 1;
        }
        let config = self.model.config();
        let rope = |tokens: usize| std::ptr::from_ref(config.rope_for(self.rope_tokens.max(tokens)));
        while most > 1
            && (self.scores_wanted(most).is_some() || rope(self.len() + most) != rope(self.len() + 1))
        {
            most /= 2;
        }
        self.kv.steady_tokens(most).max(1)
    }

    /// Appends `tokens`, at most [`Session::verifiable`], and calls `accept(index in tokens, logits)` after each, with the
    /// bits that decode steps compute. After the first token for which `accept` returns false, all tokens are dropped
    /// again. Returns the number of tokens that remain.
    ///
    /// # Errors
    /// As [`Session::forward`], and those of `accept`. The session is then unchanged.
    pub fn verify(
        &mut self,
        tokens: &[u32],
        accept: &mut dyn FnMut(usize, &[f32]) -> Result<bool>,
    ) -> Result<usize> {
        self.appending(tokens, |session, buffers| {
            let states = session.kv.states();
            buffers.state_inputs = (session.kv.n_states() > 0).then(Vec::new);
            let accepted = session.accepted(tokens, buffers, accept);
            let inputs = buffers.state_inputs.take().unwrap_or_default();
            if !matches!(accepted, Ok(kept) if kept == tokens.len()) {
                session.kv.set_states(states);
                session.update_states(&inputs, *accepted.as_ref().unwrap_or(&0), buffers)?;
            }
            accepted
        })
    }

    /// Appends `tokens` and returns how many of them are accepted.
    fn accepted(
        &mut self,
        tokens: &[u32],
        buffers: &mut Buffers,
        accept: &mut dyn FnMut(usize, &[f32]) -> Result<bool>,
    ) -> Result<usize> {
        let model = self.model.clone();
        let mut chunk = SequenceChunk::new(self, tokens.len(), tokens.len());
        chunk.as_decoded = true;
        let mut pass = model.exact_end_pass(buffers);
        pass.exec.level = pass.exec.level.exact();
        let mut chunks = [chunk];
        pass.layers(&model, tokens, &mut chunks)?;
        let [chunk] = chunks;
        chunk.error.map_or(Ok(()), Err)?;
        let logits = buffers.exact_logits(&model, 0..tokens.len());
        for (index, logits) in logits.chunks_exact(model.vocab_size()).enumerate() {
            if !accept(index, logits)? {
                return Ok(index + 1);
            }
        }
        Ok(tokens.len())
    }
}
