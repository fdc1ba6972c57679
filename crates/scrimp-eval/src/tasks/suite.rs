//! Running a benchmark's samples on one model under several cache settings.

use super::{
    compare::{Rules, Subject, compare},
    journal::Journal,
    prompt::{Builder, Question, Text},
};
use crate::metrics::Metric;
use scrimp_llm::Result;
use serde::{Deserialize, Serialize};

/// One question with its right answers.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The key of its results: its position in the file.
    pub id: usize,
    /// The text.
    pub text: Text,
    /// Right answers.
    pub truths: Vec<String>,
    /// Classes that an answer may name.
    pub classes: Vec<String>,
}

/// Samples of one task.
#[derive(Debug, Clone)]
pub struct Suite {
    /// The task.
    pub task: String,
    /// The metric of its answers.
    pub metric: Metric,
    /// Maximum length of an answer, tokens.
    pub answer_tokens: usize,
    /// Only the first line of an answer counts.
    pub first_line: bool,
    /// A line break ends an answer, unless it comes first (LongBench's samsum).
    pub line_ends: bool,
    /// Whether prompts of chat models use the chat template.
    pub chat: bool,
    /// The samples, in order.
    pub samples: Vec<Sample>,
}

/// A cache setting with the key of its results.
#[derive(Debug, Clone)]
pub struct Named<T> {
    /// The name.
    pub name: String,
    /// The setting.
    pub setting: T,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// [`Sample::id`].
    pub sample: usize,
    /// [`Named::name`].
    pub setting: String,
    /// The answer. Published journals leave it out, because it may quote the benchmark's texts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub answer: String,
    /// The score of the answer, 0 to 1.
    pub score: f64,
    /// Tokens before compression.
    pub prompt_tokens: usize,
    /// Bytes of the cache right after compression.
    pub kv_bytes: usize,
    /// Bytes before.
    pub kv_bytes_full: usize,
}

/// Progress of a run.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Finished answers.
    pub done: usize,
    /// All answers.
    pub total: usize,
}

/// The result of a setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// [`Named::name`].
    pub setting: String,
    /// Mean score, 0 to 100.
    pub score: f64,
    /// Standard error of the mean.
    pub standard_error: f64,
    /// Samples.
    pub samples: usize,
    /// Mean size of the compressed cache, as a share of the full cache's bytes.
    pub kv_share: f64,
    /// Mean bytes of the cache after compression.
    pub kv_bytes: f64,
    /// The answers' scores, in the order of samples, 0 to 1.
    pub scores: Vec<f64>,
}

/// The options of [`Suite::run`].
#[derive(Debug)]
pub struct Asking<'a, T> {
    /// Builds the prompts.
    pub builder: &'a Builder<'a>,
    /// The position of the question.
    pub question: Question,
    /// The cache settings.
    pub settings: &'a [Named<T>],
}

impl Suite {
    /// Answers every sample with `subject` under every setting, except for answers that are in `journal` already.
    ///
    /// # Errors
    /// Those of the model, the prompts and the journal.
    pub fn run<S: Subject>(
        &self,
        subject: &mut S,
        how: &Asking<'_, S::Setting>,
        journal: &mut Journal<Entry>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Outcome>> {
        let Asking { builder, question, settings } = *how;
        let builder = Builder { template: builder.template.filter(|_| self.chat), ..*builder };
        let tokenizer = builder.tokenizer;
        let line_break = if self.line_ends { tokenizer.encode("\n", false, false)?.pop() } else { None };
        let is_end = |id: u32| tokenizer.is_end(id) || Some(id) == line_break;
        let total = self.samples.len() * settings.len();
        let mut done =
            self.samples.iter().map(|s| settings.len() - missing(s, settings, journal).len()).sum();
        progress(Progress { done, total });
        for sample in &self.samples {
            let missing = missing(sample, settings, journal);
            if missing.is_empty() {
                continue;
            }
            let prompt = builder.build(&sample.text, question)?;
            let wanted: Vec<_> = missing.iter().map(|named| &named.setting).collect();
            let decided = |tokens: &[u32]| self.decided(&tokenizer.decode(tokens), sample);
            let rules = Rules {
                max_tokens: self.answer_tokens,
                is_end: &is_end,
                not_empty: self.line_ends,
                decided: &decided,
            };
            compare(subject, &prompt, &wanted, &rules, &mut |i, answer| {
                let text = tokenizer.decode(&answer.tokens);
                journal.push(Entry {
                    sample: sample.id,
                    setting: missing[i].name.clone(),
                    score: self.score(&text, sample),
                    answer: text,
                    prompt_tokens: prompt.prefill.len(),
                    kv_bytes: answer.kv_bytes,
                    kv_bytes_full: answer.kv_bytes_full,
                })?;
                done += 1;
                progress(Progress { done, total });
                Ok(())
            })?;
        }
        Ok(settings.iter().map(|named| self.outcome(&named.name, journal)).collect())
    }

    /// The score of an answer, 0 to 1.
    pub fn score(&self, answer: &str, sample: &Sample) -> f64 {
        let answer = match self.first_line {
            true => answer.trim_start_matches('\n').split('\n').next().unwrap_or(""),
            false => answer,
        };
        self.metric.score(answer, &sample.truths, &sample.classes)
    }

    /// Whether no continuation can lower the score: only for metrics that search for strings in the answer.
    fn decided(&self, answer: &str, sample: &Sample) -> bool {
        matches!(self.metric, Metric::StringMatchAll | Metric::StringMatchAny)
            && self.score(answer, sample) == 1.0
            || self.first_line && answer.trim_start_matches('\n').contains('\n')
    }

    /// Summarizes the results of a setting in `journal`.
    pub fn outcome(&self, setting: &str, journal: &Journal<Entry>) -> Outcome {
        let of = |sample: &Sample| {
            journal.entries().iter().find(|e| e.sample == sample.id && e.setting == setting)
        };
        let entries: Vec<&Entry> = self.samples.iter().filter_map(of).collect();
        let scores: Vec<f64> = entries.iter().map(|e| e.score).collect();
        let n = entries.len() as f64;
        let mean = |value: &dyn Fn(&Entry) -> f64| entries.iter().map(|e| value(e)).sum::<f64>() / n;
        let score = mean(&|e| e.score);
        let variance = scores.iter().map(|s| (s - score).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        Outcome {
            setting: setting.to_owned(),
            score: 100.0 * score,
            standard_error: 100.0 * (variance / n).sqrt(),
            samples: entries.len(),
            kv_share: mean(&|e| e.kv_bytes as f64 / e.kv_bytes_full.max(1) as f64),
            kv_bytes: mean(&|e| e.kv_bytes as f64),
            scores,
        }
    }
}

fn missing<'a, T>(sample: &Sample, settings: &'a [Named<T>], journal: &Journal<Entry>) -> Vec<&'a Named<T>> {
    let has = |name: &str| journal.entries().iter().any(|e| e.sample == sample.id && e.setting == name);
    settings.iter().filter(|named| !has(&named.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_entries_have_no_answers() {
        let line =
            r#"{"sample":1,"setting":"full","score":1.0,"prompt_tokens":9,"kv_bytes":8,"kv_bytes_full":8}"#;
        let entry: Entry = serde_json::from_str(line).unwrap();
        assert_eq!((entry.answer.as_str(), entry.score), ("", 1.0));
        assert_eq!(serde_json::to_string(&entry).unwrap(), line);
    }
}
