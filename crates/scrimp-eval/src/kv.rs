//! The loss increase of smaller KV caches. A prompt is read once, and its cache is compressed in any number of ways.
//! The predictions for the following text are compared with those of the whole cache.
//!
//! ```text
//! tokens:  | prompt (read once, cache forked for each setting) | scored: KL(whole cache || smaller cache) | target of the last
//! ```

use super::ppl::Score;
use scrimp_kv::{KvFormat, compress::Compression, policy::Needs};
use scrimp_llm::logits::{argmax, kl_divergence};
use scrimp_llm::model::Session;
use scrimp_llm::{Error, Result};
use std::time::{Duration, Instant};

/// Maximum bytes of the stored logits of the whole cache.
const MAX_BYTES: usize = 4 << 30;

/// The difference between predictions with a smaller cache and with the whole cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvScore {
    /// Mean `KL(whole || smaller)` per scored position, nats.
    pub kl: f64,
    /// Mean negative log-likelihood of the text, nats per token.
    pub nll: f64,
    /// Share of positions where the best token is the same.
    pub top1_agreement: f64,
    /// Bytes of the cache right after compression.
    pub kv_bytes: usize,
    /// Kept tokens right after compression, averaged over layers and heads.
    pub kv_tokens: f64,
    /// Time of the compression.
    pub compress: Duration,
}

/// A text whose prompt is in a cache, and the predictions for its continuation with the whole cache.
#[derive(Debug)]
pub struct KvComparison {
    prompt: Session,
    prompt_tokens: usize,
    /// Scored positions and their targets: `scored[i + 1]` follows `scored[i]`.
    scored: Vec<u32>,
    /// `[scored][vocabulary]` of the whole cache, and each row's log-sum-exp.
    logits: Vec<f32>,
    lse: Vec<f64>,
    nll: f64,
    prefill: Duration,
}

/// Tokens of text that a comparison needs: the token after the last scored position is its target.
pub fn text_tokens(prompt_tokens: usize, score_tokens: usize) -> usize {
    prompt_tokens.saturating_add(score_tokens).saturating_add(1)
}

impl KvComparison {
    /// Reads the first `prompt_tokens` of `tokens` into `session` and scores the next `score_tokens` positions. The
    /// session must be empty and have the reference format. The attention scores that compressions need are accumulated
    /// (see [`Compression::needs`] and [`Needs::and`]).
    ///
    /// # Errors
    /// When there are too few tokens, they do not fit the model, or the model fails.
    pub fn new(
        mut session: Session,
        tokens: &[u32],
        prompt_tokens: usize,
        score_tokens: usize,
        needs: Needs,
    ) -> Result<Self> {
        let model = session.model().clone();
        check(prompt_tokens, score_tokens, model.vocab_size(), model.context_length())?;
        let Some(tokens) = tokens.get(..text_tokens(prompt_tokens, score_tokens)) else {
            return Err(Error::bad_input(format!(
                    "the text has {} tokens; {prompt_tokens} of a prompt, {score_tokens} to score and the one after them are needed",
                    tokens.len()
                )).with_hint("use a longer text, or fewer `prompt_tokens` or `score_tokens`"));
        };
        session.accumulate_scores_for(needs, prompt_tokens);
        let start = Instant::now();
        session.forward(&tokens[..prompt_tokens])?;
        session.finish_scores(needs, &tokens[..prompt_tokens])?;
        let prefill = start.elapsed();
        let mut this = Self {
            prompt: session,
            prompt_tokens,
            scored: tokens[prompt_tokens..].to_vec(),
            logits: Vec::with_capacity(score_tokens * model.vocab_size()),
            lse: Vec::with_capacity(score_tokens),
            nll: 0.0,
            prefill,
        };
        let mut score = Score::default();
        let (scored, logits, lse) = (&this.scored, &mut this.logits, &mut this.lse);
        this.prompt.fork().forward_each(&scored[..score_tokens], &mut |i, row| {
            lse.push(score.add(row, scored[i + 1]));
            logits.extend_from_slice(row);
        })?;
        score.check()?;
        this.nll = score.result().nll;
        Ok(this)
    }

