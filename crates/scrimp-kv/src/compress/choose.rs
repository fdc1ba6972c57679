//! What all layers keep: a thread chooses for a layer at a time.

use super::{Compression, select};
use crate::{
    policy::{Kept, LayerBudget, ModelView},
    sequence::Sequence,
};
use scrimp_kernels::Pool;

/// What each KV head of each of `layers` keeps, given that one may keep `budget` tokens (where layers or heads share a budget: on
/// average).
pub(crate) fn choose(
    sequence: &Sequence,
    layers: &[usize],
    how: &Compression,
    budget: usize,
    pool: &Pool,
) -> Vec<Vec<Kept>> {
    let model = ModelView::new(sequence, how.seed);
    let shared = select::shares_layers(how).then(|| {
        let scores = pool.map(layers.len(), |index| select::scores(&model.layer(layers[index]), how));
        let budgets = select::model_budgets(&scores, how, budget);
        (scores, budgets)
    });
    pool.map(layers.len(), |index| {
        let view = model.layer(layers[index]);
        let tokens = (0..view.n_kv_heads()).map(|head| view.n_tokens(head)).min().unwrap_or(0);
        let layer = LayerBudget { index, of: layers.len(), budget, fixed: how.fixed_of(budget), tokens };
        let budget = how.policy.policy.layer_budget(layer);
        match &shared {
            Some((scores, budgets)) => select::within(&view, how, budget, &scores[index], &budgets[index]),
            None => select(&view, how, budget),
        }
    })
}
