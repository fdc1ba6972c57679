//! A draft changes no bit: the logits of its tokens are those of decode steps.

use crate::common::{Expected, load_in, read_json, testdata};
use scrimp_base::SplitMix64;
use scrimp_kv::{
    compress::{Budget, Compression},
    policy::policy,
};
use scrimp_llm::model::{Model, Session};
use std::path::Path;

/// Tokens that are decoded.
const DECODED: usize = 90;

/// A session of `model` after the first `prompt` tokens of `ids`.
fn after_prompt(model: &Model, ids: &[u32], compression: Option<&Compression>) -> Session {
    let mut session = model.session();
    session.set_compression(compression.cloned());
    session.begin_prompt(ids.len());
    session.forward(ids).unwrap();
    session
}

/// Decodes `ids` one by one, and in drafts of random lengths of which random parts are wrong; compares the bits.
fn drafts_agree_with_steps(name: &str, model: &Model, ids: &[u32], compression: Option<&Compression>) {
    let prompt = ids.len() - DECODED;
    let mut session = after_prompt(model, &ids[..prompt], compression);
    let steps: Vec<Vec<f32>> =
        ids[prompt..].iter().map(|id| session.forward(&[*id]).unwrap().to_vec()).collect();
    let (bytes, tokens) = (session.kv_bytes(), session.kv_tokens());

    let mut session = after_prompt(model, &ids[..prompt], compression);
    let (mut random, mut at, mut passes) = (SplitMix64::new(5), 0, 0);
    while at < DECODED {
        let most = session.verifiable(1 + random.next_u64() as usize % 12).min(DECODED - at);
        let good = 1 + random.next_u64() as usize % most;
        let mut draft = ids[prompt + at..][..most].to_vec();
        for token in &mut draft[good..] {
            *token = (*token + 1) % model.vocab_size() as u32;
        }
        let kept = session.verify(&draft, &mut |i, logits| {
            assert!(
                logits == steps[at + i],
                "{name}: token {} of {DECODED}, {i} of a draft of {most}",
                at + i
            );
            Ok(i + 1 < good)
        });
        assert_eq!(kept.unwrap(), good);
        (at, passes) = (at + good, passes + 1);
        assert_eq!(session.len(), prompt + at);
    }
    assert!(passes < DECODED * 3 / 4, "{name}: {passes} passes for {DECODED} tokens");
    assert_eq!((session.kv_bytes(), session.kv_tokens()), (bytes, tokens), "{name}");
}

fn ids(folder: &Path, n: usize) -> Vec<u32> {
    read_json::<Expected>(&folder.join("expected.json")).ids.into_iter().cycle().take(n).collect()
}

#[test]
fn drafts_have_the_bits_of_decode_steps() {
    let mut folders: Vec<_> =
        std::fs::read_dir(testdata("tiny")).unwrap().map(|e| e.unwrap().path()).collect();
    folders.retain(|folder| folder.join("expected.json").exists());
    folders.sort();
    assert!(folders.len() > 8);
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        for format in ["f32", "bf16", "int8"] {
            let model = load_in(&folder, None, format);
            let n = model.context_length().min(420);
            drafts_agree_with_steps(&format!("{name} {format}"), &model, &ids(&folder, n), None);
        }
    }
}

#[test]
fn drafts_of_compressed_caches_have_the_bits_of_decode_steps() {
    let folder = testdata("tiny").join("llama");
    for name in ["snapkv", "h2o", "expected-max", "streaming"] {
        for format in ["bf16", "int4"] {
            let model = load_in(&folder, None, format);
            let how = Compression::new(policy(name).unwrap(), Budget::Tokens(70));
            let n = model.context_length().min(300);
            drafts_agree_with_steps(&format!("{name} {format}"), &model, &ids(&folder, n), Some(&how));
        }
    }
}

#[test]
fn a_refused_draft_leaves_the_session_as_it_was() {
    let folder = testdata("tiny").join("llama");
    let model = load_in(&folder, None, "bf16");
    let ids = ids(&folder, 80);
    let mut session = after_prompt(&model, &ids[..60], None);
    let vocab = model.vocab_size() as u32;
    assert!(session.verify(&[1, vocab], &mut |_, _| Ok(true)).is_err());
    let error = scrimp_llm::Error::bad_input("sampled no token");
    let mut error = Some(error);
    assert!(session.verify(&ids[60..64], &mut |_, _| Err(error.take().unwrap())).is_err());
    assert_eq!(session.len(), 60);
    let mut other = after_prompt(&model, &ids[..60], None);
    assert_eq!(session.forward(&ids[60..61]).unwrap(), other.forward(&ids[60..61]).unwrap());
}
