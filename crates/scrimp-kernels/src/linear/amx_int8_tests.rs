//! Few tokens of weights in blocks over tile registers (the CPU's, the emulator's, and plain Rust), bit for bit against
//! the scalar level without them.

use super::{
    Activations, Linear, LinearScratch, Matrix,
    amx_bf16_tests::{FORMATS, weights},
    amx_int8::INT8_TOKENS,
    amx_packed_tests::{inputs, multiply, multiply_softly},
    linear,
    plan::ActivationLayout,
};
use crate::{
    DType,
    arch::{
        SimdLevel,
        amx::testing::{ONE, amx, executed, reset},
    },
    exec::{Exec, Pool},
    linear::ActivationShape,
    quant::packed::WeightFormat,
};
use proptest::prelude::*;
use std::sync::PoisonError;

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// [`multiply_softly`] with activations that are stored for these kernels.
fn over_soft(exec: Exec<'_>, weight: &Matrix, x: &[f32], bias: &[f32]) -> (Vec<f32>, usize) {
    let (activations, out, executed) = multiply_softly(exec, weight, x, bias);
    assert!(
        matches!(activations.layout(), ActivationLayout::AmxInt8 { .. }),
        "{} tokens",
        activations.n_tokens()
    );
    (out, executed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(48)))]

    #[test]
    fn compiled_kernels_give_the_bits_of_the_scalar_level(
        which in 0..FORMATS, rows in 1usize..70, blocks in 1usize..12, n in 1..48usize, seed: u64, threads in 1usize..3,
    ) {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((level, _)) = amx() else { return Ok(()) };
        let pool = Pool::new(threads).unwrap();
        let (weight, _) = weights(&pool, which, rows, blocks, seed);
        let (x, bias) = (inputs(n * weight.cols(), seed), inputs(rows, seed ^ 3));
        let want = multiply(Exec { pool: &pool, level: SimdLevel::SCALAR }, &weight, &x, &bias);
        let got = multiply(Exec { pool: &pool, level }, &weight, &x, &bias);
        prop_assert_eq!(bits(&got), bits(&want), "{}", weight.format_name());
    }
}

#[test]
fn portable_tiles_give_the_bits_of_the_scalar_level() {
    let pool = Pool::new(2).unwrap();
    for which in 0..FORMATS {
        for n in INT8_TOKENS {
            let (weight, _) = weights(&pool, which, [40, 33, 16, 5][n % 4], 1 + (n + which) % 7, n as u64);
            let (x, bias) = (inputs(n * weight.cols(), 5), inputs(weight.rows(), 6));
            let want = bits(&multiply(Exec { pool: &pool, level: SimdLevel::SCALAR }, &weight, &x, &bias));
            for level in SimdLevel::supported() {
                let (got, _) = over_soft(Exec { pool: &pool, level }, &weight, &x, &bias);
                assert_eq!(bits(&got), want, "{}, {n} tokens in {level}", weight.format_name());
            }
        }
    }
}

#[test]
fn a_group_that_is_not_finite_is_nan_and_nothing_else() {
    let pool = Pool::new(1).unwrap();
    let (weight, _) = weights(&pool, 0, 16, 6, 1);
    let (cols, n) = (weight.cols(), 9);
    let mut x = inputs(n * cols, 5);
    x[3 * cols + 40] = f32::INFINITY;
    let (got, _) = over_soft(Exec { pool: &pool, level: SimdLevel::SCALAR }, &weight, &x, &[0.0; 16]);
    for (t, y) in got.chunks_exact(16).enumerate() {
        assert!(y.iter().all(|y| y.is_nan() == (t == 3)), "token {t}");
    }
}

/// Tile instructions: ldtilecfg and tilerelease, and two loads, a zero, a product and a store for each group, or each
/// half of one.
fn predicted(weight: &Matrix, n: usize) -> usize {
    let name = weight.format_name();
    let has_two_scales =
        ["Q3_K", "Q6_K", "NVFP4"].contains(&name) || ["IQ1", "IQ2"].iter().any(|iq| name.starts_with(iq));
    let halves = if has_two_scales { 2 } else { 1 };
    let products = weight.n_panels() * weight.cols().div_ceil(32) * halves;
    if INT8_TOKENS.contains(&n) { 2 + 5 * products } else { 0 }
}

#[test]
fn the_predicted_number_of_tile_instructions_is_executed() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = Pool::new(1).unwrap();
    for which in 0..FORMATS {
        let (weight, _) = weights(&pool, which, 40, 3, 1);
        for n in [*INT8_TOKENS.start(), 12, 13, 16] {
            let (_, executed) = over_soft(
                Exec { pool: &pool, level: SimdLevel::SCALAR },
                &weight,
                &inputs(n * weight.cols(), 1),
                &[0.0; 40],
            );
            assert_eq!(executed, predicted(&weight, n), "{}, {n} tokens", weight.format_name());
        }
        // The compiled kernels, where the emulator counts.
        if let Some((level, false)) = amx() {
            for n in [INT8_TOKENS.start() - 1, *INT8_TOKENS.start(), 16, 17] {
                reset();
                multiply(Exec { pool: &pool, level }, &weight, &inputs(n * weight.cols(), 1), &[0.0; 40]);
                assert_eq!(executed(), predicted(&weight, n), "{}, {n} tokens", weight.format_name());
            }
        }
    }
}

/// Matrices that use tile registers in different shapes share a region.
#[test]
fn shapes_change_within_a_region() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((level, _)) = amx() else { return };
    let pool = Pool::new(1).unwrap();
    let (rows, cols, n) = (40, 256, 9);
    let q6_k = DType::ALL.into_iter().filter(|d| d.block_len() > 1).position(|d| d == DType::Q6_K).unwrap();
    let blocks = [weights(&pool, 0, rows, 8, 1).0, weights(&pool, q6_k, rows, 1, 2).0];
    let values = crate::quant::packed::test_weights(rows, cols, 0.5, 3);
    let int8 = super::amx_packed_tests::matrix(&pool, WeightFormat::Int8, rows, cols, &values);
    let matrices = [&blocks[0], &int8, &blocks[1]];
    let x = inputs(n * cols, 5);
    let run = |level| {
        let mut activations = Activations::new();
        let needs = matrices.iter().fold(Default::default(), |needs: super::Needs, m| needs.and(m.needs()));
        let exec = Exec { pool: &pool, level };
        activations.fill(exec, ActivationShape { n_tokens: n, cols, needs }, |t, out| {
            out.copy_from_slice(&x[t * cols..(t + 1) * cols]);
        });
        let mut out = vec![vec![0.0; n * rows]; 3];
        let mut products: Vec<_> = matrices
            .iter()
            .zip(&mut out)
            .map(|(weight, out)| Linear { weight, bias: None, out, stride: rows, accumulate: false })
            .collect();
        linear(exec, &mut LinearScratch::default(), &activations, &mut products);
        out.concat()
    };
    assert_eq!(bits(&run(level)), bits(&run(SimdLevel::SCALAR)));
}
