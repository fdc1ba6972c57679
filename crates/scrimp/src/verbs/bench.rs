//! `scrimp bench`: speed and memory.

mod embedding;
mod serve;

use crate::{
    App,
    cli::bench::{BenchDecodeArgs, BenchLinearArgs, BenchVerb},
    format,
    loaded::{Loaded, run_options},
};
use indicatif::ProgressBar;
use scrimp_eval::bench::{self, DecodeOptions};
use scrimp_kernels::{Exec, SimdLevel, linear, quant::packed::WeightFormat, system};
use scrimp_llm::{
    builtin_text,
    generate::Speculation,
    model::{Model, Shape, Synthetic},
};
use serde::Serialize;
use std::time::Duration;

/// Duration of the measurements of `bench linear`, without the preparation of its weights.
const LINEAR_TIME: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Decode {
    prefill_tok_s: f64,
    decode_tok_s: f64,
    accepted_per_step: f64,
    kv_bytes: usize,
    kv_bytes_peak: usize,
    peak_rss_bytes: Option<u64>,
}

/// Runs the benchmark.
pub(crate) fn run(app: &App, verb: &BenchVerb) -> anyhow::Result<()> {
    match verb {
        BenchVerb::Decode(args) => decode(app, args),
        BenchVerb::Linear(args) => linear(app, args),
        BenchVerb::Embedding(args) => embedding::run(app, args),
        BenchVerb::Serve(args) => serve::run(app, args),
    }
}

fn decode(app: &App, args: &BenchDecodeArgs) -> anyhow::Result<()> {
    let how = args.kv.compression_of(args.depth.get(), app.global.seed)?;
    let options =
        DecodeOptions { prompt: args.prompt.get(), tokens: args.tokens.get(), depth: args.depth.get() };
    let drafts = args.speculate.fetch(app)?;
    let (model, text, speculation) = match &args.synthetic {
        None => {
            // clap requires MODEL or --synthetic.
            let reference = args.model.as_deref().unwrap_or_default();
            let (loaded, drafts) = Loaded::open_with(app, reference, &args.kv, |files, tokenizer| {
                drafts.check(files, tokenizer)
            })?;
            let encode = |text: &str| loaded.tokenizer.encode(text, false, false);
            let text = builtin_text::tokens(options.text_tokens(), loaded.bos(), encode)?;
            let speculation = drafts.load(&loaded.model)?;
            (loaded.model, text, speculation)
        }
        Some(shape) => {
            let model = Model::synthetic(&synthetic(app, args, shape)?, &run_options(app, &args.kv)?)?;
            // Random weights have no tokenizer: bytes serve as token ids.
            let encode = |text: &str| Ok(text.bytes().map(u32::from).collect());
            // clap refuses drafts of a model beside --synthetic.
            let speculation = Speculation::new(args.speculate.kind(), None)?;
            (model, builtin_text::tokens(options.text_tokens(), None, encode)?, speculation)
        }
    };
    let context = model.context_length();
    options.check(context)?;
    let spinner = ProgressBar::new_spinner();
    let mut session = model.session();
    session.set_compression(how);
    let measured = bench::decode(&mut session, context, &text, (options, &speculation), &mut |round| {
        spinner.set_message(round.to_owned());
        spinner.tick();
    });
    spinner.finish_and_clear();
    let measured = measured?;
    let result = Decode {
        prefill_tok_s: measured.prefill_tok_s,
        decode_tok_s: measured.decode_tok_s,
        accepted_per_step: measured.accepted_per_step,
        kv_bytes: measured.kv_bytes,
        kv_bytes_peak: measured.kv_bytes_peak,
        peak_rss_bytes: system::peak_rss_bytes(),
    };
    app.printer.result(&result, |r| {
        let row = |name: &str, value: String| vec![name.to_owned(), value];
        format::table(
            &["", ""],
            &[
                row(
                    &format!("prefill of {} tokens", options.prompt),
                    format!("{:.1} tok/s", r.prefill_tok_s),
                ),
                row(
                    &format!("decode after {} tokens", options.depth),
                    format!("{:.1} tok/s", r.decode_tok_s),
                ),
                row("accepted tokens per pass", format!("{:.2}", r.accepted_per_step)),
                row("KV cache", format::bytes(r.kv_bytes as u64)),
                row("KV cache, peak", format::bytes(r.kv_bytes_peak as u64)),
                row("peak memory", r.peak_rss_bytes.map_or_else(|| "unknown".to_owned(), format::bytes)),
            ],
        )
        .trim_start()
        .to_owned()
    })
}

fn synthetic(app: &App, args: &BenchDecodeArgs, shape: &str) -> anyhow::Result<Synthetic> {
    let output = if args.format.is_sparse() { WeightFormat::Int8 } else { args.format };
    Ok(Synthetic {
        shape: Shape::named(shape)?,
        format: args.format,
        output_format: args.output_format.unwrap_or(output),
        sparsity: args.sparsity,
        seed: app.global.seed.unwrap_or(1),
    })
}

#[derive(Serialize)]
struct LinearLine {
    format: &'static str,
    tier: &'static str,
    us: f64,
    gb_per_s: f64,
    bytes: usize,
    speedup_vs_dense_bf16: f64,
}

fn linear(app: &App, args: &BenchLinearArgs) -> anyhow::Result<()> {
    let level = SimdLevel::from_env()?;
    let pool = app.pool()?;
    let options = linear::bench::Options {
        rows: args.rows.get(),
        cols: args.cols.get(),
        batch: args.batch.get(),
        sparsity: args.sparsity,
        formats: args.formats.clone(),
        rotated_bytes: linear::bench::ROTATED_BYTES,
        seed: app.global.seed.unwrap_or(1),
        time: LINEAR_TIME,
    };
    for timing in linear::bench::measure(Exec { pool: &pool, level }, &options)? {
        let seconds = timing.best.as_secs_f64();
        let line = LinearLine {
            format: timing.format.name(),
            tier: level.name(),
            us: seconds * 1e6,
            gb_per_s: timing.bytes as f64 / seconds / 1e9,
            bytes: timing.bytes,
            speedup_vs_dense_bf16: timing.speedup_vs_dense_bf16,
        };
        app.printer.result(&line, |l| {
            format!(
                "{:12} {:7} {:9.1} us  {:6.2} GB/s  {:>8}  {:5.2}x dense bf16",
                l.format,
                l.tier,
                l.us,
                l.gb_per_s,
                format::bytes(l.bytes as u64),
                l.speedup_vs_dense_bf16
            )
        })?;
    }
    Ok(())
}
