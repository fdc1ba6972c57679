//! One answer during its generation: logits to tokens to text.

use super::request::{FinishReason, Generate, Logprobs, Token};
use scrimp_llm::{
    Result,
    generate::{Reasoning, Speculator, StopStrings},
    logits::log_sum_exp,
    sampling::Sampler,
    tokenizer::{StreamDecoder, Tokenizer},
};

/// The generation of one answer.
#[derive(Debug)]
pub(super) struct Answer<'t> {
    tokenizer: &'t Tokenizer,
    params: Generate,
    pub(super) sampler: Sampler,
    decoder: StreamDecoder<'t>,
    stop: StopStrings,
    reasoning: Option<Reasoning>,
    /// Drafts of the next tokens.
    pub(super) speculator: Option<Speculator>,
    pub(super) generated: usize,
    /// The prompt, if its tokens are scored.
    prompt: Vec<u32>,
    /// The log-probabilities of the prompt's tokens but the first, as far as they are known.
    scores: Vec<Logprobs>,
    /// Logits after bias, minimum length and constraint.
    changed: Vec<f32>,
}

/// A sampled token.
#[derive(Debug)]
pub(super) struct Sampled {
    pub(super) id: u32,
    pub(super) token: Token,
    /// The answer ends with this token.
    pub(super) end: Option<End>,
}

/// The end of an answer.
#[derive(Debug, Default)]
pub(super) struct End {
    pub(super) reason: FinishReason,
    /// The remaining text.
    pub(super) text: String,
    /// The stop string that ended the answer.
    pub(super) stop: Option<String>,
}

