//! Expected maximum: a token matters if some future query will attend to it. Future queries are estimated by queries of
//! the prompt that RoPE rotates to the next positions: a query that occurred once is likely to occur again.
//!
//! Source: scrimp. The sample of rotated queries is that of expected attention (arXiv 2510.00636, §3); the maximum over
//! queries and the budget that all layers share are those of KVzip (arXiv 2505.23416, §3), without its second pass.
//!
//! ```text
//! score[t] = max over the group's query heads and sampled queries i of softmax(R(p_i' - p_i) q_i k)[t]
//! ```
//! `p_i` is the position of query `i`, `p_i'` a position after the prompt, R the rotation of RoPE. Tokens that were
//! appended after the sample get the score 1.

use super::{Attention, LayerView, Needs, Policy};

/// Maximum attention of future queries.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExpectedMax;

impl Policy for ExpectedMax {
    fn name(&self) -> &'static str {
        "expected-max"
    }

    fn about(&self) -> &'static str {
        "maximum attention of future queries (scrimp)"
    }

    fn needs(&self) -> Needs {
        Needs { expected_max: true, ..Needs::NONE }
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        view.attention(Attention::ExpectedMax, kv_head, out);
        let known = view.n_known(Attention::ExpectedMax, kv_head);
        out.iter_mut().skip(known).for_each(|x| *x = 1.0);
    }

    fn shares_layers(&self) -> bool {
        true
    }

    fn fits_values(&self) -> bool {
        true
    }
}
