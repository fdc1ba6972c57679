//! Small cases by hand; scikit-learn's values are in `tests/metrics_golden.rs`.

use super::*;

#[test]
fn auc_counts_pairs() {
    assert_eq!(auc(&[0.0, 0.0, 1.0, 1.0], &[0.1, 0.4, 0.35, 0.8]), Some(0.75));
    assert_eq!(auc(&[1.0, 0.0], &[0.5, 0.5]), Some(0.5));
    assert_eq!(auc(&[1.0, 0.0], &[-0.0, 0.0]), Some(0.5));
    assert_eq!(auc(&[1.0, 0.0], &[-2.0, -1.0]), Some(0.0));
    assert_eq!(auc(&[1.0, 1.0], &[0.1, 0.2]), None);
    assert_eq!(auc(&[], &[]), None);
    assert_eq!(auc(&[1.0, 0.0], &[f32::NAN, 0.2]), None);
}

#[test]
fn weights_of_0_and_1_are_labels() {
    let (y, p) = ([0.0, 1.0, 1.0, 0.0, 1.0], [0.3, 0.3, 0.9, 0.1, 0.05]);
    let mut rows: Vec<(f32, f64)> = p.iter().zip(y).map(|(&p, y)| (p, f64::from(y))).collect();
    assert!((weighted_auc(&mut rows).unwrap() - auc(&y, &p).unwrap()).abs() < 1e-12);
    assert_eq!(weighted_auc(&mut [(0.5, 1.0)]), None);
}

#[test]
fn a_sure_mistake_costs_much_and_is_finite() {
    assert!((log_loss(&[1.0], &[0.0]) - 15.942_385).abs() < 1e-5);
    assert!((log_loss(&[0.0], &[1.0]) - 15.942_385).abs() < 1e-5);
    assert!((log_loss(&[1.0, 0.0], &[0.5, 0.5]) - std::f64::consts::LN_2).abs() < 1e-12);
    assert_eq!(log_loss(&[], &[]), 0.0);
}

#[test]
fn bins_compare_promise_and_fact() {
    let c = Calibration::new(&[0.0, 1.0, 1.0, 0.0], &[0.05, 0.85, 0.95, 0.15], 10);
    assert_eq!(c.bins.iter().map(|b| b.rows).collect::<Vec<_>>(), [1, 1, 1, 1]);
    assert!((c.ratio.unwrap() - 1.0).abs() < 1e-6);
    assert!((c.error - 0.1).abs() < 1e-6);
    assert_eq!(Calibration::new(&[0.0], &[0.5], 10).ratio, None);
    assert_eq!(Calibration::new(&[], &[], 10).bins, []);
}
