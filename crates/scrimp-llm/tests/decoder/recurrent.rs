//! Recurrent states: forks, truncation, files, reports and compression of models that have them.

use crate::common::{load, load_in, testdata};
use scrimp_kv::{
    KvError,
    compress::{Budget, Compression},
    policy::policy,
};
use scrimp_llm::model::{Model, SavedText, Session};

/// Tiny models with recurrent layers.
const MODELS: [&str; 5] = ["qwen35", "qwen3next", "lfm2", "lfm2moe", "granitehybrid-moe"];

fn models() -> impl Iterator<Item = Model> {
    MODELS.iter().map(|name| load(&testdata("tiny").join(name), None))
}

fn tokens(model: &Model, n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 7 + i * seed + seed) % model.vocab_size()) as u32).collect()
}

/// The logits of decode steps.
fn decode(session: &mut Session, tokens: &[u32]) -> Vec<Vec<f32>> {
    tokens.iter().map(|&token| session.forward(&[token]).unwrap().to_vec()).collect()
}

#[test]
fn forks_go_their_own_ways() {
    for model in models() {
        let (prompt, one, two) = (tokens(&model, 90, 1), tokens(&model, 8, 2), tokens(&model, 8, 3));
        let after = |more: &[u32]| {
            let mut session = model.session();
            session.forward(&prompt).unwrap();
            decode(&mut session, more)
        };
        let mut session = model.session();
        session.forward(&prompt).unwrap();
        let mut fork = session.fork();
        for i in 0..8 {
            assert_eq!(decode(&mut session, &one[i..=i])[0], after(&one)[i]);
            assert_eq!(decode(&mut fork, &two[i..=i])[0], after(&two)[i]);
        }
    }
}

#[test]
fn a_session_returns_to_its_beginning_or_its_checkpoint_only() {
    for model in models() {
        let prompt = tokens(&model, 150, 1);
        let mut session = model.session();
        session.forward(&prompt).unwrap();
        assert_eq!(session.min_tokens(), 150);
        session.truncate(150);
        assert_eq!(session.len(), 150, "nothing to drop");
        session.truncate(149);
        assert!(session.is_empty(), "no state of that length");
        assert_eq!(session.kv_bytes(), 0);
        // A prompt leaves a checkpoint at the last block before its end.
        session.begin_prompt(150);
        assert_eq!(session.checkpoint(150), Some(128));
        session.forward(&prompt[..128]).unwrap();
        let first = session.forward(&prompt[128..]).unwrap().to_vec();
        decode(&mut session, &[5, 6, 7]);
        session.truncate(140);
        assert_eq!(session.len(), 128);
        assert_eq!(session.forward(&prompt[128..]).unwrap(), first);
        session.truncate(127);
        assert!(session.is_empty());
    }
}

#[test]
fn a_file_has_the_states() {
    for model in models() {
        let (prompt, more) = (tokens(&model, 100, 1), tokens(&model, 20, 2));
        let mut session = model.session();
        session.begin_prompt(100);
        session.forward(&prompt[..64]).unwrap();
        let rest = session.forward(&prompt[64..]).unwrap().to_vec();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.kv");
        let text = SavedText { tokens: prompt.clone(), ..SavedText::default() };
        session.save(&path, &text).unwrap();
        let format = session.kv().format();
        let mut loaded = model.load_session(&path, None, format).unwrap().session;
        assert_eq!(loaded.len(), 100);
        assert_eq!(loaded.kv_bytes(), session.kv_bytes());
        assert_eq!(decode(&mut loaded, &more), decode(&mut session, &more));
        loaded.truncate(99);
        assert_eq!(loaded.len(), 64, "the checkpoint");
        assert_eq!(loaded.forward(&prompt[64..]).unwrap(), rest);
    }
}

#[test]
fn states_count_in_reports_and_limits() {
    for model in models() {
        let config = model.config();
        let (states, page) = (config.state_bytes(), 64 * config.head_dim * 4);
        let pages = 2 * page * config.n_kv_heads * config.attention_layers().count();
        let mut session = model.session();
        assert_eq!(session.kv().growth_bytes(1), pages + states);
        session.forward(&[1, 2, 3]).unwrap();
        assert_eq!(session.kv_bytes(), pages + states);
        assert_eq!(session.kv().state_bytes(), states);
        assert_eq!(session.kv().growth_bytes(1), 0);
        let fork = session.fork();
        assert_eq!(session.kv().growth_bytes(1), pages + states, "shared states are copied");
        drop(fork);
        assert_eq!(session.kv().growth_bytes(1), 0);

        let cache = model.kv_cache("f32".parse().unwrap(), Some(states - 64)).unwrap();
        let mut session = model.session_in_cache(&cache);
        let error = session.forward(&[1, 2, 3]).unwrap_err();
        assert!(matches!(error.source_as(), Some(KvError::NoMemory { .. })), "{error}");
        assert!(session.is_empty());
        drop(session);
        assert_eq!(cache.bytes_in_use(), 0);
    }
}

#[test]
fn compression_acts_on_the_layers_with_keys_and_values() {
    for name in MODELS {
        for format in ["bf16", "int8"] {
            let model = load_in(&testdata("tiny").join(name), None, "bf16");
            for of in ["knorm", "snapkv", "expected-max", "kvzip"] {
                let prompt = tokens(&model, 140, 4);
                let mut session = model.session_in(format.parse().unwrap()).unwrap();
                let mut how = Compression::new(policy(of).unwrap(), Budget::Tokens(40));
                how.fit = of == "expected-max";
                session.set_compression(Some(how));
                session.begin_prompt(prompt.len());
                session.forward(&prompt).unwrap();
                assert_eq!((session.len(), session.kv_tokens()), (140, 40), "{name} {of} {format}");
                let logits = decode(&mut session, &[1, 2, 3]);
                assert!(logits.iter().flatten().all(|x| x.is_finite()));
            }
        }
    }
}

#[test]
fn a_refused_draft_leaves_the_states_as_they_were() {
    for model in models() {
        let prompt = tokens(&model, 70, 1);
        let mut session = model.session();
        session.forward(&prompt).unwrap();
        let mut fork = session.fork();
        let refusal = scrimp_llm::Error::bad_input("sampled no token");
        let mut refusal = Some(refusal);
        let error = session.verify(&[1, 2, 3], &mut |i, _| match i {
            0 => Ok(true),
            _ => Err(refusal.take().unwrap()),
        });
        assert!(error.unwrap_err().to_string().contains("sampled no token"));
        assert_eq!(session.len(), 70);
        assert_eq!(decode(&mut session, &[4, 5]), decode(&mut fork, &[4, 5]));
    }
}
