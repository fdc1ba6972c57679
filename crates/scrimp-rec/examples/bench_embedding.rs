//! tmp
use scrimp_rec::bench::*;
fn main() {
    let n = std::env::args().nth(1).unwrap().parse().unwrap();
    let pool = scrimp_kernels::threads::Pool::new(std::env::args().nth(2).map_or(2, |n| n.parse().unwrap()))
        .unwrap();
    let o = EmbeddingBench { rows_full: n, dim: 128, batch: 2048, features: 26, rounds: 6 };
    for s in embedding(&pool, scrimp_kernels::Tier::detect(), &o).unwrap() {
        println!(
            "{:28} {:5} {:>12} {:7.1} {:6.2} {:7.1} {:6.2}",
            s.encoder,
            s.dtype,
            s.bytes,
            s.ns_per_lookup,
            s.speedup_vs_full,
            s.ns_single,
            s.single_speedup_vs_full
        );
    }
}
