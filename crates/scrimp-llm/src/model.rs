//! A loaded model and its sessions.

use crate::error::Result;

/// How a model is to be loaded and run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Worker threads, the calling one included; `None`: as many as the process may use.
    pub threads: Option<usize>,
    /// Kernel tier (`scalar`, `avx2`, `avx512`); `None`: `SCRIMP_TIER` or the best that the CPU has.
    pub tier: Option<String>,
    /// Storage of the KV cache (`f32`, `f16`, `bf16`).
    pub kv_format: String,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { threads: None, tier: None, kv_format: "bf16".to_owned() }
    }
}

/// Weights ready to run. Sessions borrow it.
#[derive(Debug)]
pub struct Model {}

/// One sequence with its KV cache and scratch memory.
#[derive(Debug)]
pub struct Session<'m> {
    _model: &'m Model,
}

impl Model {
    /// An empty sequence.
    pub fn session(&self) -> Session<'_> {
        Session { _model: self }
    }
    /// Tokens in the vocabulary (length of a logits row).
    pub fn vocab_size(&self) -> usize {
        unimplemented!()
    }
    /// Longest sequence, tokens.
    pub fn context_length(&self) -> usize {
        unimplemented!()
    }
}

impl Session<'_> {
    /// Appends `tokens` and returns the logits after the last one (`[vocab_size]`).
    /// One token is a decode step, more are a prefill (cut into chunks inside).
    ///
    /// # Errors
    /// When `tokens` is empty, holds an id outside the vocabulary, or the sequence would pass the context length.
    pub fn forward(&mut self, _tokens: &[u32]) -> Result<&[f32]> {
        unimplemented!()
    }
    /// Appends `tokens` and hands the logits after each of them, in order, to `visit(index in tokens, logits)`.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn forward_each(&mut self, _tokens: &[u32], _visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        unimplemented!()
    }
    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        unimplemented!()
    }
    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Forgets everything; memory of the cache goes back to the pool.
    pub fn reset(&mut self) {
        unimplemented!()
    }
    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, _len: usize) {
        unimplemented!()
    }
    /// Bytes of the KV cache in use.
    pub fn kv_bytes(&self) -> usize {
        unimplemented!()
    }
    /// Tokens kept in the KV cache, averaged over layers and heads.
    pub fn kv_tokens(&self) -> usize {
        unimplemented!()
    }
}
