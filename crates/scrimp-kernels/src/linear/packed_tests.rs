//! Packed formats: every level against f64, levels and sparse against dense bit by bit.

use super::*;
use crate::{
    arch::SimdLevel,
    exec::Pool,
    mem::Arena,
    quant::packed::{DenseMatrix, PackedView, WeightFormat, pack},
};
use proptest::prelude::*;

fn matrix(pool: &Pool, format: WeightFormat, rows: usize, cols: usize, w: &[f32]) -> (Matrix, Vec<f32>) {
    let bytes = pack(pool, format, DenseMatrix { rows, cols, weights: w }, None).unwrap();
    let view = PackedView::new(format, rows, cols, &bytes).unwrap();
    let mut arena = Arena::new(Arena::size_of(bytes.len())).unwrap();
    (Matrix::from_packed(pool, &mut arena, &view).unwrap(), view.to_dense_f32())
}

fn multiply(exec: Exec<'_>, weight: &Matrix, x: &[f32], bias: &[f32]) -> Vec<f32> {
    let cols = weight.cols();
    let n = x.len() / cols;
    let mut activations = Activations::new();
    activations.fill(exec, ActivationShape { n_tokens: n, cols, needs: weight.needs() }, |t, out| {
        out.copy_from_slice(&x[t * cols..(t + 1) * cols]);
    });
    let mut out = vec![1.0; n * weight.rows()];
    let product = Linear { weight, bias: Some(bias), out: &mut out, stride: weight.rows(), accumulate: true };
    linear(exec, &mut LinearScratch::default(), &activations, &mut [product]);
    out
}

fn inputs(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) % 1999) as f32 / 500.0 - 2.0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(40)))]

    #[test]
    fn products_of_packed_formats(
        which in 0..6usize, rows in 1usize..70, cols in 1usize..300, n_tokens in 1usize..30, sparsity in 0.0f64..1.0,
        seed: u64, threads in 1usize..4,
    ) {
        let format = WeightFormat::ALL[which];
        let pool = Pool::new(threads).unwrap();
        let w = crate::quant::packed::test_weights(rows, cols, sparsity, seed);
        let (weight, values) = matrix(&pool, format, rows, cols, &w);
        let (dense, _) = matrix(&pool, format.dense(), rows, cols, &w);
        let x = inputs(n_tokens * cols, seed);
        let bias = inputs(rows, seed ^ 5);
        let exact = !matches!(format, WeightFormat::Bf16 | WeightFormat::SparseBf16);
        let mut first: Option<Vec<f32>> = None;
        for level in SimdLevel::supported() {
            let got = multiply(Exec { pool: &pool, level }, &weight, &x, &bias);
            // Sparse and dense give the same bits, one token and the batch too.
            prop_assert_eq!(&multiply(Exec { pool: &pool, level }, &dense, &x, &bias), &got, "dense {} {}", format, level);
            for t in [0, n_tokens - 1] {
                let alone = multiply(Exec { pool: &pool, level }, &weight, &x[t * cols..(t + 1) * cols], &bias);
                for (alone, got) in alone.iter().zip(&got[t * rows..]) {
                    // Tile registers, which a batch gets, add bf16 products in another order.
                    let same = if exact || !level.has_amx() { alone == got } else { (alone - got).abs() <= 1e-3 };
                    prop_assert!(same, "alone {format} {level}: {alone} {got}");
                }
            }
            for t in 0..n_tokens {
                let x = &x[t * cols..(t + 1) * cols];
                let step = |x: &[f32]| x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
                let row_step = step(x);
                for r in 0..rows {
                    let (mut want, mut error) = (1.0 + f64::from(bias[r]), 1e-5);
                    for (w, x) in values[r * cols..(r + 1) * cols].chunks(32).zip(x.chunks(32)) {
                        let step = match format {
                            WeightFormat::Int4 | WeightFormat::SparseInt4 => step(x),
                            _ => row_step,
                        };
                        for (&w, &x) in w.iter().zip(x) {
                            let x_error = if exact { f64::from(step) * 0.51 } else { f64::from(x).abs() / 256.0 };
                            want += f64::from(w) * f64::from(x);
                            error += f64::from(w).abs() * (x_error + f64::from(x).abs() * 1e-6);
                        }
                    }
                    let got = f64::from(got[t * rows + r]);
                    prop_assert!((got - want).abs() <= error, "{format} {level}: {got} vs {want} ± {error}");
                }
            }
            if let Some(first) = &first {
                for (a, b) in first.iter().zip(&got) {
                    prop_assert!(if exact { a == b } else { (a - b).abs() <= 1e-3 }, "{format} {level}: {a} {b}");
                }
            } else {
                first = Some(got);
            }
        }
        for r in [0, rows - 1] {
            let mut row = vec![0.0; cols];
            weight.row(SimdLevel::SCALAR, r, &mut row);
            prop_assert_eq!(&row[..], &values[r * cols..(r + 1) * cols]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(24)))]

    // As for formats in blocks.
    #[test]
    fn large_batches_give_the_bits_of_single_tokens(
        which in 0..6usize, rows in 1usize..70, n_tokens in 30usize..120, seed: u64, threads in 1usize..6,
    ) {
        let (format, cols) = (WeightFormat::ALL[which], 70);
        let pool = Pool::new(threads).unwrap();
        let w = crate::quant::packed::test_weights(rows, cols, 0.5, seed);
        let (weight, _) = matrix(&pool, format, rows, cols, &w);
        let (x, bias) = (inputs(n_tokens * cols, seed), inputs(rows, seed));
        for level in SimdLevel::supported().into_iter().filter(|level| !level.has_amx()) {
            let got = multiply(Exec { pool: &pool, level }, &weight, &x, &bias);
            for (t, (x, got)) in x.chunks_exact(cols).zip(got.chunks_exact(rows)).enumerate() {
                let alone = multiply(Exec { pool: &pool, level }, &weight, x, &bias);
                prop_assert_eq!(&alone[..], got, "token {} of {} {}", t, format, level);
            }
        }
    }
}

