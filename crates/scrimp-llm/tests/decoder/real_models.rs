//! Real models against transformers (fp32 on the dequantized weights): `testdata/reference`.
//!
//! They need the model files: `SCRIMP_TEST_MODELS=DIR`. Perplexity is checked on the first 2048 tokens of the committed
//! excerpt. The figure over 8192 tokens of the whole book (`whole` in the reference) is checked by
//! `scrimp eval ppl MODEL --text BOOK --context 512 --max-tokens 8192`.

use crate::common::{argmax, load, read_json, real_model, testdata};
use scrimp_llm::model::Model;
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    model: String,
    bos: Vec<u32>,
    excerpt: Option<Excerpt>,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Excerpt {
    context: usize,
    scored_tokens: usize,
    ids: Vec<u32>,
    ppl: f64,
}

#[derive(Deserialize)]
struct Prompt {
    prompt: String,
    ids: Vec<u32>,
    top10_ids: Vec<u32>,
    top10_logits: Vec<f32>,
    greedy_ids: Vec<u32>,
}

/// A lead of the largest logit that the error of quantized activations must not turn around.
const CLEAR_LEAD: f32 = 0.3;
/// Allowed relative difference of perplexity.
const PPL_BOUND: f64 = 0.007;

const SMALL: [&str; 2] = ["SmolLM2-135M-Instruct.Q4_1", "gemma-3-270m-Q4_K_M"];
const LARGE: [&str; 2] = ["qwen2.5-coder-0.5b-instruct-q4_k_m", "qwen2.5-coder-1.5b-instruct-q4_k_m"];

fn reference(name: &str) -> Reference {
    read_json(&testdata("reference").join(format!("{name}.json")))
}

fn open(reference: &Reference) -> Option<Model> {
    real_model(&reference.model).map(|path| load(&path, None))
}

/// The model agrees wherever transformers is sure, on prompts and along its greedy continuations.
fn top1(name: &str) {
    let reference = reference(name);
    let Some(model) = open(&reference) else { return };
    let mut sure = 0;
    for p in &reference.prompts {
        let mut session = model.session();
        let logits = session.forward(&p.ids).unwrap();
        if p.top10_logits[0] - p.top10_logits[1] > CLEAR_LEAD {
            sure += 1;
            assert_eq!(argmax(logits), p.top10_ids[0], "{name}: after {:?}", p.prompt);
        }
        // The ten likeliest are near the reference.
        let spread = p.top10_logits[0] - p.top10_logits[9];
        for (&id, &want) in p.top10_ids.iter().zip(&p.top10_logits) {
            let got = logits[id as usize];
            let allowed = 0.35_f32.max(0.15 * spread);
            assert!(
                (got - want).abs() < allowed,
                "{name}: after {:?}: logit of {id} is {got}, not {want}",
                p.prompt
            );
        }
        // Forced along the reference's continuation, most steps choose the same token (near ties may differ).
        let mut same = usize::from(argmax(logits) == p.greedy_ids[0]);
        for pair in p.greedy_ids.windows(2) {
            same += usize::from(argmax(session.forward(&pair[..1]).unwrap()) == pair[1]);
        }
        let total = p.greedy_ids.len();
        assert!(same * 10 >= total * 8, "{name}: after {:?}: {same} of {total} greedy steps agree", p.prompt);
    }
    assert!(sure > 0, "{name}: the reference has a clear case");
}

/// Minus the log-probability of `id`, in f64.
fn surprise(logits: &[f32], id: u32) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
    largest + sum.ln() - f64::from(logits[id as usize])
}

/// Perplexity in non-overlapping windows, each after BOS if the tokenizer adds one; first positions are not scored.
fn perplexity(name: &str) {
    let reference = reference(name);
    let Some(excerpt) = &reference.excerpt else { return };
    let Some(model) = open(&reference) else { return };
    let (mut nll, mut scored) = (0.0, 0);
    let mut session = model.session();
    for piece in excerpt.ids.chunks_exact(excerpt.context - reference.bos.len()) {
        let window = [&reference.bos[..], piece].concat();
        session.reset();
        session
            .forward_each(&window, &mut |i, logits| {
                if let Some(&next) = window.get(i + 1) {
                    nll += surprise(logits, next);
                    scored += 1;
                }
            })
            .unwrap();
    }
    assert_eq!(scored, excerpt.scored_tokens, "{name}");
    let ppl = (nll / scored as f64).exp();
    let off = ppl / excerpt.ppl - 1.0;
    eprintln!("{name}: perplexity {ppl:.4}, transformers {:.4}, {:+.2}%", excerpt.ppl, 100.0 * off);
    assert!(off.abs() < PPL_BOUND, "{name}: perplexity {ppl} is {:+.2}% off {}", 100.0 * off, excerpt.ppl);
}

#[test]
fn perplexity_of_smollm2() {
    perplexity(SMALL[0]);
}

#[test]
fn perplexity_of_gemma3() {
    perplexity(SMALL[1]);
}

#[test]
fn small_models_agree_where_the_reference_is_sure() {
    SMALL.into_iter().for_each(top1);
}

#[test]
fn large_models_agree_where_the_reference_is_sure() {
    LARGE.into_iter().for_each(top1);
}
