//! `scrimp fit`: the most accurate settings for a memory limit.

use crate::{
    App,
    cli::{Usage, fit::FitArgs},
    format,
    kv_args::KvArgs,
    loaded::Loaded,
    progress::CountBar,
    verbs::pull,
};
use scrimp_base::Error;
use scrimp_compress::{
    Calibration, MatrixConfigs, Options, Output, ParetoFront, Progress,
    fit::{
        self, Setting, Weights,
        cache::{self, Cache},
        memory::Demand,
    },
    pruning::sparsegpt::SparseGpt,
};
use scrimp_eval::{Windows, kl, read_text};
use scrimp_kernels::{Exec, SimdLevel};
use scrimp_kv::compress::Budget;
use scrimp_llm::{builtin_text, checkpoint::Checkpoint};
use serde::Serialize;
use std::path::Path;

/// Number of tokens for the comparison of a compressed model with the original.
const MEASURED: usize = 4096;

#[derive(Serialize)]
struct Fit {
    memory_bytes: u64,
    context: usize,
    sequences: u64,
    #[serde(flatten)]
    chosen: Row,
    working_bytes: u64,
    /// Measured on the text after the compressed model was written.
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

/// Finds settings, and compresses the model if `--out` is given.
pub(crate) fn run(app: &App, args: &FitArgs) -> anyhow::Result<()> {
    if args.out.as_deref().is_some_and(|out| out.extension().is_none_or(|e| e != "safetensors")) {
        return Err(
            Usage("a compressed model is a safetensors file: name it OUT.safetensors".to_owned()).into()
        );
    }
    let text = args.text.as_deref().map(read_text).transpose()?;
    let path = pull::fetch(app, &args.model)?;
    if let Some(out) = &args.out {
        super::compress::check_output(out, &path, args.text.as_deref())?;
    }
    let checkpoint = Checkpoint::open(&path)?;
    let config = checkpoint.config();
    if args.context > config.context_length {
        return Err(Usage(format!("the model's context has {} tokens", config.context_length)).into());
    }
    let search = Search {
        app,
        args,
        path: &path,
        text: text.as_deref().unwrap_or(builtin_text::TEXT),
        demand: Demand::new(config, args.memory, args.context, args.sequences.get()),
        original: checkpoint.file_bytes(),
        checkpoint: &checkpoint,
    };
    app.printer.result(&search.run()?, human)
}

/// A search for settings within a memory limit.
struct Search<'a> {
    app: &'a App,
    args: &'a FitArgs,
    path: &'a Path,
    checkpoint: &'a Checkpoint,
    /// Size of the original model's file in bytes.
    original: u64,
    demand: Demand,
    /// Text for measurements.
    text: &'a str,
}

