//! From a prompt's tokens to a stream of text.
//!
//! ```text
//!  prompt ids ── Sequence: reuse the cached prefix, prefill the rest ── logits ─┐
//!                        ┌───────────── decode one token ◄──────────────────────┤
//!                        ▼                                                      │
//!                     Sampler ── end token? ── detokenizer ── stop strings ── text out
//! ```
//! With [`Speculation`], a step of decoding can have several tokens.

mod reasoning;
mod sequence;
mod speculation;
mod stop;

pub use reasoning::{Reasoning, ReasoningParams};
pub use sequence::{Sequence, common_prefix};
pub use speculation::{DraftCheckpoint, DraftKind, DraftModel, Speculation, Speculator};
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
    /// The source of drafts. It changes the speed, and not the answer.
    pub speculation: Speculation,
    /// Reasoning before the answer; `None`: it is text of the answer.
    pub reasoning: Option<&'a ReasoningParams>,
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
    /// Tokens that were sampled in `decode_seconds`. The first token of an answer comes from the prefill.
    pub decode_steps: usize,
    /// Tokens of drafts (see [`Speculation`]).
    pub drafted_tokens: usize,
    /// Tokens of drafts that became tokens of the answer.
    pub accepted_tokens: usize,
    /// Bytes of the second KV cache, which drafts.
    pub draft_kv_bytes: usize,
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
    /// Sampled tokens per second; 0 if there were none.
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
    let reused_tokens = sequence.rewind_to(request.prompt);
    sampler.begin(request.prompt);
    let mut answer = Answer::new(request, sequence.context_length(), reused_tokens, decoder, on_text)?;
    let started = Instant::now();
    let first = match sequence.extend_to(request.prompt, &|| answer.cancelled())? {
        Some(logits) => answer.choose(logits, sampler)?,
        None => return Ok(answer.result),
    };
    answer.result.prefill_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let reason = answer.decode(sequence, sampler, first)?;
    answer.result.decode_seconds = started.elapsed().as_secs_f64();
    Ok(answer.finish(reason))
}

/// An answer that is being generated.
struct Answer<'a> {
    request: &'a Request<'a>,
    context_length: usize,
    speculator: Option<Speculator>,
    reasoning: Option<Reasoning>,
    decoder: &'a mut dyn TextStream,
    out: Output<'a>,
    result: Generation,
}

