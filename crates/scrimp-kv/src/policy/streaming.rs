//! StreamingLLM: attention sinks and the newest tokens are kept, all tokens between them are dropped.
//!
//! Source: Xiao et al. 2023, arXiv 2309.17453, §3.2.
//!
//! ```text
//! score[t] = position[t]
//! ```

use super::{LayerView, Needs, Policy};

/// The newest tokens score highest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Streaming;

impl Policy for Streaming {
    fn name(&self) -> &'static str {
        "streaming"
    }

    fn about(&self) -> &'static str {
        "sinks and the newest tokens (StreamingLLM, arXiv 2309.17453)"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }

    fn score(&self, _view: &LayerView<'_>, _kv_head: usize, out: &mut [f32]) {
        // Indices grow with positions, and are exact in f32 up to 2^24 tokens.
        out.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
    }
}
