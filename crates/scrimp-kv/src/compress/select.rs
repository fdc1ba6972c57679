//! The selection of one layer: which tokens each KV head keeps.

use super::{Compression, Granularity, select_pages, signatures::Judges, signatures::Signatures};
use crate::policy::{LayerView, Selection, adakv};
use std::ops::Range;

/// The tokens that each KV head of the layer keeps, at a budget of `budget` tokens per head (on average, where heads
/// share it).
///
/// A head keeps exactly its budget, or all of its tokens if it has fewer.
pub fn select(view: &LayerView<'_>, how: &Compression, budget: usize) -> Vec<Selection> {
    if how.keeps_everything() {
        return (0..view.n_kv_heads()).map(|head| Selection::all(view.n_tokens(head))).collect();
    }
    if let Granularity::Page(tokens) = how.granularity {
        return select_pages::select_pages(view, how, budget, tokens);
    }
    let scores = scores(view, how);
    let budgets = match how.policy.shared_budget {
        true => head_budgets(&scores.iter().collect::<Vec<_>>(), how, budget, adakv::FLOOR),
        false => vec![budget; scores.len()],
    };
    LayerSelector { view, how, budget }.select(&scores, &budgets)
}

/// Whether the heads of all layers share one budget.
pub(super) fn shares_layers(how: &Compression) -> bool {
    how.policy.policy.shares_layers() && !how.policy.shared_budget && how.granularity == Granularity::Token
}

/// The policy's scores, `[KV head][token]`.
pub(super) fn scores(view: &LayerView<'_>, how: &Compression) -> Vec<Vec<f32>> {
    let of_head = |head| {
        let mut scores = vec![0.0; view.n_tokens(head)];
        how.policy.policy.score(view, head, &mut scores);
        scores.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = f32::NEG_INFINITY);
        scores
    };
    (0..view.n_kv_heads()).map(of_head).collect()
}

/// The budgets `[layer][KV head]` (`budget` on average) for the scores `[layer][KV head][token]`.
pub(super) fn model_budgets(scores: &[Vec<Vec<f32>>], how: &Compression, budget: usize) -> Vec<Vec<usize>> {
    let heads: Vec<_> = scores.iter().flatten().collect();
    let mut budgets = head_budgets(&heads, how, budget, 0.0).into_iter();
    scores.iter().map(|layer| budgets.by_ref().take(layer.len()).collect()).collect()
}

fn head_budgets(scores: &[&Vec<f32>], how: &Compression, budget: usize, floor: f64) -> Vec<usize> {
    let of_candidates: Vec<&[f32]> = scores.iter().map(|s| &s[candidates(s.len(), how, budget)]).collect();
    let reserved = how.reserved(budget);
    let shares = adakv::head_budgets(&of_candidates, budget.saturating_sub(reserved), floor);
    shares.into_iter().zip(scores).map(|(n, s)| n + reserved.min(s.len())).collect()
}

/// The tokens that are neither sinks nor recent tokens, of a head with `n` tokens and a budget of `budget` (on
/// average).
pub(super) fn candidates(n: usize, how: &Compression, budget: usize) -> Range<usize> {
    let sinks = how.sinks.min(n);
    sinks..n.saturating_sub(how.recent_of(budget)).max(sinks)
}

/// Splits the budget for candidates (`rest`) into important tokens and representatives. KVCrush's share is a share of
/// the whole budget.
pub(super) fn split(budget: usize, rest: usize, share: f64) -> (usize, usize) {
    let representatives = ((share * budget as f64).round() as usize).min(rest);
    (rest - representatives, representatives)
}

/// The `n` best of `scores[candidates]`, the earlier one among equal scores: indices into `scores`, increasing.
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

/// Selects single tokens of one layer.
pub(super) struct LayerSelector<'a> {
    pub(super) view: &'a LayerView<'a>,
    pub(super) how: &'a Compression,
    /// Tokens that a KV head keeps on average.
    pub(super) budget: usize,
}

impl LayerSelector<'_> {
    /// The selection of each KV head, for its scores and its budget.
    pub(super) fn select(&self, scores: &[Vec<f32>], budgets: &[usize]) -> Vec<Selection> {
        let signatures = self.layer_signatures();
        (0..scores.len())
            .map(|head| self.select_head(head, &scores[head], budgets[head], signatures.as_ref()))
            .collect()
    }

    fn select_head(
        &self,
        head: usize,
        scores: &[f32],
        budget: usize,
        signatures: Option<&LayerSignatures>,
    ) -> Selection {
        let (view, how, n) = (self.view, self.how, scores.len());
        if n <= budget {
            return Selection::all(n);
        }
        let candidates = candidates(n, how, self.budget);
        let rest = budget.saturating_sub(n - candidates.len());
        let (important, representatives) = split(budget, rest, how.crush.share);
        let important = best(scores, candidates.clone(), important);
        let mut kept = vec![true; n];
        kept[candidates.clone()].fill(false);
        important.iter().for_each(|&i| kept[i as usize] = true);
        let dropped: Vec<u32> = (0..n as u32).filter(|&i| !kept[i as usize]).collect();
        let of_group;
        let signatures = match signatures {
            Some(LayerSignatures::Shared(signatures)) => Some(signatures),
            Some(LayerSignatures::PerGroup) => {
                of_group = self.group_signatures(head, candidates, rest);
                Some(&of_group)
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
        Selection { indices, bias }
    }

    /// The layer's signatures, if the order needs them.
    fn layer_signatures(&self) -> Option<LayerSignatures> {
        let (view, how) = (self.view, self.how);
        if how.crush.share == 0.0 || !how.crush.order.needs_signatures() {
            return None;
        }
        let n = view.n_tokens(0);
        let same = |head: usize| {
            view.n_tokens(head) == n && (0..n).all(|i| view.position(head, i) == view.position(0, i))
        };
        if !(1..view.n_kv_heads()).all(same) {
            return Some(LayerSignatures::PerGroup);
        }
        let kind = how.policy.policy.signature_attention();
        let candidates = candidates(n, how, self.budget);
        let rest = self.budget.saturating_sub(n - candidates.len());
        let judges = Judges { kind, kv_head: 0, heads: 0..view.n_heads(kind) };
        Some(LayerSignatures::Shared(Signatures::of_heads(view, judges, candidates, rest)))
    }

    /// The signatures of the tokens of one KV head, by the query heads of its group.
    fn group_signatures(&self, kv_head: usize, candidates: Range<usize>, rest: usize) -> Signatures {
        let kind = self.how.policy.policy.signature_attention();
        let group = self.view.n_heads(kind) / self.view.n_kv_heads();
        let judges = Judges { kind, kv_head, heads: kv_head * group..(kv_head + 1) * group };
        Signatures::of_heads(self.view, judges, candidates, rest)
    }
}

/// The signatures of a layer's tokens.
enum LayerSignatures {
    /// All KV heads hold the same tokens: every query head of the layer contributes a bit.
    Shared(Signatures),
    /// KV heads hold different tokens: only the query heads of a group contribute, and each head computes its own.
    PerGroup,
}
