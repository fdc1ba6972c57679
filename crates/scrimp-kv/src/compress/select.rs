//! What each KV head of a layer keeps.

use super::{Compression, Granularity, Order, page, signature::Signatures};
use crate::policy::{Kept, LayerView, adakv};
use std::ops::Range;

/// What each KV head of the layer keeps if it may keep `budget` tokens (heads that share a budget: on average).
///
/// Exactly that many are kept, or all where there are no more.
pub fn select(view: &LayerView<'_>, how: &Compression, budget: usize) -> Vec<Kept> {
    let heads = 0..view.n_kv_heads();
    if how.keeps_everything() {
        return heads.map(|h| everything(view.n_tokens(h))).collect();
    }
    if let Granularity::Page(tokens) = how.granularity {
        return page::of_layer(view, how, budget, tokens);
    }
    let scores = scores(view, how);
    let budgets = match how.policy.shared_budget {
        true => head_budgets(&scores.iter().collect::<Vec<_>>(), how, budget, adakv::FLOOR),
        false => vec![budget; scores.len()],
    };
    within(view, how, budget, &scores, &budgets)
}

/// Whether heads of all layers share one budget.
pub(super) fn shares_layers(how: &Compression) -> bool {
    how.policy.policy.shares_layers() && !how.policy.shared_budget && how.granularity == Granularity::Token
}

/// The policy's score of every token of each KV head.
pub(super) fn scores(view: &LayerView<'_>, how: &Compression) -> Vec<Vec<f32>> {
    let of_head = |head| {
        let mut scores = vec![0.0; view.n_tokens(head)];
        how.policy.policy.score(view, head, &mut scores);
        scores.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = f32::NEG_INFINITY);
        scores
    };
    (0..view.n_kv_heads()).map(of_head).collect()
}

/// Tokens that each KV head of each layer may keep, `budget` on average, given the scores `[layer][head][token]`.
pub(super) fn model_budgets(scores: &[Vec<Vec<f32>>], how: &Compression, budget: usize) -> Vec<Vec<usize>> {
    let heads: Vec<_> = scores.iter().flatten().collect();
    let mut budgets = head_budgets(&heads, how, budget, 0.0).into_iter();
    scores.iter().map(|layer| budgets.by_ref().take(layer.len()).collect()).collect()
}

fn head_budgets(scores: &[&Vec<f32>], how: &Compression, budget: usize, floor: f64) -> Vec<usize> {
    let free: Vec<&[f32]> = scores.iter().map(|s| &s[middle(s.len(), how, budget)]).collect();
    let fixed = how.fixed_of(budget);
    let shares = adakv::head_budgets(&free, budget.saturating_sub(fixed), floor);
    shares.into_iter().zip(scores).map(|(n, s)| n + fixed.min(s.len())).collect()
}

/// What each KV head keeps, given its scores and how many tokens it may keep (`budget` on average).
pub(super) fn within(
    view: &LayerView<'_>,
    how: &Compression,
    budget: usize,
    scores: &[Vec<f32>],
    budgets: &[usize],
) -> Vec<Kept> {
    let signatures = SharedSignatures::new(view, how, budget);
    let heads = 0..scores.len();
    let of_head = |head: usize| {
        let middle = middle(scores[head].len(), how, budget);
        of_head(view, how, head, &scores[head], budgets[head], middle, signatures.as_ref())
    };
    heads.map(of_head).collect()
}

fn everything(n: usize) -> Kept {
    Kept { indices: (0..n as u32).collect(), bias: None }
}

/// The tokens that are neither sinks nor recent, of `n` of which a head keeps `budget` (on average).
pub(super) fn middle(n: usize, how: &Compression, budget: usize) -> Range<usize> {
    let sinks = how.sinks.min(n);
    sinks..n.saturating_sub(how.recent_of(budget)).max(sinks)
}

