//! A draft changes no answer: with each source of drafts, the tokens are those of decode steps.

use crate::common::load_in;
use scrimp_kv::{
    compress::{Budget, Compression},
    policy::policy,
};
use scrimp_llm::{
    checkpoint::Checkpoint,
    generate::{
        DraftCheckpoint, DraftModel, FinishReason, Generation, Request, Sequence, Speculation, generate,
    },
    model::Model,
    sampling::{Sampler, SamplingParams},
    tokenizer::Tokenizer,
};
use scrimp_testkit::{copy_tiny_model, tiny_model};
use std::ops::ControlFlow;

/// Models, each with another one that has the same vocabulary.
const PAIRS: [(&str, &str); 4] =
    [("llama", "olmoe"), ("gemma3", "llama3"), ("qwen3moe", "qwen3next"), ("qwen35", "phi3")];

fn tokenizer(name: &str) -> Tokenizer {
    Checkpoint::open(&tiny_model(name)).unwrap().tokenizer().unwrap()
}

fn compared(draft: &str, target: &str) -> scrimp_llm::Result<DraftCheckpoint> {
    let checkpoint = Checkpoint::open(&tiny_model(draft)).unwrap();
    DraftCheckpoint::new(checkpoint, (&tiny_model(target), &tokenizer(target)))
}

/// A draft model that drafts often: times of tiny models say little.
fn draft(draft: &str, target: &str, model: &Model) -> DraftModel {
    compared(draft, target).unwrap().load(model, None).unwrap().assumed_free()
}

/// An answer to `prompt`.
struct Case<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    prompt: &'a [u32],
    temperature: f32,
    compression: Option<Compression>,
    max_tokens: Option<usize>,
    stop: Vec<String>,
    end: Option<u32>,
}

impl Case<'_> {
    fn answer(&self, speculation: Speculation) -> Generation {
        let mut session = self.model.session();
        session.set_compression(self.compression.clone());
        let mut sequence = Sequence::new(session, self.model.context_length());
        let params =
            SamplingParams { temperature: self.temperature, seed: Some(7), ..SamplingParams::default() };
        let request = Request {
            prompt: self.prompt,
            max_tokens: self.max_tokens,
            stop: &self.stop,
            is_end: &|id| Some(id) == self.end,
            cancel: None,
            speculation,
            reasoning: None,
        };
        let (mut sampler, mut text) =
            (Sampler::new(params).unwrap(), self.tokenizer.stream_after(self.prompt));
        generate(&mut sequence, &request, &mut sampler, &mut text, &mut |_| ControlFlow::Continue(()))
            .unwrap()
    }

    /// Compares answers with and without drafts, and returns the former.
    fn compare(&self, speculation: Speculation, what: &str) -> Generation {
        let (off, on) = (self.answer(Speculation::Off), self.answer(speculation));
        assert_eq!(on.tokens, off.tokens, "{what}");
        assert_eq!((&on.text, &on.reason), (&off.text, &off.reason), "{what}");
        assert!(on.accepted_tokens <= on.drafted_tokens, "{what}");
        on
    }
}

fn prompt(n: u32) -> Vec<u32> {
    (0..n).map(|t| (t % 7 * 11 + t / 20 + 3) % 200).collect()
}

#[test]
fn answers_do_not_depend_on_the_source_of_drafts() {
    for (name, sibling) in PAIRS {
        let tokenizer = tokenizer(name);
        let mut accepted = [0; 2];
        for format in ["f32", "int8", "int4"] {
            let model = load_in(&tiny_model(name), None, format);
            for (i, draft_name) in [name, sibling].into_iter().enumerate() {
                let draft = draft(draft_name, name, &model);
                let half = Compression::new(policy("knorm").unwrap(), Budget::Fraction(0.5));
                for (compression, temperature) in [(None, 0.0), (None, 0.5), (Some(half), 0.0)] {
                    let what = format!("{name}, {format}, {draft_name}, {compression:?}, {temperature}");
                    let case = Case {
                        model: &model,
                        tokenizer: &tokenizer,
                        prompt: &prompt(50),
                        temperature,
                        compression,
                        max_tokens: Some(60),
                        stop: vec![],
                        end: None,
                    };
                    let on = case.compare(Speculation::Model(draft.clone()), &what);
                    assert!(on.drafted_tokens > 0 && on.draft_kv_bytes > 0, "{what}");
                    accepted[i] += on.accepted_tokens;
                }
                assert!(draft.kv_bytes() > 0, "the next answer reuses the cache");
                draft.clear();
                assert_eq!(draft.kv_bytes(), 0, "{name}, {format}, {draft_name}: pages are not free");
            }
        }
        assert!(accepted[0] > 100, "{name}: a model drafts its own answers well: {accepted:?}");
        assert!(accepted[1] < accepted[0], "{name}: {accepted:?}");
    }
}

