//! Many cache settings on one sample, for one prefill.
//!
//! The prompt is prefilled once, with the attention scores of all settings accumulated. Each setting then gets a fork
//! of the cache, whose pages are shared until it is compressed. Up to [`TOGETHER`] forks decode as one batch, which
//! reads the weights once.

use super::prompt::Prompt;
use scrimp_llm::{
    error::{Error, Result},
    logits::argmax,
    source::LogitsSource,
};

/// Forks that decode together.
const TOGETHER: usize = 8;

/// A model whose cache can be copied and compressed.
pub trait Subject: LogitsSource + Sized {
    /// The setting of a compression.
    type Setting;
    /// Empties the cache, prefills `tokens` and returns the logits after the last one. Accumulates the scores that
    /// `settings` need.
    ///
    /// # Errors
    /// Those of the model.
    fn prefill(&mut self, tokens: &[u32], settings: &[&Self::Setting]) -> Result<Vec<f32>>;
    /// A second sequence with the same tokens.
    #[must_use]
    fn fork(&self) -> Self;
    /// Compresses the cache, which holds `tokens`.
    ///
    /// # Errors
    /// Those of the cache.
    fn compress(&mut self, setting: &Self::Setting, tokens: &[u32]) -> Result<()>;
    /// Scratch memory for a batch of forks.
    type Together;
    /// New scratch memory.
    fn together(&self) -> Self::Together;
    /// Appends a token to each of `forks` and returns the logits after it.
    ///
    /// # Errors
    /// Those of the model.
    fn decode(together: &mut Self::Together, forks: &mut [(&mut Self, u32)]) -> Result<Vec<Vec<f32>>>;
    /// Removes the tokens from position `len` on. Earlier tokens that survived compression stay.
    fn forget_from(&mut self, len: usize);
}

/// The conditions that end an answer.
pub struct Rules<'a> {
    /// Maximum number of tokens.
    pub max_tokens: usize,
    /// Whether a token ends it.
    pub is_end: &'a dyn Fn(u32) -> bool,
    /// The first token does not end it (LongBench's samsum).
    pub not_empty: bool,
    /// Whether further tokens cannot change the score.
    pub decided: &'a dyn Fn(&[u32]) -> bool,
}

/// An answer, and the size of its cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Bytes of the cache right after compression.
    pub kv_bytes: usize,
    /// Bytes before.
    pub kv_bytes_full: usize,
}

/// Answers `prompt` under each of `settings`, greedily; `on_answer` gets them in order.
///
/// If the question precedes the compression, the first token of an answer comes from the prefill, as in real use. The
/// later tokens see the compressed cache.
///
/// # Errors
/// Those of the model, of compression and of `on_answer`.
pub fn compare<S: Subject>(
    subject: &mut S,
    prompt: &Prompt,
    settings: &[&S::Setting],
    rules: &Rules<'_>,
    on_answer: &mut dyn FnMut(usize, Answer) -> Result<()>,
) -> Result<()> {
    let first = subject.prefill(&prompt.prefill, settings)?;
    let mut together = subject.together();
    let mut answered = 0;
    for settings in settings.chunks(TOGETHER) {
        let mut all = Vec::with_capacity(settings.len());
        for setting in settings {
            all.push(Answering::begin(subject, setting, prompt, &first)?);
        }
        loop {
            let mut forks = Vec::with_capacity(all.len());
            let mut logits = Vec::with_capacity(all.len());
            for answering in &mut all {
                if let Some(token) = answering.next(rules)? {
                    forks.push((&mut answering.fork, token));
                    logits.push(&mut answering.logits);
                }
            }
            if forks.is_empty() {
                break;
            }
            for (to, from) in logits.into_iter().zip(S::decode(&mut together, &mut forks)?) {
                *to = from;
            }
        }
        for answering in all {
            on_answer(answered, answering.answer)?;
            answered += 1;
        }
    }
    Ok(())
}

/// An unfinished answer.
struct Answering<S> {
    fork: S,
    logits: Vec<f32>,
    answer: Answer,
    ended: bool,
}

