//! KVzip (Kim et al. 2025, arXiv 2505.23416, §3): what the model needs to repeat its context is what any later question may
//! need. After the prompt the context is read once more, and a token's score is the most attention that it got in that.
//! About twice the work of a prefill, for a cache that serves questions which are not known yet.
//!
//! ```text
//! score[t] = max over repeated tokens i and the group's query heads of softmax(q_i k)[t]
//! ```
//! All KV heads of all layers share one budget (§3.4): heads that the model copies with keep nearly everything, others next
//! to nothing. `adakv:kvzip` shares within each layer only. Tokens that came after that pass count as needed.

use super::{Attention, LayerView, Needs, Policy};

/// The most attention while the model repeats its context.
#[derive(Debug, Clone, Copy, Default)]
pub struct KvZip;

impl Policy for KvZip {
    fn name(&self) -> &'static str {
        "kvzip"
    }

    fn about(&self) -> &'static str {
        "the most attention while the model repeats its context (arXiv 2505.23416)"
    }

    fn needs(&self) -> Needs {
        Needs { repeated: true, ..Needs::NONE }
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        view.attention(Attention::Repeated, kv_head, out);
        let known = view.n_known(Attention::Repeated, kv_head);
        out.iter_mut().skip(known).for_each(|x| *x = 1.0);
    }

    fn shares_layers(&self) -> bool {
        true
    }
}
