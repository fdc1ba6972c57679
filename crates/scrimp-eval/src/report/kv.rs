//! Quality against size of the KV cache, for policies alone and with KVCrush's representatives in the same total
//! budget.
//!
//! Each excerpt of a text is read once, and its cache is compressed under each setting. The predictions for the
//! following tokens are compared with those of the whole cache ([`crate::kv`]). Each figure has its standard error over
//! excerpts.

use super::{chart, table};
use crate::{
    kv::{KvComparison, text_tokens},
    tasks::{
        journal::Journal,
        suite::{Named, Outcome, Progress},
    },
};
use scrimp_kv::{compress::Compression, policy::Needs};
use scrimp_llm::{Error, Result, model::Model};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Tokens from the middle of a text, with their name in results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// `text@first token`.
    pub name: String,
    /// The tokens of the text, after a begin-of-text token if the tokenizer adds one.
    pub tokens: Vec<u32>,
}

/// A policy at one budget.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The policy's name.
    pub policy: String,
    /// The budget, as a share of the prompt.
    pub budget: f64,
    /// Without representatives.
    pub alone: Named<Compression>,
    /// With representatives, in the same total budget.
    pub crushed: Named<Compression>,
}

/// One excerpt under one setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// [`Excerpt::name`].
    pub excerpt: String,
    /// [`Named::name`].
    pub setting: String,
    /// Mean divergence from the whole cache's predictions, nats per token.
    pub kl: f64,
    /// Share of positions with the same best token.
    pub top1_agreement: f64,
    /// Bytes of the cache after compression.
    pub kv_bytes: usize,
    /// Bytes of the whole cache.
    pub kv_bytes_full: usize,
}

/// A mean with its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its standard error; 0 for a single value.
    pub error: f64,
}

/// The loss and size of a setting over all excerpts.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// [`Named::name`].
    pub setting: String,
    /// Divergence, nats per token.
    pub kl: Mean,
    /// Share of positions with the same best token.
    pub top1_agreement: Mean,
    /// Mean bytes of the cache.
    pub kv_bytes: f64,
    /// Mean share of the whole cache's bytes.
    pub kv_share: f64,
}

/// A policy at one budget, without and with representatives.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The policy's name.
    pub policy: String,
    /// The budget, as a share of the prompt.
    pub budget: f64,
    /// Without representatives.
    pub alone: Cost,
    /// With them.
    pub crushed: Cost,
    /// Divergence with them over divergence without, per excerpt.
    pub ratio: Mean,
}

/// The measurements and their subjects.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The model's file.
    pub model: String,
    /// Names of the texts.
    pub texts: Vec<String>,
    /// Number of excerpts of all texts together.
    pub excerpts: usize,
    /// Tokens before compression.
    pub prompt_tokens: usize,
    /// Scored tokens.
    pub score_tokens: usize,
    /// KVCrush's share of the budget.
    pub kvcrush: f64,
    /// One row per policy and budget.
    pub rows: Vec<Row>,
    /// Tasks: name, metric and the score of each setting.
    pub tasks: Vec<(String, String, Vec<Outcome>)>,
}

/// Lengths of a measurement, tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Scored tokens after the prompt.
    pub score_tokens: usize,
}

/// The subjects of [`measure`].
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// The texts.
    pub excerpts: &'a [Excerpt],
    /// Their lengths.
    pub lengths: Lengths,
    /// The settings.
    pub pairs: &'a [Pair],
}

