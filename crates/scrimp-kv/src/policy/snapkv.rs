//! SnapKV: the answer attends to the same tokens as the end of the prompt. A token's score is the attention of the
//! last 32 queries, averaged over 7 neighboring tokens, so that tokens are kept with their context.
//!
//! Source: Li et al. 2024, arXiv 2404.14469, §4.
//!
//! ```text
//! a[t]     = mean over the group's query heads of  sum over the last w queries of softmax(q_i k)[t]
//! score[t] = (a[t-3] + ... + a[t+3]) / 7                       (tokens outside count as 0)
//! ```

use super::{Attention, LayerView, Needs, Policy, position_weight::WINDOW};

/// Neighboring tokens that are averaged.
const KERNEL: usize = 7;

/// Attention of the last queries of the prompt, pooled.
#[derive(Debug, Clone, Copy, Default)]
pub struct SnapKv;

impl Policy for SnapKv {
    fn name(&self) -> &'static str {
        "snapkv"
    }

    fn about(&self) -> &'static str {
        "attention of the prompt's last 32 queries, pooled (arXiv 2404.14469)"
    }

    fn needs(&self) -> Needs {
        Needs { recent: Some(WINDOW), ..Needs::NONE }
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        view.attention(Attention::Recent, kv_head, out);
        average_pool(out, KERNEL);
    }

    fn signature_attention(&self) -> Attention {
        Attention::Recent
    }
}

/// The mean of `kernel` (odd) neighbors, zeros outside.
pub(super) fn average_pool(x: &mut [f32], kernel: usize) {
    let (half, before) = (kernel / 2, x.to_vec());
    for (i, x) in x.iter_mut().enumerate() {
        let near = &before[i.saturating_sub(half)..(i + half + 1).min(before.len())];
        *x = near.iter().sum::<f32>() / kernel as f32;
    }
}
