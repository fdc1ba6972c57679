//! The KL divergence of compressed KV caches, for many settings and texts. All settings share one prefill of each text.
//!
//! `cargo run --release -p scrimp-eval --example kv_grid MODEL OUT.jsonl PROMPT SCORED SETTINGS TEXT@TOKEN...`
//!
//! SETTINGS has one setting per line: name, budget (a share), policy, then `key=value` pairs (see `setting`). Results
//! that OUT.jsonl already has are not computed again.
#![allow(clippy::print_stdout)]

// KVCrush orders and masses that users cannot choose, next to those of the registry.
#[path = "../../scrimp-kv/tests/ablation/mod.rs"]
mod ablation;

use scrimp_eval::{kv::KvComparison, read_text};
use scrimp_kv::{
    KvFormat,
    compress::{Budget, Compression, Crush, Granularity},
    policy::{Needs, policy},
};
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    model::{Model, RunOptions},
    tokenizer::Tokenizer,
};
use std::{collections::HashSet, io::Write as _, path::Path};

fn setting(line: &str) -> Option<(String, Compression, KvFormat)> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let budget: f64 = words.next()?.parse().ok()?;
    let mut how = Compression::new(policy(words.next()?).ok()?, Budget::Fraction(budget));
    how.fit = false;
    let (mut crush, mut format) = (Crush::default(), "bf16".parse().ok()?);
    for word in words {
        let (key, value) = word.split_once('=')?;
        match key {
            "format" => format = value.parse().ok()?,
            "share" => crush.share = value.parse().ok()?,
            "fit" => how.fit = value == "yes",
            "rerotate" => how.rerotate = value == "yes",
            "recent" => how.recent = Some(value.parse().ok()?),
            "seed" => how.seed = value.parse().ok()?,
            "page" => how.granularity = Granularity::Page(value.parse().ok()?),
            "mass" => crush.mass = ablation::mass(value)?,
            "order" => crush.order = ablation::order(value)?,
            _ => return None,
        }
    }
    how.crush = crush;
    Some((name, how, format))
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, prompt, scored, settings, texts @ ..] = &args[..] else {
        return Err(Error::bad_input("MODEL OUT PROMPT SCORED SETTINGS TEXT@TOKEN..."));
    };
    let number = |s: &str| s.parse::<usize>().map_err(|_| Error::bad_input(format!("`{s}` is no number")));
    let (prompt, scored) = (number(prompt)?, number(scored)?);
    let lines = read_text(Path::new(settings))?;
    let mut hows = Vec::new();
    for line in lines.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        hows.push(setting(line).ok_or_else(|| Error::bad_input(format!("setting `{line}`")))?);
    }
    let old = std::fs::read_to_string(out).unwrap_or_default();
    let field = |v: &serde_json::Value, k: &str| v[k].as_str().unwrap_or_default().to_owned();
    let done: HashSet<(String, String)> = old
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .map(|v| (field(&v, "text"), field(&v, "setting")))
        .collect();
    let mut file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(out)
        .map_err(|e| Error::io(Path::new(out), e))?;
    let checkpoint = Checkpoint::open(model.as_ref())?;
    let tokenizer = match checkpoint.gguf_metadata() {
        Some(metadata) => Tokenizer::from_gguf(metadata)?,
        None => return Err(Error::bad_input("a GGUF file is needed")),
    };
    let model = Model::load(checkpoint, &RunOptions::default())?;
    for text in texts {
        let todo: Vec<_> = hows.iter().filter(|h| !done.contains(&(text.clone(), h.0.clone()))).collect();
        if todo.is_empty() {
            continue;
        }
        let (path, from) = text.split_once('@').unwrap_or((text, "0"));
        let ids = tokenizer.encode(&read_text(Path::new(path))?, false, false)?;
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let ids: Vec<u32> = bos.into_iter().chain(ids.into_iter().skip(number(from)?)).collect();
        let needs = todo.iter().fold(Needs::NONE, |n, h| n.and(h.1.needs()));
        let whole = KvComparison::new(model.session(), &ids, prompt, scored, needs)?;
        for (name, how, format) in todo {
            let r = whole.score_in(*format, Some(how))?;
            let line = serde_json::json!({
                "text": text, "setting": name, "kl": r.kl, "nll": r.nll, "nll_full": whole.nll(),
                "top1": r.top1_agreement, "bytes": r.kv_bytes, "bytes_full": whole.kv_bytes(),
                "compress_ms": r.compress.as_secs_f64() * 1e3,
            });
            writeln!(file, "{line}").map_err(|e| Error::io(Path::new(out), e))?;
        }
    }
    Ok(())
}
