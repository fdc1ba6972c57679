//! The speed of prefill and decode.

use scrimp_llm::generate::{Speculation, Speculator, rate};
use scrimp_llm::logits::argmax;
use scrimp_llm::sampling::Sampler;
use scrimp_llm::source::LogitsSource;
use scrimp_llm::{Error, Result};
use std::time::Instant;

/// Rounds of each measurement. The best round counts.
const ROUNDS: usize = 3;
/// Tokens of the prefill and of the decode that warm up weights and caches.
const WARM_UP: (usize, usize) = (64, 4);

/// Sizes of the measurements.
#[derive(Debug, Clone, Copy)]
pub struct DecodeOptions {
    /// Tokens of the timed prefill, from an empty cache.
    pub prompt: usize,
    /// Tokens of the timed greedy decode; end-of-text does not end it.
    pub tokens: usize,
    /// Tokens before the timed decode. Compression of the cache after a prompt has happened by then.
    pub depth: usize,
}

impl DecodeOptions {
    /// Number of tokens of text that the measurement needs.
    pub fn text_tokens(&self) -> usize {
        self.prompt.max(self.depth)
    }

    /// Checks the options for a model with a context of `context_length` tokens.
    ///
    /// # Errors
    /// When a number is 0, or the model's context is too short.
    pub fn check(&self, context_length: usize) -> Result<()> {
        for (name, value) in [("`prompt`", self.prompt), ("`tokens`", self.tokens), ("`depth`", self.depth)] {
            if value == 0 {
                return Err(Error::bad_input(format!("{name} must be at least 1")));
            }
        }
        let needed = self.prompt.max(self.depth.saturating_add(self.tokens));
        if needed > context_length {
            return Err(Error::bad_input(format!(
                "this needs {needed} tokens of context, the model has {context_length}"
            ))
            .with_hint("use a smaller `prompt`, `depth` or `tokens`"));
        }
        Ok(())
    }
}

/// Speed and memory.
#[derive(Debug, Clone, Copy)]
pub struct DecodeResult {
    /// Prompt tokens per second, best round.
    pub prefill_tok_s: f64,
    /// Generated tokens per second, best round.
    pub decode_tok_s: f64,
    /// Tokens of drafts that became tokens of the text, per pass of the best round; 0 without drafts.
    pub accepted_per_step: f64,
    /// Bytes of the KV cache at the end of the decode.
    pub kv_bytes: usize,
    /// Maximum size of the KV cache, the `depth` tokens of the prompt included, bytes.
    pub kv_bytes_peak: usize,
}

/// Measures prefill and decode of `model` (its context is `context_length`) on `text`, which holds
/// [`text_tokens`](DecodeOptions::text_tokens). The decode has drafts of `speculation`. `round` is called before each of
/// the six measurements.
///
/// Each round of the prefill starts with an empty cache, each round of the decode with the same `depth` tokens.
///
/// # Errors
/// When `options` do not fit the model or `text`, or the model fails.
pub fn decode<S: LogitsSource>(
    model: &mut S,
    context_length: usize,
    text: &[u32],
    (options, speculation): (DecodeOptions, &Speculation),
    round: &mut dyn FnMut(&str),
) -> Result<DecodeResult> {
    options.check(context_length)?;
    if text.len() < options.text_tokens() {
        return Err(Error::bad_input(format!("the text has {} tokens", text.len())));
    }
    let DecodeOptions { prompt, tokens, depth } = options;

    round("warming up");
    model.reset();
    let mut next = best(model.forward(&text[..prompt.min(WARM_UP.0)])?)?;
    for _ in 0..WARM_UP.1.min(context_length - prompt.min(WARM_UP.0)) {
        next = best(model.forward(&[next])?)?;
    }

    let mut prefill = f64::INFINITY;
    for i in 1..=ROUNDS {
        round(&format!("prefill {i}/{ROUNDS}"));
        model.reset();
        let start = Instant::now();
        model.begin_prompt(prompt);
        model.forward(&text[..prompt])?;
        prefill = prefill.min(start.elapsed().as_secs_f64());
    }

    round("filling the cache");
    model.reset();
    model.begin_prompt(depth);
    let first = best(model.forward(&text[..depth])?)?;
    let (mut fastest, mut kv_bytes, mut kv_bytes_peak) = (f64::INFINITY, 0, model.kv_bytes_peak());
    let mut passes = tokens;
    for i in 1..=ROUNDS {
        round(&format!("decode {i}/{ROUNDS}"));
        model.truncate(depth);
        if model.len() < depth {
            // The cache cannot be truncated that far.
            model.reset();
            model.begin_prompt(depth);
            model.forward(&text[..depth])?;
        }
        let speculator = Speculator::new(speculation.clone(), &text[..depth]);
        let start = Instant::now();
        let round_passes = decode_greedily(model, first, tokens, speculator)?;
        let seconds = start.elapsed().as_secs_f64();
        if seconds < fastest {
            (fastest, passes) = (seconds, round_passes);
        }
        kv_bytes = model.kv_bytes();
        kv_bytes_peak = kv_bytes_peak.max(model.kv_bytes_peak());
    }
    let (prefill_tok_s, decode_tok_s) = (rate(prompt, prefill), rate(tokens, fastest));
    let accepted_per_step = (tokens - passes) as f64 / passes as f64;
    Ok(DecodeResult { prefill_tok_s, decode_tok_s, accepted_per_step, kv_bytes, kv_bytes_peak })
}

