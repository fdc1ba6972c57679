//! KVCrush on pages (arXiv 2503.00022, §3.3; the `KVCrushConfig` of OpenVINO GenAI): runs of tokens are kept or dropped as a whole, for all
//! KV heads of a layer alike.
//!
//! ```text
//! score of a token      mean over KV heads of the policy's scores, each head's scaled to a sum of 1
//! score of a page       sum over its tokens
//! signature of a page   a bit per token, set where its score is in the upper half of the tokens that may be dropped
//! ```
//! The pages that the policy would drop are sorted by the distance of their signatures to the anchor, and evenly spaced ones of
//! them are kept. With a mass, a page stands for its segment: the score of each of its tokens gets the logarithm of the segment's attention
//! over the page's.

use super::{Compression, Mass, Order, crush, keys, select, signature::Signatures};
use crate::policy::{Kept, LayerView};
use std::ops::Range;

/// What each KV head keeps.
///
/// Pages of `tokens` tokens begin after the sinks; the last one may be shorter. What does not make up a page is filled with the tokens of
/// the best page that is left, so that exactly `budget` tokens are kept.
pub(super) fn of_layer(view: &LayerView<'_>, how: &Compression, budget: usize, tokens: usize) -> Vec<Kept> {
    let heads = view.n_kv_heads();
    let n = view.n_tokens(0);
    if n <= budget {
        return (0..heads).map(|_| Kept { indices: (0..n as u32).collect(), bias: None }).collect();
    }
    let middle = select::middle(n, how, budget);
    let free = budget.saturating_sub(n - middle.len());
    let mean_of = |write: &dyn Fn(usize, &mut [f32])| {
        let mut total = vec![0.0; n];
        let mut scores = vec![0.0; n];
        for head in 0..heads {
            write(head, &mut scores);
            let sum: f32 = scores[middle.clone()].iter().map(|x| x.abs()).sum();
            let factor = if sum > 0.0 && sum.is_finite() { 1.0 / sum } else { 0.0 };
            total.iter_mut().zip(&scores).for_each(|(t, x)| *t += x * factor);
        }
        total
    };
    let scores = mean_of(&|head, out| how.policy.policy.score(view, head, out));
    let pages: Vec<Range<usize>> =
        middle.clone().step_by(tokens).map(|start| start..(start + tokens).min(middle.end)).collect();
    let sums: Vec<f32> = pages.iter().map(|p| scores[p.clone()].iter().sum()).collect();

    let (important, representatives) = select::split(budget, free, how.crush.share);
    let mut kept = vec![false; n];
    kept[..middle.start].fill(true);
    kept[middle.end..].fill(true);
    let chosen = select::best(&sums, 0..pages.len(), important / tokens);
    chosen.iter().for_each(|&p| kept[pages[p as usize].clone()].fill(true));
    let dropped: Vec<u32> = (0..pages.len() as u32).filter(|p| !chosen.contains(p)).collect();
    let representatives = (representatives / tokens).min(dropped.len());
    let mut bias = vec![0.0; n];
    if representatives > 0 {
        let attention = mean_of(&|head, out| view.attention_by_place(head, out));
        let mass = |p: u32| -> f32 { attention[pages[p as usize].clone()].iter().sum() };
        let segments = segments(view, how, &dropped, &scores, &pages, &middle, &mass, representatives);
        for segment in segments {
            let middle = segment[segment.len() / 2];
            let (page, added) = match how.crush.mass {
                Mass::None => (middle, 0.0),
                Mass::Count => (middle, (segment.len() as f32).ln()),
                Mass::Attention => {
                    let best = segment
                        .iter()
                        .copied()
                        .fold(segment[0], |best, p| if mass(p) > mass(best) { p } else { best });
                    let sum = segment.iter().map(|&p| mass(p)).sum::<f32>();
                    (best, crush::bias(sum.into(), mass(best).into()))
                }
            };
            kept[pages[page as usize].clone()].fill(true);
            bias[pages[page as usize].clone()].fill(added);
        }
    }
    fill_up(&mut kept, &scores, &middle, budget);
    let indices: Vec<u32> = (0..n as u32).filter(|&i| kept[i as usize]).collect();
    let biased = bias.iter().any(|&b| b != 0.0);
    let of_head = |head: usize| {
        let bias =
            biased.then(|| indices.iter().map(|&i| view.bias(head, i as usize) + bias[i as usize]).collect());
        Kept { indices: indices.clone(), bias }
    };
    (0..heads).map(of_head).collect()
}

/// Dropped pages in order, cut into `n` segments of equal length.
#[allow(clippy::too_many_arguments)]
fn segments(
    view: &LayerView<'_>,
    how: &Compression,
    dropped: &[u32],
    scores: &[f32],
    pages: &[Range<usize>],
    middle: &Range<usize>,
    mass: &dyn Fn(u32) -> f32,
    n: usize,
) -> Vec<Vec<u32>> {
    let mut order = dropped.to_vec();
    match how.crush.order {
        Order::Position => {}
        Order::Signature => {
            let upper = select::best(scores, middle.clone(), middle.len() / 2);
            let mut set = vec![false; scores.len()];
            upper.iter().for_each(|&i| set[i as usize] = true);
            let bits = pages.iter().map(Range::len).max().unwrap_or(1);
            let bit = |page: usize, bit: usize| bit < pages[page].len() && set[pages[page].start + bit];
            order =
                Signatures::from_bits(pages.len(), bits, bit).sorted(how.crush.anchor, dropped, view.seed(0));
        }
        Order::Keys => order = keys::sorted_pages(view, pages, dropped, mass),
        Order::Score => {
            let sum = |p: u32| -> f32 { scores[pages[p as usize].clone()].iter().sum() };
            order.sort_by(|&x, &y| sum(y).total_cmp(&sum(x)).then(x.cmp(&y)));
        }
        Order::Random => crush::shuffle(&mut order, view.seed(0)),
    }
    crush::equal_lengths(order.len(), n).into_iter().map(|s| order[s].to_vec()).collect()
}

/// Keeps the best tokens that are left, until `budget` are kept.
fn fill_up(kept: &mut [bool], scores: &[f32], middle: &Range<usize>, budget: usize) {
    let held = kept.iter().filter(|&&k| k).count();
    let mut left = scores.to_vec();
    let free: Vec<usize> = middle.clone().filter(|&i| !kept[i]).collect();
    kept.iter().zip(&mut left).filter(|(k, _)| **k).for_each(|(_, x)| *x = f32::NEG_INFINITY);
    let n = budget.saturating_sub(held).min(free.len());
    let mut best = free;
    best.sort_by(|&a, &b| left[b].total_cmp(&left[a]).then(a.cmp(&b)));
    best[..n].iter().for_each(|&i| kept[i] = true);
}
