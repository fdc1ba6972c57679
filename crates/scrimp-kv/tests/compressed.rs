//! Attention over a compressed cache, scores against NumPy, shared prefixes, and leaks of pages.

use scrimp_kernels::{Exec, Pool, SimdLevel};
use scrimp_kv::{
    AccumulatedScores, AttentionInputs, AttentionScratch, Compressing, FutureQueries, KvCache, KvConfig,
    LayerQueries, PostPrefillScores, Queries, ScoresWanted, Sequence,
    compress::{Budget, Compression, Crush},
    policy::{ModelView, policy},
};

const DIM: usize = 8;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;

fn cache(windows: Vec<Option<usize>>) -> KvCache {
    KvCache::new(KvConfig {
        head_dim: DIM,
        n_kv_heads: KV_HEADS,
        window_heads: None,
        windows,
        states: Vec::new(),
        format: "f32".parse().unwrap(),
        page_tokens: 16,
        limit: None,
        rewind: 0,
    })
    .unwrap()
}

fn exec(pool: &Pool) -> Exec<'_> {
    Exec { pool, level: SimdLevel::detect() }
}

/// Random numbers from -2 to 2.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    scrimp_testkit::numbers(seed, n).into_iter().map(|x| 2.0 * x).collect()
}

/// Appends tokens to every layer and attends; returns the result of the last layer.
fn step(sequence: &mut Sequence, q: &[f32], k: &[f32], v: &[f32], scores: ScoresWanted) -> Vec<f32> {
    let pool = Pool::new(1).unwrap();
    let mut out = vec![0.0; q.len()];
    for layer in 0..sequence.n_layers() {
        sequence.append(layer, k, v, &pool).unwrap();
        let inputs = AttentionInputs {
            q,
            queries: Queries::Last,
            out: &mut out,
            n_heads: HEADS,
            scale: (DIM as f32).powf(-0.5),
            softcap: None,
            sinks: None,
            wanted_from: 0,
            scores: scores.any().then_some(scores),
        };
        let exec = Exec { pool: &pool, level: SimdLevel::detect() };
        sequence.attend(layer, inputs, exec, &mut AttentionScratch::new()).unwrap();
    }
    out
}

/// All sums that policies read, for a prompt of `tokens`.
fn scores_wanted(tokens: usize) -> ScoresWanted {
    ScoresWanted {
        sum: true,
        recent_from: Some(tokens as u32 - 32),
        last: true,
        per_query_head: true,
        ..ScoresWanted::default()
    }
}

fn filled(cache: &KvCache, tokens: usize, seed: u64) -> Sequence {
    let mut sequence = cache.sequence();
    let (q, k) = (numbers(tokens * HEADS * DIM, seed), numbers(tokens * KV_HEADS * DIM, seed + 1));
    let v = numbers(tokens * KV_HEADS * DIM, seed + 2);
    let stats = scores_wanted(tokens);
    step(&mut sequence, &q, &k, &v, stats);
    sequence
}

fn crush(name: &str, budget: usize) -> Compression {
    let mut how = Compression::new(policy(name).unwrap(), Budget::Tokens(budget));
    how.crush = Crush { share: 0.4, ..Crush::default() };
    (how.sinks, how.recent) = (2, Some(6));
    how
}

