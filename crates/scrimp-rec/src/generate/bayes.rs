//! The best AUC and log loss that any model can have on generated rows.

use super::{Batch, Generator};
use crate::metrics::weighted_auc;

/// The accuracy of the true probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bayes {
    /// Expected AUC of the true probabilities.
    pub auc: f64,
    /// Their expected log loss, nats per row.
    pub logloss: f64,
    /// Expected share of positive labels.
    pub positives: f64,
    /// The number of rows of this estimate.
    pub rows: u64,
}

impl Generator {
    /// The expected AUC and log loss of the true probabilities on the first `rows` rows: row i is positive with weight `p_i` and
    /// negative with weight `1 - p_i`. A million rows determine the AUC to about 0.0003.
    pub fn bayes(&self, rows: u64) -> Bayes {
        let (mut batch, mut probabilities) = (Batch::default(), Vec::new());
        for row in self.rows.clone().take(usize::try_from(rows).unwrap_or(usize::MAX)) {
            batch.clear();
            probabilities.push(self.world.row(row, &mut batch));
        }
        let n = probabilities.len().max(1) as f64;
        let entropy = |p: f64| -[p, 1.0 - p].iter().filter(|&&q| q > 0.0).map(|q| q * q.ln()).sum::<f64>();
        let logloss = probabilities.iter().map(|&p| entropy(f64::from(p))).sum::<f64>() / n;
        let positives = probabilities.iter().map(|&p| f64::from(p)).sum::<f64>() / n;
        let count = probabilities.len() as u64;
        let mut weighted: Vec<(f32, f64)> = probabilities.iter().map(|&p| (p, f64::from(p))).collect();
        Bayes { auc: weighted_auc(&mut weighted).unwrap_or(0.5), logloss, positives, rows: count }
    }
}
