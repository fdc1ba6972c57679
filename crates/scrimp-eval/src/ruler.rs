//! RULER (Hsieh et al., 2024, arXiv 2404.06654): its JSON Lines files (`input`, `outputs`), answer lengths and metrics.
//!
//! The file's name gives the task. A prompt ends with a question and the beginning of the answer. For chat models,
//! context and question are inside the chat template and the beginning of the answer follows it, as in RULER's own
//! templates.

use super::{
    metrics::Metric,
    tasks::{
        jsonl,
        prompt::Text,
        suite::{Sample, Suite},
    },
};
use scrimp_llm::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// A kind of task.
struct Kind {
    /// Prefix of its tasks' names.
    name: &'static str,
    answer_tokens: usize,
    metric: Metric,
    /// Beginning of its question.
    question: &'static str,
    /// Beginning of its answer prefix.
    answer: &'static str,
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "niah",
        answer_tokens: 128,
        metric: Metric::StringMatchAll,
        question: "\nWhat ",
        answer: " The special magic ",
    },
    Kind {
        name: "vt",
        answer_tokens: 30,
        metric: Metric::StringMatchAll,
        question: "\nQuestion: ",
        answer: " Answer: ",
    },
    Kind {
        name: "cwe",
        answer_tokens: 120,
        metric: Metric::StringMatchAll,
        question: "\nQuestion: ",
        answer: " Answer: ",
    },
    Kind {
        name: "fwe",
        answer_tokens: 50,
        metric: Metric::StringMatchAll,
        question: "\nQuestion: ",
        answer: " Answer: ",
    },
    Kind {
        name: "qa",
        answer_tokens: 32,
        metric: Metric::StringMatchAny,
        question: "\nQuestion: ",
        answer: " Answer:",
    },
];

#[derive(Deserialize)]
struct Line {
    input: String,
    outputs: Vec<String>,
    /// Newer files have it in a separate field.
    #[serde(default)]
    answer_prefix: String,
}

/// The first `limit` samples of a RULER file. `task` is the task's name (`niah_multikey_3`, `vt`, `qa_1`, ...). It is
/// needed only if neither the file's name nor its folder's name begins with it.
///
/// # Errors
/// When the file cannot be read, a line is damaged or has no question (the message names it), or the task is unknown.
pub fn load(path: &Path, limit: Option<usize>, task: Option<&str>) -> Result<Suite> {
    let name = |part: Option<&std::ffi::OsStr>| part.and_then(|s| s.to_str()).unwrap_or_default().to_owned();
    let names = match task {
        Some(task) => vec![task.to_owned()],
        None => vec![name(path.file_stem()), name(path.parent().and_then(Path::file_name))],
    };
    let of = |kind: &Kind, name: &str| name == kind.name || name.starts_with(&format!("{}_", kind.name));
    let found = names.iter().find_map(|name| Some((name, KINDS.iter().find(|kind| of(kind, name))?)));
    let Some((task, kind)) = found else {
        return Err(Error::bad_input(format!(
            "{}: neither file nor folder is named after a task of RULER",
            path.display()
        ))
        .with_hint("name the file after its task (niah_..., vt, cwe, fwe, qa_...), or say `task`"));
    };
    let lines: Vec<(usize, Line)> = jsonl::read(path, limit)?;
    let mut samples = Vec::with_capacity(lines.len());
    for (number, line) in lines {
        let Some(text) = kind.split(&line) else {
            return Err(Error::bad_input(format!(
                "{}: line {number}: no question of {task} is found in its input",
                path.display()
            ))
            .with_hint("the input has to end in RULER's question and beginning of an answer"));
        };
        if line.outputs.is_empty() {
            return Err(Error::bad_input(format!("{}: line {number}: outputs are empty", path.display())));
        }
        samples.push(Sample { id: number, text, truths: line.outputs, classes: Vec::new() });
    }
    let borrowed: Vec<(String, String)> =
        samples.iter().map(|s| (s.text.question.clone(), s.text.answer_prefix.clone())).collect();
    for (i, sample) in samples.iter_mut().enumerate() {
        let text = &mut sample.text;
        let other = another_key(text).or_else(|| {
            let mut others = borrowed.iter().cycle().skip(i + 1).take(borrowed.len());
            others.find(|(question, _)| *question != text.question).cloned()
        });
        if let Some((question, prefix)) = other {
            (text.other, text.other_prefix) = (Some(question), prefix);
        }
    }
    Ok(Suite {
        task: task.clone(),
        metric: kind.metric,
        answer_tokens: kind.answer_tokens,
        first_line: false,
        line_ends: false,
        chat: true,
        samples,
    })
}

impl Kind {
    fn split(&self, line: &Line) -> Option<Text> {
        let at = line.input.rfind(self.question)?;
        let (context, rest) = line.input.split_at(at);
        let end = match line.answer_prefix.is_empty() {
            true => rest.find(self.answer).unwrap_or(rest.len()),
            false => rest.len(),
        };
        let (question, prefix) = rest.split_at(end);
        let answer_prefix = if prefix.is_empty() { line.answer_prefix.clone() } else { prefix.to_owned() };
        let question = question.to_owned();
        Some(Text { context: context.to_owned(), question, answer_prefix, ..Text::default() })
    }
}

/// Question and beginning of an answer for another needle of the same haystack: the middle one by position.
fn another_key(text: &Text) -> Option<(String, String)> {
    let asked = text.question.split_once(" for ")?.1.split_once(" mentioned in ")?.0;
    let keys: Vec<&str> = text
        .context
        .split("One of the special magic ")
        .skip(1)
        .filter_map(|needle| Some(needle.split_once(" for ")?.1.split_once(" is: ")?.0))
        .filter(|key| *key != asked && !key.contains('\n'))
        .collect();
    let key = *keys.get(keys.len() / 2)?;
    Some((text.question.replace(asked, key), text.answer_prefix.replace(asked, key)))
}
