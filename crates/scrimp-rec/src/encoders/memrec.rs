//! MEM-REC (arXiv 2305.07205): Bloom signatures of ids select rows of a token table, and a second, small table gives each id a scale.
//!
//! In the paper the `k` rows are whole vectors, and few fit into a small table, so that ids share them, and scales (alpha) tell them apart.
//! `overlap: false` gives that shape. Here rows *overlap*: they begin at each value of the table (as in ROBE, arXiv 2108.02191), so that two
//! ids have the same one almost never, and alpha, which then brings nothing, takes no bytes unless it is asked for. Eight neighboring values
//! have a sign of their own, so that an id whose row reaches into another's does not push all of it the same way; and a vector is two rows
//! side by side, each found by a hash of its own, so that it has more and weaker neighbors. More and shorter rows are not better, but slower.
//!
//! `memrec` has a vector for each feature; `memrec-bagged` adds all of them up into one per sample, as the authors' released
//! code does.
//!
//! Frequent ids may have a row of their own, which is added to what they share (`hot_share`).
//!
//! *Size.* All features share one table; a feature's share of it follows from how many ids it has. Of the budget, the
//! weight table takes `weight_share`, the token table the rest. With `per_feature_tables` each feature has rows of its own, as many
//! as the logarithm of its number of ids asks for (the paper's rule).

use super::{Census, Encoder, EncoderConfig, EncoderEntry, EncoderOptions, hashed_blocks::Bloom, too_small};
use crate::Result;

pub(super) const PER_FEATURE: EncoderEntry = EncoderEntry {
    name: "memrec",
    about: "overlapping rows by Bloom signatures and a scale per id, a vector per feature (MEM-REC, arXiv 2305.07205)",
    plan: |options, census| plan(options, census, false),
    build,
};

pub(super) const BAGGED: EncoderEntry = EncoderEntry {
    name: "memrec-bagged",
    about: "the same, all features added up into one vector (the authors' code)",
    plan: |options, census| plan(options, census, true),
    build,
};

/// Part of the budget for the weight table where rows do not overlap.
const WEIGHT_SHARE: f64 = 0.05;

/// Blocks of a vector where rows overlap, if its dimension allows it.
const BLOCKS: usize = 2;
/// Values of such a block, at least.
const BLOCK: usize = 8;
/// Rows added up per block.
const K: usize = 1;
/// Part of the budget for rows of frequent ids, at most.
const HOT_SHARE: f64 = 0.1;
/// That part times the dimension, at most: rows of their own pay the less, the longer they are.
const HOT_VALUES: f64 = 1.6;

/// Initial values lie within plus and minus this.
pub(super) fn spread(config: &EncoderConfig) -> f32 {
    0.5 / (config.dim as f32).sqrt()
}

fn plan(options: &EncoderOptions, census: &Census, bagged: bool) -> Result<EncoderConfig> {
    let overlap = options.overlap.unwrap_or(true);
    let in_blocks = overlap && options.dim >= BLOCKS * BLOCK && options.dim.is_multiple_of(BLOCKS);
    let width = options.width.unwrap_or(options.dim / if in_blocks { BLOCKS } else { 1 }).min(options.dim);
    // A row of a frequent id, and its key.
    let hot_rows =
        |n: u64| options.precision.bytes(n as usize * options.dim, options.dim, options.dim) as u64 + 8 * n;
    let hot_share = options.hot_share.unwrap_or((HOT_VALUES / options.dim as f64).min(HOT_SHARE));
    let hot = (options.budget as f64 * hot_share.clamp(0.0, 0.9)) as u64 * 2 / hot_rows(2);
    let hot = hot.min(census.keys.len() as u64).min(1 << 30) as u32;
    // One more row: the zeros of all other ids.
    let budget = options.budget.saturating_sub(if hot > 0 { hot_rows(u64::from(hot) + 1) } else { 0 });
    let share = options.weight_share.unwrap_or(if overlap { 0.0 } else { WEIGHT_SHARE }).clamp(0.0, 0.9);
    let weight_row = options.groups as u64 * 4;
    let weight_rows = (budget as f64 * share) as u64 / weight_row;
    let stride = if overlap { 1 } else { width };
    let values = options.precision.fitting(budget - weight_rows * weight_row, width, stride);
    if values < width as u64 {
        return Err(too_small(options));
    }
    let rows = if overlap { values - width as u64 + 1 } else { values / width as u64 };
    let tables = |rows: u64| {
        let most = |rows: u64| u32::try_from(rows).unwrap_or(u32::MAX).min(u32::MAX >> 2);
        if !options.per_feature_tables {
            return vec![most(rows)];
        }
        let logs: Vec<f64> = census.distinct.iter().map(|&n| (n as f64 + 2.0).ln()).collect();
        let all: f64 = logs.iter().sum();
        logs.iter().map(|log| most((rows as f64 * log / all) as u64)).collect()
    };
    let weight_rows = if weight_rows == 0 { Vec::new() } else { tables(weight_rows) };
    let rows = tables(rows);
    if rows.iter().chain(&weight_rows).any(|&rows| rows == 0) {
        return Err(too_small(options));
    }
    let signs = options.signs.unwrap_or(true);
    let base = options.base(census.distinct.len());
    Ok(EncoderConfig {
        rows,
        weight_rows,
        width,
        overlap,
        k: options.k.unwrap_or(K),
        signs,
        bagged,
        hot,
        ..base
    })
}

fn build(config: &EncoderConfig, keys: &[u64]) -> Result<Box<dyn Encoder>> {
    let stride = if config.overlap { 1 } else { config.width };
    Ok(Box::new(Bloom::new(config, stride, spread(config))?.with_hot(config, keys)?))
}
