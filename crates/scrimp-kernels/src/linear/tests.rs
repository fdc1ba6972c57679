//! Every format in every level against plain dequantized f64 arithmetic, and levels against each other bit by bit.

use super::*;
use crate::{DType, arch::SimdLevel, exec::Pool, mem::Arena, quant::dequantize::dequantize_row};
use proptest::prelude::*;
use scrimp_base::SplitMix64;

/// Replaces the scales and minima of a block. Those of 8 bits become moderate.
fn set_scales(dtype: DType, block: &mut [u8], mut scale: impl FnMut() -> half::f16) {
    for &at in dtype.half_fields() {
        block[at..at + 2].copy_from_slice(&scale().to_le_bytes());
    }
    match dtype {
        DType::IQ1_M => {
            let bits = scale().to_bits();
            for i in 0..4 {
                let to = &mut block[49 + 2 * i];
                *to = *to & 15 | ((bits >> (4 * i) & 15) as u8) << 4;
            }
        }
        DType::MXFP4 => block[0] = 117 + block[0] % 12,
        DType::NVFP4 => block[..4].iter_mut().for_each(|scale| *scale %= 64),
        DType::CB4 | DType::CB3 | DType::CB2 => block[0] &= 0xbf,
        _ => {}
    }
}

/// Makes one scale (or number) of a block infinite or NaN; false for types without such scales.
fn spoil(dtype: DType, block: &mut [u8]) -> bool {
    match dtype {
        DType::F32 => block.copy_from_slice(&f32::NAN.to_le_bytes()),
        DType::F16 | DType::BF16 => block.copy_from_slice(&[0xc0, 0x7f]),
        DType::MXFP4 => block[0] = 253,
        DType::NVFP4 | DType::CB4 | DType::CB3 | DType::CB2 => return false,
        DType::IQ1_M => set_scales(dtype, block, || half::f16::NAN),
        _ => {
            let at = *dtype.half_fields().last().expect("a scale");
            block[at..at + 2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
        }
    }
    true
}

/// Stored rows with random contents whose scales are finite and moderate.
pub(super) fn random_rows(dtype: DType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut random = SplitMix64::new(seed);
    let mut next = || random.next_u64();
    let mut data = vec![0u8; rows * dtype.row_bytes(cols).unwrap()];
    for block in data.chunks_exact_mut(dtype.block_bytes()) {
        block.iter_mut().for_each(|b| *b = (next() >> 24) as u8);
        match dtype {
            DType::F32 => block.copy_from_slice(&((next() % 2001) as f32 / 1000.0 - 1.0).to_le_bytes()),
            DType::F16 => {
                let x = half::f16::from_f32((next() % 2001) as f32 / 1000.0 - 1.0);
                block.copy_from_slice(&x.to_le_bytes());
            }
            DType::BF16 => {
                let x = half::bf16::from_f32((next() % 2001) as f32 / 1000.0 - 1.0);
                block.copy_from_slice(&x.to_le_bytes());
            }
            _ => {}
        }
        set_scales(dtype, block, || half::f16::from_f32((next() % 2001) as f32 / 1000.0 - 1.0));
    }
    data
}

pub(super) fn pack(pool: &Pool, dtype: DType, rows: usize, cols: usize, data: &[u8]) -> Matrix {
    let mut arena = Arena::new(Matrix::packed_bytes(dtype, rows, cols).unwrap()).unwrap();
    Matrix::pack(pool, &mut arena, StoredRows { dtype, rows, cols, data }).unwrap()
}

fn activations(exec: Exec<'_>, weight: &Matrix, x: &[f32]) -> Activations {
    let cols = weight.cols();
    let mut activations = Activations::new();
    let shape = ActivationShape { n_tokens: x.len() / cols, cols, needs: weight.needs() };
    activations.fill(exec, shape, |t, out| {
        out.copy_from_slice(&x[t * cols..(t + 1) * cols]);
    });
    activations
}

fn multiply(
    exec: Exec<'_>,
    weight: &Matrix,
    x: &[f32],
    bias: Option<&[f32]>,
    start: Option<&[f32]>,
) -> Vec<f32> {
    let n = x.len() / weight.cols();
    let mut out = start.map_or_else(|| vec![f32::NAN; n * weight.rows()], <[f32]>::to_vec);
    let x = activations(exec, weight, x);
    let product = Linear { weight, bias, out: &mut out, stride: weight.rows(), accumulate: start.is_some() };
    linear(exec, &mut LinearScratch::default(), &x, &mut [product]);
    out
}

fn inputs(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) % 1999) as f32 / 500.0 - 2.0).collect()
}

