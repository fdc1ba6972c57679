//! Encoders: from the ids of a sample to vectors, in as little memory as wanted.
//!
//! To add one, write a file with a type that implements [`Encoder`], and add a line to [`ENCODERS`].

mod hash_indexer;
mod hashed_blocks;
mod cce;
mod full;
mod hash_embeddings;
mod hashing;
mod memrec;
mod param;
mod qr;
mod robe;
mod stored;
#[cfg(test)]
mod tests;

pub use hash_indexer::{Addressing, Prepared};
pub use param::Param;
pub(crate) use param::zeros;
pub use scrimp_kernels::Exec;
pub use stored::{Precision, Stored};

use crate::{Error, Result};
use scrimp_kernels::embedding::{MAX_PROBES, Optimizer};
use serde::{Deserialize, Serialize};

/// Turns ids into vectors, and learns to do it better.
pub trait Encoder: Send {
    /// Vectors of a sample: one per feature, or one for all.
    fn vectors(&self) -> usize;

    /// The vectors of `ids` (`[samples, features]`): `out` is `[samples, vectors, dim]`.
    fn forward(&self, exec: Exec<'_>, ids: &[u64], out: &mut [f32]);

    /// Updates all parameters for the gradients of the vectors of `ids`.
    fn backward(&mut self, exec: Exec<'_>, ids: &[u64], grad: &[f32], optimizer: Optimizer);

    /// For an encoder of one feature: the sums of the vectors of the ids from `offsets[b]` to before `offsets[b + 1]` (the last
    /// bag has the rest). `out` is `[bags, dim]`.
    fn forward_bags(&self, exec: Exec<'_>, ids: &[u64], offsets: &[usize], out: &mut [f32]) {
        let dim = out.len() / offsets.len().max(1);
        let mut each = vec![0.0; ids.len() * dim];
        self.forward(exec, ids, &mut each);
        for (b, out) in out.chunks_exact_mut(dim.max(1)).enumerate() {
            let end = offsets.get(b + 1).copied().unwrap_or(ids.len());
            out.fill(0.0);
            for vector in each[offsets[b] * dim..end * dim].chunks_exact(dim) {
                for (sum, x) in out.iter_mut().zip(vector) {
                    *sum += x;
                }
            }
        }
    }

    /// The learned tables, in a fixed order.
    fn params(&self) -> Vec<(&'static str, &Param)>;

    /// The same.
    fn params_mut(&mut self) -> Vec<(&'static str, &mut Param)>;

    /// Bytes that answering takes: tables as they are stored, weights and pointers per id.
    fn bytes(&self) -> usize {
        self.params().iter().map(|(_, p)| p.bytes()).sum()
    }

    /// The ids that have rows of their own, as one list of keys; empty for encoders that know no ids.
    fn keys(&self) -> &[u64] {
        &[]
    }

    /// Stores the rows as they are used after training.
    fn quantize(&mut self) {}

    /// What an encoder does between two passes over the data.
    fn between_epochs(&mut self, exec: Exec<'_>) {
        let _ = exec;
    }

    /// What else a file must keep; nothing for most encoders.
    fn memory(&self) -> Vec<u16> {
        Vec::new()
    }

    /// Takes back what [`Encoder::memory`] gave.
    ///
    /// # Errors
    /// When it does not fit.
    fn restore(&mut self, memory: &[u16]) -> Result<()> {
        if memory.is_empty() { Ok(()) } else { Err(Error::bad_input("an encoder without memory has some")) }
    }
}

/// What is known of the training data before training.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Distinct ids of each feature.
    pub distinct: Vec<u64>,
    /// Keys of the ids ([`key_of`]): all of a feature in the order of their first row, or, where they were too many to keep,
    /// the frequent ones.
    pub keys: Vec<u64>,
    /// How often each of `keys` occurs; at least, where not all are kept.
    pub counts: Vec<u32>,
}

impl Census {
    /// Distinct ids of all features.
    pub fn total(&self) -> u64 {
        self.distinct.iter().sum()
    }

    /// Bytes of a table with an f32 row of `dim` values for each id.
    pub fn full_bytes(&self, dim: usize) -> u64 {
        self.total() * dim as u64 * 4
    }
}

/// One number for an id and its feature, of which no two are the same in practice (64 bits of [`IdHash`]).
///
/// [`IdHash`]: scrimp_kernels::embedding::IdHash
pub fn key_of(feature: usize, id: u64) -> u64 {
    scrimp_kernels::embedding::IdHash::new(0x6b65_7973, feature as u32).hash(id)
}

/// A map from keys ([`key_of`]), which need no further hashing.
pub(crate) type KeyMap<V> = std::collections::HashMap<u64, V, std::hash::BuildHasherDefault<KeyHasher>>;

/// The row of each of `ids` (sample after sample, one for each of `features`), or `missing`.
fn rows_of(exec: Exec<'_>, row_of: &KeyMap<u32>, features: usize, ids: &[u64], missing: u32) -> Vec<u32> {
    let mut rows = vec![0; ids.len()];
    exec.pool.chunks(&mut rows, 1024, |unit, rows| {
        for (i, row) in rows.iter_mut().enumerate() {
            let l = unit * 1024 + i;
            *row = row_of.get(&key_of(l % features, ids[l])).copied().unwrap_or(missing);
        }
    });
    rows
}

/// A key as its own hash.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct KeyHasher(u64);

impl std::hash::Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// Everything that an encoder's shape depends on; part of the model file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Name in [`ENCODERS`].
    pub encoder: String,
    /// Categorical features, crosses included.
    pub features: usize,
    /// Values of a vector.
    pub dim: usize,
    /// Seed of hashes and initial values.
    pub seed: u64,
    /// Name of the hash function.
    pub hash: String,
    /// Rows of the main table (of each feature, where it has one per feature).
    pub rows: Vec<u32>,
    /// Rows of the weight table, or of the second one.
    pub weight_rows: Vec<u32>,
    /// Values of a block.
    pub width: usize,
    /// Rows of the main table begin at each of its values, not at multiples of `width`.
    #[serde(default)]
    pub overlap: bool,
    /// Rows added up per block.
    pub k: usize,
    /// Rows of the weight table added up into alpha.
    pub weight_k: usize,
    /// Groups of dimensions with an alpha of their own.
    pub groups: usize,
    /// Values have signs, one for each eight.
    pub signs: bool,
    /// All features are added up into one vector.
    pub bagged: bool,
    /// How rows are stored after training.
    pub precision: Precision,
    /// Frequent ids that have a row of their own, added to the others.
    #[serde(default)]
    pub hot: u32,
    /// Rows are rounded to `precision` in training already.
    #[serde(default)]
    pub quantization_aware: bool,
}

/// What the user asks for; [`EncoderConfig`] is what comes of it.
#[derive(Debug, Clone)]
pub struct EncoderOptions {
    /// Name in [`ENCODERS`].
    pub encoder: String,
    /// Values of a vector.
    pub dim: usize,
    /// Seed of hashes and initial values.
    pub seed: u64,
    /// Bytes that all tables may take.
    pub budget: u64,
    /// Values of a block, for `memrec` and `robe` [default: the encoder's].
    pub width: Option<usize>,
    /// Rows begin at each value of the table, for `memrec` [default: the encoder's].
    pub overlap: Option<bool>,
    /// Rows added up [default: the encoder's].
    pub k: Option<usize>,
    /// Values have signs, one for each eight [default: the encoder's].
    pub signs: Option<bool>,
    /// Share of the budget for the weight table (0: no alpha) [default: the encoder's].
    pub weight_share: Option<f64>,
    /// Rows of the weight table added up.
    pub weight_k: usize,
    /// Groups of dimensions with an alpha of their own.
    pub groups: usize,
    /// How rows are stored after training.
    pub precision: Precision,
    /// Share of the budget for rows of frequent ids, for `memrec` [default: the encoder's].
    pub hot_share: Option<f64>,
    /// A table for each feature instead of one for all, for `memrec`.
    pub per_feature_tables: bool,
    /// Train through the rounding to `precision`: the forward pass sees rounded rows, gradients pass straight through.
    pub quantization_aware: bool,
}

impl EncoderOptions {
    /// The defaults of `encoder`.
    pub fn new(encoder: &str, dim: usize, budget: u64) -> Self {
        Self {
            encoder: encoder.to_owned(),
            dim,
            seed: 1,
            budget,
            width: None,
            overlap: None,
            k: None,
            signs: None,
            weight_share: None,
            weight_k: 1,
            groups: 1,
            precision: Precision::F32,
            hot_share: None,
            per_feature_tables: false,
            quantization_aware: false,
        }
    }

    /// A configuration that only lacks sizes.
    fn base(&self, features: usize) -> EncoderConfig {
        EncoderConfig {
            encoder: self.encoder.clone(),
            features,
            dim: self.dim,
            seed: self.seed,
            hash: scrimp_kernels::embedding::IdHash::NAME.to_owned(),
            rows: Vec::new(),
            weight_rows: Vec::new(),
            width: self.dim,
            overlap: false,
            k: self.k.unwrap_or(1),
            weight_k: self.weight_k,
            groups: self.groups,
            signs: self.signs.unwrap_or(false),
            bagged: false,
            precision: self.precision,
            hot: 0,
            quantization_aware: self.quantization_aware,
        }
    }
}

/// Makes a fresh encoder.
pub type Build = fn(&EncoderConfig, keys: &[u64]) -> Result<Box<dyn Encoder>>;

/// An entry of the registry.
pub struct EncoderEntry {
    /// The name on the command line.
    pub name: &'static str,
    /// One line on what it does, with its source.
    pub about: &'static str,
    /// Sizes for a budget.
    pub plan: fn(&EncoderOptions, &Census) -> Result<EncoderConfig>,
    /// A fresh encoder. `keys` are those of [`Encoder::keys`], for encoders that know ids.
    pub build: Build,
}

/// All encoders.
pub const ENCODERS: &[EncoderEntry] = &[
    memrec::PER_FEATURE,
    memrec::BAGGED,
    full::ENTRY,
    hashing::ENTRY,
    qr::ENTRY,
    hash_embeddings::ENTRY,
    robe::ENTRY,
    cce::ENTRY,
];

/// The encoder `name`.
///
/// # Errors
/// When there is none; the message names all.
pub fn entry(name: &str) -> Result<&'static EncoderEntry> {
    ENCODERS.iter().find(|e| e.name == name).ok_or_else(|| {
        let names: Vec<_> = ENCODERS.iter().map(|e| e.name).collect();
        Error::bad_input(format!("encoder '{name}': there is none")).with_hint(format!("one of {}", names.join(", ")))
    })
}

/// Sizes an encoder for a budget, or says that none is small enough.
///
/// # Errors
/// When the budget is too small for any row, or an option does not fit the encoder.
pub fn plan(options: &EncoderOptions, census: &Census) -> Result<EncoderConfig> {
    let config = (entry(&options.encoder)?.plan)(options, census)?;
    check(&config).map_err(Error::bad_input)?;
    Ok(config)
}

/// The ids that an encoder of this configuration has rows for, of those that the training data has: what [`build`] asks for.
pub fn keys_for(config: &EncoderConfig, census: &Census) -> Vec<u64> {
    if config.encoder == "full" {
        return census.keys.clone();
    }
    let mut by_count: Vec<usize> = (0..census.keys.len()).collect();
    by_count.sort_by_key(|&i| (std::cmp::Reverse(census.counts[i]), census.keys[i]));
    by_count.iter().take(config.hot as usize).map(|&i| census.keys[i]).collect()
}

/// A fresh encoder.
///
/// # Errors
/// When the configuration makes no sense (a damaged file) or the memory cannot be had.
pub fn build(config: &EncoderConfig, keys: &[u64]) -> Result<Box<dyn Encoder>> {
    check(config).map_err(Error::bad_input)?;
    let mut encoder = (entry(&config.encoder)?.build)(config, keys)?;
    if config.quantization_aware {
        for (_, param) in encoder.params_mut().into_iter().filter(|(name, _)| !is_weight(name)) {
            param.round_in_training(config.precision);
        }
    }
    Ok(encoder)
}

/// Whether a parameter is a table of weights, which is always f32.
pub(crate) fn is_weight(param: &str) -> bool {
    matches!(param, "alpha" | "weights")
}

/// What must hold for any configuration, from a plan or from a file.
fn check(c: &EncoderConfig) -> std::result::Result<(), String> {
    let blocks = c.dim.checked_div(c.width).unwrap_or(0);
    if c.features == 0 || c.features > 4096 || c.dim == 0 || c.dim > 65536 {
        return Err(format!("{} features of {} dimensions", c.features, c.dim));
    }
    if c.hash != scrimp_kernels::embedding::IdHash::NAME {
        return Err(format!("hash function '{}': this version does not know it", c.hash));
    }
    if blocks == 0 || !c.dim.is_multiple_of(c.width) {
        return Err(format!("blocks of {}: must divide the dimension, {}", c.width, c.dim));
    }
    if c.k == 0 || blocks.saturating_mul(c.k) > MAX_PROBES {
        return Err(format!("{blocks} blocks of {} rows: {MAX_PROBES} rows are the most", c.k));
    }
    if c.weight_k == 0 || c.weight_k > 8 || c.groups == 0 || c.groups > 32 || !blocks.is_multiple_of(c.groups)
    {
        return Err(format!(
            "{} groups of {} weights: groups must divide {blocks} blocks",
            c.groups, c.weight_k
        ));
    }
    let total = |rows: &[u32]| rows.iter().map(|&r| u64::from(r)).sum::<u64>();
    if total(&c.rows) >= 1 << 31 || total(&c.weight_rows) >= 1 << 31 {
        return Err("more than 2^31 rows".to_owned());
    }
    if [&c.rows, &c.weight_rows].iter().any(|rows| rows.contains(&0)) {
        return Err("a table without rows".to_owned());
    }
    let one_per_feature = |rows: &[u32]| rows.len() <= 1 || rows.len() == c.features;
    if !one_per_feature(&c.rows) || !one_per_feature(&c.weight_rows) {
        return Err("neither one table nor one per feature".to_owned());
    }
    Ok(())
}

/// The error of a budget under an encoder's smallest form.
fn too_small(options: &EncoderOptions) -> Error {
    Error::bad_input(format!(
            "{} bytes: too small for encoder {} with dimension {}",
            options.budget, options.encoder, options.dim
        )).with_hint("use a larger `budget`, a smaller `compression` or a smaller `dim`")
}
