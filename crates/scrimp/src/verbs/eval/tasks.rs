//! `scrimp eval needle`, `longbench` and `ruler`: questions about long contexts.

use crate::{
    App,
    cli::eval::{EvalNeedleArgs, EvalRulerArgs, EvalTaskArgs, TaskArgs},
    format,
    kv_args::{self, KvArgs},
    kv_settings,
    loaded::Loaded,
    progress::CountBar,
};
use scrimp_eval::{
    longbench, needle, read_text, ruler,
    tasks::{
        CacheSetting,
        journal::{self, Journal},
        prompt::Builder,
        suite::{Asking, Named, Outcome, Suite},
    },
};
use scrimp_llm::chat::ChatTemplate;
use serde::Serialize;
use serde_json::{Value, json};

#[derive(Serialize)]
struct TaskResult<'a> {
    task: &'a str,
    metric: &'a str,
    score: f64,
    samples: usize,
    standard_error: f64,
    setting: &'a str,
    question: &'a str,
    kv_bytes: u64,
    kv_share: f64,
}

#[derive(Serialize)]
struct NeedleResult<'a> {
    accuracy: f64,
    cells: Vec<CellResult>,
    setting: &'a str,
    question: &'a str,
    kv_bytes: u64,
    kv_share: f64,
}

#[derive(Serialize)]
struct CellResult {
    length: usize,
    depth: f64,
    correct: bool,
}

/// `scrimp eval longbench`.
pub(super) fn longbench(app: &App, args: &EvalTaskArgs) -> anyhow::Result<()> {
    let suite = longbench::load(&args.data, args.limit(), args.how.question)?;
    task(app, args, &suite)
}

/// `scrimp eval ruler`.
pub(super) fn ruler(app: &App, args: &EvalRulerArgs) -> anyhow::Result<()> {
    let suite = ruler::load(&args.common.data, args.common.limit(), args.task.as_deref())?;
    task(app, &args.common, &suite)
}

fn task(app: &App, args: &EvalTaskArgs, suite: &Suite) -> anyhow::Result<()> {
    let of = json!({"task": suite.task, "data": journal::identity(&args.data)?});
    let bench = Bench::open(app, &args.model, &args.how, &args.kv)?;
    let outcomes = bench.run(suite, of)?;
    for outcome in &outcomes {
        let result = TaskResult {
            task: &suite.task,
            metric: suite.metric.name(),
            score: outcome.score,
            samples: outcome.samples,
            standard_error: outcome.standard_error,
            setting: &outcome.setting,
            question: args.how.question.name(),
            kv_bytes: outcome.kv_bytes.round() as u64,
            kv_share: outcome.kv_share,
        };
        app.printer.result(&result, |r| {
            format!(
                "{} {} {:.2} ± {:.2}  ({} samples; {}; {:.1}% of the full cache)",
                r.task,
                r.metric,
                r.score,
                r.standard_error,
                r.samples,
                r.setting,
                100.0 * r.kv_share
            )
        })?;
    }
    Ok(())
}

/// `scrimp eval needle`.
pub(super) fn needle(app: &App, args: &EvalNeedleArgs) -> anyhow::Result<()> {
    let text = read_text(&args.haystack)?;
    let depths = args.depths();
    let bench = Bench::open(app, &args.model, &args.how, &args.kv)?;
    let seed = app.global.seed.unwrap_or(0);
    let (suite, cells) =
        needle::suite(&bench.builder(needle::ANSWER_TOKENS), &text, &args.lengths, &depths, seed)?;
    let of = json!({"task": "needle", "haystack": journal::identity(&args.haystack)?, "seed": seed,
                    "lengths": args.lengths, "depths": depths});
    for outcome in &bench.run(&suite, of)? {
        let given = args.given_depths(cells.len());
        let cells = cells.iter().zip(&given).zip(&outcome.scores);
        let result = NeedleResult {
            accuracy: outcome.score / 100.0,
            cells: cells
                .map(|((cell, &depth), &score)| CellResult {
                    length: cell.length,
                    depth,
                    correct: score == 1.0,
                })
                .collect(),
            setting: &outcome.setting,
            question: args.how.question.name(),
            kv_bytes: outcome.kv_bytes.round() as u64,
            kv_share: outcome.kv_share,
        };
        app.printer.result(&result, |r| grid(r, &args.lengths, &args.depths))?;
    }
    Ok(())
}

/// A table with a row per length and a column per depth.
fn grid(result: &NeedleResult<'_>, lengths: &[usize], depths: &[f64]) -> String {
    let mut head = vec!["length".to_owned()];
    head.extend(depths.iter().map(|d| format!("at {d}")));
    let mark = |cell: &CellResult| if cell.correct { "found" } else { "-" }.to_owned();
    let rows: Vec<Vec<String>> = lengths
        .iter()
        .zip(result.cells.chunks(depths.len()))
        .map(|(length, cells)| std::iter::once(length.to_string()).chain(cells.iter().map(mark)).collect())
        .collect();
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    format!(
        "{}accuracy {:.2}  ({}; {:.1}% of the full cache)",
        format::table(&head, &rows),
        result.accuracy,
        result.setting,
        100.0 * result.kv_share
    )
}

/// A model and the options of its questions.
struct Bench<'a> {
    how: &'a TaskArgs,
    loaded: Loaded,
    template: Option<ChatTemplate>,
    settings: Vec<Named<CacheSetting>>,
    kv_format: String,
}

impl<'a> Bench<'a> {
    fn open(app: &App, model: &str, how: &'a TaskArgs, kv: &KvArgs) -> anyhow::Result<Self> {
        let settings = kv_settings::settings(kv, how.compare.as_deref(), app.global.seed)?;
        let (loaded, template) = Loaded::open_with(app, model, kv, |checkpoint, tokenizer| match how.raw {
            true => Ok(None),
            false => checkpoint.chat_template(tokenizer),
        })?;
        let mut session = loaded.model.session();
        for named in &settings {
            kv_args::check_context(named.setting.compression.as_ref(), loaded.model.context_length())?;
            if let Some(format) = named.setting.format {
                session.set_kv_format(format)?;
            }
        }
        drop(session);
        Ok(Self { how, loaded, template, settings, kv_format: kv.format()?.to_string() })
    }

    /// Builds prompts that leave room for the answer and the chat template.
    fn builder(&self, answer_tokens: usize) -> Builder<'_> {
        let fits = self.loaded.model.context_length().saturating_sub(answer_tokens + 128);
        let max_tokens = self.how.max_prompt.map_or(fits, |n| fits.min(n as usize));
        Builder { tokenizer: &self.loaded.tokenizer, template: self.template.as_ref(), max_tokens }
    }

    fn run(&self, suite: &Suite, of: Value) -> anyhow::Result<Vec<Outcome>> {
        let builder = self.builder(suite.answer_tokens);
        let of = json!({
            "of": of,
            "model": journal::identity(self.loaded.model.path())?,
            "question": self.how.question.name(),
            "template": self.template.is_some(),
            "max_prompt": builder.max_tokens,
            "kv_format": self.kv_format,
        });
        let mut journal = match &self.how.state {
            Some(path) => Journal::open(path, &of)?,
            None => Journal::in_memory(),
        };
        let bar = CountBar::new("answers");
        let mut session = self.loaded.model.session();
        let asking = Asking { builder: &builder, question: self.how.question, settings: &self.settings };
        let outcomes = suite.run(&mut session, &asking, &mut journal, &mut |p| {
            bar.show(p.done, p.total, "");
        });
        drop(bar);
        Ok(outcomes?)
    }
}
