//! The selection against a brute-force oracle, and laws that hold for every setting.

mod ablation;

use proptest::prelude::*;
use scrimp_kernels::Pool;
use scrimp_kv::{
    AccumulatedScores, KvCache, KvConfig, Sequence,
    compress::{Budget, Compression, Crush, Granularity, select},
    policy::{LayerView, ModelView, Selection, policy},
};

const DIM: usize = 4;
const GROUP: usize = 2;

/// One layer of random keys and random attention, in small steps so that ties are common.
fn sequence(tokens: usize, kv_heads: usize, noise: &[u8]) -> Sequence {
    let pool = Pool::new(1).unwrap();
    let cache = KvCache::new(KvConfig {
        head_dim: DIM,
        n_kv_heads: kv_heads,
        window_heads: None,
        windows: vec![None],
        states: Vec::new(),
        format: "f32".parse().unwrap(),
        page_tokens: 16,
        limit: None,
        rewind: 0,
    })
    .unwrap();
    let byte = |i: usize| f32::from(noise[(i * 31 + i / 7) % noise.len()] % 16);
    let mut sequence = cache.sequence();
    let k: Vec<f32> = (0..tokens * kv_heads * DIM).map(|i| byte(i) - 8.0).collect();
    sequence.append(0, &k, &k, &pool).unwrap();
    let rows = |salt: usize| -> Vec<Vec<f32>> {
        (0..kv_heads * GROUP).map(|h| (0..tokens).map(|t| byte(salt + h * 977 + t * 13)).collect()).collect()
    };
    let stats =
        AccumulatedScores { sum: rows(1), recent: rows(2), last: rows(3), ..AccumulatedScores::default() };
    sequence.set_accumulated_scores(0, stats, std::iter::once(0..tokens as u32).collect()).unwrap();
    sequence
}

/// A direct implementation of [`select`] in token mode: for each KV head, indices and biases.
fn oracle(view: &LayerView<'_>, how: &Compression, budget: usize) -> Vec<(Vec<u32>, Vec<f32>)> {
    let n = view.n_tokens(0);
    let kind = how.policy.policy.signature_attention();
    (0..view.n_kv_heads())
        .map(|head| {
            let (mut score, mut a) = (vec![0.0; n], vec![0.0; n]);
            how.policy.policy.score(view, head, &mut score);
            view.weighted_attention(head, &mut a);
            let recent = how.recent_of(budget);
            let reserved = |t: usize| t < how.sinks || t + recent >= n;
            let rest = budget - (0..n).filter(|&t| reserved(t)).count();
            let n_reps = ((how.crush.share * budget as f64).round() as usize).min(rest);
            let top = |score: &[f32], count: usize| {
                let mut t: Vec<usize> = (0..n).filter(|&t| !reserved(t)).collect();
                t.sort_by(|&x, &y| score[y].partial_cmp(&score[x]).unwrap().then(x.cmp(&y)));
                t.truncate(count);
                t
            };
            let important = top(&score, rest - n_reps);
            let mut keep: Vec<(usize, f32)> = (0..n).filter(|&t| reserved(t)).map(|t| (t, 0.0)).collect();
            keep.extend(important.iter().map(|&t| (t, 0.0)));
            let mut dropped: Vec<usize> =
                (0..n).filter(|&t| !reserved(t) && !important.contains(&t)).collect();
            // Signatures: a bit per query head of the layer, set where the head itself would have kept the token.
            let heads: Vec<Vec<usize>> = (0..view.n_heads(kind))
                .map(|h| {
                    let mut attention = vec![0.0; n];
                    view.head_attention(kind, h / GROUP, h, &mut attention);
                    top(&attention, rest)
                })
                .collect();
            let bit = |h: usize, t: usize| heads[h].contains(&t);
            let anchor: Vec<bool> = (0..heads.len())
                .map(|h| match how.crush.order.name() {
                    "signature-zeros" => false,
                    "signature-ones" => true,
                    "signature-alternate" => h % 2 == 1,
                    _ => 2 * dropped.iter().filter(|&&t| bit(h, t)).count() > dropped.len(),
                })
                .collect();
            let distance = |t: usize| (0..heads.len()).filter(|&h| bit(h, t) != anchor[h]).count();
            match how.crush.order.name() {
                "score" => dropped.sort_by(|&x, &y| a[y].partial_cmp(&a[x]).unwrap()),
                "position" => {}
                _ => dropped.sort_by_key(|&t| distance(t)),
            }
            let total: f64 = dropped.iter().map(|&t| f64::from(a[t]).sqrt()).sum();
            let mut start = 0;
            for part in 1..=n_reps {
                let mut end = part * dropped.len() / n_reps;
                if how.crush.mass.name() == "attention" {
                    let sum =
                        |end: usize| dropped[..end].iter().map(|&t| f64::from(a[t]).sqrt()).sum::<f64>();
                    let aim = total * part as f64 / n_reps as f64;
                    end = (0..=dropped.len()).find(|&e| sum(e) >= aim).unwrap_or(dropped.len());
                    end = end.clamp(start + 1, dropped.len() - (n_reps - part));
                }
                if part == n_reps {
                    end = dropped.len();
                }
                let segment = &dropped[start..end];
                let sum: f64 = segment.iter().map(|&t| f64::from(a[t])).sum();
                let best = *segment
                    .iter()
                    .min_by(|&&x, &&y| a[y].partial_cmp(&a[x]).unwrap().then(x.cmp(&y)))
                    .unwrap();
                keep.push(match how.crush.mass.name() {
                    "none" => (segment[segment.len() / 2], 0.0),
                    "count" => (segment[segment.len() / 2], (segment.len() as f32).ln()),
                    _ => {
                        (best, if sum > 0.0 { (0.75 * (sum / f64::from(a[best])).ln()) as f32 } else { 0.0 })
                    }
                });
                start = end;
            }
            keep.sort_by_key(|k| k.0);
            keep.into_iter().map(|(t, bias)| (t as u32, bias)).unzip()
        })
        .collect()
}

