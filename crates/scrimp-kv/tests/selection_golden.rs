//! The selection on the cases of `testdata/kv/select.json`. The Python package is tested on the same cases, except
//! those that use an order or a mass of the ablation.
//!
//! `SCRIMP_BLESS=1 cargo test -p scrimp-kv --test selection_golden` rewrites the file.

mod ablation;

use scrimp_kernels::Pool;
use scrimp_kv::{
    AccumulatedScores, KvCache, KvConfig, Sequence,
    compress::{Budget, Compression, Crush, select},
    policy::{ModelView, policy},
};
use serde_json::{Value, json};

const DIM: usize = 8;
const LAYERS: usize = 3;

/// Numbers that look random, in steps of 1/64 so that they are short in JSON; the same everywhere.
fn number(salt: u64, i: usize) -> f32 {
    let mut z = (salt << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((z >> 40) % 1024) as f32 / 64.0
}

/// Random keys, and attention that falls off from token to token with many small values and some ties.
fn sequence(tokens: usize, heads: usize, salt: u64) -> Sequence {
    let pool = Pool::new(1).unwrap();
    let cache = KvCache::new(KvConfig {
        head_dim: DIM,
        n_kv_heads: heads,
        window_heads: None,
        windows: vec![None; LAYERS],
        states: Vec::new(),
        format: "f32".parse().unwrap(),
        page_tokens: 16,
        limit: None,
        rewind: 0,
    })
    .unwrap();
    let mut sequence = cache.sequence();
    for layer in 0..LAYERS {
        let k: Vec<f32> = (0..tokens * heads * DIM).map(|i| number(salt, i) - 8.0).collect();
        sequence.append(layer, &k, &k, &pool).unwrap();
        let rows = |salt: u64| -> Vec<Vec<f32>> {
            let row = |h: usize| (0..tokens).map(|t| number(salt, h * tokens + t).powi(3) / 256.0).collect();
            (0..heads).map(row).collect()
        };
        let stats = AccumulatedScores {
            sum: rows(salt + 1),
            recent: rows(salt + 2),
            last: rows(salt + 3),
            peak: rows(salt + 4),
        };
        sequence.set_accumulated_scores(layer, stats, std::iter::once(0..tokens as u32).collect()).unwrap();
    }
    sequence
}

/// A case and its selection, by the names of the Python function's arguments.
fn case(name: &str, tokens: usize, heads: usize, layer: usize, budget: usize, how: &Compression) -> Value {
    let sequence = sequence(tokens, heads, tokens as u64);
    let model = ModelView::new(&sequence, how.seed);
    let view = model.layer(layer);
    let (mut keys, mut scores, mut attention) = (Vec::new(), Vec::new(), Vec::new());
    for head in 0..heads {
        let mut row = vec![0.0; tokens];
        how.policy.policy.score(&view, head, &mut row);
        scores.extend_from_slice(&row);
        view.weighted_attention(head, &mut row);
        attention.extend_from_slice(&row);
        for t in 0..tokens {
            let mut key = vec![0.0; DIM];
            view.read_key(head, t, &mut key);
            keys.extend(key);
        }
    }
    let kept = select(&view, how, budget);
    let indices: Vec<_> = kept.iter().map(|k| &k.indices).collect();
    let bias: Vec<_> =
        kept.iter().map(|k| k.bias.clone().unwrap_or_else(|| vec![0.0; k.indices.len()])).collect();
    let (order, mass) = (how.crush.order.name(), how.crush.mass.name());
    json!({
        "name": name, "heads": heads, "tokens": tokens, "dim": DIM, "layer": layer, "seed": how.seed, "budget": budget,
        "sinks": how.sinks, "recent": how.recent, "share": how.crush.share, "order": order, "mass": mass,
        "keys": keys, "scores": scores, "attention": attention, "indices": indices, "bias": bias,
    })
}

fn cases() -> Vec<Value> {
    let how = |policy_name: &str, share: f64, order: &str, mass: &str| Compression {
        crush: Crush { share, order: ablation::order(order).unwrap(), mass: ablation::mass(mass).unwrap() },
        sinks: 2,
        recent: Some(5),
        seed: 7,
        ..Compression::new(policy(policy_name).unwrap(), Budget::Tokens(1))
    };
    let keys = |policy: &str, share: f64| how(policy, share, "keys", "attention");
    vec![
        case("the policy alone", 40, 2, 0, 16, &keys("snapkv", 0.0)),
        case("keys", 60, 2, 0, 20, &keys("snapkv", 0.75)),
        case("keys, another layer", 60, 2, 2, 20, &keys("snapkv", 0.75)),
        case("keys, half", 61, 3, 1, 31, &keys("h2o", 0.5)),
        case("keys, all", 50, 1, 0, 12, &keys("tova", 1.0)),
        case("keys of low norm", 50, 2, 0, 17, &keys("knorm", 0.75)),
        case("score", 60, 2, 0, 20, &how("snapkv", 0.5, "score", "attention")),
        case("position", 60, 2, 0, 20, &how("tova", 0.25, "position", "none")),
        case("counts", 60, 2, 0, 20, &how("tova", 0.25, "score", "count")),
        case("one representative", 30, 1, 0, 9, &keys("h2o", 0.1)),
        case("no mass", 60, 2, 0, 20, &how("tova", 0.5, "keys", "none")),
        case("everything fits", 12, 2, 0, 20, &keys("h2o", 0.5)),
    ]
}

#[test]
fn the_selection_is_as_it_was() {
    let path = scrimp_testkit::testdata("kv/select.json");
    let now = serde_json::to_string(&cases()).unwrap() + "\n";
    if std::env::var_os("SCRIMP_BLESS").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let golden: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let now: Value = serde_json::from_str(&now).unwrap();
    for (golden, now) in golden.as_array().unwrap().iter().zip(now.as_array().unwrap()) {
        assert_eq!(golden, now, "{}", now["name"]);
    }
    assert_eq!(golden.as_array().unwrap().len(), now.as_array().unwrap().len());
}
