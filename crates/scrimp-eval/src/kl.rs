//! Kullback-Leibler divergence of a model's predictions from a reference model's, over the same text.
//!
//! `KL(reference || model) = sum over tokens v of P_ref(v) ln(P_ref(v) / P_model(v))`, mean over the positions that
//! perplexity scores. The models process the same piece of a window one after the other, so at most 64 MiB of logits
//! are in memory.

use super::ppl::Score;
use super::{Progress, Windows};
use scrimp_llm::generate::common_prefix;
use scrimp_llm::logits::{argmax, kl_divergence};
use scrimp_llm::source::LogitsSource;
use scrimp_llm::{Error, Result};

const BUFFER_BYTES: usize = 64 << 20;

/// The difference between a model's predictions and the reference's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// Mean `KL(reference || model)` per scored token, nats.
    pub kl: f64,
    /// Share of positions where both models' best tokens are the same.
    pub top1_agreement: f64,
    /// Perplexity of the model.
    pub ppl: f64,
    /// Perplexity of the reference.
    pub ppl_reference: f64,
    /// Scored tokens.
    pub tokens: usize,
}

/// Checks that two models have the same token ids for a text.
///
/// # Errors
/// When the token ids or the vocabulary sizes differ.
pub fn check_same_tokens(
    (model, model_vocab): (&[u32], usize),
    (reference, reference_vocab): (&[u32], usize),
) -> Result<()> {
    let hint = "compare models of one family, for example a model and its compressed copy";
    if model_vocab != reference_vocab {
        let what = format!("the vocabularies differ: {model_vocab} tokens against {reference_vocab}");
        return Err(Error::bad_input(what).with_hint(hint));
    }
    if model != reference {
        let at = common_prefix(model, reference);
        let what = format!("the two models' tokenizers cut the text differently, from token {at} on");
        return Err(Error::bad_input(what).with_hint(hint));
    }
    Ok(())
}