#[test]
fn packed_rows_hold_the_stored_values() {
    let pool = Pool::new(2).unwrap();
    for dtype in DType::ALL {
        let (rows, cols) = (19, 512);
        let data = random_rows(dtype, rows, cols, 7);
        let weight = pack(&pool, dtype, rows, cols, &data);
        for level in SimdLevel::supported() {
            for (r, stored) in data.chunks_exact(data.len() / rows).enumerate() {
                let (mut got, mut want) = (vec![0.0; cols], vec![0.0; cols]);
                weight.row(level, r, &mut got);
                dequantize_row(dtype, stored, &mut want);
                assert_eq!(got, want, "{dtype} row {r} {level}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(24)))]

    #[test]
    fn products_match_f64_and_levels_agree_bit_by_bit(
        which in 0..DType::ALL.len(), rows in 1usize..70, blocks in 1usize..4, n_tokens in 1usize..30, seed: u64,
        threads in 1usize..4, with_bias: bool, accumulate: bool,
    ) {
        let dtype = DType::ALL[which];
        let cols = if dtype.block_len() == 1 { 29 * blocks } else { dtype.block_len() * blocks };
        let pool = Pool::new(threads).unwrap();
        let data = random_rows(dtype, rows, cols, seed);
        let weight = pack(&pool, dtype, rows, cols, &data);
        let x = inputs(n_tokens * cols, seed);
        let bias = inputs(rows, seed ^ 5);
        let before = inputs(rows * n_tokens, seed ^ 9);
        let bias = with_bias.then_some(&bias[..]);
        let start = accumulate.then_some(&before[..]);
        let mut first: Option<Vec<f32>> = None;
        for level in SimdLevel::supported() {
            let got = multiply(Exec { pool: &pool, level }, &weight, &x, bias, start);
            // One token at a time gives the same bits as the batch.
            for t in [0, n_tokens - 1] {
                let start = start.map(|s| &s[t * rows..(t + 1) * rows]);
                let alone = multiply(Exec { pool: &pool, level }, &weight, &x[t * cols..(t + 1) * cols], bias, start);
                prop_assert_eq!(&alone[..], &got[t * rows..(t + 1) * rows]);
            }
            if let Some(first) = &first {
                prop_assert_eq!(first, &got, "{} {}", dtype, level);
            } else {
                first = Some(got);
            }
        }
        let got = first.unwrap();
        let mut w = vec![0.0; cols];
        for r in 0..rows {
            dequantize_row(dtype, &data[r * data.len() / rows..(r + 1) * data.len() / rows], &mut w);
            for t in 0..n_tokens {
                let x = &x[t * cols..(t + 1) * cols];
                let (mut want, mut error) = (0.0f64, 0.0f64);
                for (w, x) in w.chunks(32).zip(x.chunks(32)) {
                    // 8-bit activations: at most half a step per product.
                    let step = x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
                    let step = if dtype.block_len() == 1 { 0.0 } else { f64::from(step) };
                    for (&w, &x) in w.iter().zip(x) {
                        want += f64::from(w) * f64::from(x);
                        error += f64::from(w).abs() * (step * 0.51 + f64::from(x).abs() * 1e-5);
                    }
                }
                want += bias.map_or(0.0, |b| f64::from(b[r])) + start.map_or(0.0, |s| f64::from(s[t * rows + r]));
                // Formats with a minimum cancel large parts against each other.
                let slack = error * if matches!(dtype, DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K | DType::Q2_K) { 3.0 } else { 1.0 };
                prop_assert!((f64::from(got[t * rows + r]) - want).abs() <= slack + 1e-3, "{dtype}: {} vs {want}", got[t * rows + r]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(24)))]

    // Batches whose tokens are cut into blocks for several threads (with tile registers they are not, and are bf16).
    #[test]
    fn large_batches_give_the_bits_of_single_tokens(
        which in 0..DType::ALL.len(), rows in 1usize..70, n_tokens in 30usize..120, seed: u64, threads in 1usize..6,
    ) {
        let dtype = DType::ALL[which];
        let cols = dtype.block_len().max(29);
        let pool = Pool::new(threads).unwrap();
        let weight = pack(&pool, dtype, rows, cols, &random_rows(dtype, rows, cols, seed));
        let x = inputs(n_tokens * cols, seed);
        for level in SimdLevel::supported().into_iter().filter(|level| !level.has_amx()) {
            let got = multiply(Exec { pool: &pool, level }, &weight, &x, None, None);
            for (t, (x, got)) in x.chunks_exact(cols).zip(got.chunks_exact(rows)).enumerate() {
                let alone = multiply(Exec { pool: &pool, level }, &weight, x, None, None);
                prop_assert_eq!(&alone[..], got, "token {} of {} {}", t, dtype, level);
            }
        }
    }
}

#[test]
fn non_finite_inputs_give_nan_for_their_token_only() {
    let pool = Pool::new(2).unwrap();
    let weight = pack(&pool, DType::Q4_0, 33, 64, &random_rows(DType::Q4_0, 33, 64, 3));
    let mut x = inputs(3 * 64, 1);
    x[64 + 40] = f32::INFINITY;
    for level in SimdLevel::supported() {
        let y = multiply(Exec { pool: &pool, level }, &weight, &x, None, None);
        assert!(y[33..66].iter().all(|y| y.is_nan()));
        assert!(y[..33].iter().chain(&y[66..]).all(|y| y.is_finite()));
    }
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let pool = Pool::new(2).unwrap();
    for dtype in DType::ALL {
        let mut data = random_rows(dtype, 20, 512, 3);
        let last_block = data.len() - dtype.block_bytes();
        if !spoil(dtype, &mut data[last_block..]) {
            continue;
        }
        let mut arena = Arena::new(Matrix::packed_bytes(dtype, 20, 512).unwrap()).unwrap();
        assert!(
            Matrix::pack(&pool, &mut arena, StoredRows { dtype, rows: 20, cols: 512, data: &data }).is_err(),
            "{dtype}"
        );
    }
}

#[test]
fn the_largest_quants_do_not_overflow_narrow_sums() {
    let pool = Pool::new(1).unwrap();
    let inputs: [fn(usize) -> f32; 4] = [
        |_| 1.0,
        |_| -1.0,
        |i| if i % 2 == 0 { 1.0 } else { -1.0 },
        |i| if i % 32 < 16 { 1.0 } else { -1.0 },
    ];
    for dtype in DType::ALL.into_iter().filter(|dtype| dtype.block_len() > 1) {
        for byte in [0x00, 0x7f, 0x80, 0xff] {
            let mut data = vec![byte; 16 * dtype.row_bytes(256).unwrap()];
            for block in data.chunks_exact_mut(dtype.block_bytes()) {
                set_scales(dtype, block, || half::f16::ONE);
            }
            let weight = pack(&pool, dtype, 16, 256, &data);
            for input in inputs {
                let one: Vec<f32> = (0..256).map(input).collect();
                // Alone and as part of a batch: different kernels.
                for x in [one.clone(), one.repeat(5)] {
                    let want =
                        multiply(Exec { pool: &pool, level: SimdLevel::SCALAR }, &weight, &x, None, None);
                    for level in SimdLevel::supported() {
                        let got = multiply(Exec { pool: &pool, level }, &weight, &x, None, None);
                        assert_eq!(got, want, "{dtype} {byte:#x} {level}");
                    }
                }
            }
        }
    }
}

/// Groups with inputs of different sizes, among them groups without tokens, in one region and one by one.
#[test]
fn groups_have_the_bits_of_separate_products() {
    let pool = Pool::new(3).unwrap();
    for (dtype, rows, cols) in [(DType::Q4_K, 40, 512), (DType::Q8_0, 33, 96), (DType::F32, 17, 70)] {
        let weights: Vec<Matrix> =
            (0..5).map(|i| pack(&pool, dtype, rows, cols, &random_rows(dtype, rows, cols, i))).collect();
        let n_tokens = [3, 0, 1, 60, 13];
        let rows_of: Vec<Vec<f32>> = (0..5).map(|i| inputs(n_tokens[i] * cols, i as u64)).collect();
        for level in SimdLevel::supported() {
            let exec = Exec { pool: &pool, level: level.exact() };
            let needs = weights[0].needs();
            let mut batches: Vec<Activations> = (0..6).map(|_| Activations::new()).collect();
            let shapes = BatchShapes { n_tokens: &n_tokens, cols, needs };
            Activations::fill_each(exec, &mut batches, shapes, |i, t, row| {
                row.copy_from_slice(&rows_of[i][t * cols..(t + 1) * cols]);
            });
            let mut outs: Vec<Vec<f32>> = n_tokens.iter().map(|n| vec![f32::NAN; n * rows]).collect();
            let mut products: Vec<_> = weights
                .iter()
                .zip(&mut outs)
                .map(|(weight, out)| [Linear { weight, bias: None, out, stride: rows, accumulate: false }])
                .collect();
            let groups = products.iter_mut().zip(&batches).map(|(products, x)| LinearGroup { x, products });
            linear_groups(exec, &mut LinearScratch::default(), &mut groups.collect::<Vec<_>>());
            for (i, out) in outs.iter().enumerate() {
                assert_eq!(*out, multiply(exec, &weights[i], &rows_of[i], None, None), "{dtype} {level} {i}");
            }
        }
    }
}
