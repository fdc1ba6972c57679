//! Encoders: embedding vectors for ids within a memory budget.
//!
//! Each encoder is a file with a type that implements [`Encoder`] and an entry in [`ENCODERS`]. An encoder has two
//! phases: [`plan`] derives an [`EncoderConfig`] from options, budget and id counts; [`build`] makes the tables.

mod cce;
mod full;
mod hash_embeddings;
mod hash_indexer;
mod hashed_blocks;
mod hashing;
mod memrec;
mod param;
mod qr;
mod robe;
mod stored;
#[cfg(test)]
mod tests;

pub use hash_indexer::{BackwardContext, HashIndexer, Lookups, Tables};
pub(crate) use param::zeros;
pub use param::{Param, ParamInit};
pub use scrimp_kernels::Exec;
pub use stored::{Precision, Stored};

use crate::{Error, Result};
use scrimp_kernels::embedding::{MAX_INDICES, Optimizer};
use serde::{Deserialize, Serialize};

/// A trainable map from ids to embedding vectors.
pub trait Encoder: Send {
    /// The number of vectors of a sample: one per feature, or one for all features.
    fn vectors(&self) -> usize;

    /// Writes the vectors of `ids`, `[samples, features]`, to `out`, `[samples, vectors, dim]`.
    fn forward(&self, exec: Exec<'_>, ids: &[u64], out: &mut [f32]);

    /// Updates all parameters by the gradients `grad` of the vectors of `ids`.
    fn backward(&mut self, exec: Exec<'_>, ids: &[u64], grad: &[f32], optimizer: Optimizer);

    /// Writes the sums of bags of vectors to `out`, `[bags, dim]`, for an encoder of one feature. Bag `b` has the ids from
    /// `offsets[b]` to before `offsets[b + 1]`; the last bag has the rest.
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

    /// The learned tables with their names in model files, in a fixed order.
    fn params(&self) -> Vec<(&'static str, &Param)>;

    /// The same, mutable.
    fn params_mut(&mut self) -> Vec<(&'static str, &mut Param)>;

    /// Bytes of memory for inference: stored tables, weights and pointers.
    fn bytes(&self) -> usize {
        self.params().iter().map(|(_, p)| p.bytes()).sum()
    }

    /// The keys ([`key_of`]) of the ids with a row each; empty for encoders without such rows.
    fn keys(&self) -> &[u64] {
        &[]
    }

    /// Converts the rows to their stored precision. Training ends here.
    fn quantize(&mut self) {}

    /// Runs between two epochs. Most encoders do nothing.
    fn between_epochs(&mut self, exec: Exec<'_>) {
        let _ = exec;
    }

    /// Further state of a model file; empty for most encoders.
    fn memory(&self) -> Vec<u16> {
        Vec::new()
    }

    /// Restores the state of [`Encoder::memory`].
    ///
    /// # Errors
    /// The state has the wrong size.
    fn restore(&mut self, memory: &[u16]) -> Result<()> {
        if memory.is_empty() {
            Ok(())
        } else {
            Err(Error::bad_input("the file has state that this encoder does not use"))
        }
    }
}

/// Statistics of the ids of the training data.
#[derive(Debug, Clone, Default)]
pub struct IdCounts {
    /// The number of distinct ids of each feature.
    pub distinct: Vec<u64>,
    /// Keys of ids ([`key_of`]): all ids of a feature in the order of their first row, or only the frequent ones where a
    /// feature has too many.
    pub keys: Vec<u64>,
    /// The number of rows of each of `keys`; a lower bound where a feature has too many ids.
    pub counts: Vec<u32>,
}

impl IdCounts {
    /// The number of distinct ids of all features.
    pub fn total(&self) -> u64 {
        self.distinct.iter().sum()
    }

    /// Bytes of a table with an f32 row of `dim` values for each id.
    pub fn full_bytes(&self, dim: usize) -> u64 {
        self.total() * dim as u64 * 4
    }
}

/// The key of an id of a feature: a 64-bit hash ([`IdHash`]), unique in practice.
///
/// [`IdHash`]: scrimp_kernels::embedding::IdHash
pub fn key_of(feature: usize, id: u64) -> u64 {
    scrimp_kernels::embedding::IdHash::new(0x6b65_7973, feature as u32).hash(id)
}

/// A map by key ([`key_of`]). Keys are hashes already and are not hashed again.
pub(crate) type KeyMap<V> = std::collections::HashMap<u64, V, std::hash::BuildHasherDefault<KeyHasher>>;

/// The row of each of `ids`, `[samples, features]`, or `missing` for an id without a row.
fn rows_of(exec: Exec<'_>, row_of: &KeyMap<u32>, features: usize, ids: &[u64], missing: u32) -> Vec<u32> {
    let mut rows = vec![0; ids.len()];
    exec.pool.chunks(&mut rows, 1024, |chunk, rows| {
        for (i, row) in rows.iter_mut().enumerate() {
            let l = chunk * 1024 + i;
            *row = row_of.get(&key_of(l % features, ids[l])).copied().unwrap_or(missing);
        }
    });
    rows
}

/// Uses a key as its own hash.
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

/// The complete shape of an encoder; part of the model file. The names in the file are older than the field names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Name in [`ENCODERS`].
    pub encoder: String,
    /// Categorical features, crosses included.
    pub features: usize,
    /// Dimension of a vector.
    pub dim: usize,
    /// Seed of hashes and initial values.
    pub seed: u64,
    /// Name of the hash function.
    pub hash: String,
    /// Rows of the main table: one entry, or one per feature.
    pub rows: Vec<u32>,
    /// Rows of the weight table or the second table, likewise.
    pub weight_rows: Vec<u32>,
    /// Values of a block.
    #[serde(rename = "width")]
    pub block_dim: usize,
    /// Rows of the main table begin at each of its values instead of multiples of `block_dim`.
    #[serde(default)]
    pub overlap: bool,
    /// Hashes of a block, whose rows are added up.
    #[serde(rename = "k")]
    pub num_hashes: usize,
    /// Hashes of alpha, whose rows of the weight table are added up.
    #[serde(rename = "weight_k")]
    pub weight_num_hashes: usize,
    /// Groups of blocks with an alpha each.
    pub groups: usize,
    /// Hashed signs, one for each 8 values.
    pub signs: bool,
    /// One vector per sample: the sum over all features.
    pub bagged: bool,
    /// The type of the rows after training.
    pub precision: Precision,
    /// The number of frequent ids with a further row each, which is added to the hashed ones.
    #[serde(default, rename = "hot")]
    pub frequent_ids: u32,
    /// Quantization-aware training: the forward pass sees rows rounded to `precision`.
    #[serde(default)]
    pub quantization_aware: bool,
}

/// Options of an encoder, from which [`plan`] derives an [`EncoderConfig`].
#[derive(Debug, Clone)]
pub struct EncoderOptions {
    /// Name in [`ENCODERS`].
    pub encoder: String,
    /// Dimension of a vector.
    pub dim: usize,
    /// Seed of hashes and initial values.
    pub seed: u64,
    /// The size of all tables in bytes, at most.
    pub budget: u64,
    /// Values of a block, for `memrec` and `robe`; `None`: the encoder's default, as in the other options.
    pub block_dim: Option<usize>,
    /// Rows begin at each value of the table, for `memrec`.
    pub overlap: Option<bool>,
    /// Hashes of a block, whose rows are added up.
    pub num_hashes: Option<usize>,
    /// Hashed signs, one for each 8 values.
    pub signs: Option<bool>,
    /// Share of the budget for the weight table; 0: no alpha.
    pub weight_share: Option<f64>,
    /// Hashes of alpha, whose rows of the weight table are added up.
    pub weight_num_hashes: usize,
    /// Groups of blocks with an alpha each.
    pub groups: usize,
    /// The type of the rows after training.
    pub precision: Precision,
    /// Share of the budget for rows of frequent ids, for `memrec`.
    pub frequent_share: Option<f64>,
    /// One table per feature instead of one for all, for `memrec`.
    pub per_feature_tables: bool,
    /// Quantization-aware training: the forward pass sees rows rounded to `precision`, gradients pass straight through.
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
            block_dim: None,
            overlap: None,
            num_hashes: None,
            signs: None,
            weight_share: None,
            weight_num_hashes: 1,
            groups: 1,
            precision: Precision::F32,
            frequent_share: None,
            per_feature_tables: false,
            quantization_aware: false,
        }
    }

    /// The configuration without the sizes of the tables.
    fn base(&self, features: usize) -> EncoderConfig {
        EncoderConfig {
            encoder: self.encoder.clone(),
            features,
            dim: self.dim,
            seed: self.seed,
            hash: scrimp_kernels::embedding::IdHash::NAME.to_owned(),
            rows: Vec::new(),
            weight_rows: Vec::new(),
            block_dim: self.dim,
            overlap: false,
            num_hashes: self.num_hashes.unwrap_or(1),
            weight_num_hashes: self.weight_num_hashes,
            groups: self.groups,
            signs: self.signs.unwrap_or(false),
            bagged: false,
            precision: self.precision,
            frequent_ids: 0,
            quantization_aware: self.quantization_aware,
        }
    }
}

/// Makes an encoder with random tables.
pub type Build = fn(&EncoderConfig, keys: &[u64]) -> Result<Box<dyn Encoder>>;

/// An entry of the registry.
pub struct EncoderEntry {
    /// The name, as in [`EncoderOptions::encoder`].
    pub name: &'static str,
    /// A description of one line, with the source.
    pub about: &'static str,
    /// Sizes the tables for a budget.
    pub plan: fn(&EncoderOptions, &IdCounts) -> Result<EncoderConfig>,
    /// Makes an encoder with random tables. `keys` are the ids with a row each ([`keys_for`]).
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
/// There is no such encoder; the hint names all.
pub fn entry(name: &str) -> Result<&'static EncoderEntry> {
    ENCODERS.iter().find(|e| e.name == name).ok_or_else(|| {
        let names: Vec<_> = ENCODERS.iter().map(|e| e.name).collect();
        Error::bad_input(format!("encoder '{name}': there is none"))
            .with_hint(format!("one of {}", names.join(", ")))
    })
}

/// Derives the shape of an encoder from options, budget and id counts.
///
/// # Errors
/// The budget is too small for one row, or an option does not fit the encoder.
pub fn plan(options: &EncoderOptions, id_counts: &IdCounts) -> Result<EncoderConfig> {
    options.check()?;
    let config = (entry(&options.encoder)?.plan)(options, id_counts)?;
    check(&config).map_err(Error::bad_input)?;
    Ok(config)
}

/// The ids with a row each: all ids for `full`, the most frequent ones for other encoders. [`build`] takes them.
pub fn keys_for(config: &EncoderConfig, id_counts: &IdCounts) -> Vec<u64> {
    if config.encoder == "full" {
        return id_counts.keys.clone();
    }
    let mut by_count: Vec<usize> = (0..id_counts.keys.len()).collect();
    by_count.sort_by_key(|&i| (std::cmp::Reverse(id_counts.counts[i]), id_counts.keys[i]));
    by_count.iter().take(config.frequent_ids as usize).map(|&i| id_counts.keys[i]).collect()
}

/// Makes an encoder with random tables.
///
/// # Errors
/// The configuration is invalid (a damaged file), or an allocation fails.
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

/// Whether a parameter is a weight table. Weight tables stay f32.
pub(crate) fn is_weight(param: &str) -> bool {
    matches!(param, "alpha" | "weights")
}

impl EncoderOptions {
    /// Checks the ranges of all numbers. [`plan`] checks that they fit each other.
    fn check(&self) -> Result<()> {
        let counts = [
            ("dim", Some(self.dim)),
            ("num_hashes", self.num_hashes),
            ("block_dim", self.block_dim),
            ("weight_num_hashes", Some(self.weight_num_hashes)),
            ("groups", Some(self.groups)),
        ];
        for (name, count) in counts {
            if let Some(count) = count.filter(|count| !(1..=65536).contains(count)) {
                return Err(Error::bad_input(format!("`{name}` is {count}: 1 to 65536 is expected")));
            }
        }
        for (name, share) in [("weight_share", self.weight_share), ("frequent_share", self.frequent_share)] {
            if let Some(share) = share.filter(|share| !(0.0..=0.9).contains(share)) {
                return Err(Error::bad_input(format!("`{name}` is {share}: 0 to 0.9 is expected")));
            }
        }
        Ok(())
    }
}

/// Checks a configuration, which may come from a file.
fn check(c: &EncoderConfig) -> std::result::Result<(), String> {
    let blocks = c.dim.checked_div(c.block_dim).unwrap_or(0);
    if c.features == 0 || c.features > 4096 || c.dim == 0 || c.dim > 65536 {
        return Err(format!("{} features of {} dimensions", c.features, c.dim));
    }
    if c.hash != scrimp_kernels::embedding::IdHash::NAME {
        return Err(format!("hash function '{}': this version does not know it", c.hash));
    }
    if blocks == 0 || !c.dim.is_multiple_of(c.block_dim) {
        return Err(format!("blocks of {}: must divide the dimension, {}", c.block_dim, c.dim));
    }
    if c.num_hashes == 0 || blocks.saturating_mul(c.num_hashes) > MAX_INDICES {
        return Err(format!("{blocks} blocks of {} rows: {MAX_INDICES} rows are the most", c.num_hashes));
    }
    if c.weight_num_hashes == 0
        || c.weight_num_hashes > 8
        || c.groups == 0
        || c.groups > 32
        || !blocks.is_multiple_of(c.groups)
    {
        return Err(format!(
            "{} groups of {} weights: groups must divide {blocks} blocks",
            c.groups, c.weight_num_hashes
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

/// The error of a budget below the smallest size of an encoder.
fn too_small(options: &EncoderOptions) -> Error {
    Error::bad_input(format!(
        "{} bytes: too small for encoder {} with dimension {}",
        options.budget, options.encoder, options.dim
    ))
    .with_hint("use a larger `budget`, a smaller `compression` or a smaller `dim`")
}
