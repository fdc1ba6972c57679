//! Appending tokens and attention over the kept tokens.

use super::{Sequence, no_layer};
use crate::{attention_scores::ScoresWanted, block_table::Appended, causal_view::CausalView, error::KvError};
use scrimp_kernels::{
    Exec, Pool,
    attention::{self, AttentionScratch},
};
use std::sync::{Mutex, PoisonError};

/// Appends of this many tokens or more run on the thread pool.
pub const PARALLEL_TOKENS: usize = 32;

/// The tokens that queries belong to, which determines the keys that they see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Queries {
    /// The tokens that were appended last. Each query sees its own token and all tokens before it.
    #[default]
    Last,
    /// Tokens that were appended before the last ones, whose number is given. Each query sees its own token and all
    /// tokens before it.
    Before(usize),
    /// Future tokens. Each query sees all kept tokens.
    Future,
}

/// The queries of one layer.
#[derive(Debug)]
pub struct AttentionInputs<'a> {
    /// `[n_tokens][n_heads][head_dim]`, after RoPE.
    pub q: &'a [f32],
    /// The tokens that `q` belongs to.
    pub queries: Queries,
    /// The result, `[n_tokens][n_heads][head_dim]`.
    pub out: &'a mut [f32],
    /// Query heads, a multiple of the KV heads.
    pub n_heads: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// `tanh` soft cap on scores.
    pub softcap: Option<f32>,
    /// A score for each query head that takes a share of the softmax and has no value (`[n_heads]`).
    pub sinks: Option<&'a [f32]>,
    /// The first token whose result is wanted. The results of earlier tokens are unspecified, but their queries count
    /// in the accumulated scores.
    pub wanted_from: usize,
    /// The scores to accumulate (see [`Sequence::accumulated_scores`]).
    pub scores: Option<ScoresWanted>,
}

impl Sequence {
    /// Appends tokens to a layer. `k` and `v` are `[n_tokens][n_kv_heads][head_dim]`, keys after RoPE. A
    /// sliding-window layer first drops the pages that no later token sees.
    ///
    /// # Errors
    /// When the lengths do not fit or pages cannot be allocated. The layer is then unchanged; the caller restores
    /// earlier layers of the forward pass with [`Sequence::truncate`].
    pub fn append(&mut self, layer: usize, k: &[f32], v: &[f32], pool: &Pool) -> Result<(), KvError> {
        let shared = &*self.shared;
        let Some(state) = self.layers.get_mut(layer) else { return Err(no_layer(layer)) };
        let pages = shared.pages(layer);
        let page_tokens = pages.geometry.page_tokens;
        let width = pages.n_kv_heads * pages.geometry.head_dim;
        if k.len() != v.len() || !k.len().is_multiple_of(width) {
            return Err(KvError::BadInput(format!(
                "keys and values of {} and {} elements are no rows of {width}",
                k.len(),
                v.len()
            )));
        }
        let n = k.len() / width;
        let position = state.next;
        let Some(next) = u32::try_from(n).ok().and_then(|n| position.checked_add(n)) else {
            return Err(KvError::BadInput("a sequence cannot have 2^32 tokens".into()));
        };
        if let Some(window) = shared.config.windows[layer] {
            let needed = (position as usize + 1).saturating_sub(window.saturating_add(shared.config.rewind));
            state.drop_before(page_tokens, needed as u32);
        }
        let new: Vec<_> = state.heads.iter().map(|h| h.allocate(pages, n)).collect::<Result<_, _>>()?;
        let mut tasks = Vec::with_capacity(new.len() * (n / page_tokens + 2));
        for (head, (table, new)) in state.heads.iter_mut().zip(new).enumerate() {
            table.extend(page_tokens, head, new, Appended { n, position }, &mut tasks);
        }
        if n < PARALLEL_TOKENS {
            tasks.iter_mut().for_each(|task| task.run(pages, k, v));
        } else {
            let tasks: Vec<_> = tasks.into_iter().map(Mutex::new).collect();
            pool.run(tasks.len(), |task, _| {
                tasks[task].lock().unwrap_or_else(PoisonError::into_inner).run(pages, k, v);
            });
        }
        state.next = next;
        Ok(())
    }

    /// Attention of `inputs` over the kept tokens of `layer`: causal, and within the layer's window.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn attend(
        &mut self,
        layer: usize,
        inputs: AttentionInputs<'_>,
        exec: Exec<'_>,
        scratch: &mut AttentionScratch,
    ) -> Result<(), KvError> {
        let shared = &*self.shared;
        let Some(state) = self.layers.get_mut(layer) else { return Err(no_layer(layer)) };
        let view = CausalView::new(shared, layer, state.next, &state.heads, &inputs)?;
        let args = view.args(&inputs);
        let stats = inputs.scores.filter(|wanted| wanted.any()).map(|wanted| {
            let queries = view.first..view.first + args.n_tokens as u32;
            let rows = if wanted.per_query_head { args.n_heads } else { args.n_kv_heads };
            (state.scores.request(wanted, queries, rows), &mut state.scores.accumulated)
        });
        attention::attend(exec, &args, inputs.out, stats, scratch);
        Ok(())
    }

    /// The layer's block tables as the queries of `inputs` see them.
    pub(crate) fn causal_view(
        &self,
        layer: usize,
        inputs: &AttentionInputs<'_>,
    ) -> Result<CausalView<'_>, KvError> {
        let Some(state) = self.layers.get(layer) else { return Err(no_layer(layer)) };
        CausalView::new(&self.shared, layer, state.next, &state.heads, inputs)
    }
}
