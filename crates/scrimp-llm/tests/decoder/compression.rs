//! Sessions that compress their cache: when, how far, and which results are unchanged.

use crate::common::{load, testdata};
use scrimp_kv::{
    compress::{Budget, Compression, Crush},
    policy::{POLICIES, policy},
};
use scrimp_llm::model::{Model, Session};

fn tokens(model: &Model, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 7 + i / 3) % model.vocab_size()) as u32).collect()
}

fn how(name: &str, budget: Budget) -> Compression {
    let mut how = Compression::new(policy(name).unwrap(), budget);
    (how.sinks, how.recent) = (2, Some(6));
    how.crush = Crush { share: 0.5, ..Crush::default() };
    how
}

fn kept(session: &Session) -> Vec<usize> {
    let kv = session.kv();
    kv.full_layers().flat_map(|l| (0..kv.n_kv_heads()).map(move |h| kv.kept(l, h))).collect()
}

#[test]
fn a_prompt_is_compressed_when_it_is_complete() {
    let model = load(&testdata("tiny").join("llama"), None);
    let prompt = tokens(&model, 100);
    let whole = model.session().forward(&prompt).unwrap().to_vec();
    let names = POLICIES.iter().filter(|p| !p.keeps_everything()).map(|p| p.name().to_owned());
    for name in names.chain(["adakv:snapkv".to_owned()]) {
        let mut session = model.session();
        session.set_compression(Some(how(&name, Budget::Fraction(0.25))));
        session.begin_prompt(100);
        session.forward(&prompt[..60]).unwrap();
        assert!(kept(&session).iter().all(|&n| n == 60), "{name}");
        let logits = session.forward(&prompt[60..]).unwrap().to_vec();
        // The prompt itself saw all of its tokens.
        for (a, b) in whole.iter().zip(&logits) {
            assert!((a - b).abs() < 1e-3, "{name}: {a} became {b}");
        }
        let kept = kept(&session);
        assert_eq!(kept.iter().sum::<usize>(), 25 * kept.len(), "{name}");
        assert_eq!(session.len(), 100);
        let next = session.forward(&[1]).unwrap().to_vec();
        assert!(next.iter().all(|x| x.is_finite()));
        // Back to after the prompt, but not into it.
        session.truncate(100);
        assert_eq!(session.len(), 100);
        assert_eq!(session.forward(&[1]).unwrap(), &next[..], "{name}");
        session.truncate(99);
        assert_eq!((session.len(), session.kv_bytes()), (0, 0), "{name}");
    }
}

#[test]
fn a_prompt_in_chunks_never_exceeds_its_budget_by_more_than_a_chunk() {
    let model = load(&testdata("tiny").join("llama"), None);
    let prompt = tokens(&model, 120);
    for name in ["expected-max", "snapkv", "h2o", "streaming", "adakv:snapkv"] {
        let compression = Compression { chunks: Some(24), ..how(name, Budget::Fraction(0.25)) };
        let mut session = model.session();
        session.set_compression(Some(compression));
        session.begin_prompt(120);
        for part in prompt.chunks(8) {
            session.forward(part).unwrap();
            let most = kept(&session).iter().sum::<usize>().div_ceil(kept(&session).len());
            // A chunk ends with the part that completes it.
            assert!(most <= 30 + 24 + 8, "{name}: {most}");
        }
        let kept = kept(&session);
        assert_eq!((kept.iter().sum::<usize>(), session.len()), (30 * kept.len(), 120), "{name}");
        assert!(session.kv_bytes_peak() >= session.kv_bytes(), "{name}");
        assert!(session.forward(&[1]).unwrap().iter().all(|x| x.is_finite()), "{name}");
    }
    let again = Compression { chunks: Some(50), ..how("kvzip", Budget::Fraction(0.25)) };
    assert!(again.check().unwrap_err().to_string().contains("second time"));
}

