//! A sequence with the tokens in its cache.

use crate::error::Result;
use crate::source::LogitsSource;

/// Prompt tokens per call of the model; a prefill can be cancelled between calls.
const PREFILL_CHUNK: usize = 512;

/// A sequence that records its tokens. A new prompt reuses the cache of the prefix that it shares with the old one.
#[derive(Debug)]
pub struct Sequence<S> {
    pub(super) source: S,
    tokens: Vec<u32>,
    context_length: usize,
}

/// The number of tokens that `a` and `b` have in common at their beginning.
pub fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl<S: LogitsSource> Sequence<S> {
    /// Wraps an empty `source` with a context of `context_length` tokens.
    pub fn new(source: S, context_length: usize) -> Self {
        Self { source, tokens: Vec::new(), context_length }
    }

    /// Wraps a `source` whose cache holds `tokens`.
    pub fn resume(source: S, tokens: Vec<u32>, context_length: usize) -> Self {
        Self { source, tokens, context_length }
    }

    /// The tokens in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Maximum number of tokens.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The model.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Removes all tokens.
    pub fn clear(&mut self) {
        self.source.reset();
        self.tokens.clear();
    }

    /// Drops the tokens after the common prefix with `prompt`, and returns the length of the reused prefix. At least
    /// the last token of `prompt` is computed, because its logits are needed. If the model cannot be truncated that
    /// far, nothing is reused.
    pub fn rewind_to(&mut self, prompt: &[u32]) -> usize {
        let common = common_prefix(&self.tokens, prompt);
        let kept = common.min(prompt.len().saturating_sub(1));
        if kept < self.tokens.len() {
            self.source.truncate(kept);
            self.tokens.truncate(self.source.len());
        }
        self.tokens.len()
    }

    /// Brings the cache to exactly `prompt` (not empty) and returns the logits after it; `None` if `cancelled` returned
    /// true.
    ///
    /// # Errors
    /// Those of the model; the sequence is then empty.
    pub fn extend_to(&mut self, prompt: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Option<&[f32]>> {
        let kept = self.rewind_to(prompt);
        self.source.begin_prompt(prompt.len());
        let new = &prompt[kept..];
        let (head, last) = new.split_at((new.len() - 1) / PREFILL_CHUNK * PREFILL_CHUNK);
        // The tokens behind a checkpoint are a part of their own.
        let checkpoint =
            self.source.checkpoint(prompt.len()).and_then(|at| at.checked_sub(kept + head.len()));
        let (before, last) = last.split_at(checkpoint.filter(|&at| at < last.len()).unwrap_or(0));
        for chunk in head.chunks(PREFILL_CHUNK).chain([before]).filter(|chunk| !chunk.is_empty()) {
            if cancelled() {
                return Ok(None);
            }
            self.feed(chunk)?;
        }
        if cancelled() { Ok(None) } else { self.feed(last).map(Some) }
    }

    /// Appends one token and returns the logits after it.
    ///
    /// # Errors
    /// Those of the model; the sequence is then empty.
    pub fn append(&mut self, token: u32) -> Result<&[f32]> {
        self.feed(&[token])
    }

    /// The number of tokens, at most `most`, that [`Sequence::verify`] can compute now.
    pub fn verifiable(&self, most: usize) -> usize {
        self.source.verifiable(most)
    }

    /// Appends tokens and drops those after the first for which `accept` returns false, as
    /// [`LogitsSource::verify`]. Returns the number of tokens that remain.
    ///
    /// # Errors
    /// Those of the model and of `accept`; the sequence is then empty.
    pub fn verify(
        &mut self,
        tokens: &[u32],
        accept: &mut dyn FnMut(usize, &[f32]) -> Result<bool>,
    ) -> Result<usize> {
        match self.source.verify(tokens, accept) {
            Ok(kept) => {
                self.tokens.extend_from_slice(&tokens[..kept]);
                Ok(kept)
            }
            Err(e) => {
                self.clear();
                Err(e)
            }
        }
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        let Self { source, tokens: held, .. } = self;
        if held.is_empty() {
            // After a failure the content of the source is unspecified.
            source.reset();
        }
        held.extend_from_slice(tokens);
        let result = source.forward(tokens);
        if result.is_err() {
            held.clear();
        }
        result
    }
}
