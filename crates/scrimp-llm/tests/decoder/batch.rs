//! Sequences have the same results together and alone.

use crate::common::{argmax, load, testdata};
use scrimp_kv::{
    compress::{Budget, Compression, Crush},
    policy::policy,
};
use scrimp_llm::model::{Batch, Model, Output, Session, Step};
use std::sync::Mutex;

/// Tokens of a prompt that go into one pass.
const CHUNK: usize = 30;
const ANSWER: usize = 12;

fn prompt(model: &Model, seed: usize) -> Vec<u32> {
    let n = [5, 90, 1, 33, 64, 17][seed % 6];
    (0..n).map(|i| ((i * i * 7 + i * seed + seed) % model.vocab_size()) as u32).collect()
}

/// Sequences that differ in all that is theirs.
fn session(model: &Model, seed: usize, prompt: &[u32]) -> Session {
    let mut session =
        if seed == 4 { model.session_in("int8".parse().unwrap()).unwrap() } else { model.session() };
    if let Some(name) = ["", "h2o", "", "snapkv"].get(seed).filter(|name| !name.is_empty()) {
        let mut how = Compression::new(policy(name).unwrap(), Budget::Tokens(10));
        (how.sinks, how.recent) = (2, Some(4));
        how.crush = Crush { share: 0.5, ..Crush::default() };
        session.set_compression(Some(how));
    }
    session.begin_prompt(prompt.len());
    session
}

/// The answer of a sequence alone, and the last logits.
fn solo(model: &Model, seed: usize) -> (Vec<u32>, Vec<f32>) {
    let prompt = prompt(model, seed);
    let mut session = session(model, seed, &prompt);
    let mut logits = Vec::new();
    for chunk in prompt.chunks(CHUNK) {
        logits = session.forward(chunk).unwrap().to_vec();
    }
    let mut tokens = vec![argmax(&logits)];
    while tokens.len() < ANSWER {
        logits = session.forward(&tokens[tokens.len() - 1..]).unwrap().to_vec();
        tokens.push(argmax(&logits));
    }
    (tokens, logits)
}

