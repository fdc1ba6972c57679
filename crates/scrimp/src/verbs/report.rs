//! `scrimp report`: measurements of many settings, with a chart and a table.

use crate::{
    App,
    cli::report::{ReportKvArgs, ReportVerb},
    kv_args::KvArgs,
    loaded::Loaded,
    progress::CountBar,
};
use anyhow::Context as _;
use scrimp_base::AtomicFile;
use scrimp_eval::{
    kv, longbench, read_text,
    report::kv::{Comparison, Excerpt, Lengths, Pair, Report, Row, excerpts, measure},
    ruler,
    tasks::{
        CacheSetting,
        journal::{self, Journal},
        prompt::{Builder, Question},
        suite::{Asking, Named, Outcome, Suite},
    },
};
use scrimp_kv::compress::{Budget, Compression, Crush};
use scrimp_llm::{builtin_text, chat::ChatTemplate};
use serde::Serialize;
use serde_json::json;
use std::fs;

#[derive(Serialize)]
struct Line<'a> {
    policy: &'a str,
    budget: f64,
    kl: f64,
    kl_error: f64,
    kl_kvcrush: f64,
    kl_kvcrush_error: f64,
    ratio: f64,
    ratio_error: f64,
    top1_agreement: f64,
    top1_agreement_kvcrush: f64,
    kv_bytes: u64,
    kv_share: f64,
    excerpts: usize,
}

/// Runs the report.
pub(crate) fn run(app: &App, verb: &ReportVerb) -> anyhow::Result<()> {
    match verb {
        ReportVerb::Kv(args) => report_kv(app, args),
    }
}

fn report_kv(app: &App, args: &ReportKvArgs) -> anyhow::Result<()> {
    let (prompt, scored) = (args.prompt_tokens.get(), args.score_tokens.get());
    let pairs = pairs(args, app.global.seed.unwrap_or(0));
    for named in pairs.iter().flat_map(|pair| [&pair.alone, &pair.crushed]) {
        named.setting.tokens(prompt).with_context(|| format!("--budgets for {}", named.name))?;
    }
    let texts = texts(args)?;
    let limit = args.limit.map(|n| n as usize);
    let suites: Vec<Suite> =
        args.task.iter().map(|path| suite(path, limit)).collect::<anyhow::Result<_>>()?;
    let (loaded, template) =
        Loaded::open_with(app, &args.model, &KvArgs::full(), |checkpoint, tokenizer| {
            let config = checkpoint.config();
            kv::check(prompt, scored, config.vocab_size, config.context_length)?;
            checkpoint.chat_template(tokenizer)
        })?;
    let lengths = Lengths { prompt_tokens: prompt, score_tokens: scored };
    let mut all: Vec<Excerpt> = Vec::new();
    for (name, text) in &texts {
        let ids = loaded.tokenizer.encode(text, false, false)?;
        all.extend(excerpts(name, &ids, loaded.bos(), lengths, usize::from(args.seeds))?);
    }
    let model = journal::identity(loaded.model.path())?;
    fs::create_dir_all(&args.output).with_context(|| format!("{}", args.output.display()))?;
    let of = json!({"report": "kv", "model": model, "prompt_tokens": prompt, "score_tokens": scored});
    let mut journal = Journal::open(&args.output.join("kv.jsonl"), &of)?;
    let bar = CountBar::new("measurements");
    let comparison = Comparison { excerpts: &all, lengths, pairs: &pairs };
    let rows = measure(&loaded.model, &comparison, &mut journal, &mut |p| {
        bar.show(p.done, p.total, "");
    })?;
    drop(bar);
    let mut tasks = Vec::new();
    for suite in &suites {
        let outcomes = questions(args, &loaded, template.as_ref(), suite, &pairs)?;
        tasks.push((suite.task.clone(), suite.metric.name().to_owned(), outcomes));
    }
    let file = loaded.model.path().file_name().map(|n| n.to_string_lossy().into_owned());
    let report = Report {
        model: file.unwrap_or_else(|| args.model.clone()),
        texts: texts.into_iter().map(|(name, _)| name).collect(),
        excerpts: all.len(),
        prompt_tokens: prompt,
        score_tokens: scored,
        kvcrush: args.kvcrush,
        rows,
        tasks,
    };
    AtomicFile::write(&args.output.join("kv.svg"), report.svg()?.as_bytes())?;
    AtomicFile::write(&args.output.join("kv.md"), report.markdown("kv.svg").as_bytes())?;
    if app.printer.is_json() {
        for row in &report.rows {
            app.printer.result(&line(row, all.len()), |_| "")?;
        }
    } else {
        app.printer.raw(&report.markdown("kv.svg"))?;
    }
    app.printer.note(format_args!("written: {}", args.output.join("kv.{svg,md}").display()));
    Ok(())
}