/// Compares `model` with `reference` over `windows`; both have `vocab_size` logits.
///
/// # Errors
/// Those of the models, or if their logits are not finite or not `vocab_size` many.
pub fn divergence<A: LogitsSource, B: LogitsSource>(
    model: &mut A,
    reference: &mut B,
    windows: &Windows,
    vocab_size: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<Divergence> {
    let piece = (BUFFER_BYTES / (4 * vocab_size.max(1))).max(1);
    let mut sums = Sums::default();
    let mut rows: Vec<f32> = Vec::new();
    for window in windows.iter() {
        model.reset();
        reference.reset();
        let (input, targets) = (&window[..window.len() - 1], &window[1..]);
        for (input, targets) in input.chunks(piece).zip(targets.chunks(piece)) {
            rows.clear();
            let mut lse = Vec::with_capacity(input.len());
            let mut sized = true;
            reference.forward_each(input, &mut |i, logits| {
                lse.push(sums.reference.add(logits, targets[i]));
                rows.extend_from_slice(logits);
                sized &= logits.len() == vocab_size;
            })?;
            model.forward_each(input, &mut |i, logits| {
                sized &= logits.len() == vocab_size;
                if let Some(row) = rows.get(i * vocab_size..(i + 1) * vocab_size) {
                    sums.add(row, lse[i], logits, targets[i]);
                }
            })?;
            if !sized {
                return Err(Error::bad_input(format!("a model does not give {vocab_size} logits")));
            }
        }
        sums.reference.check()?;
        sums.model.check()?;
        let ppl = sums.model.result().ppl;
        progress(Progress { done: sums.model.tokens, total: windows.scored(), ppl });
    }
    sums.result()
}

#[derive(Default)]
struct Sums {
    kl: f64,
    agree: usize,
    model: Score,
    reference: Score,
}

impl Sums {
    fn add(&mut self, reference: &[f32], lse_reference: f64, logits: &[f32], target: u32) {
        let lse = self.model.add(logits, target);
        self.kl += kl_divergence(reference, lse_reference, logits, lse);
        self.agree += usize::from(argmax(reference) == argmax(logits));
    }

    fn result(&self) -> Result<Divergence> {
        let (model, reference) = (self.model.result(), self.reference.result());
        let tokens = model.tokens as f64;
        let kl = self.kl / tokens;
        if !kl.is_finite() {
            return Err(Error::bad_input(
                "the divergence is infinite: the model rules out a token that the reference does not",
            ));
        }
        Ok(Divergence {
            // Rounding may produce a tiny negative number if the models agree.
            kl: kl.max(0.0),
            top1_agreement: self.agree as f64 / tokens,
            ppl: model.ppl,
            ppl_reference: reference.ppl,
            tokens: model.tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ppl::perplexity;
    use scrimp_llm::fake::FakeModel;

    fn windows() -> Windows {
        Windows::new((0..40).map(|i| i % 7).collect(), None, 8, None, 100).unwrap()
    }

    fn wavy(scale: f32) -> FakeModel {
        FakeModel::new(move |seen| {
            (0..7)
                .map(|id| scale * ((id * 3 + seen.len() as u32 * 5 + seen[seen.len() - 1]) as f32).sin())
                .collect()
        })
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let got = divergence(&mut wavy(2.0), &mut wavy(2.0), &windows(), 7, &mut |_| ()).unwrap();
        assert_eq!((got.kl, got.top1_agreement, got.tokens), (0.0, 1.0, 35));
        let ppl = perplexity(&mut wavy(2.0), &windows(), &mut |_| ()).unwrap();
        assert_eq!((got.ppl, got.ppl_reference), (ppl.ppl, ppl.ppl));
    }

    #[test]
    fn a_known_divergence_and_its_direction() {
        // Reference: probability a on token 1, model: b, the rest evenly spread over 6 tokens.
        let peaked = |x: f64, odds: f64| {
            FakeModel::new(move |seen| {
                let best = if odds > 0.0 && seen.len() % 2 == 0 { 2 } else { 1 };
                (0..7).map(|id| if id == best { x as f32 } else { 0.0 }).collect()
            })
        };
        let p = |x: f64| x.exp() / (x.exp() + 6.0);
        let (a, b) = (p(2.0), p(0.5));
        let want = a * (a / b).ln() + (1.0 - a) * ((1.0 - a) / (1.0 - b)).ln();
        let got =
            divergence(&mut peaked(0.5, 0.0), &mut peaked(2.0, 0.0), &windows(), 7, &mut |_| ()).unwrap();
        assert!((got.kl - want).abs() < 1e-6, "{} {want}", got.kl);
        assert_eq!(got.top1_agreement, 1.0);
        // A best token that differs at every second position.
        let got =
            divergence(&mut peaked(2.0, 1.0), &mut peaked(2.0, 0.0), &windows(), 7, &mut |_| ()).unwrap();
        assert!((got.top1_agreement - 4.0 / 7.0).abs() < 1e-12, "{}", got.top1_agreement);
    }

    #[test]
    fn both_perplexities_are_those_of_eval_ppl_and_pieces_do_not_matter() {
        let wide = |scale: f32| {
            FakeModel::new(move |seen| {
                let last = seen[seen.len() - 1] as f32;
                let mut row = vec![-scale; 4 << 20];
                for (id, x) in row[..7].iter_mut().enumerate() {
                    *x = (id as f32 + last).cos() * scale;
                }
                row
            })
        };
        // 4 M logits a row: four positions at a time in a window of eight.
        let windows = Windows::new(vec![1, 2, 3, 4, 5, 6], None, 6, None, 100).unwrap();
        let (mut model, mut reference) = (wide(20.0), wide(19.0));
        let got = divergence(&mut model, &mut reference, &windows, 4 << 20, &mut |_| ()).unwrap();
        assert_eq!((&model.calls[..], &reference.calls[..]), (&[4usize, 1][..], &[4usize, 1][..]));
        assert_eq!(got.ppl, perplexity(&mut wide(20.0), &windows, &mut |_| ()).unwrap().ppl);
        assert_eq!(got.ppl_reference, perplexity(&mut wide(19.0), &windows, &mut |_| ()).unwrap().ppl);
        assert!(got.kl > 0.0 && got.tokens == 5);
    }

    #[test]
    fn what_cannot_be_compared_is_an_error() {
        let run = |a: usize, b: usize| divergence(&mut flat(a), &mut flat(b), &windows(), 7, &mut |_| ());
        fn flat(n: usize) -> FakeModel {
            FakeModel::new(move |_| vec![0.5; n])
        }
        assert!(run(7, 7).is_ok() && run(8, 7).is_err() && run(7, 8).is_err());
        let mut broken = FakeModel::new(|_| vec![f32::NAN; 7]);
        assert!(divergence(&mut broken, &mut flat(7), &windows(), 7, &mut |_| ()).is_err());
        // A logit of -inf at a token that the text does not have: the perplexity is finite, the divergence infinite.
        let mut excludes = FakeModel::new(|_| vec![0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, f32::NEG_INFINITY]);
        let error =
            divergence(&mut excludes, &mut flat(8), &windows(), 8, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("infinite"), "{error}");

        let same = |a: &[u32], b: &[u32]| check_same_tokens((a, 9), (b, 9)).map_err(|e| e.to_string());
        assert!(same(&[1, 2], &[1, 2]).is_ok());
        assert!(same(&[1, 2], &[1, 3]).unwrap_err().contains("from token 1 on"));
        assert!(same(&[1, 2], &[1, 2, 3]).unwrap_err().contains("from token 2 on"));
        assert!(check_same_tokens((&[1], 9), (&[1], 10)).is_err());
    }
}