impl<'t> Answer<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, prompt: &[u32], params: Generate) -> Result<Self> {
        let mut sampler = Sampler::new(params.sampling.clone())?;
        sampler.begin(prompt);
        Ok(Self {
            tokenizer,
            decoder: tokenizer.stream_after(prompt).writing(&params.written),
            stop: StopStrings::new(&params.stop)?,
            reasoning: params.reasoning.as_ref().map(Reasoning::new),
            speculator: Speculator::new(params.speculation.clone(), prompt),
            sampler,
            prompt: if params.scores_prompt { prompt.to_vec() } else { Vec::new() },
            scores: Vec::new(),
            params,
            generated: 0,
            changed: Vec::new(),
        })
    }

    /// The number of tokens that the answer can still have.
    pub(super) fn left(&self) -> usize {
        self.params.max_tokens.saturating_sub(self.generated)
    }

    /// Whether no token is generated.
    pub(super) fn is_empty(&self) -> bool {
        self.params.max_tokens == 0
    }

    /// Whether tokens of the prompt still need scores: then all logits of the prompt are needed. A step that begins with the
    /// `first` token of the prompt begins the scores again.
    pub(super) fn scores_prompt(&mut self, first: bool) -> bool {
        if first && !self.prompt.is_empty() {
            self.scores.clear();
        }
        !self.prompt.is_empty()
    }

    /// Scores the next token of the prompt. False: the prompt is complete, and `logits` are those of the first answer token.
    pub(super) fn score(&mut self, logits: &[f32]) -> bool {
        let Some(&token) = self.prompt.get(self.scores.len() + 1) else { return false };
        self.scores.push(logprobs(logits, token, self.params.logprobs.unwrap_or(0)));
        true
    }

    /// Takes the scores of a complete prompt.
    pub(super) fn take_scores(&mut self) -> Option<Vec<Logprobs>> {
        if self.prompt.is_empty() || self.scores.len() + 1 < self.prompt.len() {
            return None;
        }
        self.prompt.clear();
        Some(std::mem::take(&mut self.scores))
    }

    /// Generated tokens inside the reasoning.
    pub(super) fn reasoning_tokens(&self) -> usize {
        self.reasoning.as_ref().map_or(0, Reasoning::tokens)
    }

    /// Samples the next token. `room`: tokens that still fit into the context.
    pub(super) fn sample(&mut self, logits: &[f32], room: usize) -> Result<Sampled> {
        let is_free = self.reasoning.as_ref().is_none_or(|reasoning| !reasoning.is_inside());
        let forced = self.reasoning.as_mut().and_then(Reasoning::forced);
        let id = match forced {
            Some(id) => id,
            None if self.changed(logits, is_free)? => self.sampler.sample(&self.changed)?,
            None => self.sampler.sample(logits)?,
        };
        let logprobs = self.params.logprobs.map(|top| logprobs(logits, id, top));
        self.generated += 1;
        let complete = match self.params.constraint.as_mut().filter(|_| is_free) {
            Some(constraint) => constraint.accept(id)?,
            None => false,
        };
        if forced.is_none() && self.ends(id) {
            let token = Token { text: String::new(), logprobs };
            let text = self.decoder.finish();
            let (mut text, stop) = self.stop.push(&text);
            text += &self.stop.finish();
            return Ok(Sampled { id, token, end: Some(End { reason: FinishReason::Stop, text, stop }) });
        }
        self.sampler.accept(id);
        if let Some(speculator) = &mut self.speculator {
            speculator.push(id);
        }
        let piece = self.decoder.push(id);
        if let Some(reasoning) = &mut self.reasoning {
            reasoning.accept(&piece);
        }
        let (text, stop) = self.stop.push(&piece);
        let token = Token { text, logprobs };
        let end = if stop.is_some() {
            Some(End { stop, ..End::default() })
        } else if complete || self.generated >= self.params.max_tokens || room == 0 {
            let rest = self.decoder.finish();
            let (mut text, stop) = self.stop.push(&rest);
            text += &self.stop.finish();
            let is_stop = complete || stop.is_some();
            let reason = if is_stop { FinishReason::Stop } else { FinishReason::Length };
            Some(End { reason, text, stop })
        } else {
            None
        };
        Ok(Sampled { id, token, end })
    }

    fn ends(&self, id: u32) -> bool {
        self.params.stop_tokens.contains(&id) || !self.params.ignore_eos && self.tokenizer.is_end(id)
    }

    /// Applies bias, minimum length and, if the token is `free` of the reasoning, the constraint. False: nothing applies,
    /// and `self.changed` is not valid.
    fn changed(&mut self, logits: &[f32], free: bool) -> Result<bool> {
        // The grammar begins after the reasoning: the answer cannot end inside it.
        let is_before = !free && self.params.constraint.is_some();
        let too_early = is_before || self.generated < self.params.min_tokens;
        let constrained = free && self.params.constraint.is_some();
        if !too_early && self.params.logit_bias.is_empty() && !constrained {
            return Ok(false);
        }
        self.changed.clear();
        self.changed.extend_from_slice(logits);
        for (id, bias) in &self.params.logit_bias {
            if let Some(logit) = self.changed.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        if too_early {
            for &id in self.tokenizer.ends().iter().chain(&self.params.stop_tokens) {
                if let Some(logit) = self.changed.get_mut(id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        if let Some(constraint) = self.params.constraint.as_mut().filter(|_| free) {
            constraint.mask(&mut self.changed)?;
        }
        Ok(true)
    }
}

/// Log-probabilities of `token` and of the `top` most likely tokens, from the model's unchanged logits.
fn logprobs(logits: &[f32], token: u32, top: usize) -> Logprobs {
    let total = log_sum_exp(logits);
    let of = |id: u32| logits.get(id as usize).map_or(f64::NEG_INFINITY, |&x| f64::from(x) - total);
    let mut best: Vec<u32> = Vec::with_capacity(top + 1);
    for (id, &x) in logits.iter().enumerate() {
        let worse = |&other: &u32| logits[other as usize] >= x;
        if best.len() < top || best.last().is_some_and(|last| !worse(last)) {
            let at = best.partition_point(worse);
            best.insert(at, id as u32);
            best.truncate(top);
        }
    }
    Logprobs { token, logprob: of(token), top: best.into_iter().map(|id| (id, of(id))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_alternatives_come_first() {
        let logits = [0.0, 2.0, -1.0, 2.0, f32::NAN, 1.0];
        let plain = [0.0, 2.0, -1.0, 2.0, f32::NEG_INFINITY, 1.0];
        let result = logprobs(&plain, 2, 3);
        assert_eq!(result.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 5]);
        let sum: f64 = (0..6).map(|id| logprobs(&plain, id, 0).logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        // NaN logits and ids beyond the vocabulary do not panic.
        logprobs(&logits, 9, 3);
    }
}