/// Every policy at every budget.
fn pairs(args: &ReportKvArgs, seed: u64) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for policy in &args.policies {
        for &budget in &args.budgets {
            let alone = Compression { seed, ..Compression::new(*policy, Budget::Fraction(budget)) };
            let crushed =
                Compression { crush: Crush { share: args.kvcrush, ..Crush::default() }, ..alone.clone() };
            let named = |setting: Compression| Named { name: setting.to_string(), setting };
            pairs.push(Pair { policy: policy.name(), budget, alone: named(alone), crushed: named(crushed) });
        }
    }
    pairs
}

/// Names and contents of the texts.
fn texts(args: &ReportKvArgs) -> anyhow::Result<Vec<(String, String)>> {
    if args.text.is_empty() {
        return Ok(vec![("built-in (Alice in Wonderland)".to_owned(), builtin_text::TEXT.to_owned())]);
    }
    let name = |path: &std::path::Path| {
        path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
    };
    args.text.iter().map(|path| Ok((name(path), read_text(path)?))).collect()
}

/// Loads a task. LongBench's samples have a field `context`, RULER's have none.
fn suite(path: &std::path::Path, limit: Option<usize>) -> anyhow::Result<Suite> {
    let lines: Vec<(usize, serde_json::Value)> = scrimp_eval::tasks::jsonl::read(path, Some(1))?;
    Ok(match lines[0].1.get("context") {
        Some(_) => longbench::load(path, limit, Question::Before)?,
        None => ruler::load(path, limit, None)?,
    })
}

/// Scores the full cache and all settings on one task.
fn questions(
    args: &ReportKvArgs,
    loaded: &Loaded,
    template: Option<&ChatTemplate>,
    suite: &Suite,
    pairs: &[Pair],
) -> anyhow::Result<Vec<Outcome>> {
    let mut settings = vec![Named { name: "full".to_owned(), setting: CacheSetting::default() }];
    for named in pairs.iter().flat_map(|pair| [&pair.alone, &pair.crushed]) {
        let setting = CacheSetting { compression: Some(named.setting.clone()), format: None };
        settings.push(Named { name: named.name.clone(), setting });
    }
    let max_tokens = loaded.model.context_length().saturating_sub(suite.answer_tokens + 128);
    let builder = Builder { tokenizer: &loaded.tokenizer, template, max_tokens };
    let model = journal::identity(loaded.model.path())?;
    let of = json!({"report": "kv", "model": model, "task": suite.task});
    let mut journal = Journal::open(&args.output.join(format!("{}.jsonl", suite.task)), &of)?;
    let bar = CountBar::new("answers");
    let mut session = loaded.model.session();
    let asking = Asking { builder: &builder, question: Question::Before, settings: &settings };
    let outcomes = suite.run(&mut session, &asking, &mut journal, &mut |p| {
        bar.show(p.done, p.total, "");
    })?;
    drop(bar);
    Ok(outcomes)
}

fn line(row: &Row, excerpts: usize) -> Line<'_> {
    Line {
        policy: &row.policy,
        budget: row.budget,
        kl: row.alone.kl.mean,
        kl_error: row.alone.kl.error,
        kl_kvcrush: row.crushed.kl.mean,
        kl_kvcrush_error: row.crushed.kl.error,
        ratio: row.ratio.mean,
        ratio_error: row.ratio.error,
        top1_agreement: row.alone.top1_agreement.mean,
        top1_agreement_kvcrush: row.crushed.top1_agreement.mean,
        kv_bytes: row.alone.kv_bytes.round() as u64,
        kv_share: row.alone.kv_share,
        excerpts,
    }
}
