//! AdaKV (Feng et al. 2024, arXiv 2407.11550, §4): one budget for all heads of a layer, spent where scores are highest. A
//! head whose attention is spread out gets more tokens than one that looks at a few. Wraps any policy: `adakv:POLICY`.
//!
//! ```text
//! c[h]      = tokens of head h among the (heads x budget) best of the layer
//! budget[h] = 0.2 budget + 0.8 c[h]                 (the first term is a floor for each head)
//! ```

/// What names of policies with a shared budget begin with.
pub const PREFIX: &str = "adakv:";

/// Share of the budget that each head has for itself.
pub(crate) const FLOOR: f64 = 0.2;

/// Splits `heads x budget` tokens among heads, given the scores of the tokens that may be evicted, and the share of its budget that
/// each head has for itself.
///
/// The result adds up to `heads x budget`, and no head gets more than it has.
pub fn head_budgets(scores: &[&[f32]], budget: usize, floor: f64) -> Vec<usize> {
    let heads = scores.len();
    let total = heads * budget;
    let mut all: Vec<(f32, usize)> =
        scores.iter().enumerate().flat_map(|(head, s)| s.iter().map(move |&x| (x, head))).collect();
    if total >= all.len() {
        return scores.iter().map(|s| s.len()).collect();
    }
    // The highest first; where scores are equal, the lower head.
    all.select_nth_unstable_by(total, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut counts = vec![0_usize; heads];
    all[..total].iter().for_each(|&(_, head)| counts[head] += 1);
    let shares = counts.iter().map(|&c| floor * budget as f64 + (1.0 - floor) * c as f64);
    // Rounding the running total makes the parts add up; each stays within one of its share, so a head is capped where it has too little, and
    // the rest goes to the first that have room.
    let (mut exact, mut given) = (0.0, 0);
    let mut budgets = Vec::with_capacity(heads);
    for (share, scores) in shares.zip(scores) {
        exact += share;
        let n = ((exact.round() as usize).saturating_sub(given)).min(scores.len());
        given += n;
        budgets.push(n);
    }
    for (n, scores) in budgets.iter_mut().zip(scores) {
        let more = (total - given).min(scores.len() - *n);
        *n += more;
        given += more;
    }
    budgets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_out_heads_get_more() {
        let flat = vec![0.5; 100];
        let mut peaked = vec![0.0; 100];
        peaked[..5].fill(9.0);
        // Of the 40 best, 5 belong to the second head.
        assert_eq!(head_budgets(&[&flat, &peaked], 20, FLOOR), [4 + 28, 4 + 4]);
        assert_eq!(head_budgets(&[&peaked, &flat], 20, FLOOR), [4 + 4, 4 + 28]);
    }

    #[test]
    fn the_total_is_spent_and_no_head_gets_more_than_it_has() {
        for (lengths, budget) in [(vec![10, 3, 50], 20), (vec![1, 1, 90], 30), (vec![7], 3), (vec![4, 4], 9)]
        {
            let scores: Vec<Vec<f32>> =
                lengths.iter().map(|&n| (0..n).map(|i| (i * 7 % 5) as f32).collect()).collect();
            let scores: Vec<&[f32]> = scores.iter().map(Vec::as_slice).collect();
            let budgets = head_budgets(&scores, budget, FLOOR);
            let held: usize = lengths.iter().sum();
            assert_eq!(budgets.iter().sum::<usize>(), held.min(budget * lengths.len()));
            assert!(budgets.iter().zip(&lengths).all(|(b, n)| b <= n));
        }
    }
}