impl<'a> Answer<'a> {
    fn new(
        request: &'a Request<'a>,
        context_length: usize,
        reused_tokens: usize,
        decoder: &'a mut dyn TextStream,
        on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Self> {
        let result = Generation {
            text: String::new(),
            tokens: Vec::new(),
            reason: FinishReason::Cancelled,
            prompt_tokens: request.prompt.len(),
            reused_tokens,
            prefill_seconds: 0.0,
            decode_seconds: 0.0,
            decode_steps: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            draft_kv_bytes: 0,
        };
        let out = Output { text: String::new(), stop: StopStrings::new(request.stop)?, on_text };
        let speculator = Speculator::new(request.speculation.clone(), request.prompt);
        let reasoning = request.reasoning.map(Reasoning::new);
        Ok(Self { request, context_length, speculator, reasoning, decoder, out, result })
    }

    /// The next token: the model's choice, unless the reasoning begins or ends with another one.
    fn choose(&mut self, logits: &[f32], sampler: &mut Sampler) -> Result<u32> {
        match self.reasoning.as_mut().and_then(Reasoning::forced) {
            Some(id) => Ok(id),
            None => sampler.sample(logits),
        }
    }

    fn cancelled(&self) -> bool {
        self.request.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Decodes until a reason to end, from the first sampled token on.
    fn decode<S: LogitsSource>(
        &mut self,
        sequence: &mut Sequence<S>,
        sampler: &mut Sampler,
        mut next: u32,
    ) -> Result<FinishReason> {
        loop {
            if let Some(reason) = self.push(next, sampler) {
                return Ok(reason);
            }
            match self.step(sequence, sampler, next)? {
                ControlFlow::Continue(token) => next = token,
                ControlFlow::Break(reason) => return Ok(reason),
            }
        }
    }

    /// Computes `last`, the last token of the answer, together with a draft, and adds the accepted tokens of the draft
    /// to the answer. Returns the token after them, which is not added, or the reason to end.
    fn step<S: LogitsSource>(
        &mut self,
        sequence: &mut Sequence<S>,
        sampler: &mut Sampler,
        last: u32,
    ) -> Result<ControlFlow<FinishReason, u32>> {
        let most_tokens = self.most_tokens();
        let draft = match &mut self.speculator {
            // The last token takes part in the pass.
            Some(speculator) => {
                speculator.draft(sampler, |n| sequence.verifiable(most_tokens.min(n + 1)).saturating_sub(1))
            }
            None => &[],
        };
        if draft.is_empty() {
            let token = self.choose(sequence.append(last)?, sampler)?;
            self.result.decode_steps += 1;
            self.passed();
            return Ok(ControlFlow::Continue(token));
        }
        let tokens: Vec<u32> = [&[last], draft].concat();
        let mut flow = ControlFlow::Continue(last);
        let kept = sequence.verify(&tokens, &mut |index, logits| {
            let token = self.choose(logits, sampler)?;
            self.result.decode_steps += 1;
            flow = ControlFlow::Continue(token);
            if tokens.get(index + 1) != Some(&token) {
                return Ok(false);
            }
            Ok(match self.push(token, sampler) {
                Some(reason) => {
                    flow = ControlFlow::Break(reason);
                    false
                }
                None => true,
            })
        })?;
        self.result.drafted_tokens += tokens.len() - 1;
        self.result.accepted_tokens += kept - 1;
        self.passed();
        Ok(flow)
    }

    fn passed(&mut self) {
        if let Some(speculator) = &mut self.speculator {
            speculator.passed();
        }
    }

    /// Tokens that the answer can still have, its last token included.
    fn most_tokens(&self) -> usize {
        let room = self.context_length + 1 - self.result.prompt_tokens - self.result.tokens.len();
        let most = self.request.max_tokens.map_or(usize::MAX, |max| max - self.result.tokens.len());
        room.min(most)
    }

    /// Adds a sampled token to the answer, unless it ends it. Returns the reason to end.
    fn push(&mut self, token: u32, sampler: &mut Sampler) -> Option<FinishReason> {
        let max = self.request.max_tokens;
        if max.is_some_and(|max| self.result.tokens.len() >= max) {
            return Some(FinishReason::Length);
        }
        if (self.request.is_end)(token) {
            return Some(FinishReason::End);
        }
        self.result.tokens.push(token);
        sampler.accept(token);
        if let Some(speculator) = &mut self.speculator {
            speculator.push(token);
        }
        let piece = self.decoder.push(token);
        if let Some(reasoning) = &mut self.reasoning {
            reasoning.accept(&piece);
        }
        if let Some(reason) = self.out.push(&piece) {
            return Some(reason);
        }
        if self.cancelled() {
            return Some(FinishReason::Cancelled);
        }
        if max == Some(self.result.tokens.len()) {
            return Some(FinishReason::Length);
        }
        // The last token is not in the cache yet.
        let cached = self.result.prompt_tokens + self.result.tokens.len() - 1;
        (cached >= self.context_length).then_some(FinishReason::ContextFull)
    }

    /// The result, with the rest of the text.
    fn finish(mut self, reason: FinishReason) -> Generation {
        self.result.reason = reason;
        if !matches!(self.result.reason, FinishReason::Stop(_)) {
            let reason = self.out.push(&self.decoder.finish()).or_else(|| self.out.flush());
            self.result.reason = reason.unwrap_or(self.result.reason);
        }
        self.result.text = self.out.text;
        self.result.draft_kv_bytes = self.speculator.as_ref().map_or(0, Speculator::kv_bytes);
        self.result
    }
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
