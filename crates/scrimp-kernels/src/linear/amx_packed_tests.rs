//! The compiled AMX kernels, executed by the CPU or by the emulator, against the other levels.

use super::{Activations, Linear, LinearScratch, Matrix, amx_packed::*, linear};
use crate::{
    arch::{
        SimdLevel,
        amx::{
            soft,
            testing::{ONE, amx, executed, reset},
        },
    },
    exec::{Exec, Pool},
    linear::ActivationShape,
    mem::Arena,
    quant::packed::{DenseMatrix, PackedView, WeightFormat, pack, test_weights},
};
use proptest::prelude::*;
use std::sync::PoisonError;

pub(super) fn matrix(pool: &Pool, format: WeightFormat, rows: usize, cols: usize, w: &[f32]) -> Matrix {
    let bytes = pack(pool, format, DenseMatrix { rows, cols, weights: w }, None).unwrap();
    let mut arena = Arena::new(Arena::size_of(bytes.len())).unwrap();
    Matrix::from_packed(pool, &mut arena, &PackedView::new(format, rows, cols, &bytes).unwrap()).unwrap()
}

pub(super) fn inputs(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) % 1999) as f32 / 500.0 - 2.0).collect()
}

pub(super) fn multiply(exec: Exec<'_>, weight: &Matrix, x: &[f32], bias: &[f32]) -> Vec<f32> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let n = x.len() / cols;
    let mut activations = Activations::new();
    activations.fill(exec, ActivationShape { n_tokens: n, cols, needs: weight.needs() }, |t, out| {
        out.copy_from_slice(&x[t * cols..(t + 1) * cols]);
    });
    let mut out = vec![1.0; n * rows];
    let product = Linear { weight, bias: Some(bias), out: &mut out, stride: rows, accumulate: true };
    linear(exec, &mut LinearScratch::default(), &activations, &mut [product]);
    out
}

/// The same over tiles in plain Rust, with how activations were stored, and how many tile instructions were executed.
pub(super) fn multiply_softly(
    exec: Exec<'_>,
    weight: &Matrix,
    x: &[f32],
    bias: &[f32],
) -> (Activations, Vec<f32>, usize) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let n = x.len() / cols;
    let mut activations = Activations::new();
    activations.fill_as(
        exec,
        ActivationShape { n_tokens: n, cols, needs: weight.needs() },
        true,
        |t, out| {
            out.copy_from_slice(&x[t * cols..(t + 1) * cols]);
        },
    );
    let (mut out, mut tiles) = (vec![1.0; n * rows], soft::Soft::new());
    let product = Linear { weight, bias: Some(bias), out: &mut out, stride: rows, accumulate: true };
    super::linear_over(exec.level, &activations, product, &mut tiles);
    (activations, out, tiles.executed)
}

fn same(format: WeightFormat, got: &[f32], want: &[f32]) -> Result<(), String> {
    let exact = matches!(format, WeightFormat::Int8 | WeightFormat::SparseInt8);
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        if !(if exact { a == b } else { (a - b).abs() <= 2e-3 }) {
            return Err(format!("{format}, result {i}: {a} instead of {b}"));
        }
    }
    Ok(())
}

const FORMATS: [WeightFormat; 4] =
    [WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::SparseBf16, WeightFormat::SparseInt8];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(24)))]

    #[test]
    fn compiled_kernels_agree_with_the_other_levels(
        which in 0..4usize, rows in 1usize..70, cols in 1usize..200, n in 1usize..70, sparsity in 0.0f64..1.0, seed: u64,
        threads in 1usize..3,
    ) {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((level, _)) = amx() else { return Ok(()) };
        let (format, pool) = (FORMATS[which], Pool::new(threads).unwrap());
        let weight = matrix(&pool, format, rows, cols, &test_weights(rows, cols, sparsity, seed));
        let (x, bias) = (inputs(n * cols, seed), inputs(rows, seed ^ 3));
        let want = multiply(Exec { pool: &pool, level: SimdLevel::SCALAR }, &weight, &x, &bias);
        let got = multiply(Exec { pool: &pool, level }, &weight, &x, &bias);
        prop_assert_eq!(same(format, &got, &want), Ok(()));
        // Sparse and dense execution of the same weights.
        let dense = matrix(&pool, format.dense(), rows, cols, &test_weights(rows, cols, sparsity, seed));
        prop_assert_eq!(multiply(Exec { pool: &pool, level }, &dense, &x, &bias), got);
    }
}

/// The number of AMX instructions of a task of `panels` panels with `b_tiles` B tiles each.
fn predicted(panels: usize, b_tiles: usize, tokens: usize) -> usize {
    let token_tiles = tokens.div_ceil(16);
    let mut count = 0;
    for first_panel in (0..panels).step_by(2) {
        let nb = (panels - first_panel).min(2);
        for first in (0..token_tiles).step_by(2) {
            let na = (token_tiles - first).min(2);
            // Zeroes and stores of C; loads of A and B and products, once per 16 steps.
            count += 2 * na * nb + b_tiles * (na + nb + na * nb);
        }
    }
    count
}

#[test]
fn the_predicted_number_of_tile_instructions_is_executed() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((level, native)) = amx() else { return };
    let pool = Pool::new(1).unwrap();
    let (rows, cols) = (5 * 16 - 3, 130);
    for format in FORMATS {
        let weight = matrix(&pool, format, rows, cols, &test_weights(rows, cols, 0.5, 1));
        let b_tiles = cols.div_ceil(if format.dense() == WeightFormat::Bf16 { 32 } else { 64 });
        for n in [1, 4, 5, 16, 17, 32, 33, 50] {
            let (x, bias) = (inputs(n * cols, 1), vec![0.0; rows]);
            reset();
            let got = multiply(Exec { pool: &pool, level }, &weight, &x, &bias);
            same(format, &got, &multiply(Exec { pool: &pool, level: SimdLevel::SCALAR }, &weight, &x, &bias))
                .unwrap();
            if native {
                continue;
            }
            // Five panels in tasks of two, ldtilecfg and tilerelease once; few tokens take vector instructions.
            let task = |panels| predicted(panels, b_tiles, n);
            let want = if n <= FEW_TOKENS { 0 } else { 2 + 2 * task(2) + task(1) };
            assert_eq!(executed(), want, "{format}, {n} tokens");
        }
    }
}

/// Runs the kernel over tiles in plain Rust: packing, blocking and tails on every machine.
#[test]
fn portable_tiles_agree_with_the_other_levels() {
    let pool = Pool::new(1).unwrap();
    for (format, (rows, cols, n)) in
        FORMATS.into_iter().zip([(40, 70, 19), (33, 130, 33), (17, 65, 50), (50, 129, 5)].into_iter().cycle())
    {
        for level in SimdLevel::supported() {
            let weight = matrix(&pool, format, rows, cols, &test_weights(rows, cols, 0.6, 4));
            let (x, bias) = (inputs(n * cols, 5), inputs(rows, 6));
            let want = multiply(Exec { pool: &pool, level: SimdLevel::SCALAR }, &weight, &x, &bias);
            let (_, out, _) = multiply_softly(Exec { pool: &pool, level }, &weight, &x, &bias);
            same(format, &out, &want).unwrap();
        }
    }
}
