//! Sessions that make their cache smaller: when, how far, and what stays as it was.

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
    (how.sinks, how.recent) = (2, 6);
    how.crush = Crush { share: 0.5, ..Crush::default() };
    how
}

fn kept(session: &Session<'_>) -> Vec<usize> {
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
    for name in ["h2o", "snapkv", "kvzip", "expected"] {
        let mut session = model.session();
        session.set_compression(Some(how(name, Budget::Tokens(10))));
        session.begin_prompt(30);
        session.forward(&tokens(&model, 30)).unwrap();
        let mut most = 0;
        for i in 0..97 {
            session.forward(&[i % 7]).unwrap();
            most = most.max(*kept(&session).iter().max().unwrap());
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
    let model = load(&testdata("tiny").join("gemma3"), None);
    let n = 90.min(model.context_length() - 4);
    let mut session = model.session();
    session.gather_for(how("h2o", Budget::Tokens(20)).needs(), n);
    session.forward(&tokens(&model, n)).unwrap();
    session.gather_attention(None);
    let mut copy = session.fork();
    copy.compress(&how("h2o", Budget::Tokens(20)), 20).unwrap();
    assert!(kept(&copy).iter().all(|&kept| kept == 20) && kept(&session).iter().all(|&kept| kept == n));
    let windows = model.config().sliding_window.iter().enumerate().filter(|(_, w)| w.is_some());
    for (layer, _) in windows {
        assert_eq!(copy.kv().kept(layer, 0), session.kv().kept(layer, 0));
        assert_eq!(copy.kv().ref_cnt(layer, 0, 0), 2, "pages of layer {layer} are shared");
    }
    let mut other = session.fork();
    let want = other.forward(&[3]).unwrap().to_vec();
    copy.forward(&[9]).unwrap();
    drop((copy, other));
    assert_eq!(session.forward(&[3]).unwrap(), &want[..]);
}

#[test]
fn repeating_takes_the_most_attention_and_leaves_the_sequence_alone() {
    let model = load(&testdata("tiny").join("llama"), None);
    let prompt = tokens(&model, 40);
    let mut session = model.session();
    session.forward(&prompt).unwrap();
    let bytes = session.kv_bytes();
    session.repeat(&prompt).unwrap();
    assert_eq!((session.len(), session.kv_bytes()), (40, bytes));
    // Eight tokens at a time, by hand.
    let mut copy = session.fork();
    let group = model.config().n_heads / model.config().n_kv_heads;
    let mut best = vec![vec![vec![0.0_f32; 40]; model.config().n_kv_heads]; model.config().n_layers];
    for slice in prompt.chunks(8) {
        copy.gather_attention(Some(scrimp_kv::StatsWanted { sum: true, ..Default::default() }));
        let before: Vec<_> = (0..best.len()).map(|l| copy.kv().stats(l).sum.clone()).collect();
        copy.forward(slice).unwrap();
        for (layer, best) in best.iter_mut().enumerate() {
            for (head, row) in copy.kv().stats(layer).sum.iter().enumerate() {
                for t in 0..40 {
                    let old = before[layer].get(head).map_or(0.0, |row| row[t]);
                    best[head / group][t] = best[head / group][t].max(row[t] - old);
                }
            }
        }
    }
    for (layer, best) in best.iter().enumerate() {
        let got = &session.kv().passes(layer).repeated;
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
    session.gather_for(needs, 70);
    session.forward(&prompt).unwrap();
    let before = session.kv().stats(0).clone();
    session.complete(needs, &prompt).unwrap();
    assert_eq!(session.kv().stats(0), &before, "what was gathered stays");
    for layer in 0..model.config().n_layers {
        for row in &session.kv().passes(layer).expected {
            assert_eq!(row.len(), 70);
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-3);
        }
    }
}