#[test]
fn chunks_longer_than_the_prompt_change_nothing() {
    let model = load(&testdata("tiny").join("llama"), None);
    let prompt = tokens(&model, 100);
    let logits = |chunks| {
        let mut session = model.session();
        session.set_compression(Some(Compression { chunks, ..how("expected-max", Budget::Tokens(40)) }));
        session.begin_prompt(100);
        session.forward(&prompt).unwrap();
        session.forward(&[1]).unwrap().to_vec()
    };
    assert_eq!(logits(None), logits(Some(60)));
    assert_ne!(logits(None), logits(Some(59)));
}

#[test]
fn a_budget_that_is_not_reached_changes_nothing() {
    let model = load(&testdata("tiny").join("llama"), None);
    let prompt = tokens(&model, 30);
    let mut plain = model.session();
    plain.forward(&prompt).unwrap();
    let mut session = model.session();
    session.set_compression(Some(how("streaming", Budget::Tokens(64))));
    session.begin_prompt(30);
    session.forward(&prompt).unwrap();
    assert_eq!(session.forward(&[5]).unwrap(), plain.forward(&[5]).unwrap());
    assert_eq!(kept(&session), kept(&plain));
}

#[test]
fn a_budget_is_held_while_text_is_generated() {
    let model = load(&testdata("tiny").join("llama"), None);
    for name in ["h2o", "snapkv", "kvzip", "kvzip-query", "expected"] {
        let mut session = model.session();
        session.set_compression(Some(how(name, Budget::Tokens(10))));
        session.begin_prompt(30);
        session.forward(&tokens(&model, 30)).unwrap();
        let mut most = 0;
        for i in 0..97 {
            session.forward(&[i % 7]).unwrap();
            let kept = kept(&session);
            most = most.max(kept.iter().sum::<usize>().div_ceil(kept.len()));
        }
        assert_eq!(session.len(), 127);
        assert!((70..=74).contains(&most), "{name}: {most}");
        // What came last is still there, in order.
        let kv = session.kv();
        let n = kv.kept(0, 0);
        assert_eq!((kv.position(0, 0, 0), kv.position(0, 0, n - 1)), (0, 126), "{name}");
    }
}

#[test]
fn sliding_windows_are_left_alone_and_sharers_do_not_notice() {
    for name in ["gemma3", "gemma4"] {
        let model = load(&testdata("tiny").join(name), None);
        let n = 90.min(model.context_length() - 4);
        let mut session = model.session();
        session.accumulate_scores_for(how("h2o", Budget::Tokens(20)).needs(), n);
        session.forward(&tokens(&model, n)).unwrap();
        session.accumulate_scores(None);
        let mut copy = session.fork();
        copy.compress(&how("h2o", Budget::Tokens(20)), 20).unwrap();
        assert!(kept(&copy).iter().all(|&kept| kept == 20) && kept(&session).iter().all(|&kept| kept == n));
        let full: Vec<usize> = copy.kv().full_layers().collect();
        for layer in (0..copy.kv().n_layers()).filter(|layer| !full.contains(layer)) {
            assert_eq!(copy.kv().kept(layer, 0), session.kv().kept(layer, 0));
            assert_eq!(copy.kv().ref_cnt(layer, 0, 0), 2, "pages of layer {layer} are shared");
        }
        let mut other = session.fork();
        let want = other.forward(&[3]).unwrap().to_vec();
        copy.forward(&[9]).unwrap();
        drop((copy, other));
        assert_eq!(session.forward(&[3]).unwrap(), &want[..]);
    }
}

/// The layers with full attention have heads of their own size, and the last layers read the cache of earlier ones.
#[test]
fn caches_with_two_sizes_of_heads_are_compressed_in_all_formats() {
    for format in ["bf16", "int8", "int4"] {
        let model = crate::common::load_in(&testdata("tiny").join("gemma4"), None, "bf16");
        let prompt = tokens(&model, 110);
        for name in ["snapkv", "knorm", "expected-max", "kvzip"] {
            let mut session = model.session_in(format.parse().unwrap()).unwrap();
            let mut how = how(name, Budget::Tokens(40));
            how.fit = name == "expected-max";
            session.set_compression(Some(how));
            session.begin_prompt(prompt.len());
            session.forward(&prompt).unwrap();
            assert!(kept(&session).iter().sum::<usize>() <= 40 * kept(&session).len(), "{name} {format}");
            assert!(session.forward(&[1]).unwrap().iter().all(|x| x.is_finite()), "{name} {format}");
        }
    }
}

