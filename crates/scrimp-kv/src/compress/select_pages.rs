//! Selection by pages (arXiv 2503.00022, §3.3; `KVCrushConfig` of OpenVINO GenAI): runs of tokens are kept or dropped
//! as a whole, the same for all KV heads of a layer.
//!
//! ```text
//! score of a token      mean over KV heads of the policy's scores, each head's scaled to a sum of 1
//! score of a page       sum over its tokens
//! signature of a page   one bit per token, set where its score is in the upper half of the candidates
//! ```
//! The pages that the policy would drop are ordered and cut into segments of equal length, and one page of each
//! segment is kept. Each of its tokens gets the bias of the mass.

use super::{
    Compression, best,
    kvcrush::equal_lengths,
    mass::Segment,
    order::{Dropped, Items},
    select::{candidates, split},
    signatures::Signatures,
};
use crate::policy::{LayerView, Selection};
use std::ops::Range;

/// The tokens that each KV head keeps.
///
/// Pages of `tokens` tokens begin after the sinks; the last page may be shorter. The best remaining tokens fill the
/// part of the budget that is smaller than a page, so that exactly `budget` tokens are kept.
pub(super) fn select_pages(
    view: &LayerView<'_>,
    how: &Compression,
    budget: usize,
    tokens: usize,
) -> Vec<Selection> {
    let (heads, n) = (view.n_kv_heads(), view.n_tokens(0));
    if n <= budget {
        return vec![Selection::all(n); heads];
    }
    let candidates = candidates(n, how, budget);
    let rest = budget.saturating_sub(n - candidates.len());
    let pages: Vec<Range<usize>> =
        candidates.clone().step_by(tokens).map(|start| start..(start + tokens).min(candidates.end)).collect();
    let layer = PagedLayer { view, how, candidates, pages };
    let scores = layer.mean_over_heads(&|head, out| how.policy.policy.score(view, head, out));
    let (important, representatives) = split(budget, rest, how.crush.share);
    let chosen = best(&layer.page_sums(&scores), 0..layer.pages.len(), important / tokens);
    let mut kept = vec![true; n];
    kept[layer.candidates.clone()].fill(false);
    chosen.iter().for_each(|&p| kept[layer.tokens(p)].fill(true));
    let dropped: Vec<u32> = (0..layer.pages.len() as u32).filter(|p| !chosen.contains(p)).collect();
    let representatives = (representatives / tokens).min(dropped.len());
    let mut added = vec![0.0; n];
    if representatives > 0 {
        for (page, bias) in layer.representatives(&scores, &dropped, representatives) {
            kept[layer.tokens(page)].fill(true);
            added[layer.tokens(page)].fill(bias);
        }
    }
    fill_up(&mut kept, &scores, &layer.candidates, budget);
    let indices: Vec<u32> = (0..n as u32).filter(|&i| kept[i as usize]).collect();
    let biased = added.iter().any(|&b| b != 0.0);
    let of_head = |head: usize| {
        let bias = |&i: &u32| view.bias(head, i as usize) + added[i as usize];
        Selection { indices: indices.clone(), bias: biased.then(|| indices.iter().map(bias).collect()) }
    };
    (0..heads).map(of_head).collect()
}

/// One layer, cut into pages.
struct PagedLayer<'a> {
    view: &'a LayerView<'a>,
    how: &'a Compression,
    candidates: Range<usize>,
    /// The tokens of each page.
    pages: Vec<Range<usize>>,
}

impl PagedLayer<'_> {
    fn tokens(&self, page: u32) -> Range<usize> {
        self.pages[page as usize].clone()
    }

    /// The mean over KV heads of `[tokens]` that `write(head, out)` writes, each head's scaled to a sum of 1 over the
    /// candidates.
    fn mean_over_heads(&self, write: &dyn Fn(usize, &mut [f32])) -> Vec<f32> {
        let n = self.view.n_tokens(0);
        let (mut total, mut row) = (vec![0.0; n], vec![0.0; n]);
        for head in 0..self.view.n_kv_heads() {
            write(head, &mut row);
            let sum: f32 = row[self.candidates.clone()].iter().map(|x| x.abs()).sum();
            let factor = if sum > 0.0 && sum.is_finite() { 1.0 / sum } else { 0.0 };
            total.iter_mut().zip(&row).for_each(|(t, x)| *t += x * factor);
        }
        total
    }

    fn page_sums(&self, of_tokens: &[f32]) -> Vec<f32> {
        self.pages.iter().map(|page| of_tokens[page.clone()].iter().sum()).collect()
    }

    /// `n` representatives of the `dropped` pages, with their biases.
    fn representatives(&self, scores: &[f32], dropped: &[u32], n: usize) -> Vec<(u32, f32)> {
        let (view, crush) = (self.view, &self.how.crush);
        let attention = self.mean_over_heads(&|head, out| view.weighted_attention(head, out));
        let attention = self.page_sums(&attention);
        let signatures = crush.order.needs_signatures().then(|| self.signatures(scores));
        let order = crush.order.sorted(&Dropped {
            view,
            items: Items::Pages(&self.pages),
            indices: dropped,
            attention: &attention,
            signatures: signatures.as_ref(),
        });
        let a = |page: u32| attention[page as usize];
        let represent = |segment: Range<usize>| {
            let segment = &order[segment];
            let page = if crush.mass.by_attention() {
                segment.iter().copied().fold(segment[0], |best, p| if a(p) > a(best) { p } else { best })
            } else {
                segment[segment.len() / 2]
            };
            let bias = crush.mass.bias(Segment {
                len: segment.len(),
                attention: segment.iter().map(|&p| a(p)).sum::<f32>().into(),
                representative: a(page).into(),
            });
            (page, bias)
        };
        equal_lengths(order.len(), n).into_iter().map(represent).collect()
    }

    fn signatures(&self, scores: &[f32]) -> Signatures {
        let upper = best(scores, self.candidates.clone(), self.candidates.len() / 2);
        let mut set = vec![false; scores.len()];
        upper.iter().for_each(|&i| set[i as usize] = true);
        let n_bits = self.pages.iter().map(Range::len).max().unwrap_or(1);
        let bit = |page: usize, bit: usize| {
            let tokens = &self.pages[page];
            bit < tokens.len() && set[tokens.start + bit]
        };
        Signatures::from_bits(self.pages.len(), n_bits, bit)
    }
}

/// Keeps the best remaining candidates until `budget` tokens are kept.
fn fill_up(kept: &mut [bool], scores: &[f32], candidates: &Range<usize>, budget: usize) {
    let held = kept.iter().filter(|&&k| k).count();
    let mut left: Vec<usize> = candidates.clone().filter(|&i| !kept[i]).collect();
    let n = budget.saturating_sub(held).min(left.len());
    left.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    left[..n].iter().for_each(|&i| kept[i] = true);
}
