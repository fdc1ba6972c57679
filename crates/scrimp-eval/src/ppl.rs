//! Perplexity: `exp` of the mean negative log-likelihood of each token, given the earlier tokens of its window.

use super::{Progress, Windows};
use scrimp_llm::logits::log_sum_exp;
use scrimp_llm::source::LogitsSource;
use scrimp_llm::{Error, Result};

/// The quality of a model's predictions for a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// `exp(nll)`.
    pub ppl: f64,
    /// Mean negative log-likelihood per scored token, nats.
    pub nll: f64,
    /// Scored tokens.
    pub tokens: usize,
}

/// Sum of negative log-likelihoods.
#[derive(Debug, Default)]
pub(super) struct Score {
    sum: f64,
    pub(super) tokens: usize,
}

impl Score {
    /// Adds `-ln P(token)` under `logits`, and returns the row's log-sum-exp.
    pub(super) fn add(&mut self, logits: &[f32], token: u32) -> f64 {
        let lse = log_sum_exp(logits);
        let logit = logits.get(token as usize).copied().unwrap_or(f32::NAN);
        self.sum += lse - f64::from(logit);
        self.tokens += 1;
        lse
    }

    pub(super) fn result(&self) -> Perplexity {
        let nll = self.sum / self.tokens as f64;
        Perplexity { ppl: nll.exp(), nll, tokens: self.tokens }
    }

    /// # Errors
    /// When the sum is not finite: a logit was `NaN`, or a token had probability 0.
    pub(super) fn check(&self) -> Result<()> {
        if self.sum.is_finite() {
            return Ok(());
        }
        Err(Error::bad_input(format!(
            "the model gives unusable logits within the first {} scored tokens",
            self.tokens
        ))
        .with_hint("its weights are damaged, or the file was converted wrongly"))
    }
}

/// Perplexity of `model` over `windows`; `progress` is called after each window.
///
/// # Errors
/// Those of the model, or if its logits are not finite.
pub fn perplexity<S: LogitsSource>(
    model: &mut S,
    windows: &Windows,
    progress: &mut dyn FnMut(Progress),
) -> Result<Perplexity> {
    let mut score = Score::default();
    for window in windows.iter() {
        let (input, targets) = (&window[..window.len() - 1], &window[1..]);
        model.reset();
        model.forward_each(input, &mut |i, logits| {
            score.add(logits, targets[i]);
        })?;
        score.check()?;
        progress(Progress { done: score.tokens, total: windows.scored(), ppl: score.result().ppl });
    }
    Ok(score.result())
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrimp_llm::fake::FakeModel;

    fn windows(tokens: Vec<u32>, bos: Option<u32>) -> Windows {
        Windows::new(tokens, bos, 8, None, 100).unwrap()
    }

    #[test]
    fn a_model_without_an_idea_has_the_vocabulary_as_perplexity() {
        let mut model = FakeModel::new(|_| vec![0.25; 1000]);
        let mut seen = Vec::new();
        let result =
            perplexity(&mut model, &windows(vec![5; 24], None), &mut |p| seen.push((p.done, p.total)))
                .unwrap();
        assert!((result.ppl - 1000.0).abs() < 1e-3 && (result.nll - 1000f64.ln()).abs() < 1e-6);
        assert_eq!(result.tokens, 21);
        assert_eq!(seen, [(7, 21), (14, 21), (21, 21)]);
    }

    #[test]
    fn each_token_is_scored_under_those_before_it() {
        // P(next = previous + 1) = e^3 / (e^3 + 15): right half of the time.
        let rule = |seen: &[u32]| {
            let next = seen.last().unwrap() + 1;
            (0..16).map(|id| if id == next { 3.0 } else { 0.0 }).collect()
        };
        let tokens = vec![1, 2, 3, 4, 5, 5, 5, 5, 1, 2, 3, 9, 9, 9, 9, 9];
        let lse = (3f64.exp() + 15.0).ln();
        let right = 4.0 + 2.0;
        let want = (14.0 * lse - 3.0 * right) / 14.0;
        let got = perplexity(&mut FakeModel::new(rule), &windows(tokens, None), &mut |_| ()).unwrap();
        assert!((got.nll - want).abs() < 1e-6, "{} {want}", got.nll);
        assert!((got.ppl - want.exp()).abs() < 1e-5);
        // With a BOS of 0 the first token of each window is scored too.
        let got =
            perplexity(&mut FakeModel::new(rule), &windows((1..8).collect(), Some(0)), &mut |_| ()).unwrap();
        assert!((got.nll - (lse - 3.0)).abs() < 1e-6);
        assert_eq!(got.tokens, 7);
    }

    #[test]
    fn broken_models_are_an_error() {
        for bad in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
            let mut model = FakeModel::new(move |_| vec![bad; 10]);
            assert!(perplexity(&mut model, &windows(vec![5; 8], None), &mut |_| ()).is_err());
        }
        // A token that the row does not have.
        let mut model = FakeModel::new(|_| vec![0.0; 3]);
        assert!(perplexity(&mut model, &windows(vec![5; 8], None), &mut |_| ()).is_err());
    }
}
