//! `scrimp bench embedding`.

use crate::{App, cli::bench::BenchEmbeddingArgs, format};
use scrimp_kernels::{Exec, SimdLevel, system};
use scrimp_rec::bench::{self, EmbeddingBench, EmbeddingSpeed};
use std::num::NonZeroUsize;

/// Size of the full table in bytes, if the memory suffices.
const FULL_BYTES: u64 = 10_000_000_000;

/// Runs the benchmark.
pub(crate) fn run(app: &App, args: &BenchEmbeddingArgs) -> anyhow::Result<()> {
    let dim = args.dim.get();
    let available = system::memory().available.unwrap_or(4 << 30);
    let rows = || (FULL_BYTES.min(available / 2) / (dim as u64 * 4)).max(1);
    let options = EmbeddingBench {
        rows_full: args.rows_full.map_or_else(|| rows() as usize, NonZeroUsize::get),
        dim,
        batch: args.batch.get(),
        features: args.features.get(),
        rounds: 6,
    };
    let pool = app.pool()?;
    let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
    let results = bench::embedding(exec, &options)?;
    if app.printer.is_json() {
        for result in &results {
            app.printer.result(result, |_| String::new())?;
        }
        return Ok(());
    }
    app.printer.result(&results, |results| {
        let row = |r: &EmbeddingSpeed| {
            vec![
                r.encoder.clone(),
                r.dtype.to_owned(),
                format::bytes(r.bytes as u64),
                format!("{:.1}", r.ns_per_lookup),
                format!("{:.2}", r.speedup_vs_full),
                format!("{:.0}", r.ns_single),
                format!("{:.2}", r.single_speedup_vs_full),
            ]
        };
        let rows: Vec<_> = results.iter().map(row).collect();
        format::table(&["encoder", "rows", "bytes", "ns", "speed-up", "single ns", "speed-up"], &rows)
    })
}
