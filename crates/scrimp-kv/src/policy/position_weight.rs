//! Which places of a text matter for what comes: those around which the end of the prompt looks.
//!
//! ```text
//! near[p]  = sum over the query heads of all layers and the last 32 queries of softmax(q_i k)[p]   (0 for the first 4)
//! place[p] = mean of near[p-32 ..= p+4], divided by the mean of that over all places
//! ```
//! A place is one for all heads and layers: those that find it are not those that copy from it. What follows a token that was
//! looked at is what an answer goes on with, so the mean reaches back further than ahead. Layers with sliding windows are left
//! out; what a head does not hold any more got nothing from it.

use crate::sequence::Sequence;

/// Queries at the end of the prompt that are looked at.
pub(crate) const WINDOW: usize = 32;
/// A place is as near as the tokens from so many before it ...
const BEFORE: usize = 32;
/// ... to so many behind it are on average.
const BEHIND: usize = 4;
/// First tokens of a text, which attract attention whatever is asked.
const SINKS: usize = 4;
/// No place is nearer to nothing than this: where nothing was looked at, other measures decide.
const LEAST: f32 = 1e-6;

/// The weight of each position of `sequence`; 1 where no attention of the prompt's end was gathered.
pub(super) fn places(sequence: &Sequence) -> Vec<f32> {
    let heads =
        (0..sequence.n_layers()).flat_map(|layer| (0..sequence.n_kv_heads()).map(move |head| (layer, head)));
    let end = |(layer, head)| match sequence.kept(layer, head) {
        0 => 0,
        n => sequence.position(layer, head, n - 1) as usize + 1,
    };
    let mut near = vec![0.0_f32; heads.map(end).max().unwrap_or(0)];
    for layer in sequence.full_layers() {
        let rows = &sequence.stats(layer).recent;
        for (head, row) in rows.iter().enumerate() {
            let kv_head = head * sequence.n_kv_heads() / rows.len();
            let position = |index: usize| sequence.position(layer, kv_head, index) as usize;
            let Some(last) = row.len().checked_sub(1) else { continue };
            let (first, end) = (position(0), position(last) + 1);
            // Positions increase, so as many as their span are all there.
            if end - first == row.len() {
                near[first..end].iter_mut().zip(row).for_each(|(near, x)| *near += x);
            } else {
                row.iter().enumerate().for_each(|(index, x)| near[position(index)] += x);
            }
        }
    }
    smooth(&near)
}

fn smooth(near: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0_f64];
    for (p, &x) in near.iter().enumerate() {
        sums.push(sums[p] + if p < SINKS { 0.0 } else { f64::from(x) });
    }
    let mean = |p: usize| {
        let (from, to) = (p.saturating_sub(BEFORE), (p + BEHIND + 1).min(near.len()));
        (sums[to] - sums[from]) / (to - from) as f64
    };
    let means: Vec<f64> = (0..near.len()).map(mean).collect();
    let average = means.iter().sum::<f64>() / means.len() as f64;
    let relative = |mean: f64| if average > 0.0 { ((mean / average) as f32).max(LEAST) } else { 1.0 };
    means.into_iter().map(relative).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_token_that_was_looked_at_is_near() {
        let mut near = vec![0.001; 200];
        near[..4].fill(9.0);
        near[100] = 1.0;
        let places = smooth(&near);
        let high: Vec<usize> = (0..200).filter(|&p| places[p] > 10.0 * places[199]).collect();
        assert_eq!(high, (96..=132).collect::<Vec<_>>());
        assert!(places[..90].iter().all(|w| *w < 1.001 * places[199]), "sinks say nothing");
        assert!((places.iter().sum::<f32>() / 200.0 - 1.0).abs() < 1e-4);
    }

    #[test]
    fn where_nothing_was_gathered_all_places_are_alike() {
        assert_eq!(smooth(&[0.0; 50]), [1.0; 50]);
        assert!(smooth(&[]).is_empty());
        let mut near = [0.0; 200];
        near[10] = 1.0;
        assert_eq!(smooth(&near)[199], LEAST);
    }
}
