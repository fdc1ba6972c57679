//! The full cache: every token is kept.
//!
//! ```text
//! score[t] = 0
//! ```

use super::{LayerBudget, LayerView, Needs, Policy};

/// Keeps every token.
#[derive(Debug, Clone, Copy, Default)]
pub struct Full;

impl Policy for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn about(&self) -> &'static str {
        "keeps every token"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }

    fn score(&self, _view: &LayerView<'_>, _kv_head: usize, out: &mut [f32]) {
        out.fill(0.0);
    }

    fn layer_budget(&self, layer: LayerBudget) -> usize {
        layer.tokens
    }

    fn keeps_everything(&self) -> bool {
        true
    }
}
