//! A test model: its logits are a function of its tokens.

use crate::error::{Error, Result};
use crate::source::LogitsSource;

type Rule = Box<dyn Fn(&[u32]) -> Vec<f32>>;

/// A model whose logits are a function of all tokens so far.
pub struct FakeModel {
    rule: Rule,
    pub seen: Vec<u32>,
    logits: Vec<f32>,
    /// Sizes of the calls so far.
    pub calls: Vec<usize>,
    /// Fails when a call would pass this many tokens.
    pub fail_at: usize,
    /// The number of tokens that [`LogitsSource::truncate`] can remove without a reset.
    pub rewind: usize,
    /// The result of [`LogitsSource::verifiable`] if that many tokens are wanted.
    pub verifiable: usize,
}

impl FakeModel {
    pub fn new(rule: impl Fn(&[u32]) -> Vec<f32> + 'static) -> Self {
        Self {
            rule: Box::new(rule),
            seen: vec![],
            logits: vec![],
            calls: vec![],
            fail_at: usize::MAX,
            rewind: usize::MAX / 2,
            verifiable: 1,
        }
    }

    /// Predicts `script` token by token, by position, for any input; then token 0.
    pub fn scripted(vocab: usize, prompt: usize, script: &'static [u32]) -> Self {
        Self::new(move |seen| {
            let next = script.get(seen.len() - prompt).copied().unwrap_or(0);
            (0..vocab as u32).map(|id| if id == next { 1.0 } else { 0.0 }).collect()
        })
    }
}

impl LogitsSource for FakeModel {
    fn forward(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        assert!(!tokens.is_empty());
        if self.seen.len() + tokens.len() > self.fail_at {
            return Err(Error::bad_input("fake failure"));
        }
        self.calls.push(tokens.len());
        self.seen.extend_from_slice(tokens);
        self.logits = (self.rule)(&self.seen);
        Ok(&self.logits)
    }
    fn forward_each(&mut self, tokens: &[u32], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.calls.push(tokens.len());
        for (i, &token) in tokens.iter().enumerate() {
            self.seen.push(token);
            visit(i, &(self.rule)(&self.seen));
        }
        Ok(())
    }
    fn verifiable(&self, most: usize) -> usize {
        most.min(self.verifiable)
    }
    fn len(&self) -> usize {
        self.seen.len()
    }
    fn truncate(&mut self, len: usize) {
        if self.seen.len() > len + self.rewind {
            self.seen.clear();
        }
        self.seen.truncate(len);
    }
    fn reset(&mut self) {
        self.seen.clear();
    }
    fn kv_bytes(&self) -> usize {
        self.seen.len() * 8
    }
    fn kv_tokens(&self) -> usize {
        self.seen.len()
    }
}
