//! The interface of a model for generation and evaluation.

use crate::error::Result;
use crate::model::Session;

/// A causal language model with a cache: tokens go in, logits come out.
///
/// [`Session`] is the real one; tests put a small function in its place.
pub trait LogitsSource {
    /// Appends `tokens` and returns the logits after the last one (`[vocab_size]`).
    ///
    /// # Errors
    /// When `tokens` is empty, holds an id outside the vocabulary, or the context is full.
    fn forward(&mut self, tokens: &[u32]) -> Result<&[f32]>;
    /// Appends `tokens` and hands the logits after each of them, in order, to `visit(index in tokens, logits)`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn forward_each(&mut self, tokens: &[u32], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()>;
    /// Tokens seen so far.
    fn len(&self) -> usize;
    /// True before the first token.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Says that a prompt is complete at `len` tokens: where the cache is to be made smaller, it is then (see
    /// [`Session::begin_prompt`]).
    fn begin_prompt(&mut self, _len: usize) {}
    /// Forgets all tokens from position `len` on, or everything where it cannot go back that far: see
    /// [`len`](Self::len).
    fn truncate(&mut self, len: usize);
    /// Forgets everything.
    fn reset(&mut self);
    /// Bytes of the KV cache in use.
    fn kv_bytes(&self) -> usize;
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
    fn kv_tokens(&self) -> usize {
        Session::kv_tokens(self)
    }
}
