//! From a prompt's tokens to a stream of text.
//!
//! ```text
//!  prompt ids ── Sequence: reuse the cached prefix, prefill the rest ── logits ─┐
//!                        ┌───────────── decode one token ◄──────────────────────┤
//!                        ▼                                                      │
//!                     Sampler ── end token? ── detokenizer ── stop strings ── text out
//! ```

mod sequence;
mod stop;

pub use sequence::{Sequence, common_prefix};
pub use stop::StopStrings;

use crate::error::{Error, Result};
use crate::sampling::Sampler;
use crate::source::LogitsSource;
use crate::tokenizer::StreamDecoder;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Decodes token ids to text piece by piece. Incomplete characters are buffered.
pub trait TextStream {
    /// The text after `token`; empty while a character is incomplete.
    fn push(&mut self, token: u32) -> String;
    /// The rest of the text.
    fn finish(&mut self) -> String;
}

impl TextStream for StreamDecoder<'_> {
    fn push(&mut self, token: u32) -> String {
        StreamDecoder::push(self, token)
    }
    fn finish(&mut self) -> String {
        StreamDecoder::finish(self)
    }
}

/// The arguments of [`generate`].
pub struct Request<'a> {
    /// All tokens of the prompt, including those already in the cache.
    pub prompt: &'a [u32],
    /// Maximum number of tokens to generate; `None`: until the context is full.
    pub max_tokens: Option<usize>,
    /// Strings that end the answer; they are not part of it.
    pub stop: &'a [String],
    /// Whether a token ends the answer (end of text, end of turn).
    pub is_end: &'a dyn Fn(u32) -> bool,
    /// Another thread sets this flag to end the answer early (Ctrl-C, a closed connection).
    pub cancel: Option<&'a AtomicBool>,
}

/// Why generation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model generated an end token.
    End,
    /// The answer contained this stop string.
    Stop(String),
    /// `max_tokens` were generated.
    Length,
    /// The model's context is full.
    ContextFull,
    /// The cancel flag was set, or `on_text` ended the answer.
    Cancelled,
}

/// The result of [`generate`], with its speed.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The answer, without stop strings and end tokens.
    pub text: String,
    /// The tokens of the answer, including those of a stop string, without the end token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that the cache already held.
    pub reused_tokens: usize,
    /// Seconds from the start to the first sampled token.
    pub prefill_seconds: f64,
    /// Seconds after that.
    pub decode_seconds: f64,
    /// Decode steps in `decode_seconds`. The first token of an answer comes from the prefill.
    pub decode_steps: usize,
}

impl Generation {
    /// Tokens of the answer, without the end token.
    pub fn generated_tokens(&self) -> usize {
        self.tokens.len()
    }
    /// Prompt tokens computed (not reused) per second; 0 if there were none.
    pub fn prefill_tok_s(&self) -> f64 {
        rate(self.prompt_tokens - self.reused_tokens, self.prefill_seconds)
    }
    /// Decode steps per second; 0 if there were none.
    pub fn decode_tok_s(&self) -> f64 {
        rate(self.decode_steps, self.decode_seconds)
    }
}

/// `count / seconds`, 0 rather than infinite or `NaN`.
pub fn rate(count: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// Answers `request` on `sequence`. Text is passed to `on_text` as soon as it is final.
///
/// `on_text` receives non-empty pieces, which together are [`Generation::text`]. It breaks to end the answer early.
/// After the call, the sequence holds the prompt and the answer's tokens, possibly without the last one.
///
/// # Errors
/// When the prompt is empty or does not fit the context, a stop string is empty, or the model fails.
pub fn generate<S: LogitsSource>(
    sequence: &mut Sequence<S>,
    request: &Request<'_>,
    sampler: &mut Sampler,
    decoder: &mut dyn TextStream,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generation> {
    check_prompt(request.prompt.len(), sequence.context_length())?;
    let mut out = Output { text: String::new(), stop: StopStrings::new(request.stop)?, on_text };
    let cancelled = || request.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed));
    let context_length = sequence.context_length();
    let mut result = Generation {
        text: String::new(),
        tokens: Vec::new(),
        reason: FinishReason::Cancelled,
        prompt_tokens: request.prompt.len(),
        reused_tokens: sequence.rewind_to(request.prompt),
        prefill_seconds: 0.0,
        decode_seconds: 0.0,
        decode_steps: 0,
    };
    sampler.begin(request.prompt);
    let started = Instant::now();
    let mut next = match sequence.extend_to(request.prompt, &cancelled)? {
        Some(logits) => sampler.sample(logits)?,
        None => return Ok(result),
    };
    result.prefill_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    result.reason = loop {
        if request.max_tokens.is_some_and(|max| result.tokens.len() >= max) {
            break FinishReason::Length;
        }
        if (request.is_end)(next) {
            break FinishReason::End;
        }
        result.tokens.push(next);
        sampler.accept(next);
        if let Some(reason) = out.push(&decoder.push(next)) {
            break reason;
        }
        if cancelled() {
            break FinishReason::Cancelled;
        }
        if request.max_tokens == Some(result.tokens.len()) {
            break FinishReason::Length;
        }
        if sequence.len() >= context_length {
            break FinishReason::ContextFull;
        }
        let logits = sequence.append(next)?;
        result.decode_steps += 1;
        next = sampler.sample(logits)?;
    };
    result.decode_seconds = started.elapsed().as_secs_f64();
    if !matches!(result.reason, FinishReason::Stop(_)) {
        let reason = out.push(&decoder.finish()).or_else(|| out.flush());
        result.reason = reason.unwrap_or(result.reason);
    }
    result.text = out.text;
    Ok(result)
}

/// Checks that the prompt can be answered.
fn check_prompt(tokens: usize, context_length: usize) -> Result<()> {
    if tokens == 0 {
        return Err(
            Error::bad_input("the prompt is empty").with_hint("write something for the model to continue")
        );
    }
    if tokens > context_length {
        return Err(Error::bad_input(format!(
            "the prompt has {tokens} tokens, the model's context is {context_length}"
        ))
        .with_hint("shorten the prompt, or take a model with a longer context"));
    }
    Ok(())
}

/// The text between the decoder and `on_text`.
struct Output<'a> {
    text: String,
    stop: StopStrings,
    on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
}

impl Output<'_> {
    /// Sends the text that is final after `piece`. Returns the reason to end, if there is one.
    fn push(&mut self, piece: &str) -> Option<FinishReason> {
        let (certain, stopped) = self.stop.push(piece);
        let flow = self.send(&certain);
        stopped.map(FinishReason::Stop).or(flow)
    }

    /// Sends the buffered text, which was the beginning of a possible stop string.
    fn flush(&mut self) -> Option<FinishReason> {
        let rest = self.stop.finish();
        self.send(&rest)
    }

    fn send(&mut self, text: &str) -> Option<FinishReason> {
        if text.is_empty() {
            return None;
        }
        self.text.push_str(text);
        (self.on_text)(text).is_break().then_some(FinishReason::Cancelled)
    }
}

#[cfg(test)]
mod tests;
