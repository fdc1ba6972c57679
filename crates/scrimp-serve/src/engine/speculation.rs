//! Speculation: a request that decodes alone computes a draft of its next tokens in one pass.
//!
//! ```text
//! one running request, decode step, speculation ── draft ── Session::verify ── tokens as of that many steps
//!                                                    └ none: a step of one token
//! ```
//! Each token is sampled from the logits that a decode step would have computed, with the same bits
//! ([`Session::verify`](scrimp_llm::model::Session::verify)), so an answer does not depend on drafts, and therefore not
//! on the requests beside it. Beside other requests, a step already reads the weights for several tokens; there is no
//! draft then.

use super::{Engine, Failure, RunningStep, Sampled, out_of_pages};
use crate::scheduler::KvMemory as _;
use scrimp_llm::model::Output;
use std::panic::{AssertUnwindSafe, catch_unwind};

impl Engine<'_> {
    /// Whether the step is a decode of a request with speculation.
    pub(super) fn may_draft(&self, step: &RunningStep) -> bool {
        let Some(active) = self.active.get(&step.id) else { return false };
        let speculates = active.answer.as_ref().is_some_and(|answer| answer.speculator.is_some());
        speculates && active.last_token.is_some() && step.tokens.len() == 1 && step.output == Output::Logits
    }

    /// Runs the step of the only running request with a draft of its next tokens.
    pub(super) fn speculate(&mut self, mut step: RunningStep) {
        let draft = self.draft(&step);
        if draft.is_empty() {
            let mut running = vec![step];
            let computed = self.forward(&mut running);
            self.passed(running[0].id);
            return self.end_step(running, computed);
        }
        let tokens = [step.tokens.as_slice(), &draft].concat();
        let context = self.model.context_length();
        let before = step.session.len();
        let Some(answer) = self.active.get_mut(&step.id).and_then(|active| active.answer.as_mut()) else {
            return;
        };
        let mut all: Vec<Sampled> = Vec::with_capacity(tokens.len());
        let session = &mut step.session;
        let verified = catch_unwind(AssertUnwindSafe(|| {
            session.verify(&tokens, &mut |index, logits| {
                let room = context.saturating_sub(before + index + 2);
                let sampled = answer.sample(logits, room)?;
                let goes_on = sampled.end.is_none() && tokens.get(index + 1) == Some(&sampled.id);
                all.push(sampled);
                Ok(goes_on)
            })
        }));
        let id = step.id;
        match verified {
            Ok(Ok(kept)) => {
                self.metrics.drafts.add(1);
                self.metrics.drafted_tokens.add(draft.len() as u64);
                self.metrics.accepted_tokens.add(kept as u64 - 1);
                self.passed(id);
                self.kv_caches.put(id, step.session);
                // As after that many decode steps.
                all.into_iter().for_each(|sampled| self.after_step(id, 1, Some(Ok(sampled))));
            }
            Ok(Err(e)) => {
                self.kv_caches.put(id, step.session);
                if all.is_empty() && out_of_pages(&e) && self.may_restart(id) {
                    self.scheduler.preempt(id, &mut self.kv_caches);
                } else {
                    self.fail(id, Failure::from(&e));
                }
            }
            Err(_) => self.fail(id, Failure::Internal("the model or the sampling failed".into())),
        }
    }

    /// A draft that fits the answer, the context and the free memory.
    fn draft(&mut self, step: &RunningStep) -> Vec<u32> {
        let available = self.kv_caches.available();
        let Some(answer) = self.active.get_mut(&step.id).and_then(|active| active.answer.as_mut()) else {
            return Vec::new();
        };
        let left = answer.left();
        let Some(speculator) = answer.speculator.as_mut() else { return Vec::new() };
        let limit = |n: usize| {
            // The last token takes part in the pass.
            let mut most = step.session.verifiable(left.min(n + 1));
            while most > 1 && step.session.kv().growth_bytes(most) > available {
                most /= 2;
            }
            most.saturating_sub(1)
        };
        let drafted = catch_unwind(AssertUnwindSafe(|| speculator.draft(&answer.sampler, limit).to_vec()));
        drafted.unwrap_or_else(|_| {
            tracing::error!("drafts of a request failed: it continues without them");
            answer.speculator = None;
            Vec::new()
        })
    }

    /// The time of the pass after a draft is over.
    fn passed(&mut self, id: crate::scheduler::RequestId) {
        let answer = self.active.get_mut(&id).and_then(|active| active.answer.as_mut());
        if let Some(speculator) = answer.and_then(|answer| answer.speculator.as_mut()) {
            speculator.passed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{Question, answers};
    use scrimp_kv::{
        compress::{Budget, Compression},
        policy::policy,
    };
    use scrimp_llm::{
        checkpoint::Checkpoint,
        generate::{DraftCheckpoint, Speculation},
        model::{Model, RunOptions},
    };

    /// A prompt with repetitions.
    fn prompt(i: u32, n: u32) -> Vec<u32> {
        (0..n).map(|t| (t % 7 * 11 + t / 50 + i * 13 + 3) % 200).collect()
    }

    #[test]
    fn answers_do_not_depend_on_drafts() {
        let (mut drafted, mut accepted) = (0, 0);
        for name in ["llama", "gemma3", "qwen3moe", "qwen35"] {
            let path = scrimp_testkit::tiny_model(name);
            let tokenizer = Checkpoint::open(&path).unwrap().tokenizer().unwrap();
            for format in ["f32", "int8", "int4"] {
                let options = RunOptions { kv_format: format.parse().unwrap(), ..RunOptions::default() };
                let model = Model::load(Checkpoint::open(&path).unwrap(), &options).unwrap();
                let budget = Budget::Fraction(0.5);
                for compression in [None, Some(Compression::new(policy("knorm").unwrap(), budget))] {
                    let question = |i: u32, speculation| {
                        let mut question = Question::new(prompt(i, 40 + 30 * i));
                        question.kv.compression.clone_from(&compression);
                        question.kv.format = format.to_owned();
                        question.params.max_tokens = 60;
                        question.params.speculation = speculation;
                        question.params.sampling.temperature = if i == 0 { 0.0 } else { 0.3 };
                        question.params.sampling.seed = Some(u64::from(i));
                        question
                    };
                    let run = |questions| answers(&model, &tokenizer, questions);
                    let mut alone = Vec::new();
                    for i in 0..2 {
                        let (off, metrics) = run(vec![question(i, Speculation::Off)]);
                        let generated = metrics.generated_tokens.get();
                        assert_eq!(metrics.drafted_tokens.get(), 0);
                        let (on, metrics) = run(vec![question(i, Speculation::Ngram)]);
                        assert_eq!(on, off, "{name}, {format}, {compression:?}, request {i}");
                        assert_eq!(metrics.kv_bytes.get(), 0, "pages are not free");
                        assert_eq!(metrics.generated_tokens.get(), generated);
                        drafted += metrics.drafted_tokens.get();
                        accepted += metrics.accepted_tokens.get();
                        alone.extend(off);
                    }
                    // Beside each other, and alone after the shorter answer has ended.
                    let mut both: Vec<_> = (0..2).map(|i| question(i, Speculation::Ngram)).collect();
                    both[1].params.max_tokens = 20;
                    let (together, _) = run(both);
                    assert_eq!(together[0], alone[0], "{name}, {format}, {compression:?}");
                    let (short, long) = (together[1].as_ref().unwrap(), alone[1].as_ref().unwrap());
                    assert!(long.starts_with(short.trim_end_matches('\u{fffd}')), "{short:?} {long:?}");
                }
            }
        }
        assert!(accepted > 0 && accepted < drafted, "{accepted} of {drafted} tokens");
    }

    #[test]
    fn answers_do_not_depend_on_a_draft_model() {
        let mut all = (0, 0);
        for (name, sibling) in [("llama", "olmoe"), ("qwen35", "phi3"), ("phi3", "qwen35")] {
            let path = scrimp_testkit::tiny_model(name);
            let tokenizer = Checkpoint::open(&path).unwrap().tokenizer().unwrap();
            let model = Model::load(Checkpoint::open(&path).unwrap(), &RunOptions::default()).unwrap();
            for draft in [name, sibling] {
                let draft = Checkpoint::open(&scrimp_testkit::tiny_model(draft)).unwrap();
                let draft = DraftCheckpoint::new(draft, (&path, &tokenizer)).unwrap();
                let limit = draft.kv_bytes(1 << 20, model.config());
                let draft = draft.load(&model, Some(limit)).unwrap().assumed_free();
                let question = |i: u32, speculation| {
                    let mut question = Question::new(prompt(i, 40 + 10 * i));
                    question.kv.format = "f32".to_owned();
                    question.params.max_tokens = 60;
                    question.params.speculation = speculation;
                    question.params.sampling.temperature = if i == 0 { 0.0 } else { 0.4 };
                    question.params.sampling.seed = Some(u64::from(i));
                    question
                };
                let run = |questions| answers(&model, &tokenizer, questions);
                let drafts = || Speculation::Model(draft.clone());
                let alone: Vec<_> = (0..2)
                    .map(|i| {
                        let (off, _) = run(vec![question(i, Speculation::Off)]);
                        let (on, metrics) = run(vec![question(i, drafts())]);
                        assert_eq!(on, off, "{name}, request {i}");
                        assert_eq!(metrics.kv_bytes.get(), 0, "pages are not free");
                        all = (all.0 + metrics.drafted_tokens.get(), all.1 + metrics.accepted_tokens.get());
                        off
                    })
                    .collect();
                // A request drafts, pauses beside another one, and drafts again.
                let mut both: Vec<_> = (0..2).map(|i| question(i, drafts())).collect();
                both[1].params.max_tokens = 20;
                let (together, _) = run(both);
                assert_eq!(together[0], alone[0][0], "{name}");
                draft.clear();
                assert_eq!(draft.kv_bytes(), 0);
            }
        }
        assert!(all.1 > 0 && all.1 < all.0, "{} of {} tokens", all.1, all.0);
    }
}
