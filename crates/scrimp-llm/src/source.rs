//! The interface of a model for generation and evaluation.

use crate::error::Result;
use crate::model::Session;

/// A causal language model with a cache: tokens go in, logits come out.
///
/// [`Session`] implements it; tests use a small function instead.
pub trait LogitsSource {
    /// Appends `tokens` and returns the logits after the last one (`[vocab_size]`).
    ///
    /// # Errors
    /// When `tokens` is empty, holds an id outside the vocabulary, or the context is full.
    fn forward(&mut self, tokens: &[u32]) -> Result<&[f32]>;
    /// Appends `tokens` and calls `visit(index in tokens, logits)` with the logits after each token, in order.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn forward_each(&mut self, tokens: &[u32], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()>;
    /// The number of tokens, at most `most` and at least 1, for which [`verify`](Self::verify) computes the logits of
    /// decode steps.
    fn verifiable(&self, _most: usize) -> usize {
        1
    }
    /// Appends `tokens`, at most [`verifiable`](Self::verifiable), and calls `accept(index in tokens, logits)` after
    /// each. The logits have the bits that [`forward`](Self::forward) of one token at a time computes. After the first
    /// token for which `accept` returns false, all tokens are dropped again. Returns the number of tokens that remain.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and those of `accept`.
    fn verify(
        &mut self,
        tokens: &[u32],
        accept: &mut dyn FnMut(usize, &[f32]) -> Result<bool>,
    ) -> Result<usize> {
        for (index, token) in tokens.iter().enumerate() {
            let logits = self.forward(std::slice::from_ref(token))?;
            if !accept(index, logits)? {
                return Ok(index + 1);
            }
        }
        Ok(tokens.len())
    }
    /// Tokens seen so far.
    fn len(&self) -> usize;
    /// True before the first token.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Declares that the prompt is complete at `len` tokens. If compression is set, it happens then (see
    /// [`Session::begin_prompt`]).
    fn begin_prompt(&mut self, _len: usize) {}
    /// The length at which a prompt of `prompt` tokens is divided, because [`truncate`](Self::truncate) can return to it.
    fn checkpoint(&self, _prompt: usize) -> Option<usize> {
        None
    }
    /// Drops all tokens from position `len` on, or all tokens if truncation to `len` is impossible. [`len`](Self::len)
    /// has the result.
    fn truncate(&mut self, len: usize);
    /// Removes all tokens.
    fn reset(&mut self);
    /// Bytes of the KV cache in use.
    fn kv_bytes(&self) -> usize;
    /// Maximum size of the KV cache since it was empty, bytes.
    fn kv_bytes_peak(&self) -> usize {
        self.kv_bytes()
    }
    /// Tokens kept in the KV cache.
    fn kv_tokens(&self) -> usize;
}

impl LogitsSource for Session {
    fn forward(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        Session::forward(self, tokens)
    }
    fn forward_each(&mut self, tokens: &[u32], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        Session::forward_each(self, tokens, visit)
    }
    fn begin_prompt(&mut self, len: usize) {
        Session::begin_prompt(self, len);
    }
    fn checkpoint(&self, prompt: usize) -> Option<usize> {
        Session::checkpoint(self, prompt)
    }
    fn verifiable(&self, most: usize) -> usize {
        Session::verifiable(self, most)
    }
    fn verify(
        &mut self,
        tokens: &[u32],
        accept: &mut dyn FnMut(usize, &[f32]) -> Result<bool>,
    ) -> Result<usize> {
        Session::verify(self, tokens, accept)
    }
    fn len(&self) -> usize {
        Session::len(self)
    }
    fn truncate(&mut self, len: usize) {
        Session::truncate(self, len);
    }
    fn reset(&mut self) {
        Session::reset(self);
    }
    fn kv_bytes(&self) -> usize {
        Session::kv_bytes(self)
    }
    fn kv_bytes_peak(&self) -> usize {
        Session::kv_bytes_peak(self)
    }
    fn kv_tokens(&self) -> usize {
        Session::kv_tokens(self)
    }
}
