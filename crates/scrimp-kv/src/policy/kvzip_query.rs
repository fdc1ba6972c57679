//! KVzip for a question that is known: what the model needs to repeat its context, weighed by how much the end of the prompt
//! looks at that place.
//!
//! ```text
//! near[p]  = mean over the query heads of all layers of  sum over the last w queries of softmax(q_i k)[p]   (0 for the first 4)
//! place[p] = mean of near[p-32 ..= p+4]
//! score[t] = kvzip[t] place[position of t]^2
//! ```
//! Two questions are asked of a token, and different heads know the answers: whether this head needs it to go on from where it
//! stands (KVzip's repetition, §3 of arXiv 2505.23416), and whether the text goes on from there (attention of the prompt's
//! last queries, as in SnapKV, arXiv 2404.14469, but of all heads together: those that find a place are not those that copy
//! from it). What follows a token that was looked at is what an answer copies, so the mean reaches back further than ahead.

use super::{KvZip, LayerView, Needs, Policy, snapkv::WINDOW};

/// A place is as near as the tokens from so many before it ...
const BEFORE: usize = 32;
/// ... to so many behind it are on average.
const BEHIND: usize = 4;
/// First tokens of a text, which attract attention whatever is asked.
const SINKS: usize = 4;
/// What the nearness of a place counts against the need for a token.
const POWER: i32 = 2;

/// The most attention while the model repeats its context, near what the end of the prompt looks at.
#[derive(Debug, Clone, Copy, Default)]
pub struct KvZipQuery;

impl Policy for KvZipQuery {
    fn name(&self) -> &'static str {
        "kvzip-query"
    }

    fn about(&self) -> &'static str {
        "kvzip, weighed by where the prompt's last 32 queries look (scrimp)"
    }

    fn needs(&self) -> Needs {
        Needs { recent: Some(WINDOW), ..KvZip.needs() }
    }

    fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
        KvZip.score(view, kv_head, out);
        let weights = weights(view.recent_of_all_heads());
        for (index, score) in out.iter_mut().enumerate() {
            *score *= weights[view.position(kv_head, index) as usize];
        }
    }

    fn shares_layers(&self) -> bool {
        true
    }
}

/// What scores are multiplied by, for each position, where `near[p]` is the attention that position `p` got.
fn weights(near: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0_f64];
    for (p, &x) in near.iter().enumerate() {
        sums.push(sums[p] + if p < SINKS { 0.0 } else { f64::from(x) });
    }
    let weight = |p: usize| {
        let (from, to) = (p.saturating_sub(BEFORE), (p + BEHIND + 1).min(near.len()));
        let mean = (sums[to] - sums[from]) / (to - from) as f64;
        // Never 0: where nothing was looked at, the need for a token decides.
        (mean as f32).max(1e-9).powi(POWER)
    };
    (0..near.len()).map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_token_that_was_looked_at_is_near() {
        let mut near = vec![0.001; 200];
        near[..4].fill(9.0);
        near[100] = 1.0;
        let weights = weights(&near);
        let high: Vec<usize> = (0..200).filter(|&p| weights[p] > 10.0 * weights[199]).collect();
        assert_eq!(high, (96..=132).collect::<Vec<_>>());
        assert!(weights[..90].iter().all(|w| (w / weights[199]) < 1.001), "sinks say nothing");
    }

    #[test]
    fn where_nothing_was_gathered_all_places_are_alike() {
        assert!(weights(&[0.0; 50]).iter().all(|w| *w > 0.0 && *w == 1e-9_f32.powi(POWER)));
        assert!(weights(&[]).is_empty());
    }
}
