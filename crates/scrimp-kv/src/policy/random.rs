//! Random eviction: a baseline for measurements. Every policy should beat it.
//!
//! ```text
//! score[t] = a pseudo-random number of seed, layer, KV head and position
//! ```

use super::{LayerView, Needs, Policy};
use scrimp_base::random::mix;

/// Random scores.
#[derive(Debug, Clone, Copy, Default)]
pub struct Random;

impl Policy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn about(&self) -> &'static str {
        "random tokens (a baseline)"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        let seed = view.seed(kv_head);
        for (index, score) in out.iter_mut().enumerate() {
            *score = (mix(seed ^ u64::from(view.position(kv_head, index))) >> 40) as f32;
        }
    }
}
