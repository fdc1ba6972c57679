//! Expected attention (Devoto et al. 2025, arXiv 2510.00636, §3): what queries to come will attend to. The paper takes the
//! queries of the prompt, before RoPE, as normally distributed, turns that distribution to later positions, and has a
//! closed form for the mean attention weight. Here the mean is one over a sample: queries of the prompt, turned to later positions.
//!
//! ```text
//! score[t] = ||v[t]||  mean over the group's query heads and sampled queries i of softmax(R(p_i' - p_i) q_i k)[t]
//! ```
//! `p_i` is where query `i` was, `p_i'` one of the next positions, R the rotation of RoPE. Tokens that came after the
//! sample was taken count as needed.

use super::{Attention, LayerView, Needs, Policy};

/// Attention of queries to come.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected;

impl Policy for Expected {
    fn name(&self) -> &'static str {
        "expected"
    }

    fn about(&self) -> &'static str {
        "attention to expect of queries to come (arXiv 2510.00636)"
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
