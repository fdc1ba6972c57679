//! The smallest of many scores.

/// Marks the `count` smallest scores, of equal scores the first. NaN counts as largest.
pub(super) fn smallest(scores: &[f32], count: usize) -> Vec<bool> {
    if count == 0 {
        return vec![false; scores.len()];
    }
    if count >= scores.len() {
        return vec![true; scores.len()];
    }
    let mut sorted = scores.to_vec();
    let (below, &mut threshold, _) = sorted.select_nth_unstable_by(count - 1, f32::total_cmp);
    let mut ties = count - below.iter().filter(|s| s.total_cmp(&threshold).is_lt()).count();
    scores
        .iter()
        .map(|score| match score.total_cmp(&threshold) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal if ties > 0 => {
                ties -= 1;
                true
            }
            _ => false,
        })
        .collect()
}

/// `sparsity * n`, rounded, and at most `n - 1`.
pub(super) fn share(sparsity: f64, n: usize) -> usize {
    ((sparsity * n as f64).round() as usize).min(n.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_as_many_as_asked() {
        let scores = [3.0, 1.0, 2.0, 1.0, f32::NAN, 1.0, 0.0];
        assert_eq!(smallest(&scores, 0), [false; 7]);
        assert_eq!(smallest(&scores, 3), [false, true, false, true, false, false, true]);
        assert_eq!(smallest(&scores, 6), [true, true, true, true, false, true, true]);
        assert_eq!(smallest(&scores, 7), [true; 7]);
        for n in [1, 10, 1000] {
            let scores: Vec<f32> = (0..n).map(|i| ((i * 7919) % 13) as f32).collect();
            for sparsity in [0.0, 0.3, 0.5, 0.999] {
                let count = share(sparsity, n);
                assert!(count < n);
                assert_eq!(smallest(&scores, count).iter().filter(|&&s| s).count(), count);
            }
        }
    }
}
