//! KVzip for a known question: reconstruction scores, weighted by how much attention the end of the prompt pays to
//! the position. The first factor tells whether a head needs the token, the second whether the answer continues from
//! that passage.
//!
//! Source: the reconstruction scores of KVzip (arXiv 2505.23416, §3) with attention of the last queries as in SnapKV
//! (arXiv 2404.14469), summed over all heads (scrimp).
//!
//! ```text
//! score[t] = kvzip[t] weight[position of t]^2             (see `kvzip` and `position_weight`)
//! ```
//! A question that is appended after the compression finds mainly the passages that the end of the prompt attended to.

use super::{KvZip, LayerView, Needs, Policy, position_weight};

/// Reconstruction scores, weighted by position.
#[derive(Debug, Clone, Copy, Default)]
pub struct KvZipQuery;

impl Policy for KvZipQuery {
    fn name(&self) -> &'static str {
        "kvzip-query"
    }

    fn about(&self) -> &'static str {
        "kvzip, weighted by the attention of the prompt's last 32 queries (scrimp)"
    }

    fn needs(&self) -> Needs {
        Needs { recent: Some(position_weight::WINDOW), ..KvZip.needs() }
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        KvZip.score(view, kv_head, out);
        view.apply_position_weights(kv_head, 2, out);
    }

    fn shares_layers(&self) -> bool {
        true
    }

    fn fits_values(&self) -> bool {
        true
    }
}
