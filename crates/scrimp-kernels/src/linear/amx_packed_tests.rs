//! The compiled AMX kernels, executed by the CPU or by the emulator, against the other levels; the emulator against the
//! manual.

use super::{Activations, Linear, LinearScratch, Matrix, amx_packed::*, linear};
#[cfg(target_os = "linux")]
use crate::quant::packed::DenseMatrix;
use crate::{
    arch::{
        SimdLevel,
        amx::{Tile, asm, emulator, soft},
    },
    exec::{Exec, Pool},
    linear::ActivationShape,
    mem::Arena,
    quant::packed::{PackedView, WeightFormat, pack, test_weights},
};
use bytemuck::Pod;
use proptest::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Counts of executed instructions are of one test at a time.
pub(super) static ONE: Mutex<()> = Mutex::new(());

/// A level whose tile instructions the CPU or the emulator executes; `None`, with a message, without AVX-512.
pub(super) fn amx() -> Option<(SimdLevel, bool)> {
    if let Some(level) = SimdLevel::amx() {
        return Some((level, true));
    }
    #[cfg(target_os = "linux")]
    if let Some(level) = SimdLevel::emulated_amx() {
        emulator::install();
        return Some((level, false));
    }
    eprintln!("SKIPPED: the compiled AMX kernels need AVX-512, which this CPU lacks");
    None
}

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
    #![proptest_config(ProptestConfig::with_cases(24))]

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
            #[cfg(target_os = "linux")]
            emulator::EXECUTED.store(0, std::sync::atomic::Ordering::Relaxed);
            let got = multiply(Exec { pool: &pool, level }, &weight, &x, &bias);
            same(format, &got, &multiply(Exec { pool: &pool, level: SimdLevel::SCALAR }, &weight, &x, &bias))
                .unwrap();
            if native {
                continue;
            }
            #[cfg(target_os = "linux")]
            {
                let executed = emulator::EXECUTED.load(std::sync::atomic::Ordering::Relaxed);
                // Five panels in tasks of two, ldtilecfg and tilerelease once; few tokens take vector instructions.
                let task = |panels| predicted(panels, b_tiles, n);
                let want = if n <= FEW_TOKENS { 0 } else { 2 + 2 * task(2) + task(1) };
                eprintln!("{format}, {n} tokens: {executed} tile instructions");
                assert_eq!(executed, want, "{format}, {n} tokens");
            }
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

/// Executes tile instructions, on the CPU or the emulator.
fn with_tiles(config: &[u8; 64], body: impl FnOnce(&mut asm::Amx)) {
    // SAFETY: callers have installed the emulator or found the instructions.
    let mut tile = unsafe { asm::Amx::assume() };
    // SAFETY: `amx()` has found AMX, or installed the emulator.
    unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) config.as_ptr()) };
    body(&mut tile);
    tile.release();
}

/// C and A tiles of `m` rows, inner dimension of `k` 4-byte columns, `n` results.
fn config(m: usize, k: usize, n: usize) -> [u8; 64] {
    let mut config = [0; 64];
    config[0] = 1;
    for (t, (rows, width)) in [(m, 4 * n), (m, 4 * k), (k, 4 * n)].into_iter().enumerate() {
        config[16 + 2 * t] = width as u8;
        config[48 + t] = rows as u8;
    }
    config
}

/// `c += a b` by the instruction `dot`, each matrix being 16 rows of 64 bytes.
fn add_product<C: Pod, A: Pod, B: Pod>(
    (m, k, n): (usize, usize, usize),
    c: &mut C,
    a: &A,
    b: &B,
    dot: fn(&mut asm::Amx),
) {
    let c: &mut [u8; 1024] = bytemuck::cast_mut(c);
    let (a, b): (&[u8; 1024], &[u8; 1024]) = (bytemuck::cast_ref(a), bytemuck::cast_ref(b));
    with_tiles(&config(m, k, n), |tile| {
        // SAFETY: 16 rows of 64 bytes each.
        unsafe {
            tile.load::<0>(c.as_ptr(), 64);
            tile.load::<1>(a.as_ptr(), 64);
            tile.load::<2>(b.as_ptr(), 64);
            dot(tile);
            tile.store::<0>(c.as_mut_ptr(), 64);
        }
    });
}

