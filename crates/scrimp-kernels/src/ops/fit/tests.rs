//! The solution against normal equations in f64.

use super::{FitScratch, ValueFit, fit_values};
use crate::arch::{SimdLevel, testing::numbers};

/// Solves `a x = b` by Gaussian elimination with pivots; `b` becomes `x`.
fn eliminate(a: &mut [Vec<f64>], b: &mut [Vec<f64>]) {
    let n = a.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|&p, &q| a[p][i].abs().total_cmp(&a[q][i].abs())).unwrap();
        a.swap(i, pivot);
        b.swap(i, pivot);
        for j in i + 1..n {
            let factor = a[j][i] / a[i][i];
            let (above, below) = (a[i].clone(), b[i].clone());
            a[j].iter_mut().zip(&above).for_each(|(x, above)| *x -= factor * above);
            b[j].iter_mut().zip(&below).for_each(|(x, above)| *x -= factor * above);
        }
    }
    for i in (0..n).rev() {
        for k in 0..b[i].len() {
            let known: f64 = (i + 1..n).map(|j| a[i][j] * b[j][k]).sum();
            b[i][k] = (b[i][k] - known) / a[i][i];
        }
    }
}

/// Row `i` of `data` in f64.
fn row(data: &[f32], dim: usize, i: usize) -> Vec<f64> {
    data[i * dim..(i + 1) * dim].iter().map(|&x| f64::from(x)).collect()
}

/// The attention of query `i` over the kept keys.
fn attention(fit: &ValueFit<'_>, i: usize) -> Vec<f64> {
    let q = row(fit.q, fit.dim, i);
    let score = |j: usize| {
        let dot: f64 = q.iter().zip(row(fit.k, fit.dim, j)).map(|(q, k)| q * k).sum();
        let score = dot * f64::from(fit.scale);
        let capped = fit.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        capped + fit.bias.map_or(0.0, |bias| f64::from(bias[j]))
    };
    let scores: Vec<f64> = (0..fit.k.len() / fit.dim).map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sink = fit.sinks.map_or(0.0, |sinks| (f64::from(sinks[i]) - max).exp());
    let sum = e.iter().sum::<f64>() + sink;
    e.iter().map(|e| e / sum).collect()
}

/// The fitted values by the normal equations.
fn oracle(fit: &ValueFit<'_>, v: &[f32]) -> Vec<f64> {
    let dim = fit.dim;
    let (m, n) = (fit.q.len() / dim, fit.k.len() / dim);
    let x: Vec<Vec<f64>> = (0..m).map(|i| attention(fit, i)).collect();
    let mean = x.iter().flatten().map(|x| x * x).sum::<f64>() / n as f64;
    let (mut gram, mut right) = (vec![vec![0.0; n]; n], vec![vec![0.0; dim]; n]);
    for (i, x) in x.iter().enumerate() {
        let mut rest = row(fit.outputs, dim, i);
        for (j, x) in x.iter().enumerate() {
            rest.iter_mut().zip(row(v, dim, j)).for_each(|(rest, v)| *rest -= x * v);
        }
        for j in 0..n {
            (0..n).for_each(|k| gram[j][k] += x[j] * x[k]);
            right[j].iter_mut().zip(&rest).for_each(|(right, rest)| *right += x[j] * rest);
        }
    }
    for (j, row) in gram.iter_mut().enumerate() {
        row[j] += f64::from(fit.ridge) * mean;
    }
    eliminate(&mut gram, &mut right);
    v.iter().zip(right.iter().flatten()).map(|(v, change)| f64::from(*v) + change).collect()
}

#[test]
fn every_level_solves_the_normal_equations() {
    // More queries than keys and fewer; sizes above and below those of tiles and blocks.
    for (m, n, dim) in [(1, 1, 8), (5, 3, 16), (3, 70, 24), (90, 33, 64), (150, 100, 32), (130, 131, 80)] {
        for (softcap, biased) in [(None, false), (Some(5.0), true)] {
            let q: Vec<f32> = numbers(1, m * dim).iter().map(|x| 3.0 * x).collect();
            let (k, outputs, bias) = (numbers(2, n * dim), numbers(3, m * dim), numbers(4, n));
            let sinks = numbers(6, m);
            let fit = ValueFit {
                q: &q,
                outputs: &outputs,
                k: &k,
                bias: biased.then_some(&bias),
                dim,
                scale: 0.7,
                softcap,
                sinks: biased.then_some(&sinks),
                ridge: 0.03,
            };
            let v = numbers(5, n * dim);
            let want = oracle(&fit, &v);
            let mut scratch = FitScratch::default();
            for level in SimdLevel::supported() {
                let mut got = v.clone();
                assert!(fit_values(level, &mut scratch, &fit, &mut got));
                let largest = want.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
                for (got, want) in got.iter().zip(&want) {
                    let error = (f64::from(*got) - want).abs() / largest;
                    assert!(error < 2e-4, "{level}, {m} queries, {n} keys: {got}, not {want}");
                }
            }
        }
    }
}

/// Checks at every level whether the values of keys `k` are replaced, and that they are finite.
fn check(q: &[f32], k: &[f32], outputs: &[f32], ridge: f32, solved: bool) {
    let fit = ValueFit { q, outputs, k, bias: None, dim: 16, scale: 1.0, softcap: None, sinks: None, ridge };
    for level in SimdLevel::supported() {
        let before = numbers(5, k.len());
        let mut v = before.clone();
        assert_eq!(fit_values(level, &mut FitScratch::default(), &fit, &mut v), solved, "{level}");
        assert!(v.iter().all(|v| v.is_finite()));
        assert!(solved || v == before);
    }
}

#[test]
fn values_stay_if_a_system_has_no_finite_solution() {
    let (m, n, dim) = (20, 10, 16);
    let (q, k, mut outputs) = (numbers(1, m * dim), numbers(2, n * dim), numbers(3, m * dim));
    check(&q, &k, &outputs, 0.03, true);
    // Equal keys, with a ridge and without.
    let equal = k[..dim].repeat(n);
    check(&q, &equal, &outputs, 0.03, true);
    check(&q, &equal, &outputs, 0.0, false);
    // One key receives all attention.
    let positive: Vec<f32> = q.iter().map(|x| x.abs()).collect();
    let mut far = k.clone();
    far[..dim].fill(100.0);
    check(&positive, &far, &outputs, 0.03, true);
    check(&[], &k, &[], 0.03, false);
    check(&q, &[], &outputs, 0.03, false);
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        outputs[7] = bad;
        check(&q, &k, &outputs, 0.03, false);
    }
    // A key without a score receives no attention.
    outputs[7] = 0.0;
    far[3] = f32::NAN;
    check(&q, &far, &outputs, 0.03, true);
}
