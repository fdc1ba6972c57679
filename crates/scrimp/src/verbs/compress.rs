//! `scrimp compress`: a smaller copy of a model.

use crate::{App, cli::compress::CompressArgs, format, progress::CountBar, verbs::pull};
use scrimp_base::check_outputs;
use scrimp_compress::{Calibration, Options, Progress};
use scrimp_eval::read_text;
use scrimp_kernels::{Exec, SimdLevel};
use scrimp_llm::checkpoint::Checkpoint;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct Compressed {
    bytes_before: u64,
    bytes_after: u64,
    sparsity: f64,
    bits_per_weight: f64,
}

/// Checks that `output` replaces neither a file of the model at `model` nor `text`.
///
/// # Errors
/// It would.
pub(super) fn check_output(output: &Path, model: &Path, text: Option<&Path>) -> scrimp_base::Result<()> {
    let entries = model.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let files: Vec<PathBuf> = entries.chain([model.to_owned()]).collect();
    let inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).chain(text).collect();
    check_outputs(&inputs, &[output])
}

/// Compresses a model.
pub(crate) fn run(app: &App, args: &CompressArgs) -> anyhow::Result<()> {
    let text = args.calibration.as_deref().map(read_text).transpose()?;
    let model = pull::fetch(app, &args.model)?;
    check_output(&args.out, &model, args.calibration.as_deref())?;
    let checkpoint = Checkpoint::open(&model)?;
    let tokenizer = checkpoint.tokenizer()?;
    let calibration =
        Calibration::new(&checkpoint, &tokenizer, text.as_deref(), args.calibration_tokens.get())?;
    drop(tokenizer);
    checkpoint.release_header();
    let pool = app.pool()?;
    let options = Options {
        method: scrimp_compress::pruner(&args.method)?,
        budget: args.budget(),
        output: args.output,
        calibration: &calibration,
    };
    let bar = CountBar::new("matrices");
    let mut show = |p: Progress<'_>| bar.show(p.done, p.total, p.what);
    let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
    let report = scrimp_compress::compress(exec, &checkpoint, &args.out, &options, &mut show)?;
    drop(bar);
    if args.sparsity > 0.0
        && args.target_bits.is_none()
        && args.target_size.is_none()
        && report.sparsity < 0.5 * args.sparsity
    {
        app.printer.note(
            "few zeros do not make this format smaller and cost accuracy: omit --sparsity or use a larger value (0.3 or more for int4)",
        );
    }
    let result = Compressed {
        bytes_before: report.bytes_before,
        bytes_after: report.bytes_after,
        sparsity: report.sparsity,
        bits_per_weight: report.bits_per_weight,
    };
    app.printer.result(&result, |r| {
        format!(
            "{}: {} (before: {}), {:.2} bits per weight, {:.1}% of the layers' weights are zero",
            args.out.display(),
            format::bytes(r.bytes_after),
            format::bytes(r.bytes_before),
            r.bits_per_weight,
            100.0 * r.sparsity
        )
    })
}
