//! Time of a lookup for one shape: `embedding_bench ROWS WIDTH BLOCKS K BAG ALPHA THREADS`, int8.
#![allow(clippy::print_stdout)]

use scrimp_kernels::{Exec, SimdLevel, embedding::*, exec::Pool, mem::Arena};
use std::time::Instant;

fn main() {
    let a: Vec<usize> = std::env::args().skip(1).map(|x| x.parse().expect("a number")).collect();
    let [rows, block_dim, blocks, num_hashes, bag, alpha, threads] = a[..] else { panic!("seven numbers") };
    let q = vec![1_i8; rows * block_dim];
    let weights = vec![1.0_f32; 4096];
    let features = 26;
    let hashes: Vec<_> = (0..features).map(|f| IdHash::new(1, f as u32)).collect();
    let range = |rows: usize| vec![RowRange { base: 0, rows: rows as u32 }; features];
    let (ranges, weight_ranges) = (range(rows), range(4096));
    let hashing = Hashing { hashes: &hashes, ranges: &ranges, per_lookup: blocks * num_hashes, signs: false };
    let weight_hashing = Hashing { hashes: &hashes, ranges: &weight_ranges, per_lookup: 1, signs: false };
    let ids: Vec<u64> = (0..2048 * features as u64).collect();
    let pool = Pool::new(threads).unwrap();
    let size = ids.len() / bag * blocks * block_dim * 4;
    let mut memory = Arena::new(Arena::size_of(size)).and_then(|mut a| a.alloc(size)).expect("memory");
    let out: &mut [f32] = bytemuck::cast_slice_mut(&mut memory);
    let mut best = f64::MAX;
    for _ in 0..300 {
        let scales = if alpha > 0 {
            Scales::Hashed { weights: &weights, hashing: weight_hashing, groups: 1, scale: 1.0 }
        } else {
            Scales::One(1.0)
        };
        let batch = Batch {
            table: Table::new(Values::Int8 { q: &q, scale: 1.0 }, block_dim),
            indices: Indices::Hashed { ids: &ids, hashing },
            num_hashes,
            scales,
            bags: Bags::Fixed(bag),
            add: false,
        };
        let start = Instant::now();
        forward(Exec { pool: &pool, level: SimdLevel::detect() }, &batch, out);
        best = best.min(start.elapsed().as_secs_f64() / ids.len() as f64);
    }
    println!("{a:?}: {:.1} ns", best * 1e9);
}
