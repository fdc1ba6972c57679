//! `scrimp fit`: settings for the memory that there is.

use super::compress;
use crate::{
    App,
    cli::{Usage, fit::FitArgs},
    format,
    kv_args::KvArgs,
    loaded::Loaded,
    verbs::pull,
};
use scrimp_compress::{
    Calibration, LayerConfigs, Options, Output, ParetoFront,
    fit::{
        self, Setting, Weights,
        cache::{self, Cache},
        memory::Demand,
    },
};
use scrimp_eval::{Windows, kl, read_text};
use scrimp_kernels::{Exec, SimdLevel};
use scrimp_kv::compress::Budget;
use scrimp_llm::{builtin_text, checkpoint::Checkpoint};
use serde::Serialize;
use std::path::Path;

/// Tokens that a compressed model is compared with the original on.
const MEASURED: usize = 4096;

#[derive(Serialize)]
struct Fit {
    memory_bytes: u64,
    context: usize,
    sequences: u64,
    #[serde(flatten)]
    chosen: Row,
    working_bytes: u64,
    /// Measured on the whole text, where a compressed model was written.
    kl_weights_measured: Option<f64>,
    compress: Option<String>,
    run: String,
    options: Vec<Row>,
}

/// A setting.
#[derive(Serialize, Clone)]
struct Row {
    weights_bytes: u64,
    compressed: bool,
    kv_options: String,
    kv_bytes: u64,
    total_bytes: u64,
    kl_weights: f64,
    kl_kv: f64,
    kl: f64,
}

impl Row {
    fn new(setting: &Setting) -> Self {
        Self {
            weights_bytes: setting.weights.bytes(),
            compressed: matches!(setting.weights, Weights::Compressed { .. }),
            kv_options: kv_options(&setting.cache),
            kv_bytes: setting.kv_bytes,
            total_bytes: setting.bytes,
            kl_weights: setting.weights.kl(),
            kl_kv: setting.cache.kl,
            kl: setting.kl(),
        }
    }
}

/// Finds settings, and compresses the model where that was asked for.
pub(crate) fn run(app: &App, args: &FitArgs) -> anyhow::Result<()> {
    if args.out.as_deref().is_some_and(|out| out.extension().is_none_or(|e| e != "safetensors")) {
        return Err(
            Usage("a compressed model is a safetensors file: name it OUT.safetensors".to_owned()).into()
        );
    }
    let text = args.text.as_deref().map(read_text).transpose()?;
    let text = text.as_deref().unwrap_or(builtin_text::TEXT);
    let path = pull::fetch(app, &args.model)?;
    let checkpoint = Checkpoint::open(&path)?;
    let config = checkpoint.config();
    if args.context > config.context_length {
        return Err(Usage(format!("the model's context has {} tokens", config.context_length)).into());
    }
    let demand = Demand::new(config, args.memory, args.context, args.sequences.get());
    let original = checkpoint.file_bytes();
    let (settings, frontier) = match fit::original(&demand, original, &Cache::whole()) {
        Some(setting) => (vec![setting], None),
        None => measured(app, args, &path, &checkpoint, &demand, original, text)?,
    };
    let chosen = settings.first().expect("at least one setting");
    let mut kl_weights_measured = None;
    let mut compress = None;
    let mut model = args.model.clone();
    if let Weights::Compressed { target, .. } = chosen.weights {
        let out = args.out.clone().unwrap_or_else(|| "OUT.safetensors".into());
        model = out.display().to_string();
        compress = Some(format!("scrimp compress {} -o {model} --target-size {target}", args.model));
        if args.out.is_some() {
            let choices = frontier.and_then(|f| f.layer_configs(target)).expect("it was chosen from these");
            write(app, &checkpoint, &out, choices)?;
            kl_weights_measured = Some(divergence(app, &path, &out, text)?);
        }
    }
    let start = match args.sequences.get() {
        1 => format!("scrimp run {model}"),
        n => {
            let room =
                format!("--max-seqs {n} --max-model-len {} --kv-memory {}", args.context, chosen.kv_bytes);
            format!("scrimp serve {model} {room}")
        }
    };
    let run = [start, kv_options(&chosen.cache)].join(" ");
    let result = Fit {
        memory_bytes: args.memory,
        context: args.context,
        sequences: args.sequences.get(),
        chosen: Row::new(chosen),
        working_bytes: demand.working_bytes,
        kl_weights_measured,
        compress,
        run: run.trim_end().to_owned(),
        options: settings.iter().map(Row::new).collect(),
    };
    app.printer.result(&result, human)
}

/// What fits, the best first.
fn measured(
    app: &App,
    args: &FitArgs,
    path: &Path,
    checkpoint: &Checkpoint,
    demand: &Demand,
    original: u64,
    text: &str,
) -> anyhow::Result<(Vec<Setting>, Option<ParetoFront>)> {
    let caches = caches(app, args, path, text)?;
    let settings = fit::settings(demand, original, None, &caches);
    if settings.first().is_some_and(|s| s.kl() <= fit::NEGLIGIBLE) {
        return Ok((settings, None));
    }
    let frontier = if checkpoint.history().is_some() {
        app.printer.note("this model is compressed already: only its cache can become smaller");
        None
    } else {
        Some(frontier(app, checkpoint)?)
    };
    let settings = fit::settings(demand, original, frontier.as_ref(), &caches);
    if settings.is_empty() {
        let least = caches.iter().map(|c| demand.kv_bytes(c)).min().unwrap_or_default();
        let weights = frontier.map_or(original, |f| f.smallest().min(original));
        return Err(scrimp_llm::Error::bad_input(format!(
            "{} do not suffice: weights take {} at least, caches {}, and the process {}",
            format::bytes(args.memory),
            format::bytes(weights),
            format::bytes(least),
            format::bytes(demand.working_bytes)
        ))
        .with_hint("give more --memory, or a shorter --context")
        .into());
    }
    Ok((settings, frontier))
}

