//! The keys that the queries of an attention call see: causal, and within the layer's window.

use crate::{
    block_table::BlockTable,
    cache::{Pages, Shared},
    error::KvError,
    sequence::{AttentionInputs, Queries},
};
use scrimp_kernels::attention::{AttentionArgs, KvView, PageView};
use std::ops::Range;

/// One layer of one sequence.
pub(crate) struct CausalView<'a> {
    pages: Pages<'a>,
    heads: &'a [BlockTable],
    window: Option<usize>,
    /// Kept tokens from the token of the first query on; 0 for future queries.
    own_tokens: usize,
    /// Position of the first query.
    pub(crate) first: u32,
    n_tokens: usize,
}

impl<'a> CausalView<'a> {
    /// Checks that `inputs` fit the layer. `next` is the position of the layer's next token.
    pub(crate) fn new(
        shared: &'a Shared,
        layer: usize,
        next: u32,
        heads: &'a [BlockTable],
        inputs: &AttentionInputs<'_>,
    ) -> Result<Self, KvError> {
        let pages = shared.pages(layer);
        let (g, n_kv_heads) = (pages.geometry, pages.n_kv_heads);
        let row = inputs.n_heads * g.head_dim;
        let n_tokens = inputs.q.len().checked_div(row).unwrap_or(0);
        let own_tokens = match inputs.queries {
            Queries::Last => n_tokens,
            Queries::Before(after) => n_tokens.saturating_add(after),
            Queries::Future => 0,
        };
        let fits = row > 0
            && inputs.n_heads.is_multiple_of(n_kv_heads)
            && inputs.q.len() == n_tokens * row
            && inputs.out.len() == inputs.q.len()
            && inputs.sinks.is_none_or(|sinks| sinks.len() == inputs.n_heads)
            && heads.iter().all(|h| h.len() >= own_tokens);
        if !fits {
            return Err(KvError::BadInput(format!(
                "{} queries in {} heads of {} do not fit {n_kv_heads} KV heads and the tokens appended last",
                inputs.q.len(),
                inputs.n_heads,
                g.head_dim
            )));
        }
        let window = shared.config.windows[layer];
        Ok(Self { pages, heads, window, own_tokens, first: next - own_tokens as u32, n_tokens })
    }

    /// The arguments of the attention kernels.
    pub(crate) fn args<'b>(&'b self, inputs: &AttentionInputs<'b>) -> AttentionArgs<'b> {
        AttentionArgs {
            storage: self.pages.storage.kind(),
            geometry: self.pages.geometry,
            n_tokens: self.n_tokens,
            n_heads: inputs.n_heads,
            n_kv_heads: self.pages.n_kv_heads,
            q: inputs.q,
            kv: self,
            scale: inputs.scale,
            softcap: inputs.softcap,
            sinks: inputs.sinks,
            wanted_from: inputs.wanted_from,
        }
    }
}

impl KvView for CausalView<'_> {
    fn n_keys(&self, kv_head: usize) -> usize {
        self.heads[kv_head].len()
    }

    fn page(&self, kv_head: usize, index: usize) -> PageView<'_> {
        self.heads[kv_head].page(index)
    }

    fn has_bias(&self, kv_head: usize) -> bool {
        self.heads[kv_head].has_bias()
    }

    fn visible(&self, kv_head: usize, token: usize) -> Range<usize> {
        let table = &self.heads[kv_head];
        let end = (table.len() - self.own_tokens + token + 1).min(table.len());
        let start = self.window.map_or(0, |window| {
            let oldest = (self.first as usize + token + 1).saturating_sub(window);
            table.index_from(oldest as u32)
        });
        start..end
    }
}
