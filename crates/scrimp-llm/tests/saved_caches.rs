//! Saved KV caches: a loaded session continues exactly as the saved one, and every other file is refused.

use scrimp_kv::{
    KvFormat,
    compress::{Budget, Compression, Crush},
    policy::policy,
};
use scrimp_llm::{
    Error,
    chat::Message,
    checkpoint::Checkpoint,
    model::{Model, RunOptions, SavedText, Session},
};
use std::{fs, path::Path};

/// The tiny models' context.
const CONTEXT: usize = 128;

fn open(name: &str, format: KvFormat) -> Model {
    let checkpoint = Checkpoint::open(&scrimp_testkit::tiny_model(name)).unwrap();
    let options = RunOptions { threads: Some(2), kv_format: format, ..RunOptions::default() };
    Model::load(checkpoint, &options).unwrap()
}

/// A prompt that leaves room for another compression, or one that fills a page.
fn prompt(model: &Model, compressed: bool) -> Vec<u32> {
    (0..if compressed { 55 } else { 100 }).map(|i| (i * 37 + 11) % model.vocab_size() as u32).collect()
}

fn how(name: &str) -> Compression {
    let mut how = Compression::new(policy(name).unwrap(), Budget::Tokens(30));
    how.crush = Crush { share: 0.4, ..Crush::default() };
    (how.sinks, how.recent) = (2, Some(8));
    how
}

/// A session after the prompt and three more tokens, with its text.
fn filled(model: &Model, how: Option<Compression>) -> (Session, SavedText) {
    let mut session = model.session();
    let mut tokens = prompt(model, how.is_some());
    session.set_compression(how);
    session.begin_prompt(tokens.len());
    session.forward(&tokens).unwrap();
    for token in [1, 2, 3] {
        session.forward(&[token]).unwrap();
        tokens.push(token);
    }
    let text = SavedText { tokens, messages: vec![Message::new("user", "hello")], prompt: String::new() };
    (session, text)
}

/// The logits of more tokens, until the context is full.
fn continued(session: &mut Session) -> Vec<Vec<f32>> {
    let vocab = session.model().vocab_size() as u32;
    (session.len()..CONTEXT)
        .map(|i| i as u32)
        .map(|i| session.forward(&[(i * 13) % vocab]).unwrap().to_vec())
        .collect()
}

fn error(result: Result<scrimp_llm::model::SavedSession, Error>) -> String {
    let error = result.map(|_| ()).unwrap_err();
    format!("{error} ({})", error.hint().map(ToString::to_string).unwrap_or_default())
}

#[test]
fn a_loaded_session_continues_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.kv");
    for (model, format, how) in [
        ("qwen2", "bf16", None),
        ("qwen2", "f32", Some(how("h2o"))),
        ("qwen2", "int8", Some(how("snapkv"))),
        ("llama", "int4", None),
        ("llama", "sparse:0.3,0.5", Some(how("kvzip-query"))),
        ("llama", "f16", Some(Compression { rerotate: true, ..how("snapkv") })),
        ("mistral", "bf16", None),
        ("gemma3", "int8", Some(how("h2o"))),
        ("gemma4", "int8", Some(how("h2o"))),
        ("phi3-longrope", "bf16", None),
    ] {
        let format: KvFormat = format.parse().unwrap();
        let model = open(model, format);
        let (mut session, text) = filled(&model, how.clone());
        let bytes = session.save(&path, &text).unwrap();
        assert_eq!(bytes, fs::metadata(&path).unwrap().len());
        let mut loaded = model.load_session(&path, how.clone(), format).unwrap();
        assert_eq!((&loaded.text, loaded.file_bytes), (&text, bytes));
        assert_eq!(loaded.session.kv_bytes(), session.kv_bytes());
        assert_eq!(continued(&mut loaded.session), continued(&mut session), "{format} {how:?}");
    }
}

#[test]
fn other_models_options_and_versions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.kv");
    let model = open("qwen2", KvFormat::default());
    let (session, text) = filled(&model, Some(how("h2o")));
    session.save(&path, &text).unwrap();
    let load = |model: &Model, how| error(model.load_session(&path, how, KvFormat::default()));
    let other = load(&open("llama", KvFormat::default()), Some(how("h2o")));
    assert!(other.contains("saved with another model") && other.contains("qwen2"), "{other}");
    let none = load(&model, None);
    assert!(none.contains("saved with other options: `kv_format` bf16, h2o 30"), "{none}");
    assert!(load(&model, Some(how("snapkv"))).contains("given now: `kv_format` bf16, snapkv 30"));
    let format = "int8".parse().unwrap();
    assert!(error(model.load_session(&path, Some(how("h2o")), format)).contains("other options"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 99;
    fs::write(&path, &bytes).unwrap();
    assert!(load(&model, Some(how("h2o"))).contains("version 99"));
    fs::write(&path, b"GGUF").unwrap();
    assert!(load(&model, Some(how("h2o"))).contains("not a saved KV cache"));
    assert!(error(model.load_session(Path::new("/nowhere"), None, KvFormat::default())).contains("/nowhere"));
}

#[test]
fn flipped_bits_and_torn_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.kv");
    for format in ["bf16", "sparse:0.3,0.5"] {
        let format: KvFormat = format.parse().unwrap();
        let model = open("llama", format);
        let (session, text) = filled(&model, Some(how("h2o")));
        session.save(&path, &text).unwrap();
        let whole = fs::read(&path).unwrap();
        // Many places of the beginning, and places all over the file.
        let places = (0..400).step_by(9).chain((400..whole.len()).step_by(whole.len() / 20));
        for place in places {
            let mut bytes = whole.clone();
            bytes[place] ^= 1 << (place % 8);
            fs::write(&path, &bytes).unwrap();
            error(model.load_session(&path, Some(how("h2o")), format));
        }
        for n in (0..whole.len()).step_by(whole.len() / 10) {
            fs::write(&path, &whole[..n]).unwrap();
            error(model.load_session(&path, Some(how("h2o")), format));
        }
        fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
        error(model.load_session(&path, Some(how("h2o")), format));
    }
}

#[test]
fn only_complete_prompts_are_saved_and_the_old_file_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.kv");
    fs::write(&path, b"old").unwrap();
    let model = open("llama", KvFormat::default());
    let mut session = model.session();
    session.set_compression(Some(how("h2o")));
    session.begin_prompt(100);
    session.forward(&[1, 2, 3]).unwrap();
    let text = SavedText { tokens: vec![1, 2, 3], ..SavedText::default() };
    assert!(session.save(&path, &text).unwrap_err().to_string().contains("incomplete prompt"));
    let fewer = SavedText { tokens: vec![1, 2], ..SavedText::default() };
    assert!(session.save(&path, &fewer).unwrap_err().to_string().contains("3 tokens"));
    assert_eq!(fs::read(&path).unwrap(), b"old");
}
