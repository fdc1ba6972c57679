//! Gathering attention for eviction policies changes no logits, and the scores of every query sum to 1.

use crate::common::{Expected, load, read_json, testdata};
use scrimp_kv::StatsWanted;

#[test]
fn gathered_attention_sums_to_the_queries_and_changes_no_logits() {
    let folder = testdata("tiny").join("llama");
    let expected: Expected = read_json(&folder.join("expected.json"));
    let n = expected.ids.len();
    let recent = 5;
    for (level, per_kv_head) in [(Some("scalar"), false), (None, false), (None, true)] {
        let recent_from = Some((n - recent) as u32);
        let wanted = StatsWanted { sum: true, recent_from, last: true, peak: false, per_kv_head };
        let model = load(&folder, level);
        let heads = if per_kv_head { model.config().n_kv_heads } else { model.config().n_heads };
        let plain = model.session().forward(&expected.ids).unwrap().to_vec();
        let mut session = model.session();
        session.gather_attention(Some(wanted));
        let logits = session.forward(&expected.ids).unwrap();
        for (a, b) in plain.iter().zip(logits) {
            assert!((a - b).abs() <= 1e-4, "{a} became {b}");
        }
        for layer in 0..model.config().n_layers {
            let stats = session.kv().stats(layer);
            for (sums, queries) in [(&stats.sum, n), (&stats.recent, recent), (&stats.last, 1)] {
                assert_eq!(sums.len(), heads, "layer {layer}");
                for (head, sums) in sums.iter().enumerate() {
                    let total: f32 = sums.iter().sum();
                    assert!(
                        (total - queries as f32).abs() < 1e-3,
                        "layer {layer} head {head}: {total}, not {queries}"
                    );
                }
            }
        }
    }
}
