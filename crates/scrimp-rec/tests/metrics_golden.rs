//! Metrics against scikit-learn (`testdata/metrics/make.py`).

use scrimp_rec::metrics::{Calibration, auc, log_loss};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    labels: Vec<u8>,
    predictions: Vec<u32>,
    auc: f64,
    logloss: f64,
    bins: usize,
    actual: Vec<f64>,
    predicted: Vec<f64>,
}

#[test]
fn metrics_are_those_of_scikit_learn() {
    let golden: Golden = scrimp_testkit::read_json("metrics/golden.json");
    assert!(golden.cases.len() >= 6);
    for case in golden.cases {
        let labels: Vec<f32> = case.labels.iter().map(|&y| f32::from(y)).collect();
        let predictions: Vec<f32> = case.predictions.iter().map(|&p| f32::from_bits(p)).collect();
        let close = |what: &str, got: f64, want: f64, within: f64| {
            assert!((got - want).abs() <= within, "{}: {what} {got}, scikit-learn {want}", case.name);
        };
        close("auc", auc(&labels, &predictions).unwrap(), case.auc, 1e-12);
        // scikit-learn adds in f32 here.
        close("log loss", log_loss(&labels, &predictions), case.logloss, 2e-6 * (1.0 + case.logloss));
        let calibration = Calibration::new(&labels, &predictions, case.bins);
        assert_eq!(calibration.bins.len(), case.actual.len(), "{}", case.name);
        for (i, bin) in calibration.bins.iter().enumerate() {
            close("share of positives", bin.actual, case.actual[i], 1e-9);
            close("mean prediction", bin.predicted, case.predicted[i], 1e-9);
        }
    }
}
