//! The division of a prompt into passes: at multiples of 64 tokens it does not change a bit, as long as no part is so short
//! that its attention is that of a decode step.

use scrimp_kernels::SimdLevel;
use scrimp_llm::{
    checkpoint::Checkpoint,
    model::{Batch, Model, Output, RunOptions, Step},
};
use scrimp_testkit::testdata;
use std::sync::Mutex;

const MODELS: [&str; 9] =
    ["gemma3", "gemma3-softcap", "llama", "llama3", "mistral", "phi3", "phi3-longrope", "qwen2", "qwen3"];

/// The logits after a prompt that was computed in these parts, beside the prompts of other sequences.
fn logits(model: &Model, tokens: &[u32], parts: &[usize], others: &[&[u32]]) -> Vec<u32> {
    let mut batch = Batch::new(model);
    let mut session = model.session();
    session.begin_prompt(tokens.len());
    let out = Mutex::new(Vec::new());
    let mut at = 0;
    for &n in parts {
        let mut other: Vec<_> = others.iter().map(|_| model.session()).collect();
        let mut steps: Vec<Step<'_>> = other
            .iter_mut()
            .zip(others)
            .map(|(session, &tokens)| Step { session, tokens, output: Output::Logits })
            .collect();
        let output = if at + n == tokens.len() { Output::Logits } else { Output::Nothing };
        steps.push(Step { session: &mut session, tokens: &tokens[at..at + n], output });
        let last = steps.len() - 1;
        let results = batch.forward(&mut steps, &|step, logits| {
            if step == last {
                *out.lock().unwrap() = logits.iter().map(|x| x.to_bits()).collect();
            }
        });
        results.into_iter().for_each(|result| result.unwrap());
        at += n;
    }
    assert_eq!(at, tokens.len());
    out.into_inner().unwrap()
}

#[test]
fn parts_of_whole_blocks_change_no_bit() {
    for name in MODELS {
        let checkpoint = || Checkpoint::open(&testdata(&format!("tiny/{name}"))).unwrap();
        for level in SimdLevel::supported() {
            let options = RunOptions { level: Some(level), threads: Some(2), ..RunOptions::default() };
            let model = Model::load(checkpoint(), &options).unwrap();
            let tokens: Vec<u32> = (0..127).map(|i| (i * 37 + 11) % 290).collect();
            let whole = logits(&model, &tokens, &[127], &[]);
            let other: Vec<u32> = (0..40).map(|i| (i * 13 + 5) % 290).collect();
            assert_eq!(logits(&model, &tokens, &[64, 63], &[]), whole, "{name} {level:?}");
            assert_eq!(logits(&model, &tokens, &[64, 63], &[&other, &other[..1]]), whole, "{name} {level:?}");
            assert_eq!(
                logits(&model, &tokens[..90], &[64, 26], &[&other[..3]]),
                logits(&model, &tokens[..90], &[90], &[]),
                "{name} {level:?}"
            );
        }
    }
}
