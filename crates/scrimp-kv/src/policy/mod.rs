//! Eviction policies: which tokens a cache keeps.
//!
//! A policy names the attention scores that it reads ([`Policy::needs`]) and scores every token of a KV head
//! ([`Policy::score`]). The budget, the sinks, the recent tokens and KVCrush are common to all policies: see
//! [`crate::compress`]. [`POLICIES`] is the registry.

pub mod adakv;
mod expected;
mod expected_max;
mod full;
mod h2o;
mod knorm;
mod kvzip;
mod kvzip_query;
pub(crate) mod position_weight;
mod pyramidkv;
mod random;
mod snapkv;
mod streaming;
mod tova;
mod view;

pub use expected::Expected;
pub use expected_max::ExpectedMax;
pub use full::Full;
pub use h2o::H2o;
pub use knorm::KNorm;
pub use kvzip::KvZip;
pub use kvzip_query::KvZipQuery;
pub use pyramidkv::PyramidKv;
pub use random::Random;
pub use snapkv::SnapKv;
pub use streaming::Streaming;
pub use tova::Tova;
pub use view::{LayerView, ModelView};

use crate::{attention_scores::ScoresWanted, error::KvError};

/// The attention scores that a policy reads. Scores that nothing needs are not computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Attention summed over all queries.
    pub sum: bool,
    /// Attention summed over this many last queries of the prompt.
    pub recent: Option<usize>,
    /// Attention of the last query.
    pub last: bool,
    /// KVzip's reconstruction scores, from a second pass in which the model repeats the text.
    pub reconstruction: bool,
    /// Expected attention of future queries.
    pub expected: bool,
    /// The maximum attention of future queries.
    pub expected_max: bool,
    /// The outputs of future queries over the whole cache, to which values are fitted.
    pub future_outputs: bool,
    /// One row of scores per query head. Otherwise a row is the mean over the query heads of a KV head, which takes
    /// less time.
    pub per_query_head: bool,
}

impl Needs {
    /// Positions, keys and values only.
    pub const NONE: Self = Self {
        sum: false,
        recent: None,
        last: false,
        reconstruction: false,
        expected: false,
        expected_max: false,
        future_outputs: false,
        per_query_head: false,
    };

    /// The needs of both, with the larger window of recent queries.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            sum: self.sum || other.sum,
            recent: self.recent.max(other.recent),
            last: self.last || other.last,
            reconstruction: self.reconstruction || other.reconstruction,
            expected: self.expected || other.expected,
            expected_max: self.expected_max || other.expected_max,
            future_outputs: self.future_outputs || other.future_outputs,
            per_query_head: self.per_query_head || other.per_query_head,
        }
    }

    /// The scores that attention calls accumulate for a compression at `len` tokens.
    pub fn scores_wanted(self, len: usize) -> ScoresWanted {
        ScoresWanted {
            sum: self.sum,
            recent_from: self.recent.map(|window| len.saturating_sub(window) as u32),
            last: self.last,
            max: false,
            per_query_head: self.per_query_head,
        }
    }
}

/// A kind of attention score that the tokens of a layer have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// The sum over all queries, divided by the number of queries that could see the token.
    Mean,
    /// The sum over the last queries of the prompt.
    Recent,
    /// The score of the last query.
    Last,
    /// KVzip's reconstruction score; per KV head.
    Reconstruction,
    /// The expected attention of future queries; per KV head.
    Expected,
    /// The maximum attention of future queries; per KV head.
    ExpectedMax,
}

/// The tokens that a KV head keeps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// Indices into the head's block table, strictly increasing.
    pub indices: Vec<u32>,
    /// The biases that attention adds to the tokens' scores from now on, one per index (the logarithm of a
    /// representative's mass); `None` leaves all biases unchanged.
    pub bias: Option<Vec<f32>>,
}

impl Selection {
    /// Every token of a head with `n` tokens.
    pub fn all(n: usize) -> Self {
        Self { indices: (0..n as u32).collect(), bias: None }
    }

