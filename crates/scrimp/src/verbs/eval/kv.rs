//! `scrimp eval kv`: accuracy loss of a compressed KV cache.

use crate::{App, cli::eval::EvalKvArgs, format, loaded::Loaded};
use indicatif::ProgressBar;
use scrimp_eval::{
    kv::{self, KvComparison, KvScore},
    read_text,
};
use scrimp_kv::{KvFormat, compress::Compression};
use scrimp_llm::checkpoint::Checkpoint;
use serde::Serialize;
use std::time::{Duration, Instant};

#[derive(Serialize)]
struct Kv {
    kl: f64,
    nll: f64,
    nll_full: f64,
    top1_agreement: f64,
    kv_bytes: usize,
    kv_bytes_full: usize,
    kv_bytes_peak: usize,
    compress_ms: f64,
    prefill_ms: f64,
}

/// Compares the KV cache of the options with a full one in bf16.
pub(super) fn run(app: &App, args: &EvalKvArgs) -> anyhow::Result<()> {
    let (prompt, scored) = (args.prompt_tokens.get(), args.score_tokens.get());
    let how = args.kv.compression_of(prompt, app.global.seed)?;
    let text = read_text(&args.text)?;
    let check = |checkpoint: &Checkpoint, _: &_| {
        let config = checkpoint.config();
        kv::check(prompt, scored, config.vocab_size, config.context_length)
    };
    let (loaded, ()) = Loaded::open_with(app, &args.model, &args.kv, check)?;
    let bos = loaded.bos();
    let tokens = kv::text_tokens(prompt, scored);
    let ids: Vec<u32> =
        bos.into_iter().chain(loaded.tokenizer.encode(&text, false, false)?).take(tokens).collect();
    let spinner = ProgressBar::new_spinner();
    spinner.set_message("reading the prompt");
    spinner.tick();
    let needs = how.as_ref().map_or_else(Default::default, Compression::needs);
    let whole =
        KvComparison::new(loaded.model.session_in(KvFormat::default())?, &ids, prompt, scored, needs)?;
    spinner.set_message("scoring");
    spinner.tick();
    let (score, peak) = score(&loaded, args.kv.format()?, &whole, how.as_ref(), &ids[..prompt])?;
    spinner.finish_and_clear();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let result = Kv {
        kl: score.kl,
        nll: score.nll,
        nll_full: whole.nll(),
        top1_agreement: score.top1_agreement,
        kv_bytes: score.kv_bytes,
        kv_bytes_full: whole.kv_bytes(),
        kv_bytes_peak: peak,
        compress_ms: ms(score.compress),
        prefill_ms: ms(whole.prefill()),
    };
    app.printer.result(&result, |r| {
        format!(
            "KL divergence {:.6} nats per token, same most likely token {:.2}%\n\
             {:.5} nats per token, with the full cache {:.5}\n\
             KV cache {}, full cache {}; compressed in {:.1} ms after a prefill of {:.1} ms",
            r.kl,
            100.0 * r.top1_agreement,
            r.nll,
            r.nll_full,
            format::bytes(r.kv_bytes as u64),
            format::bytes(r.kv_bytes_full as u64),
            r.compress_ms,
            r.prefill_ms
        )
    })
}

/// The score of the cache that the options make, and the largest size of a cache, bytes.
fn score(
    loaded: &Loaded,
    format: KvFormat,
    whole: &KvComparison,
    how: Option<&Compression>,
    prompt: &[u32],
) -> anyhow::Result<(KvScore, usize)> {
    if let Some(how) = how.filter(|how| how.chunks.is_some()) {
        let mut session = loaded.session(Some(how.clone()));
        session.begin_prompt(prompt.len());
        let start = Instant::now();
        session.forward(prompt)?;
        let (peak, seconds) = (session.kv_bytes_peak(), start.elapsed());
        return Ok((whole.score_session(session, seconds.saturating_sub(whole.prefill()))?, peak));
    }
    let score = if whole.prompt().kv().format().check_switch(&format).is_err() {
        let mut session = loaded.session(None);
        let needs = how.map(Compression::needs).unwrap_or_default();
        if how.is_some() {
            session.accumulate_scores_for(needs, prompt.len());
        }
        session.forward(prompt)?;
        session.finish_scores(needs, prompt)?;
        let start = Instant::now();
        if let Some(how) = how {
            session.compress(how, how.tokens(prompt.len())?)?;
        }
        whole.score_session(session, start.elapsed())?
    } else if how.is_none() && format.packing().is_none() {
        whole.score_session(whole.prompt(), Duration::ZERO)?
    } else {
        // New tokens are stored as in the full cache, so both share the prefill.
        whole.score_in(format, how)?
    };
    Ok((score, whole.kv_bytes()))
}