/// `n` excerpts of a text's tokens that fit `prompt_tokens` and `score_tokens`, from its beginning to its end.
///
/// # Errors
/// When the text is too short.
pub fn excerpts(
    text: &str,
    ids: &[u32],
    bos: Option<u32>,
    Lengths { prompt_tokens, score_tokens }: Lengths,
    n: usize,
) -> Result<Vec<Excerpt>> {
    let needed = text_tokens(prompt_tokens, score_tokens) - usize::from(bos.is_some());
    let Some(room) = ids.len().checked_sub(needed) else {
        return Err(Error::bad_input(format!("{text} has {} tokens; an excerpt takes {needed}", ids.len()))
            .with_hint("use a longer text, or fewer `prompt_tokens` or `score_tokens`"));
    };
    let mut starts: Vec<usize> = (0..n).map(|i| room * i / (n.max(2) - 1)).collect();
    starts.dedup();
    let excerpt = |start: usize| Excerpt {
        name: format!("{text}@{start}"),
        tokens: bos.into_iter().chain(ids[start..start + needed].iter().copied()).collect(),
    };
    Ok(starts.into_iter().map(excerpt).collect())
}

/// Measures every setting of `pairs` on every excerpt. Results in `journal` are not measured again.
///
/// # Errors
/// Those of the model, of compression and of the journal.
pub fn measure(
    model: &Model,
    Comparison { excerpts, lengths: Lengths { prompt_tokens, score_tokens }, pairs }: &Comparison<'_>,
    journal: &mut Journal<Entry>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Row>> {
    let mut settings: Vec<&Named<Compression>> = Vec::new();
    for named in pairs.iter().flat_map(|pair| [&pair.alone, &pair.crushed]) {
        if !settings.iter().any(|s| s.name == named.name) {
            settings.push(named);
        }
    }
    let has = |journal: &Journal<Entry>, excerpt: &Excerpt, setting: &str| {
        journal.entries().iter().any(|e| e.excerpt == excerpt.name && e.setting == setting)
    };
    let total = excerpts.len() * settings.len();
    for (seed, excerpt) in excerpts.iter().enumerate() {
        let missing: Vec<_> = settings.iter().filter(|named| !has(journal, excerpt, &named.name)).collect();
        if missing.is_empty() {
            continue;
        }
        let needs = missing.iter().map(|named| named.setting.needs()).fold(Needs::NONE, Needs::and);
        let whole =
            KvComparison::new(model.session(), &excerpt.tokens, *prompt_tokens, *score_tokens, needs)?;
        for named in missing {
            let how =
                Compression { seed: named.setting.seed.wrapping_add(seed as u64), ..named.setting.clone() };
            let score = whole.score(&how)?;
            journal.push(Entry {
                excerpt: excerpt.name.clone(),
                setting: named.name.clone(),
                kl: score.kl,
                top1_agreement: score.top1_agreement,
                kv_bytes: score.kv_bytes,
                kv_bytes_full: whole.kv_bytes(),
            })?;
            progress(Progress { done: journal.entries().len().min(total), total });
        }
    }
    Ok(summary(excerpts, pairs, journal.entries()))
}

/// Means over the excerpts for which all settings were measured.
pub fn summary(excerpts: &[Excerpt], pairs: &[Pair], entries: &[Entry]) -> Vec<Row> {
    let by_key: BTreeMap<(&str, &str), &Entry> =
        entries.iter().map(|e| ((e.excerpt.as_str(), e.setting.as_str()), e)).collect();
    let of = |setting: &str| -> Vec<&Entry> {
        excerpts.iter().filter_map(|x| by_key.get(&(x.name.as_str(), setting)).copied()).collect()
    };
    let cost = |setting: &str| {
        let entries = of(setting);
        let mean_of = |value: &dyn Fn(&Entry) -> f64| mean(entries.iter().map(|e| value(e)));
        Cost {
            setting: setting.to_owned(),
            kl: mean_of(&|e| e.kl),
            top1_agreement: mean_of(&|e| e.top1_agreement),
            kv_bytes: mean_of(&|e| e.kv_bytes as f64).mean,
            kv_share: mean_of(&|e| e.kv_bytes as f64 / e.kv_bytes_full.max(1) as f64).mean,
        }
    };
    let row = |pair: &Pair| {
        let (alone, crushed) = (of(&pair.alone.name), of(&pair.crushed.name));
        let ratios = alone.iter().zip(&crushed).filter(|(a, _)| a.kl > 0.0).map(|(a, c)| c.kl / a.kl);
        Row {
            policy: pair.policy.clone(),
            budget: pair.budget,
            alone: cost(&pair.alone.name),
            crushed: cost(&pair.crushed.name),
            ratio: mean(ratios),
        }
    };
    pairs.iter().map(row).collect()
}

/// Mean and standard error; `NaN` of nothing.
fn mean(values: impl Iterator<Item = f64>) -> Mean {
    let values: Vec<f64> = values.collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let error = if values.len() > 1 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 };
    Mean { mean, error }
}

