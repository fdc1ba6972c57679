//! Speed of parsing and of generating: `cargo run --release -p scrimp-rec --example parse_bench [FILE]`.
//!
//! Without FILE, Criteo's format, CSV and JSON lines are made in a temporary directory. One thread does all the work.

use scrimp_rec::{
    data::{Batch, DataSet, Hints, OpenOptions, RowSource},
    generate::{Generator, GeneratorOptions, write_file},
};
use std::{path::Path, time::Instant};

fn measure(name: &str, bytes: u64, source: &mut dyn RowSource) -> scrimp_rec::Result<()> {
    let mut best = f64::INFINITY;
    let mut rows = 0;
    for _ in 0..3 {
        source.rewind(0)?;
        let (mut batch, start) = (Batch::default(), Instant::now());
        rows = 0;
        while source.next_batch(4096, &mut batch)? > 0 {
            rows += batch.rows();
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let (mb, million) = (bytes as f64 / 1e6 / best, rows as f64 / 1e6 / best);
    eprintln!("{name:24} {mb:7.0} MB/s  {million:6.2} million rows/s  ({rows} rows, best of 3)");
    Ok(())
}

fn file(path: &Path) -> scrimp_rec::Result<()> {
    let data = DataSet::find(path)?;
    let options = OpenOptions { threads: 0, ..OpenOptions::default() };
    let (mut schema, _) = data.infer(&Hints::default())?;
    data.fit(&mut schema, &options)?;
    let name = format!("{} {}", data.format(), path.extension().unwrap_or_default().display());
    measure(&name, data.bytes(), &mut *data.open(&schema, &options)?)
}

fn main() -> scrimp_rec::Result<()> {
    if let Some(path) = std::env::args_os().nth(1) {
        return file(Path::new(&path));
    }
    let dir = std::env::temp_dir().join(format!("scrimp-parse-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| scrimp_rec::Error::io(&dir, e))?;
    let options = GeneratorOptions::criteo_tb(200_000);
    measure("generator", 0, &mut Generator::new(options.clone(), 0)?)?;
    for name in ["a.tsv", "a.csv", "a.tsv.gz"] {
        let path = dir.join(name);
        write_file(options.clone(), &path, 0, &mut |_| true)?;
        file(&path)?;
    }
    let _ = std::fs::remove_dir_all(&dir);
    Ok(())
}
