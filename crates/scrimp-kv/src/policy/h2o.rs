//! Heavy-hitter oracle (H2O): a token matters if it received much attention so far. Plain sums favor early tokens,
//! which more queries saw, so this policy divides each sum by the number of queries that could see the token.
//!
//! Source: Zhang et al. 2023, arXiv 2306.14048, §4.
//!
//! ```text
//! score[t] = mean over the group's query heads of  sum over queries i >= t of softmax(q_i k)[t] / #{queries i >= t}
//! ```

use super::{Attention, LayerView, Needs, Policy};

/// Accumulated attention.
#[derive(Debug, Clone, Copy, Default)]
pub struct H2o;

impl Policy for H2o {
    fn name(&self) -> &'static str {
        "h2o"
    }

    fn about(&self) -> &'static str {
        "attention of all queries that saw the token (arXiv 2306.14048)"
    }

    fn needs(&self) -> Needs {
        Needs { sum: true, ..Needs::NONE }
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        view.attention(Attention::Mean, kv_head, out);
    }
}