impl Report {
    /// The table, with the chart `image` above it.
    pub fn markdown(&self, image: &str) -> String {
        table::markdown(self, image)
    }

    /// The chart: divergence (on a logarithmic scale) against size of the cache.
    ///
    /// # Errors
    /// There are no measurements.
    pub fn svg(&self) -> Result<String> {
        chart::svg(self)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use scrimp_kv::{compress::Budget, policy::policy};

    pub(crate) fn pair(policy_name: &str, budget: f64) -> Pair {
        let how = Compression::new(policy(policy_name).unwrap(), Budget::Fraction(budget));
        let named =
            |more: &str| Named { name: format!("{policy_name} {budget}{more}"), setting: how.clone() };
        Pair { policy: policy_name.into(), budget, alone: named(""), crushed: named(" kvcrush 0.5") }
    }

    pub(crate) fn report() -> Report {
        let pairs = [pair("h2o", 0.5), pair("h2o", 0.25), pair("snapkv", 0.5), pair("snapkv", 0.25)];
        let excerpts =
            excerpts("alice", &[7; 40], None, Lengths { prompt_tokens: 20, score_tokens: 4 }, 2).unwrap();
        let mut entries = Vec::new();
        for (i, excerpt) in excerpts.iter().enumerate() {
            for (j, pair) in pairs.iter().enumerate() {
                for (named, factor) in [(&pair.alone, 1.0), (&pair.crushed, 0.5)] {
                    entries.push(Entry {
                        excerpt: excerpt.name.clone(),
                        setting: named.name.clone(),
                        kl: factor * (1 + i + j) as f64 / 10.0,
                        top1_agreement: 0.9,
                        kv_bytes: (100.0 * pair.budget) as usize,
                        kv_bytes_full: 100,
                    });
                }
            }
        }
        Report {
            model: "tiny.gguf".into(),
            texts: vec!["alice".into()],
            excerpts: 2,
            prompt_tokens: 20,
            score_tokens: 4,
            kvcrush: 0.5,
            rows: summary(&excerpts, &pairs, &entries),
            tasks: vec![],
        }
    }

    #[test]
    fn excerpts_cover_the_text() {
        let ids: Vec<u32> = (0..100).collect();
        let lengths = Lengths { prompt_tokens: 30, score_tokens: 9 };
        let got = excerpts("x", &ids, Some(999), lengths, 3).unwrap();
        assert_eq!(got.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["x@0", "x@30", "x@61"]);
        assert!(got.iter().all(|e| e.tokens.len() == 40 && e.tokens[0] == 999));
        assert_eq!((got[1].tokens[1], got[2].tokens[39]), (30, 99));
        // As long as an excerpt: there is only one.
        assert_eq!(excerpts("x", &ids[..39], Some(999), lengths, 3).unwrap().len(), 1);
        let error = excerpts("x", &ids[..38], Some(999), lengths, 3).unwrap_err().to_string();
        assert_eq!(error, "x has 38 tokens; an excerpt takes 39");
    }

    #[test]
    fn means_and_ratios() {
        let report = report();
        let row = &report.rows[1];
        assert_eq!((row.policy.as_str(), row.budget, row.alone.kv_share), ("h2o", 0.25, 0.25));
        assert!((row.alone.kl.mean - 0.25).abs() < 1e-12 && (row.alone.kl.error - 0.05).abs() < 1e-12);
        assert_eq!(row.ratio, Mean { mean: 0.5, error: 0.0 });
        assert!(mean([].into_iter()).mean.is_nan());
    }
}
