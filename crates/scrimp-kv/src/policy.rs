//! Which tokens a layer keeps: the interface of eviction policies, and the registry.
//!
//! A policy says what it needs ([`Policy::needs`]), sees one layer at a time ([`LayerView`]) and answers with what each
//! KV head keeps ([`Kept`]). Copying, page handling and biases are the cache's business.

use crate::{error::KvError, sequence::Sequence};
use scrimp_kernels::attention::ColumnStats;

/// What a policy looks at. What nobody needs is not computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Attention summed over all queries.
    pub sum: bool,
    /// Attention summed over so many last queries.
    pub recent: Option<usize>,
    /// Attention of the last query.
    pub last: bool,
}

/// What a KV head keeps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// Indices of kept tokens in the head's table, strictly increasing.
    pub indices: Vec<u32>,
    /// What is added to their scores from now on (the logarithm of a representative's mass); `None`: as it was.
    pub bias: Option<Vec<f32>>,
}

/// One layer, as a policy sees it.
#[derive(Debug, Clone, Copy)]
pub struct LayerView<'a> {
    sequence: &'a Sequence,
    /// The layer.
    pub layer: usize,
    /// Tokens that each KV head may keep.
    pub budget: usize,
}

impl<'a> LayerView<'a> {
    pub(crate) fn new(sequence: &'a Sequence, layer: usize, budget: usize) -> Self {
        Self { sequence, layer, budget }
    }

    /// Layers of the model.
    pub fn n_layers(&self) -> usize {
        self.sequence.n_layers()
    }

    /// KV heads of the layer.
    pub fn n_kv_heads(&self) -> usize {
        self.sequence.n_kv_heads()
    }

    /// Tokens that `kv_head` holds now.
    pub fn n_tokens(&self, kv_head: usize) -> usize {
        self.sequence.kept(self.layer, kv_head)
    }

    /// Position of a token in the text.
    pub fn position(&self, kv_head: usize, index: usize) -> u32 {
        self.sequence.position(self.layer, kv_head, index)
    }

    /// What is added to the scores of a token.
    pub fn bias(&self, kv_head: usize, index: usize) -> f32 {
        self.sequence.bias(self.layer, kv_head, index)
    }

    /// Reads key and value of a token (`[head_dim]` each).
    pub fn read(&self, kv_head: usize, index: usize, k: &mut [f32], v: &mut [f32]) {
        self.sequence.read(self.layer, kv_head, index, k, v);
    }

    /// Attention per query head and token, as far as it was asked for.
    pub fn stats(&self) -> &'a ColumnStats {
        self.sequence.stats(self.layer)
    }
}

/// An eviction policy.
pub trait Policy: std::fmt::Debug + Send + Sync {
    /// The name that users see.
    fn name(&self) -> &'static str;
    /// What it looks at.
    fn needs(&self) -> Needs;
    /// What each KV head of the layer keeps (`[n_kv_heads]`).
    fn select(&self, view: &LayerView<'_>) -> Vec<Kept>;
}

/// Keeps everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Full;

impl Policy for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn select(&self, view: &LayerView<'_>) -> Vec<Kept> {
        let all = |head| Kept { indices: (0..view.n_tokens(head) as u32).collect(), bias: None };
        (0..view.n_kv_heads()).map(all).collect()
    }
}

/// Every policy, in the order of the documentation.
pub static POLICIES: [&dyn Policy; 1] = [&Full];

/// The policy of this name.
pub fn policy(name: &str) -> Option<&'static dyn Policy> {
    POLICIES.into_iter().find(|p| p.name() == name)
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
