//! Weights in blocks over tile registers (the CPU's, the emulator's, and plain Rust) against dequantized f64
//! arithmetic.

use super::{
    Matrix,
    amx_bf16::BF16_TOKENS,
    amx_packed_tests::{inputs, matrix, multiply, multiply_softly},
    plan::ActivationLayout,
    tests::{pack, random_rows},
};
use crate::{
    DType,
    arch::{
        SimdLevel,
        amx::{
            TILE_STEPS,
            testing::{ONE, amx, executed, reset},
        },
    },
    exec::{Exec, Pool},
    quant::{
        dequantize::dequantize_row,
        packed::{WeightFormat, test_weights},
    },
};
use proptest::prelude::*;
use std::sync::PoisonError;

/// A matrix in one of the formats that are dequantized, and its values.
pub(super) fn weights(
    pool: &Pool,
    which: usize,
    rows: usize,
    blocks: usize,
    seed: u64,
) -> (Matrix, Vec<f32>) {
    let stored: Vec<_> = DType::ALL.into_iter().filter(|dtype| dtype.block_len() > 1).collect();
    let Some(&dtype) = stored.get(which) else {
        let format = [WeightFormat::Int4, WeightFormat::SparseInt4][which - stored.len()];
        let cols = 50 * blocks + 7;
        let weight = matrix(pool, format, rows, cols, &test_weights(rows, cols, 0.5, seed));
        let values = weight.packed().unwrap().to_dense_f32();
        return (weight, values);
    };
    let cols = dtype.block_len() * blocks;
    let data = random_rows(dtype, rows, cols, seed);
    let mut values = vec![0.0; rows * cols];
    for (stored, values) in data.chunks_exact(data.len() / rows).zip(values.chunks_exact_mut(cols)) {
        dequantize_row(dtype, stored, values);
    }
    (pack(pool, dtype, rows, cols, &data), values)
}

/// Formats of [`weights`].
pub(super) const FORMATS: usize = 10;

/// Compares results, to which 1 and the bias were added, with f64 arithmetic.
fn check(w: &[f32], x: &[f32], bias: &[f32], got: &[f32]) -> Result<(), String> {
    let rows = bias.len();
    let cols = w.len() / rows;
    for (t, x) in x.chunks_exact(cols).enumerate() {
        for (r, w) in w.chunks_exact(cols).enumerate() {
            let products = || w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let want = 1.0 + f64::from(bias[r]) + products().sum::<f64>();
            // Two factors rounded to 8 bits, whose errors do not all point the same way.
            let slack = 1e-3 + products().map(f64::abs).sum::<f64>() / 256.0;
            let got = f64::from(got[t * rows + r]);
            let error = (got - want).abs();
            if error.is_nan() || error > slack {
                return Err(format!("token {t}, row {r}: {got} instead of {want} within {slack}"));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(24)))]

    #[test]
    fn compiled_kernels_are_close_to_exact(
        which in 0..FORMATS, rows in 1usize..70, blocks in 1usize..4, n in BF16_TOKENS..100, seed: u64, threads in 1usize..3,
    ) {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((level, _)) = amx() else { return Ok(()) };
        let pool = Pool::new(threads).unwrap();
        let (weight, values) = weights(&pool, which, rows, blocks, seed);
        let (x, bias) = (inputs(n * weight.cols(), seed), inputs(rows, seed ^ 3));
        let got = multiply(Exec { pool: &pool, level }, &weight, &x, &bias);
        prop_assert_eq!(check(&values, &x, &bias, &got), Ok(()), "{}", weight.format_name());
        // Each token by itself: the same, whatever batch it is in, as long as that is a large one.
        let last = &x[(n - BF16_TOKENS) * weight.cols()..];
        prop_assert_eq!(&multiply(Exec { pool: &pool, level }, &weight, last, &bias)[..], &got[(n - BF16_TOKENS) * rows..]);
    }
}

#[test]
fn portable_tiles_give_the_same_in_every_level() {
    let pool = Pool::new(1).unwrap();
    for which in 0..FORMATS {
        let (rows, n) = ([40, 33, 16, 5][which % 4], [48, 50, 70, 129][which % 4]);
        let (weight, values) = weights(&pool, which, rows, 1 + which % 3, 4);
        let (x, bias) = (inputs(n * weight.cols(), 5), inputs(rows, 6));
        let mut first: Option<Vec<f32>> = None;
        for level in SimdLevel::supported() {
            let (activations, out, _) = multiply_softly(Exec { pool: &pool, level }, &weight, &x, &bias);
            assert!(matches!(activations.layout(), ActivationLayout::AmxBf16 { .. }));
            check(&values, &x, &bias, &out).unwrap();
            if let Some(first) = &first {
                assert_eq!(first, &out, "{} in {level}", weight.format_name());
            } else {
                first = Some(out);
            }
        }
    }
}

/// The number of AMX instructions of three panels in tasks of two, without ldtilecfg and tilerelease. Tests use two
/// groups of columns at a time for four token tiles.
fn predicted(groups: usize, n: usize) -> usize {
    let count = |token_tiles: usize, panels: usize| {
        // C is zeroed once, loaded for every other part, and stored for each.
        2 * groups.div_ceil(2) * token_tiles * panels + groups * (token_tiles + panels + token_tiles * panels)
    };
    match n.div_ceil(16) {
        _ if n < BF16_TOKENS => 0,
        3 => count(2, 2) + count(2, 1) + count(1, 2) + count(1, 1),
        4 => 2 * (count(2, 2) + count(2, 1)),
        n => unreachable!("{n} token tiles"),
    }
}

#[test]
fn the_predicted_number_of_tile_instructions_is_executed() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = Pool::new(1).unwrap();
    for which in 0..FORMATS {
        let (weight, _) = weights(&pool, which, 40, 1, 1);
        let (cols, groups) = (weight.cols(), weight.cols().div_ceil(2 * TILE_STEPS));
        for n in [BF16_TOKENS, 64] {
            let (_, _, executed) = multiply_softly(
                Exec { pool: &pool, level: SimdLevel::SCALAR },
                &weight,
                &inputs(n * cols, 1),
                &[0.0; 40],
            );
            assert_eq!(executed - 2, predicted(groups, n), "{}, {n} tokens", weight.format_name());
        }
        // The compiled kernels, where the emulator counts.
        if let Some((level, false)) = amx() {
            for n in [BF16_TOKENS - 1, BF16_TOKENS, 64] {
                reset();
                multiply(Exec { pool: &pool, level }, &weight, &inputs(n * cols, 1), &[0.0; 40]);
                // Tile registers that nobody asked for are neither configured nor released.
                let executed = executed().saturating_sub(2);
                assert_eq!(executed, predicted(groups, n), "{}, {n} tokens", weight.format_name());
            }
        }
    }
}
