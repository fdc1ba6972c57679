//! `scrimp bench embedding`.

use crate::{App, cli::bench::BenchEmbeddingArgs, format};
use anyhow::Context as _;
use scrimp_kernels::{Pool, SimdLevel, exec};
use scrimp_rec::bench::{self, EmbeddingBench, EmbeddingSpeed};
use std::num::NonZeroUsize;

/// Bytes of the full table where memory allows.
const FULL_BYTES: u64 = 10_000_000_000;

/// Runs the benchmark.
pub(crate) fn run(app: &App, args: &BenchEmbeddingArgs) -> anyhow::Result<()> {
    let dim = args.dim.get();
    let rows = || (FULL_BYTES.min(available_bytes() / 2) / (dim as u64 * 4)).max(1);
    let options = EmbeddingBench {
        rows_full: args.rows_full.map_or_else(|| rows() as usize, NonZeroUsize::get),
        dim,
        batch: args.batch.get(),
        features: args.features.get(),
        rounds: 6,
    };
    let threads = app.global.threads.map_or_else(exec::available_threads, NonZeroUsize::get);
    let pool = Pool::new(threads).context("cannot start threads")?;
    let tier = SimdLevel::from_env()?;
    let results = bench::embedding(&pool, tier, &options)?;
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

/// Memory that can be had without swapping; 4 GB where the system does not say.
fn available_bytes() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).map_or(4 << 30, |kb: u64| kb * 1024)
}