fn bf16(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

/// `TDPBF16PS` on one row of A and one column of B, spelled out.
fn manual_bf16(c: f32, a: &[[f32; 2]], b: &[[f32; 2]]) -> f32 {
    let daz = |x: f32| if x != 0.0 && x.abs() < f32::MIN_POSITIVE { 0.0 * x.signum() } else { x };
    let (mut even, mut odd) = (0f32, 0f32);
    for (a, b) in a.iter().zip(b) {
        even = daz(daz(a[0]).mul_add(daz(b[0]), even));
        odd = daz(daz(a[1]).mul_add(daz(b[1]), odd));
    }
    daz(daz(c) + daz(even + odd))
}

#[test]
fn emulated_bf16_products_follow_the_manual() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if amx().is_none() {
        return;
    }
    let denormal = f32::from_bits(0x0040_0000);
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        3.0e38,
        -3.0e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        denormal,
        -denormal,
        1.0e-38,
        1.0e-20,
    ];
    let mut state = 12345u64;
    let mut pick = |all: bool| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = (state >> 33) as usize;
        if all && x.is_multiple_of(3) {
            special[x / 3 % special.len()]
        } else {
            (x % 512) as f32 / 64.0 - 4.0
        }
    };
    for (m, k, n) in [(16, 16, 16), (1, 1, 1), (3, 7, 5), (16, 2, 9), (5, 16, 16)] {
        for all in [false, true] {
            let mut a = [[0u16; 32]; 16];
            let mut b = [[0u16; 32]; 16];
            let mut c = [[0f32; 16]; 16];
            a.iter_mut().flatten().for_each(|x| *x = bf16(pick(all)));
            b.iter_mut().flatten().for_each(|x| *x = bf16(pick(all)));
            c.iter_mut().flatten().for_each(|x| *x = pick(all));
            let before = c;
            add_product((m, k, n), &mut c, &a, &b, asm::Amx::dot_bf16::<0, 1, 2>);
            let f = |x: u16| f32::from_bits(u32::from(x) << 16);
            for i in 0..16 {
                for j in 0..16 {
                    let got = c[i][j];
                    // Rows and columns beyond the configured ones are not stored.
                    let want = if i < m && j < n {
                        let a: Vec<_> = (0..k).map(|p| [f(a[i][2 * p]), f(a[i][2 * p + 1])]).collect();
                        let b: Vec<_> = (0..k).map(|p| [f(b[p][2 * j]), f(b[p][2 * j + 1])]).collect();
                        manual_bf16(before[i][j], &a, &b)
                    } else {
                        before[i][j]
                    };
                    let equal = got == want || got.is_nan() && want.is_nan();
                    assert!(equal, "{m} {k} {n}, row {i} column {j}: {got} instead of {want}");
                }
            }
        }
    }
}

#[test]
fn emulated_integer_products_wrap_and_do_not_saturate() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if amx().is_none() {
        return;
    }
    for ((m, k, n), signed) in
        [(16, 16, 16), (2, 3, 4), (1, 16, 1)].into_iter().flat_map(|shape| [(shape, false), (shape, true)])
    {
        let a: [[i8; 64]; 16] =
            std::array::from_fn(|i| std::array::from_fn(|j| [127, -128, -1, 5][(i + j) % 4]));
        let b: [[u8; 64]; 16] =
            std::array::from_fn(|i| std::array::from_fn(|j| [255, 0, 128, 7][(3 * i + j / 4) % 4]));
        let mut c: [[i32; 16]; 16] =
            std::array::from_fn(|i| std::array::from_fn(|j| [i32::MAX, i32::MIN, 0][(i + j) % 3]));
        let before = c;
        let dot: fn(&mut asm::Amx) =
            if signed { asm::Amx::dot_i8::<0, 1, 2> } else { asm::Amx::dot_i8u8::<0, 1, 2> };
        add_product((m, k, n), &mut c, &a, &b, dot);
        for i in 0..16 {
            for j in 0..16 {
                let mut want = i64::from(before[i][j]);
                if i < m && j < n {
                    for p in 0..4 * k {
                        let b = b[p / 4][4 * j + p % 4];
                        want += i64::from(a[i][p]) * if signed { i64::from(b as i8) } else { i64::from(b) };
                    }
                }
                assert_eq!(c[i][j], want as i32, "{m} {k} {n}, row {i} column {j}");
            }
        }
    }
}

#[test]
fn tile_rows_are_read_and_written_with_their_stride() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if amx().is_none() {
        return;
    }
    let from: Vec<u8> = (0..16 * 80).map(|i| (i % 251) as u8).collect();
    let mut to = vec![0xee; 16 * 96];
    with_tiles(&config(3, 2, 5), |tile| {
        // SAFETY: 3 rows of 20 bytes, at distances of 80 and 96.
        unsafe {
            tile.load::<0>(from.as_ptr(), 80);
            tile.store::<0>(to.as_mut_ptr(), 96);
            // A tile that is zeroed again.
            tile.zero::<0>();
            tile.store::<0>(to.as_mut_ptr().add(96 * 8), 96);
        }
    });
    for (i, &got) in to.iter().enumerate() {
        let (row, col) = (i / 96, i % 96);
        let want = match row {
            0..3 if col < 20 => from[80 * row + col],
            8..11 if col < 20 => 0,
            _ => 0xee,
        };
        assert_eq!(got, want, "row {row}, byte {col}");
    }
}
