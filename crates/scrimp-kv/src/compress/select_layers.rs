//! The selection of all layers. A thread selects for one layer at a time.

use super::{
    Compression,
    select::{self, LayerSelector, select},
};
use crate::{
    policy::{LayerBudget, ModelView, Selection},
    sequence::Sequence,
};
use scrimp_kernels::Pool;

/// The selection `[layer][KV head]` of `layers`, at a budget of `budget` tokens per KV head (on average, where layers
/// or heads share it).
pub(crate) fn select_layers(
    sequence: &Sequence,
    layers: &[usize],
    how: &Compression,
    budget: usize,
    pool: &Pool,
) -> Vec<Vec<Selection>> {
    let model = ModelView::new(sequence, how.seed);
    let shared = select::shares_layers(how).then(|| {
        let scores = pool.map(layers.len(), |index| select::scores(&model.layer(layers[index]), how));
        let budgets = select::model_budgets(&scores, how, budget);
        (scores, budgets)
    });
    pool.map(layers.len(), |index| {
        let view = &model.layer(layers[index]);
        let tokens = (0..view.n_kv_heads()).map(|head| view.n_tokens(head)).min().unwrap_or(0);
        let reserved = how.reserved(budget);
        let budget = how.policy.policy.layer_budget(LayerBudget {
            index,
            n_layers: layers.len(),
            budget,
            reserved,
            tokens,
        });
        match &shared {
            Some((scores, budgets)) => {
                LayerSelector { view, how, budget }.select(&scores[index], &budgets[index])
            }
            None => select(view, how, budget),
        }
    })
}
