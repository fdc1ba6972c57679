//! KVzip: a token matters if the model needs it to reconstruct its context, because any later question may need the
//! same tokens. After the prefill the model repeats the context, and a token's score is the maximum attention that it
//! receives meanwhile.
//!
//! Source: Kim et al. 2025, arXiv 2505.23416, §3.
//!
//! ```text
//! score[t] = max over repeated tokens i and the group's query heads of softmax(q_i k)[t]
//! ```
//! The repetition costs about one more prefill. All KV heads of all layers share one budget (§3.4): heads that copy
//! keep nearly all tokens, other heads keep few. `adakv:kvzip` shares the budget within each layer only. Tokens that
//! were appended after the repetition get the score 1.

use super::{Attention, LayerView, Needs, Policy};

/// Maximum attention while the model repeats its context.
#[derive(Debug, Clone, Copy, Default)]
pub struct KvZip;

impl Policy for KvZip {
    fn name(&self) -> &'static str {
        "kvzip"
    }

    fn about(&self) -> &'static str {
        "maximum attention while the model repeats its context (arXiv 2505.23416)"
    }

    fn needs(&self) -> Needs {
        Needs { reconstruction: true, ..Needs::NONE }
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        view.attention(Attention::Reconstruction, kv_head, out);
        let known = view.n_known(Attention::Reconstruction, kv_head);
        out.iter_mut().skip(known).for_each(|x| *x = 1.0);
    }

    fn shares_layers(&self) -> bool {
        true
    }

    fn fits_values(&self) -> bool {
        true
    }
}