/// Computes `next` and the tokens that follow it, `tokens` together. Returns the number of passes.
fn decode_greedily<S: LogitsSource>(
    model: &mut S,
    mut next: u32,
    tokens: usize,
    mut speculator: Option<Speculator>,
) -> Result<usize> {
    let sampler = Sampler::greedy();
    let (mut left, mut passes) = (tokens, 0);
    while left > 0 {
        passes += 1;
        let draft = match &mut speculator {
            Some(speculator) => {
                speculator.push(next);
                speculator.draft(&sampler, |n| model.verifiable(left.min(n + 1)).saturating_sub(1))
            }
            None => &[],
        };
        if draft.is_empty() {
            next = best(model.forward(&[next])?)?;
            left -= 1;
        } else {
            let all = [&[next], draft].concat();
            left -= model.verify(&all, &mut |index, logits| {
                next = best(logits)?;
                let accepted = all.get(index + 1) == Some(&next);
                if let Some(speculator) = speculator.as_mut().filter(|_| accepted) {
                    speculator.push(next);
                }
                Ok(accepted)
            })?;
        }
        if let Some(speculator) = &mut speculator {
            speculator.passed();
        }
    }
    Ok(passes)
}

fn best(logits: &[f32]) -> Result<u32> {
    argmax(logits).ok_or_else(|| Error::bad_input("the model gave no usable logits (all are NaN or -inf)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrimp_llm::fake::FakeModel;

    #[test]
    fn the_protocol() {
        let mut model =
            FakeModel::new(|seen| (0..9).map(|id| if seen.len() % 9 == id { 1.0 } else { 0.0 }).collect());
        let options = DecodeOptions { prompt: 100, tokens: 5, depth: 20 };
        let mut rounds = Vec::new();
        let text: Vec<u32> = (0..100).map(|i| i % 9).collect();
        let result =
            decode(&mut model, 200, &text, (options, &Speculation::Off), &mut |r| rounds.push(r.to_owned()))
                .unwrap();
        assert!(result.prefill_tok_s > 0.0 && result.decode_tok_s > 0.0);
        assert_eq!(result.kv_bytes, 25 * 8);
        let mut calls = vec![64, 1, 1, 1, 1, 100, 100, 100, 20];
        calls.extend([1; 15]);
        assert_eq!(model.calls, calls);
        assert_eq!(model.seen[..20], text[..20]);
        // Greedy, and the same tokens every round: position p is followed by p mod 9.
        assert_eq!(model.seen[20..], [2, 3, 4, 5, 6]);
        assert_eq!(rounds.len(), 8);
    }

    #[test]
    fn a_cache_that_cannot_go_back_is_filled_again() {
        let mut model = FakeModel::new(|seen| vec![seen.len() as f32, 0.0]);
        model.rewind = 3;
        let options = DecodeOptions { prompt: 8, tokens: 4, depth: 8 };
        decode(&mut model, 64, &[1; 8], (options, &Speculation::Off), &mut |_| ()).unwrap();
        assert_eq!(model.calls[5..], [8, 8, 8, 8, 1, 1, 1, 1, 8, 1, 1, 1, 1, 8, 1, 1, 1, 1]);
    }

    #[test]
    fn drafts_decode_the_same_tokens_in_fewer_passes() {
        let run = |speculation: Speculation| {
            // A period of five tokens.
            let mut model = FakeModel::new(|seen| {
                (0..9).map(|id| f32::from(u8::from(seen[seen.len() - 5] == id))).collect()
            });
            model.verifiable = 16;
            let text: Vec<u32> = (0..20).map(|i| i % 5).collect();
            let options = DecodeOptions { prompt: 20, tokens: 40, depth: 20 };
            let result = decode(&mut model, 100, &text, (options, &speculation), &mut |_| ()).unwrap();
            assert_eq!(model.seen.len(), 60);
            (result.accepted_per_step, model.seen)
        };
        let ((off, tokens), (ngram, drafted)) = (run(Speculation::Off), run(Speculation::Ngram));
        assert_eq!((off, tokens), (0.0, drafted));
        assert!(ngram > 0.0, "{ngram}");
    }

    #[test]
    fn impossible_requests() {
        let run = |prompt, tokens, depth, context| {
            let options = DecodeOptions { prompt, tokens, depth };
            let mut model = FakeModel::new(|_| vec![1.0, 0.0]);
            decode(&mut model, context, &[0; 64], (options, &Speculation::Off), &mut |_| ())
                .map_err(|e| e.to_string())
        };
        assert!(run(8, 8, 8, 16).is_ok() && run(1, 1, 1, 2).is_ok());
        assert_eq!(run(8, 9, 8, 16).unwrap_err(), "this needs 17 tokens of context, the model has 16");
        assert_eq!(run(17, 1, 1, 16).unwrap_err(), "this needs 17 tokens of context, the model has 16");
        assert_eq!(run(0, 1, 1, 16).unwrap_err(), "`prompt` must be at least 1");
        assert_eq!(run(1, 0, 1, 16).unwrap_err(), "`tokens` must be at least 1");
        assert_eq!(run(1, 1, 0, 16).unwrap_err(), "`depth` must be at least 1");
        assert!(run(1, usize::MAX, 1, 16).is_err());
        assert!(run(100, 1, 1, 200).is_err(), "not enough text");
    }
}