/// What weights cost at any size.
fn frontier(app: &App, checkpoint: &Checkpoint) -> anyhow::Result<ParetoFront> {
    let calibration =
        Calibration::new(checkpoint, &checkpoint.tokenizer()?, None, scrimp_compress::MAX_TOKENS)?;
    let bar = compress::Bar::new("layers");
    let method = &scrimp_compress::pruning::sparsegpt::SparseGpt;
    let pool = compress::pool(app)?;
    let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
    let frontier = ParetoFront::measure(exec, checkpoint, method, &calibration, &mut |p| bar.show(p))?;
    bar.finish();
    Ok(frontier)
}

/// The model at `path`, with a whole cache.
fn open(app: &App, path: &Path) -> anyhow::Result<Loaded> {
    Loaded::open(app, &path.display().to_string(), &KvArgs::full())
}

/// What smaller caches cost.
fn caches(app: &App, args: &FitArgs, path: &Path, text: &str) -> anyhow::Result<Vec<Cache>> {
    let loaded = open(app, path)?;
    let n = cache::text_tokens(args.context, loaded.model.context_length());
    let ids = loaded.tokenizer.encode(text, false, false)?;
    let ids: Vec<u32> = loaded.bos().into_iter().chain(ids).take(n).collect();
    let bar = compress::Bar::new("caches");
    let caches = cache::measure(&loaded.model, &ids, args.context, &mut |done, total| {
        bar.show(scrimp_compress::Progress { done, total, what: "smaller caches" });
    })?;
    bar.finish();
    Ok(caches)
}

/// Compresses the model to `choices`.
fn write(app: &App, checkpoint: &Checkpoint, out: &Path, choices: LayerConfigs) -> anyhow::Result<()> {
    let calibration =
        Calibration::new(checkpoint, &checkpoint.tokenizer()?, None, scrimp_compress::MAX_TOKENS)?;
    let options = Options {
        method: &scrimp_compress::pruning::sparsegpt::SparseGpt,
        budget: scrimp_compress::Budget::Fixed(choices),
        output: Output::Measured,
        calibration: &calibration,
    };
    let bar = compress::Bar::new("matrices");
    let pool = compress::pool(app)?;
    let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
    scrimp_compress::compress(exec, checkpoint, out, &options, &mut |p| {
        bar.show(p);
    })?;
    bar.finish();
    Ok(())
}

/// How far the compressed model's predictions are from the original's.
fn divergence(app: &App, original: &Path, compressed: &Path, text: &str) -> anyhow::Result<f64> {
    let (model, reference) = (open(app, compressed)?, open(app, original)?);
    let ids = model.tokenizer.encode(text, false, false)?;
    let context = model.model.context_length();
    let windows = Windows::new(ids, model.bos(), context.min(512), Some(MEASURED), context)?;
    let (mut a, mut b) = (model.model.session(), reference.model.session());
    Ok(kl::divergence(&mut a, &mut b, &windows, model.model.vocab_size(), &mut |_| ())?.kl)
}

/// The cache as the command line has it; nothing for a whole one in bf16.
fn kv_options(cache: &Cache) -> String {
    let mut options = Vec::new();
    let format = cache.format.to_string();
    if format != "bf16" {
        options.push(format!("--kv-format {format}"));
    }
    if let Some(how) = &cache.compression {
        if let Budget::Fraction(share) = how.budget {
            options.push(format!("--kv-budget {share}"));
        }
        options.push(format!("--kv-policy {}", how.policy.name()));
        options.push(format!("--kvcrush {}", how.crush.share));
    }
    options.join(" ")
}

fn human(fit: &Fit) -> String {
    let row = |r: &Row| {
        vec![
            if r.kv_options.is_empty() { "(whole, bf16)".to_owned() } else { r.kv_options.clone() },
            format::bytes(r.kv_bytes),
            format::bytes(r.weights_bytes),
            if r.compressed { "compressed" } else { "original" }.to_owned(),
            format::bytes(r.total_bytes),
            format!("{:.4}", r.kl_kv),
            format!("{:.4}", r.kl_weights),
            format!("{:.4}", r.kl),
        ]
    };
    let head = ["KV CACHE", "BYTES", "WEIGHTS", "", "IN ALL", "KL CACHE", "KL WEIGHTS", "KL"];
    let rows: Vec<_> = fit.options.iter().map(row).collect();
    let mut text = format::table(&head, &rows);
    let conversations = if fit.sequences == 1 { "conversation" } else { "conversations" };
    text += &format!(
        "\nThe first one is the best for {} {conversations} of {} tokens in {}, of which {} are for working in. KL is the\n\
         divergence from the original's predictions, nats per token; of weights it is expected, of caches measured.\n\n",
        fit.sequences,
        fit.context,
        format::bytes(fit.memory_bytes),
        format::bytes(fit.working_bytes)
    );
    match (&fit.compress, fit.kl_weights_measured) {
        (Some(_), Some(kl)) => {
            text += &format!("  compressed; measured with these weights: KL {kl:.4}\n");
        }
        (Some(compress), None) => text += &format!("  {compress}\n"),
        (None, _) => {}
    }
    text + &format!("  {}", fit.run)
}
