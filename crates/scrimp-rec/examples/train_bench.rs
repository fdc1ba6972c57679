//! Speed of training, against `benches/embedding/dlrm_train.py`: `cargo run --release -p scrimp-rec --example train_bench -- [ENCODER]
//! [IDS PER FEATURE] [THREADS]` (full, 10000, 2).
//!
//! The model of that script: 13 numbers, 26 features, dim 64, batches of 2048 rows that lie in memory; compressed tables in int4, trained
//! through, as `rec train` has them. Prints one JSON object with rows per second, the best of three passes.

use scrimp_kernels::{Pool, SimdLevel};
use scrimp_rec::{
    data::{Batch, Memory, RowSource},
    encoders::{EncoderOptions, Exec, Precision, keys_for, plan},
    generate::{Generator, GeneratorOptions},
    model::Model,
    train::{Preset, TrainOptions, count_ids},
};
use std::time::Instant;

const ROWS: u64 = 2048 * 30;
const BATCH: usize = 2048;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let encoder = args.next().unwrap_or_else(|| "full".to_owned());
    let ids = args.next().map_or(Ok(10_000), |a| a.parse())?;
    let threads = args.next().map_or(Ok(2), |a| a.parse())?;
    let options = GeneratorOptions {
        rows: ROWS,
        numeric: 13,
        cardinalities: vec![ids; 26],
        zipf: 1.0,
        ..GeneratorOptions::default()
    };
    let mut rows = Memory::read(&mut Generator::new(options, 0)?)?;
    rows.rewind(0)?;
    let (id_counts, _) = count_ids(&mut rows, true, &mut |_, _| ())?;
    let full = id_counts.full_bytes(64);
    let budget = if encoder == "full" { full } else { full / 100 };
    let mut options = EncoderOptions::new(&encoder, 64, budget);
    if encoder != "full" {
        (options.precision, options.quantization_aware) = (Precision::Int4, true);
    }
    let config = plan(&options, &id_counts)?;
    let keys = keys_for(&config, &id_counts);
    let preset = Preset::named("dlrm").ok_or("no preset")?;
    let mut model = Model::new(preset.config(rows.schema().clone(), config, 1, full), &keys)?;
    let pool = Pool::new(threads)?;
    let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
    let step = TrainOptions::default().step();
    let mut best = 0.0_f64;
    for _ in 0..3 {
        rows.rewind(0)?;
        let (mut batch, mut seconds) = (Batch::default(), 0.0);
        while rows.next_batch(BATCH, &mut batch)? > 0 {
            let start = Instant::now();
            model.step(exec, &batch, step);
            seconds += start.elapsed().as_secs_f64();
        }
        best = best.max(ROWS as f64 / seconds);
    }
    eprintln!("{{\"engine\": \"scrimp\", \"encoder\": \"{encoder}\", \"rows_per_second\": {best:.0}}}");
    Ok(())
}
