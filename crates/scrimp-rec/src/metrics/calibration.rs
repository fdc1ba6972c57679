//! Calibration: compares mean predictions with frequencies, in bins of predictions.

/// Predicted probabilities and observed frequencies.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// Mean prediction divided by mean label: above 1, predictions are too high. `None` without positive rows.
    pub ratio: Option<f64>,
    /// Expected calibration error: the mean over rows of `abs(mean prediction - mean label)` of the row's bin.
    pub error: f64,
    /// The non-empty bins, in order.
    pub bins: Vec<Bin>,
}

/// A bin of predictions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// Number of rows.
    pub rows: u64,
    /// Mean prediction.
    pub predicted: f64,
    /// Share of positive labels.
    pub actual: f64,
}

impl Calibration {
    /// `bins` bins of equal width over [0, 1]; a prediction on an edge belongs to the lower bin.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn new(labels: &[f32], predictions: &[f32], bins: usize) -> Self {
        assert_eq!(labels.len(), predictions.len());
        let bins = bins.max(1);
        let mut sums = vec![(0u64, 0f64, 0f64); bins];
        for (&y, &p) in labels.iter().zip(predictions) {
            let (y, p) = (f64::from(y), f64::from(p));
            let at = ((p * bins as f64).ceil() as usize).clamp(1, bins) - 1;
            sums[at].0 += 1;
            sums[at].1 += p;
            sums[at].2 += y;
        }
        let total = |f: fn(&(u64, f64, f64)) -> f64| sums.iter().map(f).sum::<f64>();
        let (promised, happened) = (total(|s| s.1), total(|s| s.2));
        let error = total(|s| (s.1 - s.2).abs()) / labels.len().max(1) as f64;
        let filled = sums.iter().filter(|s| s.0 > 0);
        let bin = |&(rows, p, y): &(u64, f64, f64)| Bin {
            rows,
            predicted: p / rows as f64,
            actual: y / rows as f64,
        };
        Self { ratio: (happened > 0.0).then(|| promised / happened), error, bins: filled.map(bin).collect() }
    }
}