impl Search<'_> {
    fn run(&self) -> anyhow::Result<Fit> {
        let args = self.args;
        let (settings, front) = match fit::original(&self.demand, self.original, &Cache::whole()) {
            Some(setting) => (vec![setting], None),
            None => self.measure()?,
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
                let configs =
                    front.and_then(|f| f.matrix_configs(target)).expect("the target is on the front");
                self.compress(&out, configs)?;
                kl_weights_measured = Some(self.divergence(&out)?);
            }
        }
        let start = match args.sequences.get() {
            1 => format!("scrimp run {model}"),
            n => format!(
                "scrimp serve {model} --max-seqs {n} --max-model-len {} --kv-memory {}",
                args.context, chosen.kv_bytes
            ),
        };
        let run = [start, kv_options(&chosen.cache)].join(" ");
        Ok(Fit {
            memory_bytes: args.memory,
            context: args.context,
            sequences: args.sequences.get(),
            chosen: Row::new(chosen),
            working_bytes: self.demand.working_bytes,
            kl_weights_measured,
            compress,
            run: run.trim_end().to_owned(),
            options: settings.iter().map(Row::new).collect(),
        })
    }

    /// Measures KV caches, then weights if necessary. Returns the settings that fit, best first.
    fn measure(&self) -> anyhow::Result<(Vec<Setting>, Option<ParetoFront>)> {
        let caches = self.caches()?;
        let settings = fit::settings(&self.demand, self.original, None, &caches);
        if settings.first().is_some_and(|s| s.kl() <= fit::NEGLIGIBLE) {
            return Ok((settings, None));
        }
        let front = if self.checkpoint.history().is_some() {
            self.app.printer.note("this model is already compressed: only its KV cache can become smaller");
            None
        } else {
            Some(self.pareto_front()?)
        };
        let settings = fit::settings(&self.demand, self.original, front.as_ref(), &caches);
        if settings.is_empty() {
            let caches = caches.iter().map(|c| self.demand.kv_bytes(c)).min().unwrap_or_default();
            let weights = front.map_or(self.original, |f| f.smallest().min(self.original));
            return Err(Error::bad_input(format!(
                "{} are not enough: weights take at least {}, KV caches {}, and buffers {}",
                format::bytes(self.args.memory),
                format::bytes(weights),
                format::bytes(caches),
                format::bytes(self.demand.working_bytes)
            ))
            .with_hint("use a larger `memory` or a smaller `context`")
            .into());
        }
        Ok((settings, front))
    }

    /// Measures the loss increase of compressed weights for all sizes.
    fn pareto_front(&self) -> anyhow::Result<ParetoFront> {
        let calibration = self.calibration()?;
        let pool = self.app.pool()?;
        let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
        let bar = CountBar::new("layers");
        let mut show = |p: Progress<'_>| bar.show(p.done, p.total, p.what);
        Ok(ParetoFront::measure(exec, self.checkpoint, &SparseGpt, &calibration, &mut show)?)
    }

    /// Measures the accuracy loss of smaller KV caches.
    fn caches(&self) -> anyhow::Result<Vec<Cache>> {
        let loaded = self.load(self.path)?;
        let n = cache::text_tokens(self.args.context, loaded.model.context_length());
        let ids = loaded.tokenizer.encode(self.text, false, false)?;
        let ids: Vec<u32> = loaded.bos().into_iter().chain(ids).take(n).collect();
        let bar = CountBar::new("caches");
        let mut show = |done, total| bar.show(done, total, "KV caches");
        Ok(cache::measure(&loaded.model, &ids, self.args.context, &mut show)?)
    }

    /// Compresses the model to `configs`.
    fn compress(&self, out: &Path, configs: MatrixConfigs) -> anyhow::Result<()> {
        let options = Options {
            method: &SparseGpt,
            budget: scrimp_compress::Budget::Fixed(configs),
            output: Output::Measured,
            calibration: &self.calibration()?,
        };
        let pool = self.app.pool()?;
        let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
        let bar = CountBar::new("matrices");
        let mut show = |p: Progress<'_>| bar.show(p.done, p.total, p.what);
        scrimp_compress::compress(exec, self.checkpoint, out, &options, &mut show)?;
        Ok(())
    }

    fn calibration(&self) -> anyhow::Result<Calibration> {
        let tokenizer = self.checkpoint.tokenizer()?;
        Ok(Calibration::new(self.checkpoint, &tokenizer, None, scrimp_compress::MAX_TOKENS)?)
    }

    /// The model at `path` with a full KV cache.
    fn load(&self, path: &Path) -> anyhow::Result<Loaded> {
        Loaded::open(self.app, &path.display().to_string(), &KvArgs::full())
    }

    /// KL divergence of the compressed model's predictions from the original's.
    fn divergence(&self, compressed: &Path) -> anyhow::Result<f64> {
        let (model, reference) = (self.load(compressed)?, self.load(self.path)?);
        let ids = model.tokenizer.encode(self.text, false, false)?;
        let context = model.model.context_length();
        let windows = Windows::new(ids, model.bos(), context.min(512), Some(MEASURED), context)?;
        let (mut a, mut b) = (model.model.session(), reference.model.session());
        Ok(kl::divergence(&mut a, &mut b, &windows, model.model.vocab_size(), &mut |_| ())?.kl)
    }
}

/// The options of a KV cache on the command line; empty for a full one in bf16.
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
            if r.kv_options.is_empty() { "(full, bf16)".to_owned() } else { r.kv_options.clone() },
            format::bytes(r.kv_bytes),
            format::bytes(r.weights_bytes),
            if r.compressed { "compressed" } else { "original" }.to_owned(),
            format::bytes(r.total_bytes),
            format!("{:.4}", r.kl_kv),
            format!("{:.4}", r.kl_weights),
            format!("{:.4}", r.kl),
        ]
    };
    let head = ["KV CACHE", "BYTES", "WEIGHTS", "", "TOTAL", "KL CACHE", "KL WEIGHTS", "KL"];
    let rows: Vec<_> = fit.options.iter().map(row).collect();
    let mut text = format::table(&head, &rows);
    let conversations = if fit.sequences == 1 { "conversation" } else { "conversations" };
    text += &format!(
        "\nThe first setting is the best one for {} {conversations} of {} tokens in {}, including {} for buffers. KL is the\n\
         divergence from the original's predictions in nats per token: estimated for weights, measured for caches.\n\n",
        fit.sequences,
        fit.context,
        format::bytes(fit.memory_bytes),
        format::bytes(fit.working_bytes)
    );
    match (&fit.compress, fit.kl_weights_measured) {
        (Some(_), Some(kl)) => {
            text += &format!("  compressed; measured KL of the weights: {kl:.4}\n");
        }
        (Some(compress), None) => text += &format!("  {compress}\n"),
        (None, _) => {}
    }
    text + &format!("  {}", fit.run)
}