    /// Compresses a copy of the prompt's cache and scores the continuation with it.
    ///
    /// # Errors
    /// When the budget does not fit the prompt, or the model fails.
    pub fn score(&self, how: &Compression) -> Result<KvScore> {
        self.score_in(self.prompt.kv().format(), Some(how))
    }

    /// As [`KvComparison::score`], with the stored tokens in another format. Both formats must append new tokens in the
    /// same form.
    ///
    /// # Errors
    /// As [`KvComparison::score`], and when the format does not fit the model or the prompt's.
    pub fn score_in(&self, format: KvFormat, how: Option<&Compression>) -> Result<KvScore> {
        let mut session = self.prompt.fork();
        session.set_kv_format(format)?;
        let start = Instant::now();
        match how {
            Some(how) => session.compress(how, how.tokens(self.prompt_tokens)?)?,
            None => session.pack()?,
        }
        self.score_session(session, start.elapsed())
    }

    /// Scores the continuation with a session that holds the prompt. `compress` is the time of its compression.
    ///
    /// # Errors
    /// When the model fails or its logits cannot be compared.
    pub fn score_session(&self, mut session: Session, compress: Duration) -> Result<KvScore> {
        let (kv_bytes, kv_tokens) = (session.kv_bytes(), session.kv().kept_mean());
        let n = self.lse.len();
        let vocab = self.logits.len() / n;
        let (mut score, mut kl, mut agree) = (Score::default(), 0.0, 0);
        session.forward_each(&self.scored[..n], &mut |i, row| {
            let whole = &self.logits[i * vocab..(i + 1) * vocab];
            let lse = score.add(row, self.scored[i + 1]);
            kl += kl_divergence(whole, self.lse[i], row, lse);
            agree += usize::from(argmax(whole) == argmax(row));
        })?;
        score.check()?;
        Ok(KvScore {
            // Rounding may produce a tiny negative number if nothing differs.
            kl: (kl / n as f64).max(0.0),
            nll: score.result().nll,
            top1_agreement: agree as f64 / n as f64,
            kv_bytes,
            kv_tokens,
            compress,
        })
    }

    /// A session that holds the prompt with its whole cache.
    pub fn prompt(&self) -> Session {
        self.prompt.fork()
    }

    /// Mean negative log-likelihood of the continuation with the whole cache, nats per token.
    pub fn nll(&self) -> f64 {
        self.nll
    }

    /// Bytes of the whole cache.
    pub fn kv_bytes(&self) -> usize {
        self.prompt.kv_bytes()
    }

    /// Time of reading the prompt.
    pub fn prefill(&self) -> Duration {
        self.prefill
    }
}

/// Checks the numbers of tokens before a text is read.
///
/// # Errors
/// When a number is 0, the model's context is too short, or the logits of the whole cache are too many to keep.
pub fn check(prompt_tokens: usize, score_tokens: usize, vocab: usize, context_length: usize) -> Result<()> {
    if prompt_tokens == 0 || score_tokens == 0 {
        return Err(Error::bad_input("`prompt_tokens` and `score_tokens` must be at least 1"));
    }
    let needed = prompt_tokens.saturating_add(score_tokens);
    if needed > context_length {
        return Err(Error::bad_input(format!(
            "this needs {needed} tokens of context, the model has {context_length}"
        ))
        .with_hint("use fewer `prompt_tokens` or `score_tokens`"));
    }
    if score_tokens.saturating_mul(vocab).saturating_mul(4) > MAX_BYTES {
        return Err(Error::bad_input(format!("the logits of {score_tokens} positions take more than 4 GiB"))
            .with_hint(format!("use `score_tokens` {} or less", MAX_BYTES / 4 / vocab.max(1))));
    }
    Ok(())
}
