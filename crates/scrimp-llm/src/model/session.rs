//! One sequence with its KV cache and scratch memory.

use super::{
    BLOCK_TOKENS, Model, chunk::SequenceChunk, compression::CompressionState, forward::Buffers,
    future_queries::SampledQueries, reconstruction::Reconstruction,
};
use crate::error::{Error, Result};
use scrimp_base::SplitMix64;
use scrimp_kv::{FutureQueries, KvFormat, ScoresWanted, Sequence};
use std::sync::Arc;

/// Maximum number of tokens of a pass. It is large enough that unpacking weights costs little, and small enough that
/// intermediate results stay small.
pub const CHUNK: usize = 512;
/// Maximum number of unpacked (bf16) tokens of a prompt, for KV formats that pack.
pub const PIECE: usize = 2 * CHUNK;
/// Rows of logits that are computed at once if all are wanted.
const LOGITS_ROWS: usize = 48;

/// One sequence with its KV cache and scratch memory.
#[derive(Debug)]
pub struct Session {
    pub(super) model: Model,
    pub(super) kv: Sequence,
    pub(super) buffers: Buffers,
    /// The maximum length of the sequence as known when tokens were appended. It chooses between LongRoPE's two sets.
    pub(super) rope_tokens: usize,
    /// The scores that attention accumulates.
    pub(super) scores_wanted: Option<ScoresWanted>,
    pub(super) compression: CompressionState,
    /// Tokens of the prompt. Until the sequence has as many, pages are packed at fixed positions only.
    pub(super) prompt: usize,
    /// True while the model repeats its prompt.
    pub(super) reconstruction: Option<Reconstruction>,
    /// The samples of the prompt's queries.
    pub(super) sampled_queries: Option<SampledQueries>,
    /// Queries that represent future ones, with their outputs over the cache, until the next compression.
    pub(super) future_queries: Option<Arc<FutureQueries>>,
}

impl Session {
    pub(super) fn new(model: &Model) -> Self {
        Self::over(model, model.inner.kv.sequence())
    }

    pub(super) fn over(model: &Model, kv: Sequence) -> Self {
        Self {
            model: model.clone(),
            kv,
            buffers: Buffers::default(),
            rope_tokens: 0,
            scores_wanted: None,
            compression: CompressionState::default(),
            prompt: 0,
            reconstruction: None,
            sampled_queries: None,
            future_queries: None,
        }
    }

