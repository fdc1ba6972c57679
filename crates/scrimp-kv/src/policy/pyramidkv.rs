//! PyramidKV: attention spreads over the whole context in the first layers and concentrates on few tokens in the last
//! ones, so budgets shrink with depth at the same total. Scores are those of SnapKV.
//!
//! Source: Cai et al. 2024, arXiv 2406.02069, §4.
//!
//! ```text
//! score[t]  = snapkv[t]
//! budget[l] = reserved + (budget - reserved) (1 + spread (1 - 2 l / (L - 1)))
//! ```
//! `reserved` are the sinks and recent tokens. `spread` is `1 - 1/20` (the paper's beta), or less where the first
//! layer would get more tokens than it holds.

use super::{LayerBudget, LayerView, Needs, Policy, SnapKv};

/// The last layer gets this fraction (one in `BETA`) of its share in an equal split.
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
        let LayerBudget { index, n_layers, budget, reserved, tokens } = layer;
        if n_layers < 2 || budget <= reserved || tokens <= budget {
            return budget;
        }
        let rest = (budget - reserved) as f64;
        let spread = (1.0 - 1.0 / BETA).min((tokens - budget) as f64 / rest);
        // Rounding the running total keeps the total of an equal split.
        let until = |l: usize| {
            let l = l as f64;
            (rest * l * (1.0 + spread * (1.0 - (l - 1.0) / (n_layers as f64 - 1.0)))).round() as usize
        };
        reserved + until(index + 1) - until(index)
    }

    fn signature_attention(&self) -> super::Attention {
        SnapKv.signature_attention()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_shrink_with_depth_at_the_same_total() {
        for (n_layers, budget, tokens) in
            [(30, 768, 3072), (6, 100, 4000), (2, 50, 90), (28, 2000, 3000), (1, 50, 80)]
        {
            let budgets: Vec<usize> = (0..n_layers)
                .map(|index| {
                    PyramidKv.layer_budget(LayerBudget { index, n_layers, budget, reserved: 36, tokens })
                })
                .collect();
            assert_eq!(budgets.iter().sum::<usize>(), n_layers * budget);
            assert!(budgets.windows(2).all(|w| w[0] + 1 >= w[1]), "{budgets:?}");
            assert!(budgets.iter().all(|&b| b >= 36 && b <= tokens), "{budgets:?}");
            assert!(n_layers == 1 || budgets[0] > budgets[n_layers - 1] + (budget - 36) / 2, "{budgets:?}");
        }
    }
}
