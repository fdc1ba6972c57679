//! A test model with known results and a cache that can be compressed.

use super::compare::Subject;
use scrimp_llm::{Result, source::LogitsSource};

/// The next token is the sum of the tokens in its cache; 64 tokens. A setting is the number of last tokens that stay.
#[derive(Clone)]
pub(crate) struct Counting {
    /// Position and token.
    cache: Vec<(usize, u32)>,
    len: usize,
    logits: Vec<f32>,
    pub(crate) prefills: usize,
}

impl Counting {
    pub(crate) fn new() -> Self {
        Self { cache: vec![], len: 0, logits: vec![], prefills: 0 }
    }
}

impl LogitsSource for Counting {
    fn forward(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        for &token in tokens {
            self.cache.push((self.len, token));
            self.len += 1;
        }
        let sum: u32 = self.cache.iter().map(|&(_, t)| t).sum();
        self.logits = (0..64).map(|id| -f32::abs(id as f32 - (sum % 64) as f32)).collect();
        Ok(&self.logits)
    }
    fn forward_each(&mut self, tokens: &[u32], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        for (i, &token) in tokens.iter().enumerate() {
            let logits = self.forward(&[token])?.to_vec();
            visit(i, &logits);
        }
        Ok(())
    }
    fn len(&self) -> usize {
        self.len
    }
    fn truncate(&mut self, len: usize) {
        self.cache.retain(|&(position, _)| position < len);
        self.len = self.len.min(len);
    }
    fn reset(&mut self) {
        self.cache.clear();
        self.len = 0;
    }
    fn kv_bytes(&self) -> usize {
        8 * self.cache.len()
    }
    fn kv_tokens(&self) -> usize {
        self.cache.len()
    }
}

impl Subject for Counting {
    type Setting = usize;
    fn prefill(&mut self, tokens: &[u32], _: &[&usize]) -> Result<Vec<f32>> {
        self.reset();
        self.prefills += 1;
        Ok(self.forward(tokens)?.to_vec())
    }
    fn fork(&self) -> Self {
        self.clone()
    }
    fn compress(&mut self, setting: &usize, tokens: &[u32]) -> Result<()> {
        assert_eq!(tokens.len(), self.len);
        self.cache.drain(..self.cache.len() - setting);
        Ok(())
    }
    type Together = ();
    fn together(&self) {}
    fn decode((): &mut (), forks: &mut [(&mut Self, u32)]) -> Result<Vec<Vec<f32>>> {
        forks.iter_mut().map(|(fork, token)| Ok(fork.forward(&[*token])?.to_vec())).collect()
    }
    fn forget_from(&mut self, len: usize) {
        self.truncate(len);
    }
}