    /// Checks that the selection fits a head with `len` tokens.
    pub(crate) fn check(&self, len: usize) -> Result<(), KvError> {
        let increasing = self.indices.windows(2).all(|w| w[0] < w[1]);
        let inside = self.indices.last().is_none_or(|&i| (i as usize) < len);
        let biased = self.bias.as_ref().is_none_or(|b| b.len() == self.indices.len());
        if increasing && inside && biased {
            return Ok(());
        }
        Err(KvError::BadInput(format!(
            "a selection needs increasing indices below {len}, and one bias per index or no biases"
        )))
    }
}

/// The layer that [`Policy::layer_budget`] assigns a budget to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerBudget {
    /// The layer's index among the layers that are compressed, from 0.
    pub index: usize,
    /// The number of layers that are compressed.
    pub n_layers: usize,
    /// Tokens that a KV head keeps on average over those layers.
    pub budget: usize,
    /// The part of `budget` that sinks and recent tokens take.
    pub reserved: usize,
    /// Tokens that a KV head of this layer holds.
    pub tokens: usize,
}

/// An eviction policy.
pub trait Policy: std::fmt::Debug + Send + Sync {
    /// The name that users see.
    fn name(&self) -> &'static str;

    /// One line for lists of policies: the idea and the paper.
    fn about(&self) -> &'static str;

    /// The attention scores that [`Policy::score`] reads.
    fn needs(&self) -> Needs;

    /// Writes the score of each token of `kv_head` to `out` (`[tokens of the head]`). Tokens with the highest scores
    /// are kept; among equal scores, earlier tokens.
    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]);

    /// Tokens that each KV head of a layer may keep. By default all layers have the same budget; other budgets must
    /// add up to the same total.
    fn layer_budget(&self, layer: LayerBudget) -> usize {
        layer.budget
    }

    /// Whether scores of different layers are comparable, so that the heads of all layers can share one budget.
    fn shares_layers(&self) -> bool {
        false
    }

    /// Whether fitted values measured better with the tokens that the policy keeps (`benches/kv/quality.md`).
    fn fits_values(&self) -> bool {
        false
    }

    /// The attention by which a query head ranks tokens for KVCrush's signatures (arXiv 2503.00022, §3.1).
    fn signature_attention(&self) -> Attention {
        Attention::Mean
    }

    /// Whether the policy keeps every token at any budget.
    fn keeps_everything(&self) -> bool {
        false
    }
}

/// All policies, in the order of the documentation.
pub static POLICIES: [&dyn Policy; 12] = [
    &Full,
    &Streaming,
    &H2o,
    &SnapKv,
    &PyramidKv,
    &Tova,
    &KNorm,
    &Expected,
    &ExpectedMax,
    &KvZip,
    &KvZipQuery,
    &Random,
];

/// A policy by name: `POLICY` or `adakv:POLICY`.
#[derive(Debug, Clone, Copy)]
pub struct PolicyChoice {
    /// The policy.
    pub policy: &'static dyn Policy,
    /// Whether all heads of a layer share one budget (see [`adakv`]).
    pub shared_budget: bool,
}

impl PolicyChoice {
    /// The policy `full`.
    pub const FULL: Self = Self { policy: &Full, shared_budget: false };

    /// The name that users see.
    pub fn name(self) -> String {
        let prefix = if self.shared_budget { adakv::PREFIX } else { "" };
        format!("{prefix}{}", self.policy.name())
    }
}

impl PartialEq for PolicyChoice {
    fn eq(&self, other: &Self) -> bool {
        self.policy.name() == other.policy.name() && self.shared_budget == other.shared_budget
    }
}

/// The policy with this name, `POLICY` or `adakv:POLICY`.
///
/// # Errors
/// When no policy has the name; the message lists all names.
pub fn policy(name: &str) -> Result<PolicyChoice, KvError> {
    let base = name.strip_prefix(adakv::PREFIX);
    let found = POLICIES.into_iter().find(|p| p.name() == base.unwrap_or(name));
    match found {
        Some(policy) if base.is_none() || !policy.keeps_everything() => {
            Ok(PolicyChoice { policy, shared_budget: base.is_some() })
        }
        _ => {
            let known: Vec<_> = POLICIES.iter().map(|p| p.name()).collect();
            Err(KvError::BadInput(format!(
                "there is no KV policy `{name}`; there are {}, and adakv:POLICY with one of these",
                known.join(", ")
            )))
        }
    }
}
