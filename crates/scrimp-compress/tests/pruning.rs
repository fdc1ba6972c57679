//! The pruning methods against NumPy (`testdata/pruning`, written by `testdata/pruning/make.py`), and their order.

use scrimp_compress::{Dense, Format, Inputs, Job, Rounding, Statistics, pruner};
use scrimp_kernels::{Exec, Pool, SimdLevel};
use serde_json::Value;

const COLS: usize = 160;
const ROWS: usize = 8;
const SOURCES: usize = 6;

/// The generator of the golden file.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f64 / 8_388_608.0 - 1.0) as f32
    }

    fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// Weights `[rows][cols]` and correlated inputs `[tokens][cols]`.
fn data(seed: u64, rows: usize, cols: usize, tokens: usize) -> (Dense, Vec<f32>) {
    let mut rng = Lcg(seed);
    let weights = rng.many(rows * cols);
    let mix = rng.many(cols * SOURCES);
    let mut x = Vec::with_capacity(tokens * cols);
    for _ in 0..tokens {
        let sources = rng.many(SOURCES);
        for mix in mix.chunks_exact(SOURCES) {
            let mut value = 0.0;
            for (m, s) in mix.iter().zip(&sources) {
                value += m * s;
            }
            x.push(value + 0.25 * rng.next());
        }
    }
    (Dense { rows, cols, data: weights }, x)
}

fn prune(
    method: &str,
    weight: &Dense,
    x: &[f32],
    sparsity: f64,
    format: Format,
    threads: usize,
) -> (Dense, Rounding) {
    let pool = Pool::new(threads).unwrap();
    let method = pruner(method).unwrap();
    let mut inputs = Inputs::new(weight.cols, method.needs());
    for piece in x.chunks(40 * weight.cols) {
        inputs.add(Exec { pool: &pool, level: SimdLevel::SCALAR }, piece).unwrap();
    }
    let mut rounding = Rounding::new(format, weight.cols);
    let mut out = weight.clone();
    let job = Job {
        pool: &pool,
        weight: &mut out,
        inputs: &inputs,
        sparsity,
        keep_zeros: false,
        rounding: &mut rounding,
    };
    method.prune(job);
    (out, rounding)
}

/// `sum over tokens of |(W' - W) x|^2`
fn error(weight: &Dense, pruned: &Dense, x: &[f32]) -> f64 {
    let mut sum = 0.0;
    for x in x.chunks_exact(weight.cols) {
        for (a, b) in weight.data.chunks_exact(weight.cols).zip(pruned.data.chunks_exact(weight.cols)) {
            let y: f64 = a.iter().zip(b).zip(x).map(|((a, b), x)| f64::from(b - a) * f64::from(*x)).sum();
            sum += y * y;
        }
    }
    sum
}

fn golden() -> Value {
    scrimp_testkit::read_json("pruning/small.json")
}

#[test]
fn the_same_weights_go_as_in_numpy() {
    let (golden, (weight, x)) = (golden(), data(2024, ROWS, COLS, 96));
    for (method, cases) in golden["kept"].as_object().unwrap() {
        for (sparsity, kept) in cases.as_object().unwrap() {
            let (got, _) = prune(method, &weight, &x, sparsity.parse().unwrap(), Format::BF16, 2);
            let mask: String = got.data.iter().map(|&w| if w == 0.0 { '0' } else { '1' }).collect();
            assert_eq!(mask, kept.as_str().unwrap(), "{method} {sparsity}");
            let (want, got) = (golden["error"][method][sparsity].as_f64().unwrap(), error(&weight, &got, &x));
            assert!(
                (got - want).abs() <= 1e-3 * want + 1e-6,
                "{method} {sparsity}: error {got}, NumPy {want}"
            );
        }
    }
}

#[test]
fn what_stays_makes_up_as_in_numpy() {
    let (golden, (weight, x)) = (golden(), data(2024, ROWS, COLS, 96));
    for (sparsity, row) in golden["sparsegpt_first_row"].as_object().unwrap() {
        let (got, _) = prune("sparsegpt", &weight, &x, sparsity.parse().unwrap(), Format::BF16, 1);
        for (c, want) in row.as_array().unwrap().iter().enumerate() {
            let want = want.as_f64().unwrap();
            assert!((f64::from(got.data[c]) - want).abs() < 2e-3, "{sparsity}: {c}: {} {want}", got.data[c]);
        }
    }
}

#[test]
fn rounding_to_int4_is_made_up_for_as_in_numpy() {
    let (golden, (weight, x)) = (golden(), data(2024, ROWS, COLS, 96));
    let (mut got, mut rounding) = prune("sparsegpt", &weight, &x, 0.5, Format::INT4, 2);
    let scales = rounding.scales().unwrap().to_vec();
    let before = got.clone();
    rounding.apply(&Pool::new(1).unwrap(), &mut got);
    assert_eq!(got.data, before.data, "weights are multiples of their scales already");
    let quants: String = got
        .data
        .iter()
        .enumerate()
        .map(|(i, w)| {
            let scale = scales[i / COLS * (COLS / 32) + i % COLS / 32];
            char::from_digit(((w / scale).round() as i32 + 8) as u32, 16).unwrap()
        })
        .collect();
    // A rounding that falls the other way in f32 changes the rest of its row; at most one row may differ.
    let want = golden["sparsegpt_int4_quants"].as_str().unwrap();
    let same = (0..ROWS).filter(|r| quants[r * COLS..(r + 1) * COLS] == want[r * COLS..(r + 1) * COLS]);
    assert!(same.count() >= ROWS - 1, "\n{quants}\n{want}");
}

