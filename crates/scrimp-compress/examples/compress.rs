//! Compresses a model with SparseGPT to a number of bits per weight.
//!
//! ```text
//! cargo run --release -p scrimp-compress --example compress -- model.gguf model.safetensors 4.5
//! ```
#![allow(clippy::print_stdout)]

use scrimp_compress::{Budget, Calibration, MAX_TOKENS, Options, Output, compress, pruner};
use scrimp_kernels::{Exec, Pool, SimdLevel, exec::available_threads};
use scrimp_llm::checkpoint::Checkpoint;
use std::{error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, bits] = &args[..] else {
        return Err("usage: compress MODEL OUT.safetensors BITS".into());
    };
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let calibration = Calibration::new(&checkpoint, &checkpoint.tokenizer()?, None, MAX_TOKENS)?;
    let options = Options {
        method: pruner("sparsegpt")?,
        budget: Budget::Bits(bits.parse()?),
        output: Output::Measured,
        calibration: &calibration,
    };
    let pool = Pool::new(available_threads())?;
    let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
    let report = compress(exec, &checkpoint, Path::new(out), &options, &mut |progress| {
        eprintln!("{}: {} of {} matrices", progress.what, progress.done, progress.total);
    })?;
    println!("{} -> {} bytes", report.bytes_before, report.bytes_after);
    println!("{:.2} bits per weight, {:.0}% zeros", report.bits_per_weight, 100.0 * report.sparsity);
    Ok(())
}
