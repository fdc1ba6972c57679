//! Compression of a cache: how many tokens each KV head keeps, which ones, and the representatives of the dropped ones.
//!
//! ```text
//! budget of a KV head = sinks + recent + important + representatives
//!                       reserved         by policy   KVCrush (arXiv 2503.00022): see `kvcrush`
//! ```
//! [`Compression`] holds the settings, [`select()`] decides for one layer, and
//! [`Sequence::compress`](crate::Sequence::compress) compresses a sequence.

pub(crate) mod fit;
mod key_order;
mod kvcrush;
mod mass;
mod order;
mod select;
pub(crate) mod select_layers;
mod select_pages;
mod shrink;
mod signature_order;
mod signatures;

pub use fit::{FutureQueries, LayerQueries};
pub use key_order::KeyOrder;
pub use kvcrush::Crush;
pub use mass::{AttentionMass, MASSES, Mass, NoMass, Segment, mass};
pub use order::{Dropped, Items, ORDERS, Order, order};
pub use select::select;
pub use shrink::{DEFAULT_POLICY, DEFAULT_SHARE, Shrink};
pub use signature_order::SignatureOrder;
pub use signatures::Signatures;

use crate::{
    error::KvError,
    policy::{Needs, PolicyChoice},
};
use select::best;
use std::fmt;

/// How many tokens each KV head keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// A number of tokens, sinks and recent tokens included.
    Tokens(usize),
    /// A share of the prompt's tokens.
    Fraction(f64),
}

/// The unit that is kept or dropped as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// Single tokens, chosen per KV head.
    Token,
    /// Runs of this many tokens, the same for all KV heads of a layer.
    Page(usize),
}

impl Granularity {
    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Page(_) => "page",
        }
    }

    /// One line for lists of granularities.
    pub fn about(self) -> &'static str {
        match self {
            Self::Token => "Tokens, each KV head its own",
            Self::Page(_) => "Runs of tokens, the same for all KV heads of a layer",
        }
    }
}

/// The granularities by name, in the order of the documentation, with the default number of tokens per page.
pub static GRANULARITIES: [Granularity; 2] =
    [Granularity::Token, Granularity::Page(Compression::DEFAULT_PAGE)];

/// The settings of a compression.
#[derive(Debug, Clone, PartialEq)]
pub struct Compression {
    /// Tokens that each KV head keeps.
    pub budget: Budget,
    /// The policy that scores tokens.
    pub policy: PolicyChoice,
    /// First tokens of the text that are always kept.
    pub sinks: usize,
    /// Last tokens of the text that are always kept; `None`: [`Compression::recent_of`] the budget.
    pub recent: Option<usize>,
    /// Representatives of dropped tokens.
    pub crush: Crush,
    /// Fit the values of kept tokens to the attention over all tokens, if the sequence has future queries. The default
    /// is [`Policy::fits_values`](crate::policy::Policy::fits_values).
    pub fit: bool,
    /// Compress a long prompt while it is read, whenever the cache exceeds the budget by this number of tokens: the whole
    /// prompt is never in memory.
    pub chunks: Option<usize>,
    /// The unit that is kept or dropped as a whole.
    pub granularity: Granularity,
    /// Rotate kept keys to consecutive positions (see
    /// [`Sequence::compress_with`](crate::Sequence::compress_with)).
    pub rerotate: bool,
    /// Seed of all random numbers.
    pub seed: u64,
}

/// The name of the settings in results: policy, budget, and the options that differ from the defaults.
impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.budget {
            Budget::Tokens(n) => write!(f, "{} {n}", self.policy.name())?,
            Budget::Fraction(share) => write!(f, "{} {share}", self.policy.name())?,
        }
        let Crush { share, mass, order } = self.crush;
        if share > 0.0 {
            write!(f, " kvcrush {share}")?;
            if mass.name() != Crush::default().mass.name() {
                write!(f, " mass {}", mass.name())?;
            }
            // The order is always named, because results in files were measured with different defaults.
            write!(f, " order {}", order.name())?;
        }
        // Named even where it is the default, because results in files were measured without it.
        if self.fit {
            f.write_str(" fit")?;
        }
        if let Some(tokens) = self.chunks {
            write!(f, " chunks {tokens}")?;
        }
        if self.sinks != Self::DEFAULT_SINKS {
            write!(f, " sinks {}", self.sinks)?;
        }
        if let Some(recent) = self.recent {
            write!(f, " recent {recent}")?;
        }
        if let Granularity::Page(n) = self.granularity {
            write!(f, " page {n}")?;
        }
        if self.rerotate {
            f.write_str(" rerotate")?;
        }
        if self.seed != 0 {
            write!(f, " seed {}", self.seed)?;
        }
        Ok(())
    }
}

impl Compression {
    /// The default of [`Compression::sinks`].
    pub const DEFAULT_SINKS: usize = 4;
    /// The default number of tokens of [`Granularity::Page`].
    pub const DEFAULT_PAGE: usize = 32;

