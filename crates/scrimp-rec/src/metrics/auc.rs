//! Area under the ROC curve: the probability that a positive row is ranked above a negative one, ties counting half.

/// The exact AUC of `predictions`; `None` if all labels are equal or a prediction is NaN. Takes 12 bytes per row.
///
/// # Panics
/// The lengths differ.
pub fn auc(labels: &[f32], predictions: &[f32]) -> Option<f64> {
    assert_eq!(labels.len(), predictions.len());
    // Sorted as integers: a key that orders as the floats do, the label in the lowest bit.
    let mut keys: Vec<u64> = Vec::with_capacity(labels.len());
    for (&y, &p) in labels.iter().zip(predictions) {
        if p.is_nan() {
            return None;
        }
        let bits = (p + 0.0).to_bits(); // -0.0 ties with 0.0
        let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        keys.push(u64::from(ordered) << 1 | u64::from(y > 0.5));
    }
    keys.sort_unstable();
    let (mut positives, mut negatives, mut twice_wins) = (0u64, 0u64, 0u128);
    for tie in keys.chunk_by(|a, b| a >> 1 == b >> 1) {
        let p = tie.iter().filter(|&&k| k & 1 == 1).count() as u64;
        let n = tie.len() as u64 - p;
        twice_wins += u128::from(p) * u128::from(2 * negatives + n);
        positives += p;
        negatives += n;
    }
    let pairs = u128::from(positives) * u128::from(negatives);
    (pairs > 0).then(|| twice_wins as f64 / (2.0 * pairs as f64))
}

/// The AUC of rows (prediction, q) that are positive with weight q and negative with weight 1 - q. Sorts the rows. `None` if
/// either side has weight 0.
pub fn weighted_auc(rows: &mut [(f32, f64)]) -> Option<f64> {
    rows.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut positives, mut negatives, mut wins) = (0f64, 0f64, 0f64);
    for tie in rows.chunk_by(|a, b| a.0 == b.0) {
        let p: f64 = tie.iter().map(|r| r.1).sum();
        let n = tie.len() as f64 - p;
        wins += p * (negatives + 0.5 * n);
        positives += p;
        negatives += n;
    }
    let pairs = positives * negatives;
    (pairs > 0.0).then(|| wins / pairs)
}