#[test]
fn scores_are_those_of_numpy() {
    let golden: serde_json::Value = scrimp_testkit::read_json("kv/scores.json");
    let floats = |v: &serde_json::Value| -> Vec<f32> {
        v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let (q, k) = (floats(&golden["q"]), floats(&golden["k"]));
    let tokens = k.len() / KV_HEADS / DIM;
    let mut sequence = cache(vec![None]).sequence();
    // In two chunks, like a long prompt.
    let half = 20;
    let stats = scores_wanted(tokens);
    let (qa, qb) = q.split_at(half * HEADS * DIM);
    let (ka, kb) = k.split_at(half * KV_HEADS * DIM);
    step(&mut sequence, qa, ka, ka, stats);
    step(&mut sequence, qb, kb, kb, stats);
    let reconstruction = (0..KV_HEADS).map(|head| floats(&golden["repeated"][head])).collect();
    sequence
        .set_post_prefill_scores(0, PostPrefillScores { reconstruction, ..PostPrefillScores::default() })
        .unwrap();
    let model = ModelView::new(&sequence, 0);
    let view = model.layer(0);
    for name in ["h2o", "snapkv", "tova", "knorm", "kvzip-query"] {
        for head in 0..KV_HEADS {
            let mut scores = vec![0.0; tokens];
            policy(name).unwrap().policy.score(&view, head, &mut scores);
            for (t, (got, want)) in scores.iter().zip(floats(&golden[name][head])).enumerate() {
                assert!((got - want).abs() <= 1e-5, "{name}, head {head}, token {t}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn attention_over_a_compressed_cache_is_attention_to_the_kept_tokens() {
    let pool = Pool::new(1).unwrap();
    for name in ["h2o", "snapkv", "adakv:tova", "knorm", "random"] {
        let cache = cache(vec![None]);
        let mut sequence = filled(&cache, 150, 5);
        let how = crush(name, 50);
        sequence.compress(&how, 50, &pool).unwrap();
        // Twice, so that representatives of representatives occur.
        sequence.compress(&how, 37, &pool).unwrap();
        let total: usize = (0..KV_HEADS).map(|head| sequence.kept(0, head)).sum();
        assert_eq!(total, 37 * KV_HEADS, "{name}");
        let (q, k, v) = (numbers(HEADS * DIM, 1), numbers(KV_HEADS * DIM, 2), numbers(KV_HEADS * DIM, 3));
        let out = step(&mut sequence, &q, &k, &v, ScoresWanted::default());
        let mut masses = 0;
        for head in 0..HEADS {
            let kv = head / (HEADS / KV_HEADS);
            let (mut total, mut want) = (0.0, [0.0; DIM]);
            let (mut k, mut v) = (vec![0.0; DIM], vec![0.0; DIM]);
            for t in 0..sequence.kept(0, kv) {
                sequence.read(0, kv, t, &mut k, &mut v);
                let dot: f64 = (0..DIM).map(|d| f64::from(q[head * DIM + d]) * f64::from(k[d])).sum();
                let bias = f64::from(sequence.bias(0, kv, t));
                masses += usize::from(bias > 0.0);
                let p = (dot * (DIM as f64).powf(-0.5) + bias).exp();
                total += p;
                want.iter_mut().zip(&v).for_each(|(w, v)| *w += p * f64::from(*v));
            }
            for d in 0..DIM {
                let got = f64::from(out[head * DIM + d]);
                assert!((got - want[d] / total).abs() < 1e-5, "{name}, head {head}: {got}");
            }
        }
        assert!(masses > 0, "{name}");
    }
}

#[test]
fn rerotated_keys_have_consecutive_positions() {
    let pool = Pool::new(1).unwrap();
    let cache = cache(vec![None]);
    let mut sequence = filled(&cache, 90, 5);
    let mut how = crush("h2o", 40);
    how.rerotate = true;
    assert!(sequence.compress(&how, 40, &pool).is_err(), "a rotation is needed");
    let original = sequence.fork();
    // A rotation that can be read off the key: it adds the positions.
    let rotate = |key: &mut [f32], by: u32| key[0] += by as f32;
    let with = Compressing { exec: exec(&pool), apply_rope: Some(&rotate), queries: None };
    sequence.compress_with(&how, 40, with).unwrap();
    let (q, k) = (numbers(8 * HEADS * DIM, 7), numbers(8 * KV_HEADS * DIM, 8));
    step(&mut sequence, &q, &k, &k, ScoresWanted::default());
    let mut appended = sequence.fork();
    sequence.compress_with(&how, 30, with).unwrap();
    let (mut got, mut was, mut v) = (vec![0.0; DIM], vec![0.0; DIM], vec![0.0; DIM]);
    for head in 0..KV_HEADS {
        assert_eq!(sequence.kept(0, head), 30);
        for i in 0..30 {
            let position = sequence.position(0, head, i);
            sequence.read(0, head, i, &mut got, &mut v);
            let from = if position < 90 { &original } else { &appended };
            let index = (0..from.kept(0, head)).find(|&j| from.position(0, head, j) == position).unwrap();
            from.read(0, head, index, &mut was, &mut v);
            // The last token is token 97, whose key is not rotated.
            let by = (98 - 30 + i) as f32 - position as f32;
            assert!((got[0] - was[0] - by).abs() < 1e-4, "token {i} at {position}");
            assert_eq!(got[1..], was[1..]);
        }
    }
    appended.truncate(95).unwrap();
    assert_eq!(appended.position(0, 0, appended.kept(0, 0) - 1), 94);
}

#[test]
fn heads_of_all_layers_share_the_budget_of_kvzip() {
    let pool = Pool::new(2).unwrap();
    let cache = cache(vec![None; 3]);
    let mut sequence = filled(&cache, 100, 9);
    // Layer 1, head 0 has high scores for all of its tokens, the other heads for their first ten candidates.
    for layer in 0..3 {
        let row = |head: usize| -> Vec<f32> {
            let high = if (layer, head) == (1, 0) { 100 } else { 12 };
            (0..100).map(|t| if t < high { 0.5 + (t % 7) as f32 / 100.0 } else { 0.01 }).collect()
        };
        let reconstruction = (0..KV_HEADS).map(row).collect();
        sequence
            .set_post_prefill_scores(
                layer,
                PostPrefillScores { reconstruction, ..PostPrefillScores::default() },
            )
            .unwrap();
    }
    let mut how = Compression::new(policy("kvzip").unwrap(), Budget::Tokens(40));
    (how.sinks, how.recent) = (2, Some(6));
    let kept = |how: &Compression| -> Vec<usize> {
        let mut copy = sequence.fork();
        copy.compress(how, 40, &pool).unwrap();
        (0..3)
            .flat_map(|layer| (0..KV_HEADS).map(move |head| (layer, head)))
            .map(|(l, h)| copy.kept(l, h))
            .collect()
    };
    let shared = kept(&how);
    assert_eq!(shared.iter().sum::<usize>(), 240);
    assert_eq!(shared[2], 100);
    assert!(shared.iter().all(|&n| n >= 18), "{shared:?}");
    // With a budget per layer, layer 1 gets nothing from the other layers.
    let layers = kept(&Compression { policy: policy("adakv:kvzip").unwrap(), ..how });
    assert!(layers.chunks(KV_HEADS).all(|layer| layer.iter().sum::<usize>() == 80), "{layers:?}");
}

#[test]
fn kvzip_query_keeps_the_text_after_an_attended_token_in_every_layer() {
    let pool = Pool::new(1).unwrap();
    let mut sequence = filled(&cache(vec![None; 3]), 200, 9);
    for layer in 0..3 {
        let reconstruction = vec![vec![0.5; 200]; KV_HEADS];
        sequence
            .set_post_prefill_scores(
                layer,
                PostPrefillScores { reconstruction, ..PostPrefillScores::default() },
            )
            .unwrap();
        let mut recent = vec![vec![0.01; 200]; HEADS];
        if layer == 1 {
            recent[3][80] = 20.0;
        }
        let stats = AccumulatedScores { recent, ..AccumulatedScores::default() };
        sequence.set_accumulated_scores(layer, stats, std::iter::once(0..200).collect()).unwrap();
    }
    let mut how = Compression::new(policy("kvzip-query").unwrap(), Budget::Tokens(60));
    (how.sinks, how.recent) = (4, Some(8));
    sequence.compress(&how, 60, &pool).unwrap();
    let held = |layer, head, position| {
        (0..sequence.kept(layer, head)).any(|i| sequence.position(layer, head, i) == position)
    };
    for (layer, head) in [(0, 0), (1, 1), (2, 0)] {
        assert!((76..=112).all(|position| held(layer, head, position)), "layer {layer}, head {head}");
    }
    // In the compressed cache a token's index is not its position.
    let view = ModelView::new(&sequence, 0);
    let weights = view.layer(0).position_weights();
    let high: Vec<usize> = (0..200).filter(|&p| weights[p] > 3.0).collect();
    assert_eq!(high, (76..=112).collect::<Vec<_>>());
}

#[test]
fn compression_changes_neither_forks_nor_sliding_window_layers() {
    let pool = Pool::new(1).unwrap();
    let cache = cache(vec![Some(24), None]);
    let first = filled(&cache, 150, 8);
    let bytes = cache.bytes_in_use();
    let mut second = first.fork();
    second.compress(&crush("h2o", 40), 40, &pool).unwrap();
    assert_eq!((second.kept(1, 0), second.kept(0, 0)), (40, first.kept(0, 0)));
    assert_eq!(first.kept(1, 0), 150);
    // The window layer is still shared, the other one is not.
    assert_eq!((first.ref_cnt(0, 0, 0), first.ref_cnt(1, 0, 0), second.ref_cnt(1, 0, 0)), (2, 1, 1));
    assert!(cache.bytes_in_use() > bytes && cache.bytes_in_use() < 2 * bytes);
    let (q, k, v) = (numbers(HEADS * DIM, 1), numbers(KV_HEADS * DIM, 2), numbers(KV_HEADS * DIM, 3));
    let alone = step(&mut first.fork(), &q, &k, &v, ScoresWanted::default());
    step(&mut second, &q, &k, &v, ScoresWanted::default());
    let again = step(&mut first.fork(), &q, &k, &v, ScoresWanted::default());
    assert_eq!(alone, again);
    drop(first);
    let left = cache.bytes_in_use();
    // The sequence also holds the biases of three pages of either head.
    assert_eq!(second.bias_bytes(), KV_HEADS * 3 * 16 * size_of::<f32>());
    assert_eq!(left + second.bias_bytes(), second.bytes());
    drop(second);
    assert_eq!(cache.bytes_in_use(), 0);
}

#[test]
fn nothing_leaks_in_ten_thousand_steps() {
    let pool = Pool::new(1).unwrap();
    let cache = cache(vec![None, Some(24)]);
    let mut held: Vec<Sequence> = vec![cache.sequence()];
    let dice: Vec<usize> = numbers(20_000, 3).iter().map(|x| ((x + 2.0) * 4096.0) as usize).collect();
    for roll in dice.chunks(2).take(10_000) {
        let at = roll[1] % held.len();
        match roll[0] % 8 {
            0..=3 => {
                let n = 1 + roll[1] % 40;
                let rows = numbers(n * KV_HEADS * DIM, roll[1] as u64);
                (0..2).for_each(|layer| held[at].append(layer, &rows, &rows, &pool).unwrap());
            }
            4 | 5 => {
                let name = ["streaming", "random", "knorm", "adakv:knorm"][roll[1] % 4];
                held[at].compress(&crush(name, 30), 30, &pool).unwrap();
            }
            6 if held.len() < 6 => {
                let fork = held[at].fork();
                held.push(fork);
            }
            _ if held.len() > 1 => drop(held.swap_remove(at)),
            _ => held[at].reset(),
        }
        if held.len() == 1 {
            assert_eq!(cache.bytes_in_use(), held[0].bytes());
        }
    }
    held.clear();
    assert_eq!((cache.bytes_in_use(), cache.bytes_mapped()), (0, 0));
}

#[test]
fn rows_are_per_query_head_or_per_kv_head_and_never_mixed() {
    let of_kv_heads = ScoresWanted { sum: true, last: true, ..ScoresWanted::default() };
    let of_heads = ScoresWanted { per_query_head: true, ..of_kv_heads };
    let [q, k, v] = [HEADS, KV_HEADS, KV_HEADS].map(|n| numbers(40 * n * DIM, n as u64));
    let mut sequence = cache(vec![None]).sequence();
    step(&mut sequence, &q, &k, &v, of_heads);
    let each = sequence.accumulated_scores(0).clone();
    let mut again = cache(vec![None]).sequence();
    step(&mut again, &q, &k, &v, of_kv_heads);
    let means = again.accumulated_scores(0).clone();
    assert_eq!((each.rows(), means.rows()), (Some(HEADS), Some(KV_HEADS)));
    for (mean, of_head) in means.sum.iter().zip(each.sum.chunks(HEADS / KV_HEADS)) {
        for (token, mean) in mean.iter().enumerate() {
            assert!((mean - (of_head[0][token] + of_head[1][token]) / 2.0).abs() < 1e-4);
        }
    }
    // Rows of the other kind clear the old rows and their queries.
    step(&mut sequence, &q[..HEADS * DIM], &k[..KV_HEADS * DIM], &v[..KV_HEADS * DIM], of_kv_heads);
    assert_eq!((sequence.accumulated_scores(0).rows(), sequence.queries_from(0, 0)), (Some(KV_HEADS), 1));
    let total: f32 = sequence.accumulated_scores(0).sum[0].iter().sum();
    assert!((total - 1.0).abs() < 1e-3, "{total}");
}

/// The outputs of future queries over a layer, `[queries][HEADS][DIM]`.
fn future_outputs(sequence: &mut Sequence, layer: usize, q: &[f32], pool: &Pool) -> Vec<f32> {
    let mut out = vec![0.0; q.len()];
    let inputs = AttentionInputs {
        q,
        queries: Queries::Future,
        out: &mut out,
        n_heads: HEADS,
        scale: 0.5,
        softcap: None,
        sinks: None,
        wanted_from: 0,
        scores: None,
    };
    sequence.attend(layer, inputs, exec(pool), &mut AttentionScratch::new()).unwrap();
    out
}

#[test]
fn fitted_values_reproduce_the_attention_over_all_tokens() {
    let pool = Pool::new(2).unwrap();
    for format in ["f32", "f16", "bf16", "int8", "int4", "sparse:0.1,0.1"] {
        let cache = KvCache::new(KvConfig {
            head_dim: DIM,
            n_kv_heads: KV_HEADS,
            window_heads: None,
            windows: vec![None, Some(48)],
            states: Vec::new(),
            format: format.parse().unwrap(),
            page_tokens: 16,
            limit: None,
            rewind: 0,
        })
        .unwrap();
        let mut sequence = cache.sequence();
        for layer in 0..2 {
            let rows = |seed| numbers(150 * KV_HEADS * DIM, seed + layer as u64);
            sequence.append(layer, &rows(1), &rows(3), &pool).unwrap();
        }
        let q = numbers(40 * HEADS * DIM, 9);
        let out = future_outputs(&mut sequence, 0, &q, &pool);
        let layers =
            vec![LayerQueries { q: q.clone(), out: out.clone(), sinks: Vec::new() }, LayerQueries::default()];
        let queries = FutureQueries { n_heads: HEADS, scale: 0.5, softcap: None, layers };
        let mut how = Compression::new(policy("knorm").unwrap(), Budget::Tokens(60));
        (how.crush.share, how.sinks, how.recent) = (0.0, 2, Some(20));
        let before: Vec<usize> = (0..KV_HEADS).map(|head| sequence.ref_cnt(0, head, 0)).collect();
        let mut errors = Vec::new();
        for fit in [false, true] {
            how.fit = fit;
            let mut fork = sequence.fork();
            let with = Compressing { exec: exec(&pool), apply_rope: None, queries: Some(&queries) };
            fork.compress_with(&how, 60, with).unwrap();
            assert!((0..KV_HEADS).all(|head| fork.kept(0, head) == 60), "{format}");
            assert_eq!(fork.kept(1, 0), sequence.kept(1, 0), "windows stay");
            let got = future_outputs(&mut fork, 0, &q, &pool);
            assert!(got.iter().all(|x| x.is_finite()), "{format}");
            errors.push(got.iter().zip(&out).map(|(got, want)| (got - want).powi(2)).sum::<f32>());
        }
        assert!(errors[1] < 0.5 * errors[0], "{format}: {errors:?}");
        // The shared pages are unchanged.
        assert_eq!(future_outputs(&mut sequence, 0, &q, &pool), out, "{format}");
        let after: Vec<usize> = (0..KV_HEADS).map(|head| sequence.ref_cnt(0, head, 0)).collect();
        assert_eq!(before, after);
        let bad = FutureQueries { n_heads: 3, ..queries.clone() };
        let with = Compressing { exec: exec(&pool), apply_rope: None, queries: Some(&bad) };
        assert!(sequence.compress_with(&how, 60, with).is_err());
    }
}
