//! Ids against those of other people's tokenizers: `testdata/tokenizer/make.py` wrote them down.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use scrimp_llm::{load::GgufFile, tokenizer::Tokenizer};
use scrimp_testkit::{real_model, testdata};
use serde_json::Value;
use unicode_normalization::UnicodeNormalization as _;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// FNV-1a, 64 bits, over the ids as little-endian u32.
fn fnv1a(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// Streaming must equal decoding.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
    text.push_str(&stream.finish());
    text
}

fn gguf_model(name: &str) {
    let Some(path) = real_model(&format!("{name}.gguf")) else { return };
    let file = GgufFile::open(&path).unwrap();
    let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
    let golden = json(&testdata(&format!("tokenizer/{name}.json")));
    assert_eq!(tokenizer.vocab_size() as u64, golden["vocab_size"].as_u64().unwrap());
    assert_eq!(tokenizer.encode("x", true, true).unwrap(), ids(&golden["with_bos"]));

    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let special = ids(&case["ids"]);
        // llama.cpp takes </s> for a control token even in Gemma's vocabulary, where it is HTML.
        let html = text.contains("</s>");
        let plain = case.get("plain").map_or_else(|| special.clone(), ids);
        for (parse_special, want) in [(true, &special), (false, &plain)] {
            let got = tokenizer.encode(text, false, parse_special).unwrap();
            // Qwen's own tokenizer composes characters (NFC) first, llama.cpp does not.
            let composed: String = text.nfc().collect();
            if name.starts_with("qwen") && composed != text {
                assert_eq!(got, tokenizer.encode(&composed, false, parse_special).unwrap(), "{text:?}");
                continue;
            }
            if got != *want && !html {
                wrong.push(format!("{text:?} ({parse_special}): {got:?}, want {want:?}"));
            }
        }
        // SentencePiece cannot tell its mark for a space from a space.
        let back = if name.starts_with("gemma") { text.replace('\u{2581}', " ") } else { text.to_owned() };
        assert_eq!(tokenizer.decode_with(&special, false), back);
        assert_eq!(streamed(&tokenizer, &special), tokenizer.decode(&special));
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));

    let texts = env::var_os("SCRIMP_TEST_TEXTS").map(PathBuf::from);
    for (name, sum) in golden["texts"].as_object().unwrap() {
        let path = match &texts {
            _ if name == "alice_excerpt.txt" => testdata("text").join(name),
            Some(texts) => texts.join(name),
            None => {
                eprintln!("SKIPPED: {name}: SCRIMP_TEST_TEXTS is not set");
                continue;
            }
        };
        let text = fs::read_to_string(path).unwrap();
        let got = tokenizer.encode(&text, false, true).unwrap();
        assert_eq!(
            (got.len() as u64, fnv1a(&got).as_str()),
            (sum["count"].as_u64().unwrap(), sum["fnv1a"].as_str().unwrap()),
            "{name}"
        );
        assert_eq!(tokenizer.decode(&got), text, "{name}");
    }
}

#[test]
fn smollm2() {
    gguf_model("SmolLM2-135M-Instruct.Q4_1");
}

#[test]
fn gemma3() {
    gguf_model("gemma-3-270m-Q4_K_M");
}

#[test]
fn qwen_half() {
    gguf_model("qwen2.5-coder-0.5b-instruct-q4_k_m");
}

#[test]
fn qwen_one_and_a_half() {
    gguf_model("qwen2.5-coder-1.5b-instruct-q4_k_m");
}

fn hf_dir(name: &str) -> Tokenizer {
    let dir = testdata("tokenizer").join(name);
    let tokenizer = Tokenizer::from_hf_dir(&dir).unwrap();
    let golden = json(&dir.join("golden.json"));
    assert_eq!(tokenizer.vocab_size() as u64, golden["vocab_size"].as_u64().unwrap());
    for case in golden["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let want = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, false, true).unwrap(), want, "{text:?}");
        assert_eq!(tokenizer.decode(&want), case["decoded"].as_str().unwrap(), "{text:?}");
        assert_eq!(streamed(&tokenizer, &want), tokenizer.decode(&want), "{text:?}");
    }
    tokenizer
}

#[test]
fn tokenizer_json_byte_level() {
    let tokenizer = hf_dir("tiny_bytelevel");
    assert!(!tokenizer.adds_bos());
    assert_eq!(tokenizer.bos(), None);
    assert_eq!(tokenizer.ends(), [0, 2]);
    let marked = "<|im_start|>user";
    assert_eq!(tokenizer.encode(marked, true, true).unwrap()[0], 1);
    let plain = tokenizer.encode(marked, true, false).unwrap();
    assert!(!plain.contains(&1));
    assert_eq!(tokenizer.decode(&plain), marked);
    assert_eq!(tokenizer.decode_with(&[1], false), "<|im_start|>");
    assert_eq!(tokenizer.decode(&[1, 1_000_000]), "");
}

#[test]
fn tokenizer_json_sentencepiece() {
    let tokenizer = hf_dir("tiny_sentencepiece");
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.bos(), Some(1));
    assert_eq!(tokenizer.ends(), [2]);
    assert_eq!(tokenizer.encode("x", true, true).unwrap()[0], 1);
    // A continued text keeps its space, a new text does not.
    let ids = tokenizer.encode("the end", false, true).unwrap();
    let mut begins = tokenizer.stream();
    let mut goes_on = tokenizer.stream_after(&ids);
    let word = begins.push(ids[0]);
    assert!(word.starts_with("the"), "{word:?}");
    assert_eq!(goes_on.push(ids[0]), format!(" {word}"));
}
