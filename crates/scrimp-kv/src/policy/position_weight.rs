//! Position weights: how much attention the end of the prompt pays to the neighborhood of each position.
//!
//! ```text
//! attention[p] = sum over all query heads of all layers and the last 32 queries of softmax(q_i k)[p]
//!                (0 for the first 4 positions)
//! weight[p]    = mean of attention[p-32 ..= p+4], divided by the mean of that over all positions
//! ```
//! All heads and layers share the weights, because the heads that locate a passage are not the heads that copy from
//! it. An answer often continues the text after an attended token, so the mean covers more positions before `p` than
//! after it. Sliding-window layers do not contribute. A position that a head no longer holds gets nothing from that
//! head.

use crate::sequence::Sequence;

/// Queries at the end of the prompt that contribute.
pub(crate) const WINDOW: usize = 32;
/// The mean covers this many positions before a position ...
const BEFORE: usize = 32;
/// ... and this many after it.
const AFTER: usize = 4;
/// First tokens of a text, which attract attention independently of the query (attention sinks).
const SINKS: usize = 4;
/// The smallest weight. It keeps the order of other scores where the end of the prompt pays no attention.
const MIN_WEIGHT: f32 = 1e-6;

/// The weight of each position of `sequence`; 1 where no attention of recent queries was accumulated.
pub(super) fn position_weights(sequence: &Sequence) -> Vec<f32> {
    let heads = (0..sequence.n_layers())
        .flat_map(|layer| (0..sequence.heads(layer).count).map(move |head| (layer, head)));
    let end = |(layer, head)| match sequence.kept(layer, head) {
        0 => 0,
        n => sequence.position(layer, head, n - 1) as usize + 1,
    };
    let mut attention = vec![0.0_f32; heads.map(end).max().unwrap_or(0)];
    for layer in sequence.full_layers() {
        let rows = &sequence.accumulated_scores(layer).recent;
        for (head, row) in rows.iter().enumerate() {
            let kv_head = head * sequence.n_kv_heads() / rows.len();
            let position = |index: usize| sequence.position(layer, kv_head, index) as usize;
            let Some(last) = row.len().checked_sub(1) else { continue };
            let (first, end) = (position(0), position(last) + 1);
            // Positions increase: a span with as many tokens as positions has no gaps.
            if end - first == row.len() {
                attention[first..end].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            } else {
                row.iter().enumerate().for_each(|(index, x)| attention[position(index)] += x);
            }
        }
    }
    smooth(&attention)
}

fn smooth(attention: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0_f64];
    for (p, &x) in attention.iter().enumerate() {
        sums.push(sums[p] + if p < SINKS { 0.0 } else { f64::from(x) });
    }
    let mean = |p: usize| {
        let (from, to) = (p.saturating_sub(BEFORE), (p + AFTER + 1).min(attention.len()));
        (sums[to] - sums[from]) / (to - from) as f64
    };
    let means: Vec<f64> = (0..attention.len()).map(mean).collect();
    let average = means.iter().sum::<f64>() / means.len() as f64;
    let relative = |mean: f64| if average > 0.0 { ((mean / average) as f32).max(MIN_WEIGHT) } else { 1.0 };
    means.into_iter().map(relative).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_after_an_attended_token_weigh_more() {
        let mut attention = vec![0.001; 200];
        attention[..4].fill(9.0);
        attention[100] = 1.0;
        let weights = smooth(&attention);
        let high: Vec<usize> = (0..200).filter(|&p| weights[p] > 10.0 * weights[199]).collect();
        assert_eq!(high, (96..=132).collect::<Vec<_>>());
        assert!(weights[..90].iter().all(|w| *w < 1.001 * weights[199]), "sinks do not count");
        assert!((weights.iter().sum::<f32>() / 200.0 - 1.0).abs() < 1e-4);
    }

    #[test]
    fn without_attention_all_weights_are_one() {
        assert_eq!(smooth(&[0.0; 50]), [1.0; 50]);
        assert!(smooth(&[]).is_empty());
        let mut attention = [0.0; 200];
        attention[10] = 1.0;
        assert_eq!(smooth(&attention)[199], MIN_WEIGHT);
    }
}
