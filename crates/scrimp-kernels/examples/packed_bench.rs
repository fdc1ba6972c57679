#![allow(clippy::print_stdout)]
use scrimp_kernels::{
    Tier,
    linear::bench::{Options, measure},
    threads::Pool,
};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let threads = a[1].parse().unwrap();
    let batches: Vec<usize> = a[2].split(',').map(|s| s.parse().unwrap()).collect();
    let sparsity = a[3].parse().unwrap();
    let formats: Vec<_> = a[4].split(',').map(|f| f.parse().unwrap()).collect();
    let pool = Pool::new(threads).unwrap();
    for batch in batches {
        let o = Options {
            rows: 14336,
            cols: 4096,
            batch,
            sparsity,
            formats: formats.clone(),
            seed: 1,
            time: std::time::Duration::from_secs_f64(a.get(5).map_or(2.0, |s| s.parse().unwrap())),
        };
        for t in measure(&pool, Tier::from_env().unwrap(), &o).unwrap() {
            println!(
                "batch {batch:3} {:12} {:8.1} us {:6.2} GB/s x{:.2}",
                t.format.name(),
                t.best.as_secs_f64() * 1e6,
                t.bytes as f64 / t.best.as_secs_f64() / 1e9,
                t.speedup_vs_dense_bf16
            );
        }
    }
}
