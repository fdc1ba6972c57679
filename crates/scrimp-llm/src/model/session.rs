//! One sequence with its KV cache and working memory.

use super::{Model, forward::Buffers};
use crate::error::{Error, Result};
use scrimp_kv::Sequence;

/// Tokens that go through the layers together. Large enough that unpacking weights costs little, small enough that
/// intermediate results stay small.
const CHUNK: usize = 512;
/// Rows of logits that are computed at once where all are wanted.
const LOGITS_ROWS: usize = 48;

/// One sequence with its KV cache and scratch memory.
#[derive(Debug)]
pub struct Session<'m> {
    pub(super) model: &'m Model,
    pub(super) kv: Sequence,
    pub(super) buffers: Buffers,
}

impl<'m> Session<'m> {
    pub(super) fn new(model: &'m Model) -> Self {
        Self { model, kv: model.kv.sequence(), buffers: Buffers::default() }
    }

    /// The model that runs.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Appends `tokens` and returns the logits after the last one (`[vocab_size]`).
    /// One token is a decode step, more are a prefill (cut into chunks inside).
    ///
    /// # Errors
    /// When `tokens` is empty, holds an id outside the vocabulary, or the sequence would pass the context length.
    pub fn forward(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.check(tokens)?;
        let mut rest = tokens;
        while rest.len() > CHUNK {
            let (chunk, later) = rest.split_at(CHUNK);
            self.layers(chunk, 0)?;
            rest = later;
        }
        self.layers(rest, 1)?;
        Ok(self.logits(0..1))
    }

    /// Appends `tokens` and hands the logits after each of them, in order, to `visit(index in tokens, logits)`.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn forward_each(&mut self, tokens: &[u32], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.check(tokens)?;
        let vocab = self.model.vocab_size();
        for (c, chunk) in tokens.chunks(CHUNK).enumerate() {
            self.layers(chunk, chunk.len())?;
            for first in (0..chunk.len()).step_by(LOGITS_ROWS) {
                let logits = self.logits(first..(first + LOGITS_ROWS).min(chunk.len()));
                for (i, logits) in logits.chunks_exact(vocab).enumerate() {
                    visit(c * CHUNK + first + i, logits);
                }
            }
        }
        Ok(())
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
            return Err(Error::bad_input_hint(
                format!("{} tokens do not fit the model's context of {context}", self.len() + tokens.len()),
                "shorten the prompt or start a new conversation",
            ));
        }
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

    /// Forgets everything; memory of the cache goes back to the pool.
    pub fn reset(&mut self) {
        self.kv.reset();
    }

    /// Forgets all tokens from position `len` on. Where a sliding-window layer has let go of tokens that it would need
    /// to go back that far, everything is forgotten, so look at [`Session::len`] afterwards.
    pub fn truncate(&mut self, len: usize) {
        if self.kv.truncate(len).is_err() {
            self.kv.reset();
        }
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
