//! Speculative decoding: several tokens of the answer in one pass over the weights.
//!
//! ```text
//! text so far ── drafter ── draft d1 d2 d3 ──┐
//! last token t ──────────────────────────────┴─ one pass over t d1 d2 d3 ── logits after each
//! sample after t: d1?  after d1: d2?  after d2: another token ── keep t d1 d2 and that token, drop d3 from the cache
//! ```
//! Every token is sampled from the logits that a decode step would have computed, with the same state of the sampler. A
//! draft therefore changes the speed and no token, at any temperature. For a draft without probabilities this is the
//! acceptance rule of Leviathan et al. (arXiv 2211.17192, section 2.3).
//!
//! [`ngram`] drafts from the text itself: prompt lookup decoding.

mod draft_length;
mod ngram;

use crate::error::{Error, Result};
use draft_length::DraftLength;
use ngram::Ngrams;
use std::{fmt, str::FromStr, time::Instant};

/// Maximum number of tokens of a draft. Batches of up to 16 rows cost little more than one row.
const MAX_DRAFT: usize = 15;

/// The source of drafts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Speculation {
    /// None: one token per pass.
    #[default]
    Off,
    /// Earlier occurrences of the last tokens, in the prompt and in the answer.
    Ngram,
}

impl Speculation {
    /// All sources.
    pub const ALL: [Self; 2] = [Self::Off, Self::Ngram];

    /// The name, as in [`FromStr`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Ngram => "ngram",
        }
    }

    /// A line of help.
    pub fn about(self) -> &'static str {
        match self {
            Self::Off => "one token at a time",
            Self::Ngram => "earlier occurrences of the last tokens in the prompt and the answer",
        }
    }
}

impl fmt::Display for Speculation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Speculation {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|source| source.name() == text).ok_or_else(|| {
            Error::bad_input(format!(
                "there is no speculation {text:?}; there are {}",
                Self::ALL.map(Self::name).join(", ")
            ))
        })
    }
}

/// Drafts of one answer.
#[derive(Debug)]
pub struct Speculator {
    ngrams: Ngrams,
    length: DraftLength,
    draft: Vec<u32>,
    /// The class of the draft in [`DraftLength`].
    matched: usize,
    started: Instant,
}

impl Speculator {
    /// Drafts for an answer to `prompt`; `None` without speculation.
    pub fn new(source: Speculation, prompt: &[u32]) -> Option<Self> {
        match source {
            Speculation::Off => None,
            Speculation::Ngram => Some(Self {
                ngrams: Ngrams::new(prompt),
                length: DraftLength::default(),
                draft: Vec::new(),
                matched: 0,
                started: Instant::now(),
            }),
        }
    }

    /// Appends a token of the answer to the text.
    pub fn push(&mut self, token: u32) {
        self.ngrams.push(token);
    }

    /// A draft that follows the text; empty if none is worth its cost. `limit(n)` is the number of tokens, at most `n`,
    /// that the model can verify; it is called only if there is a draft.
    pub fn draft(&mut self, limit: impl FnOnce(usize) -> usize) -> &[u32] {
        self.draft.clear();
        if let Some(found) = self.ngrams.find() {
            self.matched = found.length;
            let n = self.length.best(found.length).min(MAX_DRAFT);
            if n > 0 {
                self.ngrams.continuation(found, limit(n), &mut self.draft);
            }
        }
        self.started = Instant::now();
        &self.draft
    }

    /// Learns from the pass after [`Speculator::draft`], of which `accepted` tokens of the draft became tokens of the answer.
    pub fn learn(&mut self, accepted: usize) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.length.learn(self.matched, self.draft.len(), accepted, seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_others_refused() {
        for source in Speculation::ALL {
            assert_eq!(source.to_string().parse::<Speculation>().unwrap(), source);
        }
        let said = "model".parse::<Speculation>().unwrap_err().to_string();
        assert!(said.ends_with("there are off, ngram"), "{said}");
    }

    #[test]
    fn a_repeated_text_is_drafted() {
        let mut speculator = Speculator::new(Speculation::Ngram, &[1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]).unwrap();
        assert_eq!(speculator.draft(|n| n.min(3)), [4, 5, 6]);
        speculator.learn(3);
        [4, 5, 6, 9].into_iter().for_each(|token| speculator.push(token));
        assert!(speculator.draft(|n| n.min(9)).is_empty(), "9 is new");
        assert!(speculator.draft(|_| 0).is_empty());
    }
}
