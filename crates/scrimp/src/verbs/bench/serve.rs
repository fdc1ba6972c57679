//! `scrimp bench serve`: load on a running server.

use crate::{App, cli::bench::BenchServeArgs};
use anyhow::bail;
use scrimp_llm::builtin_text::TEXT;
use scrimp_serve::load::{self, Load, percentile};
use serde::Serialize;

#[derive(Serialize)]
struct Result {
    requests: usize,
    failed: usize,
    tok_s: f64,
    requests_s: f64,
    ttft_ms_p50: f64,
    ttft_ms_p99: f64,
    itl_ms_p50: f64,
    itl_ms_p99: f64,
    seconds: f64,
    errors: Vec<String>,
}

/// Sends the load and prints the measured speeds.
pub(super) fn run(app: &App, args: &BenchServeArgs) -> anyhow::Result<()> {
    let url = args.url.trim_end_matches('/');
    let Some(address) = url.strip_prefix("http://") else {
        bail!("`{url}` is not an address like http://127.0.0.1:8080");
    };
    let n = args.prompt_chars.get().min(TEXT.len() / 2);
    let room = TEXT.len() - n;
    let prompts = (0..args.requests.get()).map(|i| TEXT[i * 397 % room..][..n].to_owned()).collect();
    let measured = load::run(&Load {
        address: address.to_owned(),
        api_key: args.api_key.clone(),
        requests: args.requests.get(),
        concurrency: args.concurrency.get(),
        rate: args.rate,
        tokens: args.tokens.get(),
        prompts,
    });
    let ms = |sorted: &[f64], share| percentile(sorted, share) * 1e3;
    let result = Result {
        requests: measured.complete,
        failed: measured.failed,
        tok_s: measured.tokens as f64 / measured.seconds,
        requests_s: measured.complete as f64 / measured.seconds,
        ttft_ms_p50: ms(&measured.first_token, 0.5),
        ttft_ms_p99: ms(&measured.first_token, 0.99),
        itl_ms_p50: ms(&measured.between, 0.5),
        itl_ms_p99: ms(&measured.between, 0.99),
        seconds: measured.seconds,
        errors: measured.errors,
    };
    app.printer.result(&result, |r| {
        format!(
            "{:.1} tok/s, {:.2} requests/s ({} answered, {} failed)\n\
             time to first token  {:.1} ms (median), {:.1} ms (99%)\n\
             time per token       {:.1} ms (median), {:.1} ms (99%)",
            r.tok_s,
            r.requests_s,
            r.requests,
            r.failed,
            r.ttft_ms_p50,
            r.ttft_ms_p99,
            r.itl_ms_p50,
            r.itl_ms_p99
        )
    })?;
    if result.requests == 0 {
        bail!("no request was answered: {}", result.errors.first().map_or("", String::as_str));
    }
    Ok(())
}
