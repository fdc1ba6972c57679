//! A sequence of a model that drafts: it reads the text and continues it token by token.
//!
//! ```text
//! text   a b c d e      draft  f g h      answer  f g x
//! cache  a b c d e f g                    then    a b c d e f g x
//! ```
//! The tokens of a draft are chosen as those of the answer: by a copy of its sampler, which has the same random numbers.

use super::gain::{CLASSES, Plan};
use crate::{error::Result, generate::Sequence, logits, model::Session, sampling::Sampler};
use std::time::Instant;

/// The class of a token, by the difference of its logit to the largest other one: below each bound, and the rest.
const GAPS: [f32; 6] = [0.5, 1.0, 2.0, 3.0, 5.0, 8.0];
const _: () = assert!(GAPS.len() < CLASSES);
/// The acceptance of a token of each class before the first measurement.
pub(super) const ACCEPTANCE: [f64; CLASSES] = [0.35, 0.5, 0.6, 0.75, 0.85, 0.92, 0.98];
/// Tokens that a step reads in little more time than one token.
const FEW: usize = 4;

/// A sequence that drafts.
#[derive(Debug)]
pub(super) struct Drafter {
    sequence: Sequence<Session>,
    /// Position of its first token in the text.
    base: usize,
}

impl Drafter {
    /// Drafts with `sequence`, of which the first token is at position `base` of the text.
    pub(super) fn new(sequence: Sequence<Session>, base: usize) -> Self {
        Self { sequence, base }
    }

    /// Drops all tokens. The next ones begin at position `base` of the text.
    pub(super) fn restart(&mut self, base: usize) {
        self.sequence.clear();
        self.base = base;
    }

    /// Drops the tokens that are not in `text`. Returns the number of tokens of `text` that are not in the cache.
    pub(super) fn lacking(&mut self, text: &[u32]) -> usize {
        match text.get(self.base..) {
            Some(text) => text.len() - self.sequence.rewind_to(text),
            None => {
                self.restart(0);
                text.len()
            }
        }
    }

    /// The number of tokens of `text` in the cache and behind it.
    pub(super) fn tokens(&self, text: &[u32]) -> usize {
        text.len().saturating_sub(self.base)
    }

    /// Bytes of the cache.
    pub(super) fn kv_bytes(&self) -> usize {
        self.sequence.source().kv_bytes()
    }

    /// Reads the tokens of `text` that are not in the cache, and appends tokens below `vocab` to `plan` while they pay.
    ///
    /// # Errors
    /// Those of the model.
    pub(super) fn draft(
        &mut self,
        text: &[u32],
        vocab: usize,
        plan: &mut Plan<'_>,
        sampler: &Sampler,
    ) -> Result<()> {
        let mut sampler = sampler.for_draft();
        let few = self.lacking(text) <= FEW;
        let mut started = Instant::now();
        let Some(logits) = self.sequence.extend_to(&text[self.base..], &|| false)? else { return Ok(()) };
        let (mut token, mut class) = choose(&logits[..vocab.min(logits.len())], &mut sampler)?;
        // Recurrent states cannot drop tokens: a copy continues the text.
        let recurrent = self.sequence.source().model().config().recurrence.is_some();
        let mut copy = recurrent.then(|| self.sequence.source().fork());
        if few {
            plan.took(started.elapsed().as_secs_f64());
        }
        plan.push(token, class);
        while plan.pays(None) {
            started = Instant::now();
            let logits = match &mut copy {
                Some(copy) => copy.forward(&[token])?,
                None => self.sequence.append(token)?,
            };
            (token, class) = choose(&logits[..vocab.min(logits.len())], &mut sampler)?;
            plan.took(started.elapsed().as_secs_f64());
            plan.push(token, class);
        }
        Ok(())
    }
}

/// The next token, and its class.
fn choose(logits: &[f32], sampler: &mut Sampler) -> Result<(u32, usize)> {
    let token = sampler.sample(logits)?;
    sampler.accept(token);
    let (before, after) = logits.split_at(token as usize);
    let other = logits::max(before).max(logits::max(&after[1..]));
    let gap = after[0] - other;
    Ok((token, GAPS.iter().position(|&bound| gap < bound).unwrap_or(GAPS.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_order_tokens_by_their_lead() {
        let class = |logits: &[f32]| choose(logits, &mut Sampler::greedy()).unwrap();
        assert_eq!(class(&[1.0, 1.25]), (1, 0));
        assert_eq!(class(&[4.5, 1.0, 2.0]), (0, 3));
        assert_eq!(class(&[0.0, f32::NAN, 20.0]), (2, 6));
        assert_eq!(class(&[7.0]), (0, 6));
        assert!(choose(&[f32::NAN], &mut Sampler::greedy()).is_err());
    }
}