#[test]
fn second_order_beats_norms_beats_magnitude() {
    for seed in 1..6 {
        let (weight, x) = data(seed, 24, 200, 300);
        // Features of very different size, as in real models.
        let x: Vec<f32> =
            x.iter().enumerate().map(|(i, x)| x * 1.02_f32.powi((i % 200 * 37 % 200) as i32)).collect();
        let [magnitude, wanda, sparsegpt] = ["magnitude", "wanda", "sparsegpt"]
            .map(|m| error(&weight, &prune(m, &weight, &x, 0.5, Format::BF16, 2).0, &x));
        assert!(sparsegpt < 0.85 * wanda, "seed {seed}: {sparsegpt} {wanda}");
        assert!(wanda < 0.9 * magnitude, "seed {seed}: {wanda} {magnitude}");
        // Making up for rounding is worth it without pruning, too.
        let (mut nearest, mut rounding) = (weight.clone(), Rounding::new(Format::INT4, weight.cols));
        rounding.apply(&Pool::new(1).unwrap(), &mut nearest);
        let compensated = error(&weight, &prune("sparsegpt", &weight, &x, 0.0, Format::INT4, 2).0, &x);
        let nearest = error(&weight, &nearest, &x);
        assert!(compensated < 0.5 * nearest, "seed {seed}: {compensated} {nearest}");
    }
}

#[test]
fn any_sparsity_any_shape_any_number_of_threads() {
    for (rows, cols, tokens) in [(1, 1, 1), (3, 33, 5), (17, 129, 40), (5, 256, 20)] {
        let (weight, x) = data(9, rows, cols, tokens);
        for method in ["magnitude", "wanda", "sparsegpt"] {
            for sparsity in [0.0, 0.1, 0.5, 0.99] {
                let (one, _) = prune(method, &weight, &x, sparsity, Format::INT8, 1);
                let (many, _) = prune(method, &weight, &x, sparsity, Format::INT8, 3);
                assert_eq!(one.data, many.data, "{method} {sparsity} {rows} x {cols}: threads");
                assert!(one.data.iter().all(|w| w.is_finite()), "{method} {sparsity} {rows} x {cols}");
                let zeros = one.zeros() as f64;
                let least = (sparsity * (rows * cols) as f64).floor() - rows as f64;
                assert!(zeros >= least, "{method} {sparsity} {rows} x {cols}: {zeros} zeros");
            }
        }
    }
}

#[test]
fn features_without_input_and_outliers_do_no_harm() {
    let (weight, mut x) = data(3, 8, 64, 50);
    for row in x.chunks_exact_mut(64) {
        row[7] = 0.0;
        row[9] *= 1e4;
    }
    for method in ["wanda", "sparsegpt"] {
        let (got, _) = prune(method, &weight, &x, 0.5, Format::INT4, 1);
        assert!(got.data.iter().all(|w| w.is_finite()), "{method}");
        assert!(
            got.data.iter().skip(7).step_by(64).all(|&w| w == 0.0),
            "{method}: weights of a silent feature"
        );
        assert!(got.data.iter().skip(9).step_by(64).all(|&w| w != 0.0), "{method}: weights of an outlier");
    }
}

#[test]
fn zeros_of_a_pruned_checkpoint_stay() {
    let (mut weight, x) = data(5, 8, 200, 100);
    weight.data.iter_mut().enumerate().filter(|(i, _)| i * 7 % 10 < 6).for_each(|(_, w)| *w = 0.0);
    let pool = Pool::new(2).unwrap();
    for (method, sparsity) in [("sparsegpt", 0.0), ("sparsegpt", 0.7), ("wanda", 0.0), ("magnitude", 0.5)] {
        let method = pruner(method).unwrap();
        let mut inputs = Inputs::new(200, method.needs());
        inputs.add(Exec { pool: &pool, level: SimdLevel::SCALAR }, &x).unwrap();
        let (mut got, mut rounding) = (weight.clone(), Rounding::new(Format::INT8, 200));
        let weight_ = &mut got;
        method.prune(Job {
            pool: &pool,
            weight: weight_,
            inputs: &inputs,
            sparsity,
            keep_zeros: true,
            rounding: &mut rounding,
        });
        assert!(weight.data.iter().zip(&got.data).all(|(a, b)| *a != 0.0 || *b == 0.0), "{}", method.name());
        assert!(
            got.zeros() as f64 >= sparsity * 1600.0 && got.zeros() < 1200,
            "{}: {}",
            method.name(),
            got.zeros()
        );
    }
}

#[test]
fn unknown_methods_are_named() {
    let error = pruner("obd").err().unwrap();
    assert!(error.to_string().contains("obd") && error.hint().unwrap().as_str().contains("wanda"), "{error}");
    assert_eq!(pruner("magnitude").unwrap().needs(), Statistics::None);
}
