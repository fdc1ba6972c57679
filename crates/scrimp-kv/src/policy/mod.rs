//! Which tokens matter: the interface of eviction policies, and the registry.
//!
//! A policy says what it looks at ([`Policy::needs`]) and gives every token that a KV head holds a score
//! ([`Policy::score`]). How many tokens are kept, which are kept in any case, and what stands for those that go is
//! the same for all policies: see [`crate::compress`].

pub mod adakv;
mod expected;
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
pub(crate) use view::mix;
pub use view::{LayerView, ModelView};

use crate::error::KvError;

/// What a policy looks at. What nobody needs is not computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Attention summed over all queries.
    pub sum: bool,
    /// Attention summed over so many last queries of the prompt.
    pub recent: Option<usize>,
    /// Attention of the last query.
    pub last: bool,
    /// The most attention in a second pass, in which the model repeats the text.
    pub repeated: bool,
    /// Attention that queries to come can be expected to give.
    pub expected: bool,
    /// Sums of each query head by itself, not only their mean over a KV head's group.
    pub query_heads: bool,
}

impl Needs {
    /// Nothing but positions and keys.
    pub const NONE: Self =
        Self { sum: false, recent: None, last: false, repeated: false, expected: false, query_heads: false };

    /// All that either needs; the larger window of recent queries.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            sum: self.sum || other.sum,
            recent: self.recent.max(other.recent),
            last: self.last || other.last,
            repeated: self.repeated || other.repeated,
            expected: self.expected || other.expected,
            query_heads: self.query_heads || other.query_heads,
        }
    }
}

/// One of the column sums of [`ColumnStats`](crate::ColumnStats).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// Over all queries, divided by the number of queries that could see the token.
    Mean,
    /// Over the last queries of the prompt.
    Recent,
    /// Of the last query.
    Last,
    /// The most while the model repeated the text; per KV head.
    Repeated,
    /// What queries to come can be expected to give; per KV head.
    Expected,
}

/// What a KV head keeps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// Indices of kept tokens in the head's table, strictly increasing.
    pub indices: Vec<u32>,
    /// What is added to their scores from now on (the logarithm of a representative's mass); `None`: as it was.
    pub bias: Option<Vec<f32>>,
}

/// The layers that are compressed, as far as budgets depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerBudget {
    /// The layer's place among the layers that are compressed, from 0.
    pub index: usize,
    /// How many those are.
    pub of: usize,
    /// Tokens that a KV head keeps on average over those layers.
    pub budget: usize,
    /// Tokens of these that are kept in any case (sinks and recent ones).
    pub fixed: usize,
    /// Tokens that a KV head holds.
    pub tokens: usize,
}

/// An eviction policy.
pub trait Policy: std::fmt::Debug + Send + Sync {
    /// The name that users see.
    fn name(&self) -> &'static str;

    /// The paper or the idea, for the list of policies.
    fn about(&self) -> &'static str;

    /// What [`Policy::score`] looks at.
    fn needs(&self) -> Needs;

    /// Writes how important each token of `kv_head` is (`[tokens that the head holds]`); the highest are kept, the
    /// earlier one where two are equal.
    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]);

    /// Tokens that each KV head of a layer may keep. By default all layers have the same budget; others must spend the
    /// same total.
    fn layer_budget(&self, layer: LayerBudget) -> usize {
        layer.budget
    }

    /// Whether scores of different layers can be compared, so that the heads of all layers share one budget, spent where
    /// scores are highest.
    fn shares_layers(&self) -> bool {
        false
    }

    /// The attention that query heads judge tokens by (KVCrush's signatures, §3.1 of arXiv 2503.00022).
    fn signature(&self) -> Attention {
        Attention::Mean
    }

    /// Whether it keeps everything whatever the budget.
    fn keeps_everything(&self) -> bool {
        false
    }
}

/// Every policy, in the order of the documentation.
pub static POLICIES: [&dyn Policy; 11] =
    [&Full, &Streaming, &H2o, &SnapKv, &PyramidKv, &Tova, &KNorm, &Expected, &KvZip, &KvZipQuery, &Random];

/// A policy, and whether the heads of a layer share their budget (`adakv:POLICY`).
#[derive(Debug, Clone, Copy)]
pub struct PolicyChoice {
    /// What gives scores.
    pub policy: &'static dyn Policy,
    /// One budget for all heads of a layer, spent where scores are highest (see [`adakv`]).
    pub shared_budget: bool,
}

impl PolicyChoice {
    /// Keeps everything.
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

/// The policy of this name, which may be `adakv:POLICY`.
///
/// # Errors
/// When there is none; the message lists those that there are.
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

/// Checks that `kept` names tokens of a head with `len` tokens in order.
pub(crate) fn check(kept: &Kept, len: usize) -> Result<(), KvError> {
    let increasing = kept.indices.windows(2).all(|w| w[0] < w[1]);
    let inside = kept.indices.last().is_none_or(|&i| (i as usize) < len);
    let biased = kept.bias.as_ref().is_none_or(|b| b.len() == kept.indices.len());
    if increasing && inside && biased {
        return Ok(());
    }
    Err(KvError::BadInput(format!(
        "kept tokens must be increasing indices below {len} with a bias each (or no biases)"
    )))
}
