//! `scrimp bench`: speed and memory.

mod embedding;

use crate::{
    App,
    cli::{BenchDecodeArgs, BenchVerb},
    format,
    loaded::{self, Loaded},
};
use indicatif::ProgressBar;
use scrimp_llm::{
    bench::{self, DecodeOptions},
    builtin_text,
};
use serde::Serialize;

#[derive(Serialize)]
struct Decode {
    prefill_tok_s: f64,
    decode_tok_s: f64,
    kv_bytes: usize,
    peak_rss_bytes: u64,
}

/// Runs the benchmark.
pub(crate) fn run(app: &App, verb: &BenchVerb) -> anyhow::Result<()> {
    match verb {
        BenchVerb::Decode(args) => decode(app, args),
        BenchVerb::Embedding(args) => embedding::run(app, args),
    }
}

fn decode(app: &App, args: &BenchDecodeArgs) -> anyhow::Result<()> {
    let how = args.kv.compression_of(args.depth.get(), app.global.seed)?;
    let loaded = Loaded::open(app, &args.model, &args.kv)?;
    let options =
        DecodeOptions { prompt: args.prompt.get(), tokens: args.tokens.get(), depth: args.depth.get() };
    let context = loaded.model.context_length();
    options.check(context)?;
    let encode = |text: &str| loaded.tokenizer.encode(text, false, false);
    let text = builtin_text::tokens(options.text_tokens(), loaded.bos(), encode)?;
    let spinner = ProgressBar::new_spinner();
    let mut session = loaded.session(how);
    let measured = bench::decode(&mut session, context, &text, options, &mut |round| {
        spinner.set_message(round.to_owned());
        spinner.tick();
    });
    spinner.finish_and_clear();
    let measured = measured?;
    let result = Decode {
        prefill_tok_s: measured.prefill_tok_s,
        decode_tok_s: measured.decode_tok_s,
        kv_bytes: measured.kv_bytes,
        peak_rss_bytes: loaded::peak_rss_bytes()?,
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
                row("KV cache", format::bytes(r.kv_bytes as u64)),
                row("peak memory", format::bytes(r.peak_rss_bytes)),
            ],
        )
        .trim_start()
        .to_owned()
    })
}