    /// A second session with the same tokens and options. The two share the pages of the cache until one of them
    /// writes.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            model: self.model.clone(),
            kv: self.kv.fork(),
            buffers: Buffers::default(),
            rope_tokens: self.rope_tokens,
            scores_wanted: self.scores_wanted,
            compression: self.compression.clone(),
            prompt: self.prompt,
            reconstruction: None,
            sampled_queries: self.sampled_queries.clone(),
            future_queries: self.future_queries.clone(),
        }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Appends `tokens` and returns the logits after the last one (`[vocab_size]`).
    /// One token is a decode step; more tokens are a prefill, which is cut into chunks.
    ///
    /// # Errors
    /// When `tokens` is empty, holds an id outside the vocabulary, or the sequence would pass the context length.
    pub fn forward(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.appending(tokens, |session, buffers| {
            let mut chunks = tokens.chunks(CHUNK).enumerate().peekable();
            while let Some((c, chunk)) = chunks.next() {
                let before = session.len();
                session.layers(buffers, chunk, usize::from(chunks.peek().is_none()))?;
                session.keep_states_if_due();
                // Decode steps add little; a compression records the peak before it.
                if chunk.len() > 1 {
                    session.record_peak();
                }
                session.compress_part_if_due()?;
                if ((c + 1) * CHUNK).is_multiple_of(PIECE) {
                    session.pack_if_done(before)?;
                }
            }
            Ok(tokens.len())
        })?;
        Ok(self.buffers.logits(&self.model, 0..1))
    }

    /// Appends `tokens` and calls `visit(index in tokens, logits)` with the logits after each token, in order.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn forward_each(&mut self, tokens: &[u32], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let model = self.model.clone();
        self.appending(tokens, |session, buffers| {
            for (c, chunk) in tokens.chunks(CHUNK).enumerate() {
                let before = session.len();
                session.layers(buffers, chunk, chunk.len())?;
                session.pack_if_done(before)?;
                for first in (0..chunk.len()).step_by(LOGITS_ROWS) {
                    let logits = buffers.logits(&model, first..(first + LOGITS_ROWS).min(chunk.len()));
                    for (i, logits) in logits.chunks_exact(model.vocab_size()).enumerate() {
                        visit(c * CHUNK + first + i, logits);
                    }
                }
            }
            Ok(tokens.len())
        })?;
        Ok(())
    }

    /// Runs `tokens` (at most a chunk) through all layers. Leaves the residual stream of the last `wanted` tokens.
    fn layers(&mut self, buffers: &mut Buffers, tokens: &[u32], wanted: usize) -> Result<()> {
        let model = self.model.clone();
        let mut chunks = [SequenceChunk::new(self, tokens.len(), wanted)];
        model.pass(buffers).layers(&model, tokens, &mut chunks)?;
        let [chunk] = chunks;
        chunk.error.map_or(Ok(()), Err)
    }

    /// Runs `append` on checked tokens. It appends all of them and returns how many remain; the others are dropped. If it
    /// fails, the sequence is unchanged.
    pub(super) fn appending(
        &mut self,
        tokens: &[u32],
        append: impl FnOnce(&mut Self, &mut Buffers) -> Result<usize>,
    ) -> Result<usize> {
        let rope_tokens = self.rope_tokens;
        let before = self.begin_append(tokens)?;
        let mut buffers = std::mem::take(&mut self.buffers);
        let remaining = append(self, &mut buffers);
        self.buffers = buffers;
        let kept = *remaining.as_ref().unwrap_or(&0);
        self.rope_tokens = rope_tokens.max(before + kept);
        let result = remaining
            .and_then(|kept| if kept < tokens.len() { Ok(self.kv.truncate(before + kept)?) } else { Ok(()) });
        self.end_append(before, &tokens[..kept], result)?;
        Ok(kept)
    }

    /// The length at which a prompt of `prompt` tokens is best divided: the recurrent states at the last whole block before
    /// its end are kept, and [`Session::truncate`] can return to them. `None`: no layer has a recurrent state, or the prompt
    /// is short.
    pub fn checkpoint(&self, prompt: usize) -> Option<usize> {
        let at = prompt.saturating_sub(1) / BLOCK_TOKENS * BLOCK_TOKENS;
        (self.kv.n_states() > 0 && at > 0).then_some(at)
    }

    fn keep_states_if_due(&mut self) {
        if self.checkpoint(self.prompt) == Some(self.len()) {
            self.kv.keep_states();
        }
    }

    /// Checks tokens before they are appended. Returns the length before them.
    pub(super) fn begin_append(&mut self, tokens: &[u32]) -> Result<usize> {
        self.check(tokens)?;
        if self.model.config().bidirectional && !self.is_empty() {
            return Err(Error::unsupported(
                "the tokens of this model attend to later ones: it does not continue texts",
                "use it for embeddings",
            ));
        }
        self.rope_tokens = self.rope_tokens.max(self.len() + tokens.len());
        Ok(self.len())
    }

    /// Called after an attempt to append `tokens`. Compresses and packs when due; after an error, truncates to
    /// `before`.
    pub(super) fn end_append(&mut self, before: usize, tokens: &[u32], result: Result<()>) -> Result<()> {
        let result =
            result.and_then(|()| self.compress_if_due(tokens)).and_then(|()| self.pack_if_done(before));
        if result.is_err() {
            self.truncate(before);
        }
        result
    }

    /// Packs old tokens after an append to a sequence of `before` tokens, except those of a prompt that will be
    /// compressed: packing a token twice adds two errors. In a prompt, tokens are packed only where the sequence passes a
    /// multiple of [`PIECE`], so that its results do not depend on the number of tokens of an append.
    fn pack_if_done(&mut self, before: usize) -> Result<()> {
        let compressed_later =
            self.scores_wanted.is_some() || self.len() <= self.compression.unpacked_until();
        let in_piece = self.len() < self.prompt && self.len() / PIECE == before / PIECE;
        if compressed_later || in_piece { Ok(()) } else { self.pack() }
    }

    /// The tokens of the prompt, if it is shorter than the length for [`Session::begin_prompt`]: tokens of an answer
    /// follow that are computed again.
    pub fn set_prompt(&mut self, tokens: usize) {
        self.prompt = tokens;
    }

    /// Packs old tokens, if the KV format packs (see [`Sequence::pack`]).
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn pack(&mut self) -> Result<()> {
        Ok(self.kv.pack(self.model.exec().pool)?)
    }

    /// Changes the format of the cache (see [`Sequence::set_format`]).
    ///
    /// # Errors
    /// When the cache's pages cannot have this format.
    pub fn set_kv_format(&mut self, format: KvFormat) -> Result<()> {
        Ok(self.kv.set_format(format)?)
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        let (vocab, context) = (self.model.vocab_size(), self.model.context_length());
        if tokens.is_empty() {
            return Err(Error::bad_input("there are no tokens to run"));
        }
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::bad_input(format!("token {token} is outside the vocabulary of {vocab}")));
        }
        if self.len() + tokens.len() > context {
            return Err(Error::bad_input(format!(
                "{} tokens do not fit the model's context of {context}",
                self.len() + tokens.len()
            ))
            .with_hint("shorten the prompt or start a new conversation"));
        }
        Ok(())
    }

    /// Appends random keys and values for `n` tokens. This measures the speed after a long prompt without its prefill.
    ///
    /// # Errors
    /// When the context has no room for them, or memory cannot be had.
    pub fn pretend(&mut self, n: usize) -> Result<()> {
        if self.len() + n > self.model.context_length() {
            return Err(Error::bad_input(format!("{n} more tokens do not fit the model's context")));
        }
        let widths: Vec<usize> = (0..self.kv.n_layers())
            .map(|layer| self.kv.heads(layer).count * self.kv.heads(layer).dim)
            .collect();
        let widest = CHUNK * widths.iter().max().copied().unwrap_or(0);
        let mut random = SplitMix64::new(1);
        let rows: Vec<f32> = (0..2 * widest).map(|_| 2.0 * random.next_f32() - 1.0).collect();
        for start in (0..n).step_by(CHUNK) {
            for (layer, width) in widths.iter().enumerate() {
                let len = CHUNK.min(n - start) * width;
                self.kv.append(layer, &rows[..len], &rows[widest..][..len], self.model.exec().pool)?;
            }
            for layer in 0..self.kv.n_states() {
                self.kv.advance_state(layer, CHUNK.min(n - start))?;
            }
        }
        self.rope_tokens = self.rope_tokens.max(self.len());
        Ok(())
    }

    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        self.kv.len()
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all tokens and releases the pages of the cache. A begun prompt stays begun.
    pub fn reset(&mut self) {
        self.kv.reset();
        self.compression.forget();
        self.rope_tokens = 0;
        self.future_queries = None;
    }

    /// Sets the scores that attention accumulates from now on (see [`Sequence::accumulated_scores`]); `None`
    /// accumulates none. Costs less than 3% of the time to first token.
    pub fn accumulate_scores(&mut self, wanted: Option<ScoresWanted>) {
        self.scores_wanted = wanted;
    }

    /// The KV cache of this sequence, with the accumulated scores.
    pub fn kv(&self) -> &Sequence {
        &self.kv
    }

    /// Drops all tokens from position `len` on. If a sliding-window layer has released tokens that it needs, or a
    /// compression at a later position has dropped tokens before `len`, all tokens are dropped. Recurrent states return
    /// to their last checkpoint before `len`, or to the beginning. [`Session::len`] has the result.
    pub fn truncate(&mut self, len: usize) {
        let len = self.kv.reachable(len);
        if len < self.compressed() || self.kv.truncate(len).is_err() {
            self.reset();
        }
    }

    /// Drops the tokens from position `len` on, even if the cache was compressed at a later position: then the tokens
    /// that the compression kept remain. If a sliding-window layer has released tokens that it needs, all tokens are
    /// dropped. Recurrent states return to their last checkpoint before `len`, or to the beginning.
    pub fn truncate_compressed(&mut self, len: usize) {
        let len = self.kv.reachable(len);
        if self.kv.truncate(len).is_err() {
            self.reset();
        }
    }

    /// The shortest length that [`Session::truncate`] can reach without dropping all tokens: 0, the length at the last
    /// compression, or, with sliding-window or recurrent layers, the whole length.
    pub fn min_tokens(&self) -> usize {
        if self.model.rewinds() { self.compressed() } else { self.len() }
    }

    /// Bytes of the KV cache in use.
    pub fn kv_bytes(&self) -> usize {
        self.kv.bytes()
    }

    /// Tokens kept in the KV cache, averaged over layers and heads.
    pub fn kv_tokens(&self) -> usize {
        self.kv.kept_mean().round() as usize
    }
}
