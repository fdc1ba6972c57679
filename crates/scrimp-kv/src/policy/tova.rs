//! Token omission via attention (TOVA): the tokens that the newest query attends to least are dropped. The paper
//! drops one token per step for all heads; this policy drops many tokens at once, per KV head.
//!
//! Source: Oren et al. 2024, arXiv 2401.06104, §3.2.
//!
//! ```text
//! score[t] = mean over the group's query heads of softmax(q_last k)[t]
//! ```

use super::{Attention, LayerView, Needs, Policy};

/// Attention of the last query.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tova;

impl Policy for Tova {
    fn name(&self) -> &'static str {
        "tova"
    }

    fn about(&self) -> &'static str {
        "attention of the last query (arXiv 2401.06104)"
    }

    fn needs(&self) -> Needs {
        Needs { last: true, ..Needs::NONE }
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        view.attention(Attention::Last, kv_head, out);
    }

    fn signature_attention(&self) -> Attention {
        Attention::Last
    }
}
