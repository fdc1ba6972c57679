//! MEM-REC (arXiv 2305.07205): a Bloom signature of the id selects rows of a token table, and a small weight table gives each
//! id a scale, alpha.
//!
//! In the paper a row is a whole vector. A small table has few such rows, ids share them, and alpha distinguishes the ids
//! (`overlap: false`). By default rows *overlap* here: they begin at each value of the table, as in ROBE (arXiv 2108.02191), so
//! that two ids rarely have the same row. Alpha then improves nothing and gets no bytes by default. Each 8 neighboring values
//! have a hashed sign: the gradients of two overlapping rows then agree in some values and oppose each other in others. A
//! vector consists of two such rows, each with its own hash, so that it overlaps with more ids, and less with each. More and
//! shorter rows are slower and not better.
//!
//! `memrec` has a vector for each feature. `memrec-bagged` adds them up into one vector per sample, like the authors' code.
//!
//! A frequent id has a further row, which is added to the shared ones (`frequent_share`).
//!
//! *Size.* All features share one table. The weight table takes `weight_share` of the budget, the token table the rest. With
//! `per_feature_tables` each feature has a table, whose rows grow with the logarithm of its number of ids (the paper's rule).

use super::{
    Encoder, EncoderConfig, EncoderEntry, EncoderOptions, IdCounts, hashed_blocks::HashedBlocks, too_small,
};
use crate::Result;

pub(super) const PER_FEATURE: EncoderEntry = EncoderEntry {
    name: "memrec",
    about: "overlapping rows by Bloom signatures and a scale per id, a vector per feature (MEM-REC, arXiv 2305.07205)",
    plan: |options, id_counts| plan(options, id_counts, false),
    build,
};

pub(super) const BAGGED: EncoderEntry = EncoderEntry {
    name: "memrec-bagged",
    about: "the same, all features added up into one vector (the authors' code)",
    plan: |options, id_counts| plan(options, id_counts, true),
    build,
};

/// Share of the budget for the weight table without overlapping rows.
const WEIGHT_SHARE: f64 = 0.05;

/// Blocks of a vector with overlapping rows, if the dimension is at least `BLOCKS * MIN_BLOCK_DIM`.
const BLOCKS: usize = 2;
/// The smallest default `block_dim`.
const MIN_BLOCK_DIM: usize = 8;
/// Default hashes of a block.
const NUM_HASHES: usize = 1;
/// The largest default share of the budget for frequent ids.
const FREQUENT_SHARE: f64 = 0.1;
/// The largest default share times the dimension: the longer the rows of frequent ids, the less they improve the model.
const FREQUENT_VALUES: f64 = 1.6;

/// Initial values lie in `-spread .. spread`.
pub(super) fn spread(config: &EncoderConfig) -> f32 {
    0.5 / (config.dim as f32).sqrt()
}

fn plan(options: &EncoderOptions, id_counts: &IdCounts, bagged: bool) -> Result<EncoderConfig> {
    let overlap = options.overlap.unwrap_or(true);
    let in_blocks = overlap && options.dim >= BLOCKS * MIN_BLOCK_DIM && options.dim.is_multiple_of(BLOCKS);
    let default = options.dim / if in_blocks { BLOCKS } else { 1 };
    let block_dim = options.block_dim.unwrap_or(default).min(options.dim);
    // Bytes of `n` rows of frequent ids, and of their keys.
    let frequent_bytes =
        |n: u64| options.precision.bytes(n as usize * options.dim, options.dim, options.dim) as u64 + 8 * n;
    let default = (FREQUENT_VALUES / options.dim as f64).min(FREQUENT_SHARE);
    let frequent_share = options.frequent_share.unwrap_or(default).clamp(0.0, 0.9);
    let frequent_ids = (options.budget as f64 * frequent_share) as u64 * 2 / frequent_bytes(2);
    let frequent_ids = frequent_ids.min(id_counts.keys.len() as u64).min(1 << 30) as u32;
    // One more row: the zeros of all other ids.
    let taken = if frequent_ids > 0 { frequent_bytes(u64::from(frequent_ids) + 1) } else { 0 };
    let budget = options.budget.saturating_sub(taken);
    let share = options.weight_share.unwrap_or(if overlap { 0.0 } else { WEIGHT_SHARE }).clamp(0.0, 0.9);
    let weight_row = options.groups as u64 * 4;
    let weight_rows = (budget as f64 * share) as u64 / weight_row;
    let stride = if overlap { 1 } else { block_dim };
    let values = options.precision.fitting(budget - weight_rows * weight_row, block_dim, stride);
    if values < block_dim as u64 {
        return Err(too_small(options));
    }
    let rows = if overlap { values - block_dim as u64 + 1 } else { values / block_dim as u64 };
    let tables = |rows: u64| {
        let most = |rows: u64| u32::try_from(rows).unwrap_or(u32::MAX).min(u32::MAX >> 2);
        if !options.per_feature_tables {
            return vec![most(rows)];
        }
        let logs: Vec<f64> = id_counts.distinct.iter().map(|&n| (n as f64 + 2.0).ln()).collect();
        let all: f64 = logs.iter().sum();
        logs.iter().map(|log| most((rows as f64 * log / all) as u64)).collect()
    };
    let weight_rows = if weight_rows == 0 { Vec::new() } else { tables(weight_rows) };
    let rows = tables(rows);
    if rows.iter().chain(&weight_rows).any(|&rows| rows == 0) {
        return Err(too_small(options));
    }
    let signs = options.signs.unwrap_or(true);
    let base = options.base(id_counts.distinct.len());
    Ok(EncoderConfig {
        rows,
        weight_rows,
        block_dim,
        overlap,
        num_hashes: options.num_hashes.unwrap_or(NUM_HASHES),
        signs,
        bagged,
        frequent_ids,
        ..base
    })
}

fn build(config: &EncoderConfig, keys: &[u64]) -> Result<Box<dyn Encoder>> {
    let stride = if config.overlap { 1 } else { config.block_dim };
    Ok(Box::new(HashedBlocks::new(config, stride, spread(config))?.with_frequent_ids(config, keys)?))
}