#[test]
fn repeating_takes_the_most_attention_and_leaves_the_sequence_alone() {
    // Without a tokenizer the model gets no instructions.
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(testdata("tiny").join("llama")).unwrap().map(Result::unwrap) {
        if !file.file_name().to_string_lossy().starts_with("tokenizer") {
            std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
    }
    let model = load(folder.path(), None);
    let prompt = tokens(&model, 40);
    let mut session = model.session();
    session.forward(&prompt).unwrap();
    let bytes = session.kv_bytes();
    session.reconstruct(&prompt).unwrap();
    assert_eq!((session.len(), session.kv_bytes()), (40, bytes));
    // One token at a time, by hand.
    let mut copy = session.fork();
    let group = model.config().n_heads / model.config().n_kv_heads;
    let mut best = vec![vec![vec![0.0_f32; 40]; model.config().n_kv_heads]; model.config().n_layers];
    copy.accumulate_scores(Some(scrimp_kv::ScoresWanted {
        last: true,
        per_query_head: true,
        ..Default::default()
    }));
    for &token in &prompt {
        copy.forward(&[token]).unwrap();
        for (layer, best) in best.iter_mut().enumerate() {
            for (head, row) in copy.kv().accumulated_scores(layer).last.iter().enumerate() {
                best[head / group].iter_mut().zip(row).for_each(|(best, x)| *best = best.max(*x));
            }
        }
    }
    for (layer, best) in best.iter().enumerate() {
        let got = &session.kv().post_prefill_scores(layer).reconstruction;
        for (got, want) in got.iter().flatten().zip(best.iter().flatten()) {
            assert!((got - want).abs() < 1e-3, "layer {layer}: {got}, not {want}");
        }
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), vec![40; model.config().n_kv_heads]);
    }
}

#[test]
fn expected_attention_is_a_whole() {
    let model = load(&testdata("tiny").join("llama"), None);
    let prompt = tokens(&model, 70);
    let needs = how("expected", Budget::Tokens(20)).needs();
    let mut session = model.session();
    session.accumulate_scores_for(needs, 70);
    session.forward(&prompt).unwrap();
    let before = session.kv().accumulated_scores(0).clone();
    session.finish_scores(needs, &prompt).unwrap();
    assert_eq!(session.kv().accumulated_scores(0), &before, "accumulated scores stay");
    for layer in 0..model.config().n_layers {
        for row in &session.kv().post_prefill_scores(layer).expected {
            assert_eq!(row.len(), 70);
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-3);
        }
    }
}

#[test]
fn turned_keys_are_those_of_tokens_that_stand_there() {
    for name in ["llama", "qwen2"] {
        let model = load(&testdata("tiny").join(name), None);
        let prompt = tokens(&model, 30);
        let mut how = how("streaming", Budget::Tokens(10));
        (how.sinks, how.recent, how.crush.share) = (3, Some(7), 0.0);
        how.rerotate = true;
        let mut session = model.session();
        session.forward(&prompt).unwrap();
        let before = session.fork();
        session.compress(&how, 10).unwrap();
        // The sinks stand where tokens 20, 21 and 22 were. In the first layer, keys depend on nothing but token and
        // position.
        let mut moved = prompt.clone();
        moved.copy_within(..3, 20);
        let mut other = model.session();
        other.forward(&moved).unwrap();
        let key = |session: &Session, head: usize, index: usize| {
            let mut k = vec![0.0; model.config().head_dim];
            session.kv().read_key(0, head, index, &mut k);
            k
        };
        for head in 0..model.config().n_kv_heads {
            for i in 0..10 {
                let want = if i < 3 { key(&other, head, 20 + i) } else { key(&before, head, 20 + i) };
                for (got, want) in key(&session, head, i).iter().zip(&want) {
                    assert!((got - want).abs() < 1e-4, "{name}, token {i}: {got}, not {want}");
                }
            }
            assert_eq!(session.kv().position(0, head, 2), 2, "positions stay those of the text");
        }
    }
}
