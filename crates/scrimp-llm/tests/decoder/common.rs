//! What the tests on golden files share.

use scrimp_llm::checkpoint::Checkpoint;
use scrimp_llm::model::{Model, RunOptions};
pub(crate) use scrimp_testkit::{real_model, testdata};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Loads the model at `path` with an f32 KV cache and two threads; `level` as in [`RunOptions`].
pub(crate) fn load(path: &Path, level: Option<&str>) -> Model {
    load_in(path, level, "f32")
}

/// As [`load`], with the KV cache in another format.
pub(crate) fn load_in(path: &Path, level: Option<&str>, kv_format: &str) -> Model {
    let options = RunOptions {
        threads: Some(2),
        level: level.map(|name| name.parse().unwrap()),
        kv_format: kv_format.parse().unwrap(),
    };
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Model::load(checkpoint, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What transformers computes, as `testdata/common/tiny.py` writes it.
#[derive(Deserialize)]
pub(crate) struct Expected {
    /// The prompt.
    pub(crate) ids: Vec<u32>,
    /// Standard deviation of all logits, the measure of how large a difference is.
    pub(crate) logits_std: f32,
    /// The largest logits of every position but the last few.
    pub(crate) top5_ids: Vec<Vec<u32>>,
    /// Their values.
    pub(crate) top5_logits: Vec<Vec<f32>>,
    /// All logits of the last positions.
    pub(crate) last_logits: Vec<Vec<f32>>,
    /// The continuation of the prompt by greedy decoding.
    pub(crate) greedy_ids: Vec<u32>,
    /// The smallest lead of the largest logit among those steps.
    pub(crate) greedy_min_gap: f32,
}

/// The largest difference between `logits` (after position `at`) and the expected values of that position.
pub(crate) fn difference(expected: &Expected, at: usize, logits: &[f32]) -> f32 {
    let worst = |pairs: &mut dyn Iterator<Item = (f32, f32)>| {
        pairs.map(|(a, b)| if a.is_finite() { (a - b).abs() } else { f32::INFINITY }).fold(0.0, f32::max)
    };
    match at.checked_sub(expected.top5_ids.len()) {
        Some(row) => {
            let want = &expected.last_logits[row];
            assert_eq!(logits.len(), want.len(), "length of a logits row");
            worst(&mut logits.iter().copied().zip(want.iter().copied()))
        }
        None => {
            let (ids, want) = (&expected.top5_ids[at], &expected.top5_logits[at]);
            worst(&mut ids.iter().map(|&id| logits[id as usize]).zip(want.iter().copied()))
        }
    }
}

/// Index of the largest value.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    u32::try_from(best.expect("logits are not empty")).expect("a vocabulary fits u32")
}
