//! Options of `scrimp compress`.

use super::{
    MODEL,
    values::{bits, size, sparsity},
};
use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use scrimp_compress::{Budget, LayerConfig, LayerConfigs, Output, PRUNERS};
use scrimp_kernels::quant::packed::WeightFormat;
use std::{num::NonZeroUsize, path::PathBuf};

pub(super) const EXAMPLES: &str = "Examples:
  scrimp compress smollm2 -o small.safetensors --sparsity 0.5 --format int8
  scrimp compress ./model.gguf -o small.safetensors --sparsity 0.5 --format int4 --calibration notes.txt
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
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = CompressFormat::Int8)]
    pub(crate) format: CompressFormat,
    /// Distribution of the zeros over the layers: the same fraction in all, or more in layers that tolerate it (measured)
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Allocation::Uniform)]
    pub(crate) allocation: Allocation,
    /// Choose format and sparsity per layer so that the model takes B bits per weight
    #[arg(long, value_name = "B", conflicts_with_all = ["sparsity", "format", "allocation", "target_size"], value_parser = bits)]
    pub(crate) target_bits: Option<f64>,
    /// Choose format and sparsity per layer so that the file has at most SIZE (80MB, 1.5GB, or a number of bytes)
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["sparsity", "format", "allocation"], value_parser = size)]
    pub(crate) target_size: Option<u64>,
    /// Storage of the output matrix; auto: the smallest format with a KL divergence below 0.005 nats
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Auto)]
    pub(crate) output: OutputFormat,
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
        let (format, sparsity) = (self.format.format(), self.sparsity);
        match (self.target_bits, self.target_size, self.allocation) {
            (Some(bits), ..) => Budget::Bits(bits),
            (None, Some(size), _) => Budget::Size(size),
            (None, None, Allocation::Sensitivity) => Budget::BySensitivity(LayerConfig { format, sparsity }),
            (None, None, Allocation::Uniform) => Budget::Fixed(LayerConfigs::uniform(format, sparsity)),
        }
    }
}

fn methods() -> PossibleValuesParser {
    PRUNERS.iter().map(|p| p.name()).collect::<Vec<_>>().into()
}

/// Storage of the output matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// The smallest format whose measured divergence is small
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

/// Distribution of the zeros over the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Allocation {
    /// The same fraction in all layers
    Uniform,
    /// More in layers that tolerate it
    Sensitivity,
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