fn kvcrush(share: f64, mass: &str, order: &str) -> Crush {
    Crush { share, mass: ablation::mass(mass).unwrap(), order: ablation::order(order).unwrap() }
}

fn crush(share: f64) -> impl Strategy<Value = Crush> {
    let orders =
        ["signature", "signature-zeros", "signature-ones", "signature-alternate", "score", "position"];
    (
        prop_oneof![Just(0.0), Just(1.0), 0.0..share],
        prop::sample::select(vec!["none", "count", "attention"]),
        prop::sample::select(orders.to_vec()),
    )
        .prop_map(|(share, mass, order)| kvcrush(share, mass, order))
}

fn how(name: &str, crush: Crush, sinks: usize, recent: usize, budget: usize) -> Compression {
    let mut how = Compression::new(policy(name).unwrap(), Budget::Tokens(budget));
    (how.crush, how.sinks, how.recent) = (crush, sinks, Some(recent));
    how
}

const NAMES: [&str; 6] = ["streaming", "h2o", "snapkv", "tova", "knorm", "random"];

proptest! {
    #![proptest_config(ProptestConfig { cases: scrimp_testkit::cases(400), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_selection_is_that_of_the_oracle(
        noise in prop::collection::vec(any::<u8>(), 40),
        (tokens, kv_heads) in (20_usize..90, 1_usize..4),
        (sinks, recent, more) in (0_usize..5, 0_usize..6, 1_usize..40),
        name in prop::sample::select(NAMES.to_vec()),
        crush in crush(1.0),
    ) {
        let budget = (sinks + recent + more).min(tokens - 1);
        let sequence = sequence(tokens, kv_heads, &noise);
        let model = ModelView::new(&sequence, 5);
        let view = model.layer(0);
        let how = how(name, crush, sinks, recent, budget);
        let got = select(&view, &how, budget);
        for (kept, (indices, bias)) in got.iter().zip(oracle(&view, &how, budget)) {
            prop_assert_eq!(&kept.indices, &indices);
            let zero = vec![0.0; bias.len()];
            for (got, want) in kept.bias.as_ref().unwrap_or(&zero).iter().zip(&bias) {
                prop_assert!((got - want).abs() < 1e-5, "{got} {want}");
            }
        }
    }

    #[test]
    fn exactly_the_budget_is_kept_and_never_without_sinks_and_recent_tokens(
        noise in prop::collection::vec(any::<u8>(), 40),
        (tokens, kv_heads) in (5_usize..90, 1_usize..4),
        (sinks, recent, more) in (0_usize..5, 0_usize..6, 0_usize..60),
        name in prop::sample::select(NAMES.to_vec()),
        shared in any::<bool>(),
        crush in crush(1.0),
        order in prop::sample::select(vec!["keys", "signature", "signature-random", "score", "random", "position"]),
        page in prop_oneof![Just(None), (1_usize..20).prop_map(Some)],
    ) {
        let budget = sinks + recent + more;
        let sequence = sequence(tokens, kv_heads, &noise);
        let name = if shared && page.is_none() { format!("adakv:{name}") } else { name.to_owned() };
        let mut how = how(&name, Crush { order: ablation::order(order).unwrap(), ..crush }, sinks, recent, budget);
        how.granularity = page.map_or(Granularity::Token, Granularity::Page);
        let kept = select(&ModelView::new(&sequence, 9).layer(0), &how, budget);
        let total: usize = kept.iter().map(|k| k.indices.len()).sum();
        prop_assert_eq!(total, budget.min(tokens) * kv_heads);
        for Selection { indices, bias } in &kept {
            prop_assert!(shared || indices.len() == budget.min(tokens));
            prop_assert!(indices.windows(2).all(|w| w[0] < w[1]));
            for t in (0..sinks.min(tokens)).chain(tokens.saturating_sub(recent)..tokens) {
                let at = indices.binary_search(&(t as u32));
                prop_assert!(at.is_ok(), "token {t} is gone");
                prop_assert!(bias.as_ref().is_none_or(|b| b[at.unwrap()] == 0.0));
            }
            prop_assert!(bias.as_ref().is_none_or(|b| b.len() == indices.len() && b.iter().all(|x| *x >= 0.0)));
        }
    }

    #[test]
    fn the_order_of_heads_does_not_matter(
        noise in prop::collection::vec(any::<u8>(), 40),
        more in 1_usize..40,
        name in prop::sample::select(NAMES[..5].to_vec()),
        crush in crush(1.0),
        order in prop::sample::select(vec![
            "keys", "signature", "signature-zeros", "signature-ones", "score", "position",
        ]),
    ) {
        let (tokens, kv_heads, budget) = (60, 3, 6 + more);
        let straight = sequence(tokens, kv_heads, &noise);
        let swap = |head: usize| (head + 1) % kv_heads;
        let pool = Pool::new(1).unwrap();
        let mut swapped = straight.fork();
        swapped.reset();
        let (mut rows, mut k, mut v) = (vec![0.0; tokens * kv_heads * DIM], vec![0.0; DIM], vec![0.0; DIM]);
        for head in 0..kv_heads {
            for t in 0..tokens {
                straight.read(0, head, t, &mut k, &mut v);
                rows[(t * kv_heads + swap(head)) * DIM..][..DIM].copy_from_slice(&k);
            }
        }
        swapped.append(0, &rows, &rows, &pool).unwrap();
        let stats = straight.accumulated_scores(0);
        let moved = |rows: &[Vec<f32>]| {
            let mut moved = rows.to_vec();
            for (h, row) in rows.iter().enumerate() {
                // Heads within a group change places, too.
                moved[swap(h / GROUP) * GROUP + (h + 1) % GROUP].clone_from(row);
            }
            moved
        };
        let stats = AccumulatedScores {
            sum: moved(&stats.sum),
            recent: moved(&stats.recent),
            last: moved(&stats.last),
            ..AccumulatedScores::default()
        };
        swapped.set_accumulated_scores(0, stats, std::iter::once(0..tokens as u32).collect()).unwrap();
        let how = how(name, Crush { order: ablation::order(order).unwrap(), ..crush }, 3, 3, budget);
        let a = select(&ModelView::new(&straight, 1).layer(0), &how, budget);
        let b = select(&ModelView::new(&swapped, 1).layer(0), &how, budget);
        for head in 0..kv_heads {
            prop_assert_eq!(&a[head], &b[swap(head)]);
        }
    }
}

