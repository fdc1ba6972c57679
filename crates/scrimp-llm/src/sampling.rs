//! From logits to the next token.
//!
//! The steps have vLLM's order. A step is skipped at its neutral value:
//!
//! 1. *repetition penalty* `r` (CTRL, arXiv 1909.05858): logits of tokens in the prompt or the answer so far are
//!    divided by `r` where positive, multiplied by `r` where negative;
//! 2. *frequency* and *presence penalty* (OpenAI): tokens of the answer lose `frequency * count + presence`;
//! 3. *temperature* `t`: logits are divided by `t`. At 0 (below 1e-5), the best token is chosen and no step follows;
//! 4. *min-p*: tokens with less than `min_p` times the best token's probability are removed;
//! 5. *top-k*: the `k` best tokens stay;
//! 6. *top-p* (nucleus, arXiv 1904.09751): the smallest set of best tokens with a total probability of at least `p`
//!    stays;
//! 7. one of the remaining tokens is drawn by its probability.
//!
//! Equal logits rank by token id. `NaN` and `-inf` are never drawn; `+inf` is always chosen. The generator is ChaCha8,
//! and the exponential is part of this crate, so a seed and equal logits give the same tokens on every machine.

mod params;
mod select;

pub use params::SamplingParams;

use crate::error::{Error, Result};
use crate::logits;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use select::Candidates;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

/// Draws the tokens of one sequence, and counts them for the penalties.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    /// The count of each token in the answer; 0: only in the prompt.
    seen: HashMap<u32, u32>,
    penalized: Vec<f32>,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler with `params`. Without a seed it takes one from the operating system.
    ///
    /// # Errors
    /// When a parameter is out of range (see [`SamplingParams::validate`]).
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.validate()?;
        let seed = params.seed.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish());
        Ok(Self {
            params,
            rng: ChaCha8Rng::seed_from_u64(seed),
            seen: HashMap::new(),
            penalized: Vec::new(),
            candidates: Candidates::default(),
        })
    }

    /// A sampler that always chooses the best token.
    pub fn greedy() -> Self {
        Self::new(SamplingParams { seed: Some(0), ..SamplingParams::default() }).expect("defaults are valid")
    }

    /// A sampler that draws the same tokens from the same logits, for a draft.
    pub(crate) fn for_draft(&self) -> Self {
        let (params, rng, seen) = (self.params.clone(), self.rng.clone(), self.seen.clone());
        Self { params, rng, seen, penalized: Vec::new(), candidates: Candidates::default() }
    }

    /// Starts a new answer after `prompt`. The counts start anew; the state of the generator stays.
    pub fn begin(&mut self, prompt: &[u32]) {
        self.seen.clear();
        if self.params.repetition_penalty != 1.0 {
            self.seen.extend(prompt.iter().map(|&id| (id, 0)));
        }
    }

    /// Counts `token` as a part of the answer.
    pub fn accept(&mut self, token: u32) {
        if self.params.has_penalties() {
            *self.seen.entry(token).or_default() += 1;
        }
    }

    /// Draws the next token from `logits` (`[vocab_size]`). The caller must [`accept`](Self::accept) it.
    ///
    /// # Errors
    /// All logits are `NaN` or `-inf`: the model's weights are damaged.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let Self { params, rng, seen, penalized, candidates } = self;
        let logits = if seen.is_empty() {
            logits
        } else {
            penalized.clear();
            penalized.extend_from_slice(logits);
            for (&token, &count) in seen.iter() {
                if let Some(logit) = penalized.get_mut(token as usize) {
                    *logit = params.penalize(*logit, count);
                }
            }
            penalized
        };
        let best = logits::argmax(logits).ok_or_else(|| {
            Error::bad_input("the model gave no usable logits (all are NaN or -inf)")
                .with_hint("its weights are damaged, or the file was converted wrongly")
        })?;
        let max = logits[best as usize];
        if params.is_greedy() || max == f32::INFINITY {
            return Ok(best);
        }
        // 53 random bits: uniform in [0, 1).
        let uniform = (rng.next_u64() >> 11) as f64 * (0.5f64).powi(53);
        let row = select::Row::new(logits, max, 1.0 / params.temperature, params.min_p);
        let drawn = if params.top_k > 0 {
            candidates.top_k(&row, params.top_k);
            candidates.top_p(&row, params.top_p);
            candidates.draw(&row, uniform)
        } else if params.top_p < 1.0 {
            candidates.nucleus(&row, params.top_p);
            candidates.draw(&row, uniform)
        } else {
            row.draw(uniform)
        };
        Ok(drawn.unwrap_or(best))
    }
}

#[cfg(test)]
mod tests;