    /// The usual value of [`Compression::chunks`].
    pub const DEFAULT_CHUNK: usize = 2560;

    /// `policy` at `budget`, with defaults for all other settings.
    pub fn new(policy: PolicyChoice, budget: Budget) -> Self {
        Self {
            budget,
            policy,
            sinks: Self::DEFAULT_SINKS,
            recent: None,
            crush: Crush::default(),
            fit: policy.policy.fits_values(),
            chunks: None,
            granularity: Granularity::Token,
            rerotate: false,
            seed: 0,
        }
    }

    /// Tokens of a prompt to read until the next compression, if `rest` tokens follow and the cache keeps `kept`: all,
    /// or with [`Compression::chunks`] one of equal parts.
    pub fn until_next(&self, rest: usize, kept: usize, budget: usize) -> usize {
        let excess = (kept + rest).saturating_sub(budget);
        match self.chunks {
            Some(most) if most > 0 && excess > most => {
                // The last compression comes at the end of the prompt.
                excess.div_ceil(excess.div_ceil(most)) + budget.saturating_sub(kept)
            }
            _ => rest,
        }
    }

    /// Whether the compression never drops a token.
    pub fn keeps_everything(&self) -> bool {
        self.policy.policy.keeps_everything()
    }

    /// Recent tokens that a budget of `budget` tokens includes: by default a sixth of it, from 32 to 128.
    ///
    /// A prompt often ends with a question, and no policy finds all of its tokens. 128 tokens hold most questions whole
    /// (benches/kv/quality.md has the effect on KL and on answers).
    pub fn recent_of(&self, budget: usize) -> usize {
        self.recent.unwrap_or_else(|| (budget / 6).clamp(32, 128))
    }

    /// The sinks and recent tokens of a budget of `budget` tokens.
    pub fn reserved(&self, budget: usize) -> usize {
        self.sinks.saturating_add(self.recent_of(budget))
    }

    /// Checks the settings that do not depend on the length of the prompt.
    ///
    /// # Errors
    /// When the budget is 0 or smaller than the sinks and recent tokens, a share is outside of `0..=1`, or a page has
    /// no tokens.
    pub fn check(&self) -> Result<(), KvError> {
        let bad = |what: String| Err(KvError::BadInput(what));
        match self.budget {
            Budget::Tokens(0) => return bad("a KV budget of 0 tokens keeps nothing; take 1 or more".into()),
            Budget::Fraction(f) if !(f > 0.0 && f <= 1.0) => {
                return bad(format!(
                    "a KV budget of {f} is no share of the prompt: it must be above 0.0 and at most 1.0"
                ));
            }
            Budget::Tokens(n) => self.check_reserved(n)?,
            Budget::Fraction(_) => {}
        }
        let share = self.crush.share;
        if !(0.0..=1.0).contains(&share) {
            return bad(format!("KVCrush's share of the budget is {share}, and must lie between 0 and 1"));
        }
        if self.chunks == Some(0) {
            return bad("the chunks of a prompt must have 1 token or more".into());
        }
        if self.chunks.is_some() && self.needs().reconstruction {
            return bad(format!(
                "{} reads the whole prompt a second time, so the prompt cannot be compressed in chunks",
                self.policy.name()
            ));
        }
        if self.granularity == Granularity::Page(0) {
            return bad("KV pages to keep or drop must have 1 token or more".into());
        }
        Ok(())
    }

    fn check_reserved(&self, tokens: usize) -> Result<(), KvError> {
        if self.keeps_everything() || tokens >= self.reserved(tokens) {
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
    /// Those of [`Compression::check`], and when the budget is smaller than the sinks and recent tokens or larger
    /// than the prompt.
    pub fn tokens(&self, prompt: usize) -> Result<usize, KvError> {
        self.check()?;
        let tokens = self.nominal(prompt);
        if tokens > prompt {
            return Err(KvError::BadInput(format!(
                "a KV budget of {tokens} tokens is larger than the {prompt} tokens that there are"
            )));
        }
        self.check_reserved(tokens)?;
        Ok(tokens)
    }

    /// As [`Compression::tokens`], for prompts of any length: at least the sinks and recent tokens, and possibly more
    /// than the prompt has.
    pub fn tokens_or_reserved(&self, prompt: usize) -> usize {
        let tokens = self.nominal(prompt);
        tokens.max(self.reserved(tokens))
    }

    fn nominal(&self, prompt: usize) -> usize {
        match self.budget {
            Budget::Tokens(n) => n,
            Budget::Fraction(f) => (f * prompt as f64).round() as usize,
        }
    }

    /// The attention scores that the compression reads.
    pub fn needs(&self) -> Needs {
        if self.keeps_everything() {
            return Needs::NONE;
        }
        let fit = Needs { future_outputs: self.fit, ..Needs::NONE };
        self.policy.policy.needs().and(self.crush.needs(self.policy.policy)).and(fit)
    }
}