#[test]
fn pages_of_the_best_sums_are_kept_whole() {
    let mut sequence = sequence(40, 1, &[0]);
    let mut scores = vec![0.0; 40];
    scores[10..14].fill(1.0);
    scores[30] = 3.0;
    let rows = vec![scores; GROUP];
    let stats = AccumulatedScores {
        sum: rows.clone(),
        recent: rows.clone(),
        last: rows,
        ..AccumulatedScores::default()
    };
    sequence.set_accumulated_scores(0, stats, std::iter::once(0..40).collect()).unwrap();
    let mut how = how("tova", Crush::default(), 2, 4, 14);
    how.granularity = Granularity::Page(4);
    let kept = select(&ModelView::new(&sequence, 0).layer(0), &how, 14);
    // Pages begin at token 2: 10..14 has a sum of 4, 30..34 one of 3.
    let want: Vec<u32> = (0..2).chain(10..14).chain(30..34).chain(36..40).collect();
    assert_eq!(kept[0].indices, want);
    // With a share for representatives, one page is important. The middle one of the other eight pages represents them.
    how.crush = kvcrush(0.3, "count", "position");
    let kept = select(&ModelView::new(&sequence, 0).layer(0), &how, 14);
    let want: Vec<u32> = (0..2).chain(10..14).chain(22..26).chain(36..40).collect();
    assert_eq!(kept[0].indices, want);
    let bias = kept[0].bias.as_ref().unwrap();
    assert!((0..14).all(|i| (bias[i] - if (6..10).contains(&i) { 8.0_f32.ln() } else { 0.0 }).abs() < 1e-6));
}

