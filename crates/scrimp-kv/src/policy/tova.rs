//! TOVA (Oren et al. 2024, arXiv 2401.06104, §3.2): the token that the newest query attends to least goes first. Here once
//! for many tokens, per KV head.
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

    fn signature(&self) -> Attention {
        Attention::Last
    }
}
