//! Accumulating attention scores changes no logits, and the scores of each query add up to 1.

use crate::common::{Expected, load, read_json, testdata};
use scrimp_kv::ScoresWanted;

#[test]
fn accumulated_scores_add_up_to_the_queries_and_change_no_logits() {
    let folder = testdata("tiny").join("llama");
    let expected: Expected = read_json(&folder.join("expected.json"));
    let n = expected.ids.len();
    let recent = 5;
    for (level, per_query_head) in [(Some("scalar"), true), (None, true), (None, false)] {
        let recent_from = Some((n - recent) as u32);
        let wanted = ScoresWanted { sum: true, recent_from, last: true, max: false, per_query_head };
        let model = load(&folder, level);
        let heads = if per_query_head { model.config().n_heads } else { model.config().n_kv_heads };
        let plain = model.session().forward(&expected.ids).unwrap().to_vec();
        let mut session = model.session();
        session.accumulate_scores(Some(wanted));
        let logits = session.forward(&expected.ids).unwrap();
        for (a, b) in plain.iter().zip(logits) {
            assert!((a - b).abs() <= 1e-4, "{a} became {b}");
        }
        for layer in 0..model.config().n_layers {
            let scores = session.kv().accumulated_scores(layer);
            for (sums, queries) in [(&scores.sum, n), (&scores.recent, recent), (&scores.last, 1)] {
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
