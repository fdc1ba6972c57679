//! KVzip for a question that is known: what the model needs to repeat its context, weighed by how much the end of the prompt
//! looks at that place.
//!
//! ```text
//! score[t] = kvzip[t] place[position of t]^2             (see `kvzip` and `place`)
//! ```
//! Two questions are asked of a token: whether this head needs it to go on from where it stands (KVzip's repetition, §3 of
//! arXiv 2505.23416), and whether the text goes on from there (attention of the prompt's last queries, as in SnapKV,
//! arXiv 2404.14469, but of all heads together). A question that comes after the compression finds what `kvzip` leaves near
//! the end of the text.

use super::{KvZip, LayerView, Needs, Policy, position_weight};

/// The most attention while the model repeats its context, near what the end of the prompt looks at.
#[derive(Debug, Clone, Copy, Default)]
pub struct KvZipQuery;

impl Policy for KvZipQuery {
    fn name(&self) -> &'static str {
        "kvzip-query"
    }

    fn about(&self) -> &'static str {
        "kvzip, weighed by where the prompt's last 32 queries look (scrimp)"
    }

    fn needs(&self) -> Needs {
        Needs { recent: Some(position_weight::WINDOW), ..KvZip.needs() }
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        KvZip.score(view, kv_head, out);
        view.weigh_by_place(kv_head, 2, out);
    }

    fn shares_layers(&self) -> bool {
        true
    }
}