impl<S: Subject> Answering<S> {
    /// Compresses a fork of `subject`, whose prompt ended with the logits `first`, and appends the question.
    fn begin(subject: &S, setting: &S::Setting, prompt: &Prompt, first: &[f32]) -> Result<Self> {
        let mut fork = subject.fork();
        let kv_bytes_full = fork.kv_bytes();
        fork.compress(setting, &prompt.prefill)?;
        let kv_bytes = fork.kv_bytes();
        if prompt.keep < prompt.prefill.len() {
            fork.forget_from(prompt.keep);
            if fork.len() != prompt.keep {
                return Err(Error::unsupported(
                    "a second question would need tokens or states that this model's sliding-window or recurrent layers \
                     do not keep",
                    "use `question` before or after",
                ));
            }
        }
        let logits = match &prompt.question[..] {
            [] => first.to_vec(),
            question => fork.forward(question)?.to_vec(),
        };
        Ok(Self {
            fork,
            logits,
            answer: Answer { tokens: Vec::new(), kv_bytes, kv_bytes_full },
            ended: false,
        })
    }

    /// The next token of the answer, if the answer continues after it.
    fn next(&mut self, rules: &Rules<'_>) -> Result<Option<u32>> {
        let tokens = &mut self.answer.tokens;
        if self.ended || tokens.len() >= rules.max_tokens {
            return Ok(None);
        }
        if rules.not_empty && tokens.is_empty() {
            for (id, logit) in self.logits.iter_mut().enumerate() {
                if (rules.is_end)(id as u32) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let Some(next) = argmax(&self.logits) else {
            return Err(Error::bad_input("the model gives unusable logits: its weights are damaged"));
        };
        self.ended = (rules.is_end)(next);
        if !self.ended {
            tokens.push(next);
            self.ended = tokens.len() == rules.max_tokens || (rules.decided)(tokens);
        }
        Ok((!self.ended).then_some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Counting;
    use super::*;

    fn rules<'a>(max_tokens: usize, decided: &'a dyn Fn(&[u32]) -> bool) -> Rules<'a> {
        Rules { max_tokens, is_end: &|id| id == 0, not_empty: false, decided }
    }

    fn answers(prompt: &Prompt, settings: &[&usize], rules: &Rules<'_>) -> (Vec<Answer>, Counting) {
        let mut subject = Counting::new();
        let mut got = Vec::new();
        compare(&mut subject, prompt, settings, rules, &mut |i, answer| {
            assert_eq!(i, got.len());
            got.push(answer);
            Ok(())
        })
        .unwrap();
        (got, subject)
    }

    #[test]
    fn one_prefill_serves_all_settings_and_none_sees_what_another_did() {
        let prompt = Prompt { prefill: vec![3, 4, 5], keep: 3, question: vec![] };
        let (got, subject) = answers(&prompt, &[&3, &1, &2, &3], &rules(3, &|_| false));
        assert_eq!(subject.prefills, 1);
        // The next token is the sum of the tokens in the cache: the first one comes from the prefill.
        let tokens: Vec<_> = got.iter().map(|a| a.tokens.clone()).collect();
        assert_eq!(tokens, [vec![12, 24, 48], vec![12, 17, 34], vec![12, 21, 42], vec![12, 24, 48]]);
        assert_eq!(got.iter().map(|a| a.kv_bytes).collect::<Vec<_>>(), [24, 8, 16, 24]);
        assert!(got.iter().all(|a| a.kv_bytes_full == 24));
    }

    #[test]
    fn a_question_after_compression_sees_the_compressed_cache() {
        let prompt = Prompt { prefill: vec![3, 4, 5], keep: 3, question: vec![1, 1] };
        let (got, _) = answers(&prompt, &[&3, &1], &rules(1, &|_| false));
        assert_eq!((&got[0].tokens[..], &got[1].tokens[..]), (&[14][..], &[7][..]));
    }

    #[test]
    fn another_question_is_forgotten_after_compression() {
        // 8 belongs to the other question; two tokens are kept, [5, 8], and then 8 goes.
        let prompt = Prompt { prefill: vec![3, 4, 5, 8], keep: 3, question: vec![1] };
        let (got, _) = answers(&prompt, &[&2, &4], &rules(1, &|_| false));
        assert_eq!((&got[0].tokens[..], &got[1].tokens[..]), (&[6][..], &[13][..]));
    }

    #[test]
    fn answers_end() {
        let prompt = Prompt { prefill: vec![0, 0], keep: 2, question: vec![] };
        let (got, _) = answers(&prompt, &[&2], &rules(3, &|_| false));
        assert!(got[0].tokens.is_empty());
        let not_empty = Rules { not_empty: true, ..rules(2, &|_| false) };
        assert_eq!(answers(&prompt, &[&2], &not_empty).0[0].tokens.len(), 2);
        let prompt = Prompt { prefill: vec![1], keep: 1, question: vec![] };
        assert_eq!(answers(&prompt, &[&1], &rules(9, &|t| t.len() == 2)).0[0].tokens, [1, 2]);
    }
}
