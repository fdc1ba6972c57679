//! One linear layer, repeated, for an emulator that counts instructions:
//! `count_linear FORMAT ROWS COLS TOKENS REPEATS [SPARSITY]`.
//!
//! A repetition quantizes the activations and multiplies, on one thread. The difference of two runs with different
//! `REPEATS` has no set-up. Prints the bytes of the weights. `benches/arm/count.py` runs it.
#![allow(clippy::print_stdout)]

use scrimp_kernels::{
    DType, Exec, Pool, SimdLevel,
    linear::{ActivationShape, Activations, Linear, LinearScratch, Matrix, StoredRows, linear},
    mem::Arena,
    quant::packed::{DenseMatrix, PackedView, WeightFormat, pack},
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| arguments[i].parse::<usize>().expect("a number");
    let (rows, cols, tokens, repeats) = (number(1), number(2), number(3), number(4));
    let sparsity = arguments.get(5).map_or(0.5, |s| s.parse().expect("a fraction"));
    let (pool, level) = (Pool::new(1).expect("a thread"), SimdLevel::from_env().expect("a level"));
    let weight = matrix(&pool, &arguments[0], rows, cols, sparsity);
    let exec = Exec { pool: &pool, level };
    let mut x = Activations::new();
    let mut scratch = LinearScratch::default();
    let mut out = vec![0.0; tokens * rows];
    for _ in 0..repeats {
        let shape = ActivationShape { n_tokens: tokens, cols, needs: weight.needs() };
        x.fill(exec, shape, |_, x| x.fill(0.5));
        let product = Linear { weight: &weight, bias: None, out: &mut out, stride: rows, accumulate: false };
        linear(exec, &mut scratch, &x, &mut [product]);
    }
    println!("{}", weight.bytes());
}

/// Weights of a format by its name; those of a sparse one are zero with the probability `sparsity`.
fn matrix(pool: &Pool, format: &str, rows: usize, cols: usize, sparsity: f64) -> Matrix {
    if let Some(format) = WeightFormat::ALL.into_iter().find(|f| f.name() == format) {
        let weights: Vec<f32> = (0..(rows * cols) as u32)
            .map(|i| i.wrapping_mul(2_654_435_761).rotate_left(15).wrapping_mul(2_246_822_519))
            .map(|random| f64::from(random) / f64::from(u32::MAX))
            .map(|x| if format.is_sparse() && x < sparsity { 0.0 } else { 0.5 })
            .collect();
        let bytes = pack(pool, format, DenseMatrix { rows, cols, weights: &weights }, None).expect("finite");
        let view = PackedView::new(format, rows, cols, &bytes).expect("packed");
        let mut arena = Arena::new(Arena::size_of(bytes.len())).expect("memory");
        return Matrix::from_packed(pool, &mut arena, &view).expect("memory");
    }
    let dtype = DType::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(format)).expect("a format");
    let bytes = Matrix::packed_bytes(dtype, rows, cols).expect("whole blocks");
    let mut arena = Arena::new(bytes).expect("memory");
    let data = vec![0x11; dtype.row_bytes(cols).expect("whole blocks") * rows];
    Matrix::pack(pool, &mut arena, StoredRows { dtype, rows, cols, data: &data }).expect("finite weights")
}
