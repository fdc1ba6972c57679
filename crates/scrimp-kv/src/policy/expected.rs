//! Expected attention: a token matters if future queries can be expected to attend to it. Future queries are
//! estimated by queries of the prompt that RoPE moves to later positions.
//!
//! Source: Devoto et al. 2025, arXiv 2510.00636, §3. The paper models queries before RoPE as a normal distribution
//! and has a closed form for the mean attention weight; this policy takes the mean over a sample of queries.
//!
//! ```text
//! score[t] = ||v[t]||  mean over the group's query heads and sampled queries i of softmax(R(p_i' - p_i) q_i k)[t]
//! ```
//! `p_i` is the position of query `i`, `p_i'` a position after the prompt, R the rotation of RoPE. Tokens that were
//! appended after the sample get the maximum score.

use super::{Attention, LayerView, Needs, Policy};

/// Attention that future queries are expected to pay.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected;

impl Policy for Expected {
    fn name(&self) -> &'static str {
        "expected"
    }

    fn about(&self) -> &'static str {
        "expected attention of future queries (arXiv 2510.00636)"
    }

    fn needs(&self) -> Needs {
        Needs { expected: true, ..Needs::NONE }
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        view.attention(Attention::Expected, kv_head, out);
        let (mut k, mut v) = (vec![0.0; view.head_dim()], vec![0.0; view.head_dim()]);
        let known = view.n_known(Attention::Expected, kv_head);
        for (index, score) in out.iter_mut().enumerate() {
            if index >= known {
                *score = f32::MAX;
                continue;
            }
            view.read(kv_head, index, &mut k, &mut v);
            *score *= v.iter().map(|x| x * x).sum::<f32>().sqrt();
        }
    }
}
