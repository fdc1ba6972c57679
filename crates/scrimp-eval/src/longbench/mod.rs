//! LongBench (Bai et al., 2023, arXiv 2308.14508): prompts, answer lengths, truncation and metrics of its `pred.py`,
//! `eval.py` and `metrics.py`, for its JSON Lines files.

mod tasks;

pub use tasks::{TASKS, Task};

use super::tasks::{
    jsonl,
    prompt::{Question, Text},
    suite::{Sample, Suite},
};
use scrimp_llm::{Error, Result};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    input: String,
    context: String,
    answers: Vec<String>,
    #[serde(default)]
    all_classes: Option<Vec<String>>,
    #[serde(default)]
    dataset: Option<String>,
}

/// The task of this name. A suffix `_e` (LongBench-E) is ignored.
pub fn task(name: &str) -> Option<&'static Task> {
    let name = name.strip_suffix("_e").unwrap_or(name);
    TASKS.iter().find(|task| task.name == name)
}

/// The first `limit` samples of a LongBench file. Its lines name the task, otherwise the file's name does.
///
/// # Errors
/// When the file cannot be read, a line is damaged (the message names it) or of another task, or the task is unknown.
pub fn load(path: &Path, limit: Option<usize>, when: Question) -> Result<Suite> {
    let lines: Vec<(usize, Line)> = jsonl::read(path, limit)?;
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let name = lines[0].1.dataset.clone().unwrap_or_else(|| stem.to_owned());
    let Some(task) = task(&name) else {
        let known: Vec<&str> = TASKS.iter().map(|t| t.name).collect();
        return Err(Error::bad_input(format!("{}: '{name}' is no task of LongBench", path.display()))
            .with_hint(format!("its tasks are {}", known.join(", "))));
    };
    if !task.metric.is_available() {
        return Err(Error::unsupported(
            format!("{} needs the segmentation of Chinese text, which this build lacks", task.name),
            "build scrimp-eval with its feature \"chinese\"",
        ));
    }
    let has_question = task.after.contains("{input}");
    if when == Question::Second && !has_question {
        return Err(Error::bad_input(format!(
            "{} asks the same of every context: there is no second question",
            task.name
        ))
        .with_hint("use `question` before or after"));
    }
    let mut samples: Vec<Sample> = Vec::with_capacity(lines.len());
    for (number, line) in &lines {
        if line.dataset.as_ref().is_some_and(|d| *d != name) {
            return Err(Error::bad_input(format!("{}: line {number} is not of {name}", path.display())));
        }
        let text = Text {
            context: format!("{}{}", task.before, line.context),
            question: task.after.replace("{input}", &line.input),
            ..Text::default()
        };
        let classes = line.all_classes.clone().unwrap_or_default();
        samples.push(Sample { id: *number, text, truths: line.answers.clone(), classes });
    }
    // The other question about a context is that of the next sample.
    let questions: Vec<String> = samples.iter().map(|s| s.text.question.clone()).collect();
    for (i, sample) in samples.iter_mut().enumerate() {
        let others = questions.iter().cycle().skip(i + 1).take(questions.len());
        sample.text.other = others.into_iter().find(|q| **q != sample.text.question).cloned();
    }
    Ok(Suite {
        task: name,
        metric: task.metric,
        answer_tokens: task.answer_tokens,
        first_line: task.first_line,
        line_ends: task.name == "samsum",
        chat: task.chat,
        samples,
    })
}
