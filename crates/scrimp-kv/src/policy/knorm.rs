//! Key norm: keys with a low norm tend to receive much attention. The policy needs no attention scores.
//!
//! Source: Devoto et al. 2024, arXiv 2406.11430, §4.
//!
//! ```text
//! score[t] = -||k[t]||
//! ```

use super::{LayerView, Needs, Policy};

/// Low key norms score high.
#[derive(Debug, Clone, Copy, Default)]
pub struct KNorm;

impl Policy for KNorm {
    fn name(&self) -> &'static str {
        "knorm"
    }

    fn about(&self) -> &'static str {
        "keys of low norm (arXiv 2406.11430)"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        let mut k = vec![0.0; view.head_dim()];
        for (index, score) in out.iter_mut().enumerate() {
            view.read_key(kv_head, index, &mut k);
            *score = -k.iter().map(|x| x * x).sum::<f32>().sqrt();
        }
    }
}
