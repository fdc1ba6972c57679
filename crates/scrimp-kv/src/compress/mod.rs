//! Making a cache smaller: how many tokens are kept, which, and what stands for those that go.
//!
//! ```text
//! budget of a KV head = sinks + recent + important + representatives
//!                       always kept       by policy   KVCrush (arXiv 2503.00022): see `crush`
//! ```
//! [`Compression`] says how; [`select()`] decides for one layer; [`Sequence::compress`](crate::Sequence::compress) does it.

pub(crate) mod choose;
mod crush;
mod keys;
mod page;
mod select;
mod signature;

pub use crush::{Anchor, Crush, Mass, Order};
pub use select::select;

use crate::{
    error::KvError,
    policy::{Needs, PolicyChoice},
};

/// How many tokens each KV head keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// So many, sinks and recent ones included.
    Tokens(usize),
    /// This share of the tokens that were seen.
    Fraction(f64),
}

/// What is kept or dropped as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// Tokens, each KV head its own.
    Token,
    /// Runs of so many tokens, the same for all KV heads of a layer.
    Page(usize),
}

/// How a cache is made smaller.
#[derive(Debug, Clone, PartialEq)]
pub struct Compression {
    /// Tokens that each KV head keeps.
    pub budget: Budget,
    /// What says which tokens are important.
    pub policy: PolicyChoice,
    /// First tokens that are kept in any case.
    pub sinks: usize,
    /// Last tokens that are kept in any case; none: as many as [`Compression::recent_of`] says.
    pub recent: Option<usize>,
    /// Representatives of what is dropped.
    pub crush: Crush,
    /// What is kept or dropped as a whole.
    pub granularity: Granularity,
    /// Turn kept keys so that the model finds no gaps where tokens were dropped (see
    /// [`Sequence::compress_turning`](crate::Sequence::compress_turning)).
    pub rerotate: bool,
    /// Seed of everything random.
    pub seed: u64,
}

impl Compression {
    /// Sinks that are kept by default.
    pub const DEFAULT_SINKS: usize = 4;
    /// Tokens of a page by default.
    pub const DEFAULT_PAGE: usize = 32;

    /// `policy` with `budget`, and defaults.
    pub fn new(policy: PolicyChoice, budget: Budget) -> Self {
        Self {
            budget,
            policy,
            sinks: Self::DEFAULT_SINKS,
            recent: None,
            crush: Crush::default(),
            granularity: Granularity::Token,
            rerotate: false,
            seed: 0,
        }
    }

    /// Whether anything is ever dropped.
    pub fn keeps_everything(&self) -> bool {
        self.policy.policy.keeps_everything()
    }

    /// Last tokens that are kept in any case of a budget of so many: by default a sixth of it, from 32 to 128.
    ///
    /// A prompt ends with what is wanted, and no policy finds all of that: with 128 instead of 32 tokens questions stay whole
    /// (benches/kv/quality.md has what it does to KL and to answers).
    pub fn recent_of(&self, budget: usize) -> usize {
        self.recent.unwrap_or_else(|| (budget / 6).clamp(32, 128))
    }

    /// Tokens that are kept in any case of a budget of so many.
    pub fn fixed_of(&self, budget: usize) -> usize {
        self.sinks.saturating_add(self.recent_of(budget))
    }

    /// Checks what can be checked before the length of the prompt is known.
    ///
    /// # Errors
    /// When the budget is 0 or smaller than sinks and recent tokens, a share is outside of `0..=1`, or a page has no tokens.
    pub fn check(&self) -> Result<(), KvError> {
        let bad = |what: String| Err(KvError::BadInput(what));
        match self.budget {
            Budget::Tokens(0) => return bad("a KV budget of 0 tokens keeps nothing; take 1 or more".into()),
            Budget::Fraction(f) if !(f > 0.0 && f <= 1.0) => {
                return bad(format!(
                    "a KV budget of {f} is no share of the prompt: it must be above 0.0 and at most 1.0"
                ));
            }
            Budget::Tokens(n) => self.check_fixed(n)?,
            Budget::Fraction(_) => {}
        }
        let share = self.crush.share;
        if !(0.0..=1.0).contains(&share) {
            return bad(format!("KVCrush's share of the budget is {share}, and must lie between 0 and 1"));
        }
        if self.granularity == Granularity::Page(0) {
            return bad("KV pages to keep or drop must have 1 token or more".into());
        }
        Ok(())
    }

    fn check_fixed(&self, tokens: usize) -> Result<(), KvError> {
        if self.keeps_everything() || tokens >= self.fixed_of(tokens) {
            return Ok(());
        }
        Err(KvError::BadInput(format!(
            "a KV budget of {tokens} tokens is smaller than the {} sinks and {} recent tokens that are always kept; \
             take a larger budget, or fewer sinks and recent tokens",
            self.sinks,
            self.recent_of(tokens)
        )))
    }

    /// Tokens that each KV head keeps of a prompt of `prompt` tokens.
    ///
    /// # Errors
    /// As [`Compression::check`], and when that is less than sinks and recent tokens, or more than the prompt has.
    pub fn tokens(&self, prompt: usize) -> Result<usize, KvError> {
        self.check()?;
        let tokens = self.nominal(prompt);
        if tokens > prompt {
            return Err(KvError::BadInput(format!(
                "a KV budget of {tokens} tokens is larger than the {prompt} tokens that there are"
            )));
        }
        self.check_fixed(tokens)?;
        Ok(tokens)
    }

    /// As [`Compression::tokens`], for prompts of any length: a short one is kept whole, and never less than sinks and
    /// recent tokens.
    pub fn tokens_at_least_fixed(&self, prompt: usize) -> usize {
        let tokens = self.nominal(prompt);
        tokens.max(self.fixed_of(tokens))
    }

    fn nominal(&self, prompt: usize) -> usize {
        match self.budget {
            Budget::Tokens(n) => n,
            Budget::Fraction(f) => (f * prompt as f64).round() as usize,
        }
    }

    /// What has to be known of attention.
    pub fn needs(&self) -> Needs {
        if self.keeps_everything() {
            return Needs::NONE;
        }
        self.policy.policy.needs().and(self.crush.needs(self.policy.policy))
    }
}
