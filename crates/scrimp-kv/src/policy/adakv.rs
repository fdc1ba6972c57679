//! AdaKV: all heads of a layer share one budget, which goes to the tokens with the highest scores. A head whose
//! attention spreads over many tokens gets more than a head that concentrates on few. It wraps any policy:
//! `adakv:POLICY`.
//!
//! Source: Feng et al. 2024, arXiv 2407.11550, §4.
//!
//! ```text
//! c[h]      = tokens of head h among the (heads x budget) best of the layer
//! budget[h] = 0.2 budget + 0.8 c[h]                 (the first term is a floor for each head)
//! ```

/// The prefix of policy names with a shared budget.
pub const PREFIX: &str = "adakv:";

/// Share of the budget that is reserved for each head.
pub(crate) const FLOOR: f64 = 0.2;

/// Splits `heads x budget` tokens among heads. `scores` are those of the candidates of each head; `floor` is the
/// share of its budget that each head keeps.
///
/// The result adds up to `heads x budget` (or to all candidates, where they are fewer), and no head gets more than
/// its candidates.
pub fn head_budgets(scores: &[&[f32]], budget: usize, floor: f64) -> Vec<usize> {
    let heads = scores.len();
    let total = heads * budget;
    let mut all: Vec<(f32, usize)> =
        scores.iter().enumerate().flat_map(|(head, s)| s.iter().map(move |&x| (x, head))).collect();
    if total >= all.len() {
        return scores.iter().map(|s| s.len()).collect();
    }
    // Highest score first; among equal scores, the lower head.
    all.select_nth_unstable_by(total, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut counts = vec![0_usize; heads];
    all[..total].iter().for_each(|&(_, head)| counts[head] += 1);
    let shares = counts.iter().map(|&c| floor * budget as f64 + (1.0 - floor) * c as f64);
    // Rounding the running total makes the parts add up. Each part is within one of its share. A head is capped at its
    // candidates, and the remainder goes to the first heads with room.
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
