//! MEM-REC (arXiv 2305.07205): Bloom signatures of ids select rows of a token table, and a second, small table gives each id a scale.
//!
//! In the paper the `k` rows are whole vectors. Here the vector is cut into blocks with hashes of their own (blockwise Bloom):
//! two ids then collide in a block, almost never in the whole vector. `--block` of the whole dimension is the paper's shape.
//!
//! `memrec` has a vector for each feature; `memrec-bagged` adds all of them up into one per sample, as the authors' released
//! code does.
//!
//! Frequent ids may have a row of their own, which is added to what they share (`hot_share`).
//!
//! *Size.* All features share one table; a feature's share of it follows from how many ids it has. Of the budget, the
//! weight table takes `weight_share`, the token table the rest. With `per_feature_tables` each feature has rows of its own, as many
//! as the logarithm of its number of ids asks for (the paper's rule).

use super::{Census, Encoder, EncoderConfig, EncoderEntry, EncoderOptions, bloom::Bloom, too_small};
use crate::Result;

pub(super) const PER_FEATURE: EncoderEntry = EncoderEntry {
    name: "memrec",
    about: "Bloom-coded blocks and a scale per id, a vector per feature (MEM-REC, arXiv 2305.07205)",
    plan: |options, census| plan(options, census, false),
    build,
};

pub(super) const BAGGED: EncoderEntry = EncoderEntry {
    name: "memrec-bagged",
    about: "the same, all features added up into one vector (the authors' code)",
    plan: |options, census| plan(options, census, true),
    build,
};

/// Values of a block where nothing else is asked for.
const WIDTH: usize = 4;
/// Part of the budget for the weight table.
const WEIGHT_SHARE: f64 = 0.05;

/// Rows added up per block.
const K: usize = 1;
/// Part of the budget for rows of frequent ids.
const HOT_SHARE: f64 = 0.3;

/// Initial values lie within plus and minus this.
pub(super) fn spread(config: &EncoderConfig) -> f32 {
    0.5 / (config.dim as f32).sqrt()
}

fn plan(options: &EncoderOptions, census: &Census, bagged: bool) -> Result<EncoderConfig> {
    let width = options.width.unwrap_or(WIDTH).min(options.dim);
    // A row of a frequent id, and its key.
    let hot_row = (options.dim * options.precision.bytes()) as u64 + 8;
    let hot =
        (options.budget as f64 * options.hot_share.unwrap_or(HOT_SHARE).clamp(0.0, 0.9)) as u64 / hot_row;
    let hot = hot.min(census.keys.len() as u64).min(1 << 30) as u32;
    // One more row: the zeros of all other ids.
    let budget = options.budget.saturating_sub(if hot > 0 { u64::from(hot) * hot_row + hot_row } else { 0 });
    let share = options.weight_share.unwrap_or(WEIGHT_SHARE).clamp(0.0, 0.9);
    let weight_row = options.groups as u64 * 4;
    let weight_rows = (budget as f64 * share) as u64 / weight_row;
    let rows = (budget - weight_rows * weight_row) / (width * options.precision.bytes()) as u64;
    if rows == 0 {
        return Err(too_small(options));
    }
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
    Ok(EncoderConfig { rows, weight_rows, width, k: options.k.unwrap_or(K), signs, bagged, hot, ..base })
}

fn build(config: &EncoderConfig, keys: &[u64]) -> Result<Box<dyn Encoder>> {
    Ok(Box::new(Bloom::new(config, config.width, spread(config))?.with_hot(config, keys)?))
}
