//! LongBench's metrics and configuration against values from its own Python (`testdata/longbench/make.py`).
#![cfg(feature = "chinese")]

use scrimp_eval::{longbench::TASKS, metrics::Metric};
use scrimp_testkit::testdata;
use serde::Deserialize;
use std::{collections::BTreeMap, fs};

const METRICS: [Metric; 9] = [
    Metric::F1,
    Metric::F1Zh,
    Metric::RougeL,
    Metric::RougeLZh,
    Metric::Accuracy,
    Metric::Retrieval,
    Metric::RetrievalZh,
    Metric::Count,
    Metric::EditSimilarity,
];

fn golden(name: &str) -> String {
    let path = testdata("longbench").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn scores_are_those_of_the_official_python() {
    let mut seen: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (i, line) in golden("metrics.jsonl").lines().enumerate() {
        let (name, answer, truth, classes, want): (String, String, String, Option<Vec<String>>, f64) =
            serde_json::from_str(line).unwrap();
        let metric = METRICS.into_iter().find(|m| m.name() == name).unwrap();
        let got = metric.score(&answer, &[truth], &classes.unwrap_or_default());
        assert!((got - want).abs() < 1e-9, "line {}: {got}, Python {want}: {line}", i + 1);
        let count = seen.entry(metric.name()).or_default();
        count.0 += 1;
        count.1 += usize::from(want > 0.0 && want < 1.0);
    }
    // Every metric is compared, and not at its ends alone.
    assert!(seen.len() == METRICS.len() && seen.values().all(|n| n.0 >= 60 && n.1 >= 2), "{seen:?}");
}

#[test]
fn prompts_lengths_and_metrics_are_the_official_ones() {
    #[derive(Deserialize)]
    struct Official {
        prompt: String,
        answer_tokens: usize,
        metric: String,
    }
    let official: BTreeMap<String, Official> = serde_json::from_str(&golden("config.json")).unwrap();
    assert_eq!(official.len(), TASKS.len());
    for task in &TASKS {
        let want = &official[task.name];
        assert_eq!(format!("{}{{context}}{}", task.before, task.after), want.prompt, "{}", task.name);
        assert_eq!((task.answer_tokens, task.metric.name()), (want.answer_tokens, want.metric.as_str()));
    }
}
