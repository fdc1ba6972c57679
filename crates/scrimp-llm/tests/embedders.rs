//! Embedding models and rerankers against transformers (`testdata/tiny-encoders`), and damaged ones.

use scrimp_llm::{Embedder, Reranker, embedder::Purpose, model::RunOptions};
use serde_json::Value;
use std::{fs, path::Path};

fn expected(name: &str) -> Value {
    let path = scrimp_testkit::testdata(&format!("tiny-encoders/{name}/expected.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn near(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let error = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 5e-4, "{what}: {error}");
}

fn open(name: &str) -> Embedder {
    let dir = scrimp_testkit::testdata(&format!("tiny-encoders/{name}"));
    // Decoders keep their keys and values in bf16 by default.
    let options = RunOptions { threads: Some(2), kv_format: "f32".parse().unwrap(), ..RunOptions::default() };
    Embedder::open(&dir, &options).unwrap()
}

#[test]
fn embeddings_are_those_of_transformers() {
    for name in ["bert", "roberta", "nomic", "gemma", "qwen3"] {
        let (embedder, expected) = (open(name), expected(name));
        let texts: Vec<&str> =
            expected["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        let width = if name == "gemma" { 24 } else { 32 };
        assert_eq!((embedder.width(), embedder.max_tokens()), (width, 48), "{name}");
        let together = embedder.embed(&texts, None).unwrap();
        for (i, embedding) in together.iter().enumerate() {
            near(&embedding.vector, &numbers(&expected["embeddings"][i]), &format!("{name} {:?}", texts[i]));
            assert_eq!(embedding.tokens as u64, expected["tokens"][i].as_u64().unwrap(), "{name}");
            assert_eq!(embedding.truncated, i == 3, "{name}: only the long text is cut");
            // A text has the bits that it has alone.
            assert_eq!(embedder.embed(&texts[i..=i], None).unwrap()[0], *embedding, "{name}");
        }
        assert_eq!(embedder.prompt_names().collect::<Vec<_>>(), ["query"]);
        let query = embedder.embed(&texts[..1], Some("query")).unwrap();
        near(&query[0].vector, &numbers(&expected["query"]), name);
        let error = embedder.embed(&texts, Some("passage")).unwrap_err();
        assert!(error.hint().unwrap().to_string().contains("query"), "{error}");
        assert!(embedder.embed(&["a", ""], None).is_err());
        assert!(embedder.embed(&[], None).unwrap().is_empty());
    }
}

#[test]
fn cross_encoders_score_as_transformers_does() {
    let dir = scrimp_testkit::testdata("tiny-encoders/reranker");
    let reranker = Reranker::open(&dir, &RunOptions::default()).unwrap();
    let expected = expected("reranker");
    for (pair, logit) in expected["pairs"].as_array().unwrap().iter().zip(numbers(&expected["logits"])) {
        let [query, document] = [0, 1].map(|i| pair[i].as_str().unwrap());
        let scores = reranker.score(query, &[document, "x", document], None).unwrap();
        near(&[scores[0], scores[2]], &[1.0 / (1.0 + (-logit).exp()); 2], query);
        let found = reranker.rank(query, &[document, "x"], None).unwrap();
        assert_eq!(found[0].score, scores[0]);
        assert!(found[1].tokens > 3 && found[0].tokens > found[1].tokens - 1);
    }
}

#[test]
fn decoders_embed_and_rank() {
    let gguf = scrimp_testkit::testdata("tiny-gguf/qwen3.gguf");
    let embedder = Embedder::open(&gguf, &RunOptions::default()).unwrap();
    let embedding = &embedder.embed(&["The rain in the hills"], None).unwrap()[0];
    let llm = scrimp_llm::Llm::open(gguf.to_str().unwrap()).unwrap();
    near(&embedding.vector, &llm.embed("The rain in the hills").unwrap(), "the mean of the states");
    // Its tokenizer spells "yes" with several tokens.
    assert!(Reranker::from_llm(llm).unwrap_err().to_string().contains("one token"));
}

#[test]
fn files_state_the_purpose_of_a_model() {
    use Purpose::{Embed, Generate, Rank};
    for (file, purpose) in [
        ("tiny-encoders/bert", Embed),
        ("tiny-encoders/roberta", Embed),
        ("tiny-encoders/nomic", Embed),
        ("tiny-encoders/gemma", Embed),
        ("tiny-encoders/qwen3", Embed),
        ("tiny-encoders/reranker", Rank),
        ("tiny/llama", Generate),
        ("tiny/qwen3", Generate),
        ("tiny-gguf/qwen3.gguf", Generate),
    ] {
        assert_eq!(Purpose::of(&scrimp_testkit::testdata(file), "model").unwrap(), purpose, "{file}");
    }
    let llama = scrimp_testkit::testdata("tiny/llama");
    assert_eq!(Purpose::of(&llama, "hf:Qwen/Qwen3-Reranker-0.6B").unwrap(), Rank);
    // Without modules.json, the configuration states that the model is an encoder.
    assert_eq!(Purpose::of(copy("bert").path(), "model").unwrap(), Embed);
    let dir = copy("qwen3");
    fs::write(dir.path().join("modules.json"), r#"[{"type": "x.y.LogitScore"}]"#).unwrap();
    assert_eq!(Purpose::of(dir.path(), "model").unwrap(), Rank);
    fs::write(dir.path().join("modules.json"), "[").unwrap();
    assert!(Purpose::of(dir.path(), "model").unwrap_err().to_string().contains("modules.json"));
    assert!(Purpose::of(Path::new("/nonexistent"), "model").is_err());
}

/// A copy of a tiny encoder in a temporary folder.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let from = scrimp_testkit::testdata(&format!("tiny-encoders/{name}/{file}"));
        fs::copy(from, dir.path().join(file)).unwrap();
    }
    dir
}

fn edit(dir: &Path, key: &str, value: Value) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn damaged_encoders_are_refused() {
    let says = |key: &str, value: Value, words: &str| {
        let dir = copy("bert");
        edit(dir.path(), key, value);
        let error = Embedder::open(dir.path(), &RunOptions::default()).unwrap_err().to_string();
        assert!(error.contains(words), "{key}: {error}");
    };
    says("hidden_size", Value::from(64), "shape");
    says("hidden_size", Value::Null, "hidden_size");
    says("num_attention_heads", Value::from(4), "4 attention heads");
    says("num_attention_heads", Value::from(3), "heads");
    says("num_hidden_layers", Value::from(3), "blk.2");
    says("vocab_size", Value::from(1000), "shape");
    says("max_position_embeddings", Value::from(u32::MAX), "max_position_embeddings");
    says("hidden_act", Value::from("relu"), "relu");
    says("position_embedding_type", Value::from("relative_key"), "positions");
    let error = Reranker::open(copy("bert").path(), &RunOptions::default()).unwrap_err().to_string();
    assert!(error.contains("classifier"), "{error}");
    let dir = copy("bert");
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let error = Embedder::open(dir.path(), &RunOptions::default()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

/// A real encoder against sentence-transformers. `SCRIMP_TEST_ENCODER` names its folder, to which
/// `testdata/tiny-encoders/make.py FOLDER` has added `expected.json`.
#[test]
fn a_real_encoder_agrees_with_sentence_transformers() {
    let Some(dir) = std::env::var_os("SCRIMP_TEST_ENCODER") else {
        eprintln!("SKIPPED: SCRIMP_TEST_ENCODER is not set");
        return;
    };
    let dir = Path::new(&dir);
    let expected: Value = serde_json::from_slice(&fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let texts: Vec<&str> =
        expected["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let embedder = Embedder::open(dir, &RunOptions::default()).unwrap();
    for (i, embedding) in embedder.embed(&texts, None).unwrap().iter().enumerate() {
        let want = numbers(&expected["embeddings"][i]);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let got = &embedding.vector;
        let cosine = dot(got, &want) / (dot(got, got) * dot(&want, &want)).sqrt();
        eprintln!("{cosine:.7}  {:?}", texts[i].chars().take(40).collect::<String>());
        assert!(cosine >= 0.9999, "{:?}: {cosine}", texts[i]);
    }
}
