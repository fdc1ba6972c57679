//! One answer on its way: from logits to tokens to text.

use super::job::{Generate, Logprobs, Reason, Token};
use scrimp_llm::{
    Result,
    generate::StopStrings,
    logits::log_sum_exp,
    sampling::Sampler,
    tokenizer::{StreamDecoder, Tokenizer},
};

/// What comes after the prompt.
#[derive(Debug)]
pub(super) struct Answer<'t> {
    tokenizer: &'t Tokenizer,
    how: Generate,
    sampler: Sampler,
    decoder: StreamDecoder<'t>,
    stop: StopStrings,
    pub(super) generated: usize,
    changed: Vec<f32>,
}

/// What a token did.
#[derive(Debug)]
pub(super) struct Drawn {
    pub(super) id: u32,
    pub(super) token: Token,
    /// The answer ends with it; with what was held back.
    pub(super) end: Option<(Reason, String)>,
}

impl<'t> Answer<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, prompt: &[u32], how: Generate) -> Result<Self> {
        let mut sampler = Sampler::new(how.sampling.clone())?;
        sampler.begin(prompt);
        Ok(Self {
            tokenizer,
            decoder: tokenizer.stream_after(prompt),
            stop: StopStrings::new(&how.stop)?,
            sampler,
            how,
            generated: 0,
            changed: Vec::new(),
        })
    }

    /// Draws the next token. `room`: tokens that still fit the context.
    pub(super) fn draw(&mut self, logits: &[f32], room: usize) -> Result<Drawn> {
        let id = match self.changed(logits)? {
            true => self.sampler.sample(&self.changed)?,
            false => self.sampler.sample(logits)?,
        };
        let logprobs = self.how.logprobs.map(|top| logprobs(logits, id, top));
        self.generated += 1;
        let complete = match &mut self.how.constraint {
            Some(constraint) => constraint.accept(id)?,
            None => false,
        };
        if self.ends(id) {
            let token = Token { text: String::new(), logprobs };
            let text = self.decoder.finish();
            let (mut text, _) = self.stop.push(&text);
            text += &self.stop.finish();
            return Ok(Drawn { id, token, end: Some((Reason::Stop, text)) });
        }
        self.sampler.accept(id);
        let (text, stopped) = self.stop.push(&self.decoder.push(id));
        let token = Token { text, logprobs };
        let end = if stopped.is_some() {
            Some((Reason::Stop, String::new()))
        } else if complete || self.generated >= self.how.max_tokens || room == 0 {
            let rest = self.decoder.finish();
            let (mut text, stopped) = self.stop.push(&rest);
            text += &self.stop.finish();
            Some((if complete || stopped.is_some() { Reason::Stop } else { Reason::Length }, text))
        } else {
            None
        };
        Ok(Drawn { id, token, end })
    }

    fn ends(&self, id: u32) -> bool {
        self.how.stop_tokens.contains(&id) || !self.how.ignore_eos && self.tokenizer.is_end(id)
    }

    /// Whether logits are not to be taken as they are; then they are in `changed`.
    fn changed(&mut self, logits: &[f32]) -> Result<bool> {
        let too_early = self.generated < self.how.min_tokens;
        if !too_early && self.how.logit_bias.is_empty() && self.how.constraint.is_none() {
            return Ok(false);
        }
        self.changed.clear();
        self.changed.extend_from_slice(logits);
        for (id, bias) in &self.how.logit_bias {
            if let Some(logit) = self.changed.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        if too_early {
            for &id in self.tokenizer.ends().iter().chain(&self.how.stop_tokens) {
                if let Some(logit) = self.changed.get_mut(id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        if let Some(constraint) = &mut self.how.constraint {
            constraint.mask(&mut self.changed)?;
        }
        Ok(true)
    }
}

/// Log-probabilities of `token` and the `top` best, by the model's own logits.
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
        // Damaged logits do no harm.
        logprobs(&logits, 9, 3);
    }
}
