//! Options of `scrimp compress`.

use super::{
    MODEL,
    values::{bits, one_of, size, sparsity},
};
use clap::{
    Args, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use scrimp_compress::{Budget, Format, MatrixConfig, MatrixConfigs, Output, PRUNERS};
use std::{num::NonZeroUsize, path::PathBuf};

pub(super) const EXAMPLES: &str = "Examples:
  scrimp compress smollm2 -o small.safetensors --sparsity 0.5 --format int8
  scrimp compress qwen2.5-coder-1.5b -o small.safetensors --target-size 850MB
  scrimp compress ./model.gguf -o small.safetensors --format cb3 --calibration notes.txt
  scrimp compress ./pruned-checkpoint -o packed.safetensors      zeros of the checkpoint stay zero

OUT contains the tokenizer and the configuration: every other verb accepts it as MODEL. An
interrupted run resumes when it is started again.";

/// `scrimp compress`.
#[derive(Debug, Args)]
pub(crate) struct CompressArgs {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// File to write
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub(crate) out: PathBuf,
    /// Fraction of the layers' weights to set to zero
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = sparsity)]
    pub(crate) sparsity: f64,
    /// Pruning method
    #[arg(long, value_name = "METHOD", default_value = "sparsegpt", value_parser = methods())]
    pub(crate) method: String,
    /// Storage of the weights; a sparse layout is used where it is smaller
    #[arg(long, value_name = "FORMAT", default_value = "int8", value_parser = formats())]
    pub(crate) format: Format,
    /// Distribution of the zeros over the matrices: the same fraction in all, or more where they cost less (measured)
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Allocation::Uniform)]
    pub(crate) allocation: Allocation,
    /// Choose a format per matrix so that the model takes B bits per weight
    #[arg(long, value_name = "B", conflicts_with_all = ["sparsity", "format", "allocation", "target_size"], value_parser = bits)]
    pub(crate) target_bits: Option<f64>,
    /// Choose a format per matrix so that the file has at most SIZE (80MB, 1.5GB, or a number of bytes)
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["sparsity", "format", "allocation"], value_parser = size)]
    pub(crate) target_size: Option<u64>,
    /// Storage of the output matrix; auto: the smallest format with a KL divergence below 0.005 nats
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = output_formats())]
    pub(crate) output: Output,
    /// Text for the calibration of pruning and quantization [default: a built-in text]
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// Maximum number of tokens of the calibration text
    #[arg(long, value_name = "N", default_value = "16384")]
    pub(crate) calibration_tokens: NonZeroUsize,
}

impl CompressArgs {
    /// The rule that chooses format and sparsity of each matrix.
    pub(crate) fn budget(&self) -> Budget {
        let (format, sparsity) = (self.format, self.sparsity);
        match (self.target_bits, self.target_size, self.allocation) {
            (Some(bits), ..) => Budget::Bits(bits),
            (None, Some(size), _) => Budget::Size(size),
            (None, None, Allocation::Sensitivity) => Budget::BySensitivity(MatrixConfig { format, sparsity }),
            (None, None, Allocation::Uniform) => Budget::Fixed(MatrixConfigs::uniform(format, sparsity)),
        }
    }
}

fn methods() -> PossibleValuesParser {
    PossibleValuesParser::new(PRUNERS.iter().map(|p| PossibleValue::new(p.name()).help(p.about())))
}

/// The formats that weights can be converted to.
fn formats() -> impl TypedValueParser<Value = Format> {
    one_of(Format::all(), Format::name, Format::about)
}

/// The formats of the output matrix.
fn output_formats() -> impl TypedValueParser<Value = Output> {
    one_of(Output::all(), Output::name, Output::about)
}

/// Distribution of the zeros over the matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Allocation {
    /// The same fraction in all layers
    Uniform,
    /// More in layers that tolerate it
    Sensitivity,
}
