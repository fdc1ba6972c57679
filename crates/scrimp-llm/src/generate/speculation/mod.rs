//! Speculative decoding: several tokens of the answer in one pass over the weights.
//!
//! ```text
//! text so far ── source ── draft d1 d2 d3 ───┐
//! last token t ──────────────────────────────┴─ one pass over t d1 d2 d3 ── logits after each
//! sample after t: d1?  after d1: d2?  after d2: another token ── keep t d1 d2 and that token, drop d3 from the cache
//! ```
//! Every token is sampled from the logits that a decode step would have computed, with the same state of the sampler. A
//! draft therefore changes the speed and no token, at any temperature. For a draft without probabilities this is the
//! acceptance rule of Leviathan et al. (arXiv 2211.17192, section 2.3).
//!
//! A [`DraftSource`] drafts: [`ngram`] from the text itself, [`model`] with a smaller model. [`gain`] decides how many
//! tokens pay.

mod drafter;
mod gain;
mod model;
mod ngram;

pub use model::{DraftCheckpoint, DraftModel};

use crate::{
    error::{Error, Result},
    sampling::Sampler,
};
use gain::{Gain, MAX_DRAFT, Plan, Prior};
use model::ModelSource;
use ngram::NgramSource;
use std::{collections::VecDeque, fmt, str::FromStr, time::Instant};

/// A kind of source of drafts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DraftKind {
    /// None: one token per pass.
    #[default]
    Off,
    /// Earlier occurrences of the last tokens, in the prompt and in the answer.
    Ngram,
    /// A smaller model with the same vocabulary.
    Model,
}

impl DraftKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Off, Self::Ngram, Self::Model];

    /// The name, as in [`FromStr`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Ngram => "ngram",
            Self::Model => "model",
        }
    }
}

impl fmt::Display for DraftKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DraftKind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            Error::bad_input(format!(
                "there is no speculation {text:?}; there are {}",
                Self::ALL.map(Self::name).join(", ")
            ))
        })
    }
}

/// The source of drafts.
#[derive(Debug, Clone, Default)]
pub enum Speculation {
    /// None: one token per pass.
    #[default]
    Off,
    /// Earlier occurrences of the last tokens, in the prompt and in the answer.
    Ngram,
    /// A smaller model with the same vocabulary.
    Model(DraftModel),
}

impl Speculation {
    /// The source of this kind. `model` is the draft model, if there is one.
    ///
    /// # Errors
    /// When there is no draft model, and `kind` needs one.
    pub fn new(kind: DraftKind, model: Option<&DraftModel>) -> Result<Self> {
        match (kind, model) {
            (DraftKind::Off, _) => Ok(Self::Off),
            (DraftKind::Ngram, _) => Ok(Self::Ngram),
            (DraftKind::Model, Some(model)) => Ok(Self::Model(model.clone())),
            (DraftKind::Model, None) => Err(Error::bad_input("no draft model was loaded with this model")),
        }
    }

    /// The source for an answer to `prompt`; `None` without speculation.
    fn source(self, prompt: &[u32]) -> Option<Box<dyn DraftSource>> {
        Some(match self {
            Self::Off => return None,
            Self::Ngram => Box::new(NgramSource::new(prompt)),
            Self::Model(model) => Box::new(ModelSource::new(model, prompt)),
        })
    }
}

/// Drafts tokens of one answer.
trait DraftSource: fmt::Debug + Send {
    /// The expectations before the first measurement.
    fn prior(&self) -> Prior;
    /// Appends a token of the answer to the text.
    fn push(&mut self, token: u32);
    /// Appends tokens that follow the text to `plan` while they pay. `sampler` is that of the answer.
    fn draft(&mut self, plan: &mut Plan<'_>, sampler: &Sampler);
    /// Bytes of the cache that drafts.
    fn kv_bytes(&self) -> usize {
        0
    }
}

/// Drafts of one answer.
#[derive(Debug)]
pub struct Speculator {
    source: Box<dyn DraftSource>,
    gain: Gain,
    draft: Vec<u32>,
    /// Drafted tokens with their classes that were not compared with tokens of the answer yet.
    pending: VecDeque<(u32, usize)>,
    started: Instant,
}

impl Speculator {
    /// Drafts for an answer to `prompt`; `None` without speculation.
    pub fn new(speculation: Speculation, prompt: &[u32]) -> Option<Self> {
        let source = speculation.source(prompt)?;
        let gain = Gain::new(source.prior());
        Some(Self { source, gain, draft: Vec::new(), pending: VecDeque::new(), started: Instant::now() })
    }

    /// Appends a token of the answer to the text.
    pub fn push(&mut self, token: u32) {
        self.source.push(token);
        if let Some((drafted, class)) = self.pending.pop_front() {
            self.gain.observe(class, drafted == token);
            if drafted != token {
                self.pending.clear();
            }
        }
    }

    /// A draft that follows the text; empty if none is worth its cost. `sampler` is that of the answer. `limit(n)` is the number of tokens, at most `n`,
    /// that the model can verify.
    pub fn draft(&mut self, sampler: &Sampler, limit: impl FnOnce(usize) -> usize) -> &[u32] {
        let mut plan = self.gain.plan(limit(MAX_DRAFT));
        if plan.room() > 0 {
            self.source.draft(&mut plan, sampler);
        }
        let (tokens, kept, seconds) = plan.finish();
        if let Some(seconds) = seconds {
            self.gain.drafted(seconds);
        }
        self.draft.clear();
        self.draft.extend(tokens[..kept].iter().map(|(token, _)| token));
        self.pending = tokens.into();
        self.started = Instant::now();
        &self.draft
    }

    /// Learns the time of the pass after [`Speculator::draft`].
    pub fn passed(&mut self) {
        self.gain.passed(self.draft.len(), self.started.elapsed().as_secs_f64());
    }

    /// Bytes of the cache that drafts; 0 without one.
    pub fn kv_bytes(&self) -> usize {
        self.source.kv_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_others_refused() {
        for kind in DraftKind::ALL {
            assert_eq!(kind.to_string().parse::<DraftKind>().unwrap(), kind);
        }
        let said = "words".parse::<DraftKind>().unwrap_err().to_string();
        assert!(said.ends_with("there are off, ngram, model"), "{said}");
        let said = Speculation::new(DraftKind::Model, None).unwrap_err().to_string();
        assert_eq!(said, "no draft model was loaded with this model");
    }

    #[test]
    fn a_repeated_text_is_drafted() {
        let sampler = Sampler::greedy();
        let mut speculator = Speculator::new(Speculation::Ngram, &[1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]).unwrap();
        assert_eq!(speculator.draft(&sampler, |n| n.min(3)), [4, 5, 6]);
        speculator.passed();
        [4, 5, 6, 9].into_iter().for_each(|token| speculator.push(token));
        assert!(speculator.draft(&sampler, |n| n.min(9)).is_empty(), "9 is new");
        assert!(speculator.draft(&sampler, |_| 0).is_empty());
    }
}