#[test]
fn answers_end_inside_drafts_as_without_them() {
    let (name, sibling) = PAIRS[0];
    let (model, tokenizer) = (load_in(&tiny_model(name), None, "f32"), tokenizer(name));
    let draft_models = [draft(name, name, &model), draft(sibling, name, &model)];
    let mut case = Case {
        model: &model,
        tokenizer: &tokenizer,
        prompt: &prompt(30),
        temperature: 0.6,
        compression: None,
        max_tokens: None,
        stop: vec![],
        end: None,
    };
    let whole = case.answer(Speculation::Off);
    assert_eq!(whole.reason, FinishReason::ContextFull);
    for draft in draft_models {
        let speculation = || Speculation::Model(draft.clone());
        let full = case.compare(speculation(), "to the end of the context");
        assert_eq!(full.tokens.len() + 30, model.context_length() + 1);
        for n in [1, 2, 7, 8, 9, 30] {
            case.max_tokens = Some(n);
            assert_eq!(case.compare(speculation(), "at most n tokens").tokens.len(), n);
        }
        case.max_tokens = None;
        for at in [3, 10, 11, 40] {
            case.end = Some(whole.tokens[at]);
            assert_eq!(case.compare(speculation(), "an end token").reason, FinishReason::End);
            case.end = None;
            let piece = tokenizer.decode(&whole.tokens[at..at + 2]);
            case.stop = vec![piece.trim_matches('\u{fffd}').to_owned()]
                .into_iter()
                .filter(|s| !s.is_empty())
                .collect();
            case.compare(speculation(), "a stop string");
            case.stop.clear();
        }
    }
}

#[test]
fn a_draft_model_without_memory_or_context_drafts_less() {
    let (name, sibling) = PAIRS[3];
    // The context of the draft model is shorter.
    let (model, tokenizer) = (load_in(&tiny_model(name), None, "f32"), tokenizer(name));
    let case = Case {
        model: &model,
        tokenizer: &tokenizer,
        prompt: &prompt(100),
        temperature: 0.0,
        compression: None,
        max_tokens: None,
        stop: vec![],
        end: None,
    };
    let short = draft(sibling, name, &model);
    assert!(short.model().context_length() < model.context_length());
    case.compare(Speculation::Model(short), "a shorter context");
    let poor = compared(name, name).unwrap().load(&model, Some(1)).unwrap().assumed_free();
    let on = case.compare(Speculation::Model(poor.clone()), "no memory");
    assert_eq!((on.drafted_tokens, poor.kv_bytes()), (0, 0));
}

#[test]
fn other_vocabularies_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    copy_tiny_model("llama", dir.path(), |_| ());
    let file = dir.path().join("tokenizer.json");
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    text["model"]["vocab"]["a"] = 68.into();
    text["model"]["vocab"]["b"] = 67.into();
    std::fs::write(&file, text.to_string()).unwrap();
    let other = Checkpoint::open(dir.path()).unwrap();
    let error = DraftCheckpoint::new(other, (&tiny_model("llama"), &tokenizer("llama"))).unwrap_err();
    let said = error.to_string();
    assert!(said.ends_with(r#"their vocabularies differ, token 67 is "b" and "a""#), "{said}");
    assert_eq!(error.hint().unwrap().as_str(), "draft with a smaller model of the same family");
    // Padding behind the common tokens.
    let sizes = ["llama", "qwen3moe"].map(|name| tokenizer(name).vocab_size());
    assert!(sizes[0] != sizes[1] && compared("llama", "qwen3moe").is_ok());
}
