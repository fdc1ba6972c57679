//! The parameters of sampling and their ranges.

use crate::error::{Error, Result};

/// The parameters of the choice of a token. The default is greedy: always the best token.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits: below 1 sharper, above 1 flatter, 0 greedy.
    pub temperature: f32,
    /// Draw from the `k` best tokens; 0 is off.
    pub top_k: usize,
    /// Draw from the fewest best tokens that together have this probability; 1 is off.
    pub top_p: f32,
    /// Drop tokens less likely than this times the likeliest; 0 is off.
    pub min_p: f32,
    /// Weakens tokens of prompt and answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from a logit per occurrence in the answer; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted from a logit once if the token is in the answer; 0 is off.
    pub presence_penalty: f32,
    /// Seed of the random generator; `None`: a seed from the operating system.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Below this temperature, the division would overflow, and one token has all of the probability.
    const GREEDY_BELOW: f32 = 1e-5;

    /// Checks every value.
    ///
    /// # Errors
    /// Names the first value out of range, with the range.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, name: &str, value: f32, range: &str| {
            if ok { Ok(()) } else { Err(Error::bad_input(format!("{name} is {value}, it must be {range}"))) }
        };
        let (t, r) = (self.temperature, self.repetition_penalty);
        check(t.is_finite() && t >= 0.0, "temperature", t, "0 (greedy) or a positive number")?;
        check(
            (0.0..=1.0).contains(&self.top_p),
            "top-p",
            self.top_p,
            "from 0 (only the best token) to 1 (off)",
        )?;
        check((0.0..=1.0).contains(&self.min_p), "min-p", self.min_p, "from 0 (off) to 1")?;
        check(r.is_finite() && r > 0.0, "repetition penalty", r, "a positive number; 1 is off")?;
        let number = "a finite number; 0 is off";
        check(self.frequency_penalty.is_finite(), "frequency penalty", self.frequency_penalty, number)?;
        check(self.presence_penalty.is_finite(), "presence penalty", self.presence_penalty, number)
    }

    /// Whether the choice has no randomness.
    pub fn is_greedy(&self) -> bool {
        self.temperature < Self::GREEDY_BELOW
    }

    pub(super) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    /// The logit of a token that is in the prompt or, `generated` times, in the answer.
    pub(super) fn penalize(&self, logit: f32, generated: u32) -> f32 {
        let r = self.repetition_penalty;
        let repeated = if logit > 0.0 { logit / r } else { logit * r };
        if generated == 0 {
            return repeated;
        }
        repeated - self.frequency_penalty * generated as f32 - self.presence_penalty
    }
}