#[test]
fn pages_with_like_keys_stand_next_to_each_other() {
    let pool = Pool::new(1).unwrap();
    let mut sequence = sequence(36, 1, &[0]);
    sequence.reset();
    // Pages of four tokens behind two sinks, with keys that point alternately to one of two sides, and attention that
    // falls.
    let side = |t: usize| if t >= 2 && (t - 2) / 4 % 2 == 1 { -3.0_f32 } else { 3.0 };
    let k: Vec<f32> = (0..36).flat_map(|t| [side(t), 0.5 * side(t), 1.0, 0.25]).collect();
    sequence.append(0, &k, &k, &pool).unwrap();
    let rows = vec![(0..36).map(|t| (36 - t) as f32 / (1 + (t + 2) / 4) as f32).collect::<Vec<f32>>(); GROUP];
    let stats = AccumulatedScores {
        sum: rows.clone(),
        recent: rows.clone(),
        last: rows,
        ..AccumulatedScores::default()
    };
    sequence.set_accumulated_scores(0, stats, std::iter::once(0..36).collect()).unwrap();
    let mut how = how("tova", Crush::default(), 2, 2, 12);
    how.granularity = Granularity::Page(4);
    how.crush = kvcrush(0.67, "attention", "keys");
    let kept = select(&ModelView::new(&sequence, 0).layer(0), &how, 12);
    // No page is important. On either side the page with the most attention represents the four pages of its side.
    let want: Vec<u32> = (0..2).chain(2..10).chain(34..36).collect();
    assert_eq!(kept[0].indices, want);
    how.crush = kvcrush(0.67, "attention", "score");
    let by_score = select(&ModelView::new(&sequence, 0).layer(0), &how, 12);
    assert_ne!(by_score[0].indices, want, "by attention, both halves have pages of both sides");
}