/// A sequence on its way through a batch.
struct Run {
    session: Session,
    prompt: Vec<u32>,
    fed: usize,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

impl Run {
    fn next(&self) -> (Vec<u32>, Output) {
        match self.tokens.last() {
            Some(&token) => (vec![token], Output::Logits),
            None => {
                let end = (self.fed + CHUNK).min(self.prompt.len());
                let output = if end == self.prompt.len() { Output::Logits } else { Output::Nothing };
                (self.prompt[self.fed..end].to_vec(), output)
            }
        }
    }
}

fn together(model: &Model, seeds: std::ops::Range<usize>) -> Vec<(Vec<u32>, Vec<f32>)> {
    let mut batch = Batch::new(model);
    let mut runs: Vec<Run> = seeds
        .map(|seed| {
            let prompt = prompt(model, seed);
            Run { session: session(model, seed, &prompt), prompt, fed: 0, tokens: vec![], logits: vec![] }
        })
        .collect();
    // They begin one after the other, so prompts run beside decode steps.
    for round in 0.. {
        let active: Vec<usize> =
            (0..runs.len().min(round + 1)).filter(|&i| runs[i].tokens.len() < ANSWER).collect();
        if active.is_empty() && round >= runs.len() {
            break;
        }
        let next: Vec<_> = active.iter().map(|&i| runs[i].next()).collect();
        let given = Mutex::new(Vec::new());
        let mut steps: Vec<Step<'_>> = Vec::new();
        for (i, run) in runs.iter_mut().enumerate() {
            if let Some(at) = active.iter().position(|&a| a == i) {
                let (tokens, output) = &next[at];
                steps.push(Step { session: &mut run.session, tokens, output: *output });
            }
        }
        let results =
            batch.forward(&mut steps, &|step, logits| given.lock().unwrap().push((step, logits.to_vec())));
        assert!(results.iter().all(Result::is_ok));
        for (&i, (tokens, _)) in active.iter().zip(&next) {
            runs[i].fed += tokens.len();
        }
        for (step, logits) in given.into_inner().unwrap() {
            let run = &mut runs[active[step]];
            run.tokens.push(argmax(&logits));
            run.logits = logits;
        }
    }
    runs.into_iter().map(|run| (run.tokens, run.logits)).collect()
}

#[test]
fn a_batch_gives_the_bits_of_its_sequences_alone() {
    for name in [
        "llama",
        "gemma3",
        "qwen3moe",
        "gpt-oss",
        "qwen35",
        "qwen3next",
        "lfm2",
        "gemma4",
        "glm4moe",
        "granitehybrid-moe",
        "gemma3n",
    ] {
        for level in [Some("scalar"), None] {
            for format in ["f32", "bf16"] {
                let path = testdata("tiny").join(name);
                let model = crate::common::load_in(&path, level, format);
                let seeds = if format == "f32" { 0..4 } else { 0..6 };
                let alone: Vec<_> = seeds.clone().map(|seed| solo(&model, seed)).collect();
                for ((tokens, logits), (want_tokens, want_logits)) in
                    together(&model, seeds).iter().zip(&alone)
                {
                    assert_eq!(tokens, want_tokens, "{name} {level:?} {format}");
                    assert!(logits == want_logits, "{name} {level:?} {format}: logits differ");
                }
            }
        }
    }
}

#[test]
fn a_step_that_fails_leaves_the_others_alone() {
    let model = load(&testdata("tiny").join("llama"), None);
    let page = 64 * model.config().head_dim * 4;
    let heads = model.config().n_layers * model.config().n_kv_heads;
    // Room for two sequences of one page per head and half of a third one.
    let cache = model.kv_cache("f32".parse().unwrap(), Some(page * 2 * heads * 5 / 2)).unwrap();
    let (mut a, mut b, mut c) =
        (model.session_in_cache(&cache), model.session_in_cache(&cache), model.session_in_cache(&cache));
    let mut d = model.session();
    let alone = model.session().forward(&[1, 2, 3]).unwrap().to_vec();
    let mut batch = Batch::new(&model);
    let mut steps = [
        Step { session: &mut a, tokens: &[1, 2, 3], output: Output::Logits },
        Step { session: &mut d, tokens: &[1_000_000], output: Output::Logits },
        Step { session: &mut b, tokens: &[1, 2, 3], output: Output::Hidden },
        Step { session: &mut c, tokens: &[1, 2, 3], output: Output::Logits },
    ];
    let given = Mutex::new(Vec::new());
    let results = batch.forward(&mut steps, &|step, out| given.lock().unwrap().push((step, out.to_vec())));
    assert!(results[1].as_ref().unwrap_err().to_string().contains("outside the vocabulary"));
    // They compete for pages: which of them fails is unspecified.
    let fit: Vec<usize> = [0, 2, 3].into_iter().filter(|&i| results[i].is_ok()).collect();
    let [failed] = [0, 2, 3].into_iter().filter(|i| !fit.contains(i)).collect::<Vec<_>>()[..] else {
        panic!("two fit: {results:?}");
    };
    assert!(results[failed].as_ref().unwrap_err().to_string().contains("no room"));
    let lens = [a.len(), d.len(), b.len(), c.len()];
    assert!((0..4).all(|i| lens[i] == if fit.contains(&i) { 3 } else { 0 }), "{lens:?}, {results:?}");
    let mut given = given.into_inner().unwrap();
    given.sort_by_key(|(step, _)| *step);
    assert_eq!(given.iter().map(|(step, _)| *step).collect::<Vec<_>>(), fit);
    for (step, out) in given {
        match step {
            2 => assert_eq!(out.len(), 3 * model.config().hidden_size),
            _ => assert!(out == alone),
        }
    }
    drop((a, b, c));
    assert_eq!(cache.bytes_in_use(), 0, "all pages came back");
}
