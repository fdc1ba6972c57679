//! PyramidKV (Cai et al. 2024, arXiv 2406.02069, §4): attention is spread over the whole context in the first layers, and
//! on a few tokens in the last ones, so budgets shrink with depth, at the same total. Scores are those of SnapKV.
//!
//! ```text
//! budget[l] = fixed + free (1 + spread (1 - 2 l / (L - 1)))        fixed: sinks and recent tokens; free: the rest
//! ```
//! `spread` is `1 - 1/20` (the paper's beta), or less where the first layer would get more tokens than there are.

use super::{LayerBudget, LayerView, Needs, Policy, SnapKv};

/// The last layer gets one in so many of the tokens that it would get otherwise.
const BETA: f64 = 20.0;

/// SnapKV with budgets that shrink with depth.
#[derive(Debug, Clone, Copy, Default)]
pub struct PyramidKv;

impl Policy for PyramidKv {
    fn name(&self) -> &'static str {
        "pyramidkv"
    }

    fn about(&self) -> &'static str {
        "snapkv with budgets that shrink with depth (arXiv 2406.02069)"
    }

    fn needs(&self) -> Needs {
        SnapKv.needs()
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        SnapKv.score(view, kv_head, out);
    }

    fn layer_budget(&self, layer: LayerBudget) -> usize {
        let LayerBudget { index, of, budget, fixed, tokens } = layer;
        if of < 2 || budget <= fixed || tokens <= budget {
            return budget;
        }
        let free = (budget - fixed) as f64;
        let spread = (1.0 - 1.0 / BETA).min((tokens - budget) as f64 / free);
        // Rounding the running total makes the layers add up to what equal ones would.
        let until = |l: usize| {
            let l = l as f64;
            (free * l * (1.0 + spread * (1.0 - (l - 1.0) / (of as f64 - 1.0)))).round() as usize
        };
        fixed + until(index + 1) - until(index)
    }

    fn signature(&self) -> super::Attention {
        SnapKv.signature()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_shrink_with_depth_at_the_same_total() {
        for (of, budget, tokens) in
            [(30, 768, 3072), (6, 100, 4000), (2, 50, 90), (28, 2000, 3000), (1, 50, 80)]
        {
            let budgets: Vec<usize> = (0..of)
                .map(|index| PyramidKv.layer_budget(LayerBudget { index, of, budget, fixed: 36, tokens }))
                .collect();
            assert_eq!(budgets.iter().sum::<usize>(), of * budget);
            assert!(budgets.windows(2).all(|w| w[0] + 1 >= w[1]), "{budgets:?}");
            assert!(budgets.iter().all(|&b| b >= 36 && b <= tokens), "{budgets:?}");
            assert!(of == 1 || budgets[0] > budgets[of - 1] + (budget - 36) / 2, "{budgets:?}");
        }
    }
}
