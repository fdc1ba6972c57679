//! Throughput of the linear kernels: `cargo run --release -p scrimp-kernels --example linear_bench [threads]`.
//!
//! Decode rotates through 512 MB of weights, so that nothing is timed in cache.
#![allow(clippy::print_stdout)]

use scrimp_kernels::{
    DType, Exec, Pool, SimdLevel,
    linear::{ActivationShape, Activations, Linear, LinearScratch, Matrix, StoredRows, linear},
    mem::Arena,
};
use std::time::Instant;

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    let (pool, level) = (Pool::new(threads).expect("threads"), SimdLevel::from_env().expect("level"));
    let exec = Exec { pool: &pool, level };
    println!("level {level}, {threads} threads");
    for (rows, cols) in [(1536, 576), (896, 4864), (8960, 1536)] {
        for dtype in [DType::Q4_1, DType::Q5_0, DType::Q8_0, DType::Q4_K, DType::Q6_K, DType::BF16] {
            let Some(bytes) = Matrix::packed_bytes(dtype, rows, cols) else { continue };
            let copies = (512 << 20) / bytes;
            let mut arena = Arena::new(bytes * copies).expect("memory");
            let data = vec![0x11; dtype.row_bytes(cols).expect("whole blocks") * rows];
            let weights: Vec<_> = (0..copies)
                .map(|_| {
                    Matrix::pack(&pool, &mut arena, StoredRows { dtype, rows, cols, data: &data })
                        .expect("memory")
                })
                .collect();
            let mut scratch = LinearScratch::default();
            let mut report = format!("{dtype:5} {rows:5} x {cols:4}");
            for n in [1, 2, 4, 8, 16, 32, 512] {
                let mut x = Activations::new();
                x.fill(exec, ActivationShape { n_tokens: n, cols, needs: weights[0].needs() }, |_, x| {
                    x.fill(0.5);
                });
                let mut out = vec![0.0; n * rows];
                let mut best = f64::INFINITY;
                let (rounds, per_round) = if n < 64 {
                    (5, copies / (n + 2).min(8))
                } else {
                    (5, 1 + 2000 / n / ((rows * cols) >> 20).max(1))
                };
                for _ in 0..rounds {
                    let start = Instant::now();
                    for weight in weights.iter().cycle().take(per_round) {
                        let product =
                            Linear { weight, bias: None, out: &mut out, stride: rows, accumulate: false };
                        linear(exec, &mut scratch, &x, &mut [product]);
                    }
                    best = best.min(start.elapsed().as_secs_f64() / per_round as f64);
                }
                let ops = 2.0 * (rows * cols * n) as f64 / best / 1e9;
                if n == 1 {
                    report += &format!("  n=1: {:5.1} GB/s {:6.1} us", bytes as f64 / best / 1e9, best * 1e6);
                } else {
                    report += &format!("  n={n}: {ops:6.1} GOP/s");
                }
            }
            println!("{report}");
        }
    }
}