/// Of a budget beyond sinks and recent tokens (`free`), how many are important and how many representatives. KVCrush's share
/// is one of the whole budget.
pub(super) fn split(budget: usize, free: usize, share: f64) -> (usize, usize) {
    let representatives = ((share * budget as f64).round() as usize).min(free);
    (free - representatives, representatives)
}

/// The `n` best of `scores[candidates]`, the earlier one where two are equal; indices into `scores`, increasing.
pub(super) fn best(scores: &[f32], candidates: Range<usize>, n: usize) -> Vec<u32> {
    let mut indices: Vec<u32> = (candidates.start as u32..candidates.end as u32).collect();
    if n == 0 {
        return Vec::new();
    }
    if n < indices.len() {
        indices.select_nth_unstable_by(n - 1, |&a, &b| {
            scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b))
        });
        indices.truncate(n);
        indices.sort_unstable();
    }
    indices
}

fn of_head(
    view: &LayerView<'_>,
    how: &Compression,
    head: usize,
    scores: &[f32],
    budget: usize,
    middle: Range<usize>,
    signatures: Option<&SharedSignatures>,
) -> Kept {
    let n = scores.len();
    if n <= budget {
        return everything(n);
    }
    let free = budget.saturating_sub(n - middle.len());
    let (important, representatives) = split(budget, free, how.crush.share);
    let important = best(scores, middle.clone(), important);
    let mut kept = vec![false; n];
    kept[..middle.start].fill(true);
    kept[middle.end..].fill(true);
    important.iter().for_each(|&i| kept[i as usize] = true);
    let dropped: Vec<u32> = (0..n as u32).filter(|&i| !kept[i as usize]).collect();
    let own;
    let signatures = match signatures {
        Some(SharedSignatures::OfLayer(signatures)) => Some(signatures),
        Some(SharedSignatures::OfGroups) => {
            own = SharedSignatures::of_group(view, how, head, middle, free);
            Some(&own)
        }
        None => None,
    };
    let chosen = how.crush.representatives(view, head, &dropped, representatives, signatures);
    let mut added = vec![0.0; n];
    for &(index, bias) in &chosen {
        kept[index as usize] = true;
        added[index as usize] = bias;
    }
    let indices: Vec<u32> = (0..n as u32).filter(|&i| kept[i as usize]).collect();
    let biased = chosen.iter().any(|&(_, bias)| bias != 0.0);
    let bias = |&i: &u32| view.bias(head, i as usize) + added[i as usize];
    let bias = biased.then(|| indices.iter().map(bias).collect());
    Kept { indices, bias }
}

/// Signatures, as far as they are wanted.
enum SharedSignatures {
    /// All KV heads hold the same tokens, so all query heads of the layer give a bit each.
    OfLayer(Signatures),
    /// They do not: only the query heads of a group know its tokens.
    OfGroups,
}

impl SharedSignatures {
    fn new(view: &LayerView<'_>, how: &Compression, budget: usize) -> Option<Self> {
        if how.crush.share == 0.0 || how.crush.order != Order::Signature {
            return None;
        }
        let n = view.n_tokens(0);
        let same = |head: usize| {
            view.n_tokens(head) == n && (0..n).all(|i| view.position(head, i) == view.position(0, i))
        };
        if !(1..view.n_kv_heads()).all(same) {
            return Some(Self::OfGroups);
        }
        let kind = how.policy.policy.signature();
        let heads = 0..view.n_heads(kind);
        let middle = middle(n, how, budget);
        let free = budget.saturating_sub(n - middle.len());
        Some(Self::OfLayer(Signatures::of_heads(view, kind, 0, heads, middle, free)))
    }

    fn of_group(
        view: &LayerView<'_>,
        how: &Compression,
        head: usize,
        middle: Range<usize>,
        free: usize,
    ) -> Signatures {
        let kind = how.policy.policy.signature();
        let group = view.n_heads(kind) / view.n_kv_heads();
        Signatures::of_heads(view, kind, head, head * group..(head + 1) * group, middle, free)
    }
}
