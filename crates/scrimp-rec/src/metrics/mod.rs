//! Metrics of predicted probabilities: [`auc`], [`log_loss`], [`Calibration`].
//!
//! Definitions and results are scikit-learn's (`roc_auc_score`, `log_loss`, `calibration_curve`); golden values in
//! `testdata/metrics`.

mod auc;
mod calibration;

pub use auc::{auc, weighted_auc};
pub use calibration::{Bin, Calibration};

/// Mean negative log likelihood of `labels` (0 or 1) under `predictions`, in nats. Like scikit-learn, it clips predictions to a
/// distance of 1.19e-7 (the precision of f32) from 0 and 1. 0 without rows; NaN if a prediction is NaN.
///
/// # Panics
/// The lengths differ.
pub fn log_loss(labels: &[f32], predictions: &[f32]) -> f64 {
    assert_eq!(labels.len(), predictions.len());
    let e = f64::from(f32::EPSILON);
    let loss = |(&y, &p): (&f32, &f32)| {
        let p = f64::from(p).clamp(e, 1.0 - e);
        let (y, q) = (f64::from(y), 1.0 - p);
        -(y * p.ln() + (1.0 - y) * q.ln())
    };
    labels.iter().zip(predictions).map(loss).sum::<f64>() / labels.len().max(1) as f64
}

#[cfg(test)]
mod tests;
