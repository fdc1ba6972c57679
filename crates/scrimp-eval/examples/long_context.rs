//! Decoding behind one long prompt, with a whole cache and with smaller ones: the prompt is read once, and each cache
//! is a fork.
//!
//! `cargo run --release -p scrimp-eval --example long_context MODEL TEXT TOKENS DECODE`
//!
//! The text is repeated until it is long enough; with `-` instead, random keys and values replace a prompt (speed does
//! not depend on their values). A line of JSON for each cache: its bytes right after compression, the time that took,
//! and the speed of `DECODE` greedy steps (the best of two).
#![allow(clippy::print_stdout)]

use scrimp_eval::read_text;
use scrimp_kv::{
    KvFormat,
    compress::{Budget, Compression, Crush},
    policy::{Needs, policy},
};
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    logits::argmax,
    model::{Model, RunOptions},
};
use std::{path::Path, time::Instant};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, text, tokens, decode] = &args[..] else {
        return Err(Error::bad_input("MODEL TEXT TOKENS DECODE"));
    };
    let number = |s: &str| s.parse::<usize>().map_err(|_| Error::bad_input(format!("`{s}` is no number")));
    let (tokens, decode) = (number(tokens)?, number(decode)?);
    let checkpoint = Checkpoint::open(path.as_ref())?;
    let tokenizer = checkpoint.tokenizer()?;
    let ids = match text.as_str() {
        "-" => vec![0],
        text => tokenizer.encode(&read_text(Path::new(text))?, true, false)?,
    };
    let ids: Vec<u32> = ids.into_iter().cycle().take(tokens).collect();
    let model = Model::load(checkpoint, &RunOptions::default())?;

    let snapkv = |share: f64| -> Result<Compression> {
        let mut how = Compression::new(policy("snapkv")?, Budget::Fraction(0.25));
        how.crush = Crush { share, ..Crush::default() };
        Ok(how)
    };
    let caches: Vec<(&str, Option<Compression>, KvFormat)> = vec![
        ("full, bf16", None, "bf16".parse()?),
        ("25%, bf16", Some(snapkv(0.5)?), "bf16".parse()?),
        ("25%, int8", Some(snapkv(0.5)?), "int8".parse()?),
        ("25%, int4", Some(snapkv(0.5)?), "int4".parse()?),
    ];
    let needs =
        caches.iter().filter_map(|c| c.1.as_ref()).map(Compression::needs).fold(Needs::NONE, Needs::and);
    let mut session = model.session();
    let start = Instant::now();
    let first = if text == "-" {
        session.pretend(tokens)?;
        0
    } else {
        session.accumulate_scores_for(needs, tokens);
        let logits = session.forward(&ids)?.to_vec();
        session.finish_scores(needs, &ids)?;
        argmax(&logits).ok_or_else(|| Error::bad_input("unusable logits"))?
    };
    println!("{{\"prompt_tokens\":{tokens},\"prefill_s\":{:.1}}}", start.elapsed().as_secs_f64());
    for (name, how, format) in &caches {
        let mut fork = session.fork();
        fork.set_kv_format(*format)?;
        let start = Instant::now();
        if let Some(how) = how {
            fork.compress(how, how.tokens(tokens)?)?;
        }
        let (compress, bytes) = (start.elapsed().as_secs_f64() * 1e3, fork.kv_bytes());
        let mut best = f64::INFINITY;
        for _ in 0..2 {
            let mut fork = fork.fork();
            let mut next = first;
            let start = Instant::now();
            for _ in 0..decode {
                next = argmax(fork.forward(&[next])?).unwrap_or(first);
            }
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!(
            "{{\"cache\":\"{name}\",\"kv_bytes\":{bytes},\"compress_ms\":{compress:.0},\"decode_tok_s\":{:.2}}}",
            decode as f64 / best
        );
    }
    Ok(())
}