/// Memory behind the last value is out of bounds: a kernel that reads it ends the test.
#[test]
fn no_kernel_reads_beyond_the_packed_bytes() {
    let pool = Pool::new(1).unwrap();
    let (rows, cols) = (33, 70);
    for format in WeightFormat::ALL {
        for (sparsity, x_seed) in [(0.0, 1), (0.5, 2), (0.97, 3), (1.0, 4)] {
            // Scales and starts are aligned if the length is.
            let packed = (0..100).find_map(|seed| {
                let w = crate::quant::packed::test_weights(rows, cols, sparsity, 7 * seed);
                let bytes = pack(&pool, format, DenseMatrix { rows, cols, weights: &w }, None).unwrap();
                bytes.len().is_multiple_of(8).then_some((w, bytes))
            });
            let (w, bytes) = packed.expect("some lengths are multiples of 8");
            let view = PackedView::new(format, rows, cols, &bytes).unwrap();
            let mut arena = Arena::before_guard_page(bytes.len()).unwrap();
            let guarded = Matrix::from_packed(&pool, &mut arena, &view).unwrap();
            let (ordinary, _) = matrix(&pool, format, rows, cols, &w);
            for level in SimdLevel::supported() {
                for n in [1, 3, 9, 20] {
                    let x = inputs(n * cols, x_seed);
                    let bias = vec![0.0; rows];
                    let want = multiply(Exec { pool: &pool, level }, &ordinary, &x, &bias);
                    assert_eq!(
                        multiply(Exec { pool: &pool, level }, &guarded, &x, &bias),
                        want,
                        "{format} {level}"
                    );
                }
            }
        }
    }
}

#[test]
fn tasks_cover_all_panels_and_share_the_values() {
    let pool = Pool::new(1).unwrap();
    // The first rows are full, the others empty: cut by rows, one task would have all the work.
    let (rows, cols) = (1024, 512);
    let w: Vec<f32> = (0..rows * cols).map(|i| if i / cols < 256 { 1.0 } else { 0.0 }).collect();
    let (weight, _) = matrix(&pool, WeightFormat::SparseBf16, rows, cols, &w);
    let super::matrix::Kind::Packed(layout) = weight.kind() else { unreachable!() };
    let tasks: Vec<_> = (0..8).map(|task| layout.panels_by_bytes(weight.data(), task, 8)).collect();
    assert_eq!((tasks[0].start, tasks[7].end), (0, layout.panels));
    assert!(tasks.windows(2).all(|u| u[0].end == u[1].start));
    let full = |task: &std::ops::Range<usize>| task.clone().filter(|&panel| panel < 16).count();
    assert!(tasks.iter().all(|task| full(task) <= 3), "{tasks:?}");
}

#[test]
fn non_finite_activations_stay_in_their_token() {
    let pool = Pool::new(2).unwrap();
    for format in WeightFormat::ALL {
        let (weight, _) = matrix(&pool, format, 33, 96, &crate::quant::packed::test_weights(33, 96, 0.5, 1));
        let mut x = inputs(20 * 96, 1);
        x[96 + 40] = f32::NAN;
        for level in SimdLevel::supported() {
            for n in [3, 20] {
                let y = multiply(Exec { pool: &pool, level }, &weight, &x[..n * 96], &[0.0; 33]);
                assert!(y[33..66].iter().all(|y| y.is_nan()), "{format} {level}");
                assert!(y[..33].iter().chain(&y[66..]).all(|y| y.is_finite()), "{format} {level}");
            }
        }
    }
}

#[test]
fn the_longest_rows_of_the_largest_values_do_not_overflow() {
    let pool = Pool::new(1).unwrap();
    let cols = 1 << 17;
    let (weight, _) = matrix(&pool, WeightFormat::SparseInt8, 1, cols, &vec![-1.0; cols]);
    let x: Vec<f32> = vec![-1.0; cols];
    for level in SimdLevel::supported() {
        let y = multiply(Exec { pool: &pool, level }, &weight, &x, &[0.0]);
        assert!((y[0] - 1.0 - cols as f32).abs() < 1.0, "{level}: {}", y[0]);
    }
}
