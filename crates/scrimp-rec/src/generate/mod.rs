//! Synthetic click logs with a known best AUC.
//!
//! Rows are similar to Criteo's: ids with a Zipf distribution over any cardinality ([`CRITEO_TB`]: those of CriteoTB), counts
//! over several powers of two, some missing values. The probability of a click is
//!
//! ```text
//! p = sigmoid(b + sum_j a_j g(x_j) + sum_f m(f, id_f) + sum_{f<g} <v(f, id_f), v(g, id_g)>)
//! ```
//!
//! The effects `m` and the hidden factors `v` (4 numbers per id) are hashes of (seed, feature, id), so that 180 million ids need
//! no table. `g` is the logarithm to base 2, linear between powers of two. A missing number has the effect of the average
//! number, and the same value after standardization. So `p` is a function of the visible row: it is the best prediction, and
//! its AUC ([`Generator::bayes`]) is the best AUC. Seed and row number determine a row.

mod bayes;
mod write;
mod zipf;

pub use bayes::Bayes;
pub use write::{Written, write_file};

use crate::{
    Error, Result,
    data::{
        Batch, Block, BlockSource, RowSource,
        ordered::{Ordered, Work},
    },
    schema::{Categorical, Kind, MISSING, Numeric, Schema, Transform},
};
use scrimp_base::{SplitMix64, random::mix};
use std::{ops::Range, sync::Arc};
use zipf::Zipf;

/// The cardinalities of the 26 categorical features of CriteoTB (as in MLPerf's DLRM).
pub const CRITEO_TB: [u64; 26] = [
    39_884_406, 39_043, 17_289, 7_420, 20_263, 3, 7_120, 1_543, 63, 38_532_951, 2_953_546, 403_346, 10,
    2_208, 11_938, 155, 4, 976, 14, 39_979_771, 25_641_295, 39_664_984, 585_935, 12_972, 108, 36,
];

/// Rows per block of work.
const BLOCK: u64 = 4096;
/// Values of a hidden factor.
const FACTORS: usize = 4;
/// Largest power of two of a count. Then `ln(1 + count)` has about mean 4.575 and deviation 1 / 0.39.
const MAX_POWER: u64 = 12;

/// Options of a [`Generator`].
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratorOptions {
    /// Determines hidden effects, popular ids and all rows.
    pub seed: u64,
    /// The first row. Another range of rows of the same seed is validation data.
    pub first_row: u64,
    /// Number of rows.
    pub rows: u64,
    /// Number of ids of each categorical feature.
    pub cardinalities: Vec<u64>,
    /// Numeric features.
    pub numeric: usize,
    /// Exponent of the Zipf distributions; 0 makes all ids equally likely.
    pub zipf: f64,
    /// Share of missing values, in every fifth categorical and every third numeric feature.
    pub missing: f64,
    /// Standard deviation of the single effects of ids, summed over features (in logits).
    pub effects: f64,
    /// The same for the interactions of two ids.
    pub interactions: f64,
    /// The same for numbers.
    pub numeric_effects: f64,
    /// `b` of the formula: the logit of an average row.
    pub bias: f64,
}

impl Default for GeneratorOptions {
    /// A million rows of Criteo's shape with small cardinalities.
    fn default() -> Self {
        Self {
            seed: 1,
            first_row: 0,
            rows: 1_000_000,
            cardinalities: CRITEO_TB.iter().map(|&n| n.min(10_000)).collect(),
            numeric: 13,
            zipf: 1.1,
            missing: 0.1,
            effects: 1.0,
            interactions: 0.6,
            numeric_effects: 0.5,
            bias: -1.2,
        }
    }
}

impl GeneratorOptions {
    /// The true cardinalities of CriteoTB.
    pub fn criteo_tb(rows: u64) -> Self {
        Self { rows, cardinalities: CRITEO_TB.to_vec(), ..Self::default() }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// An option is out of its range.
    pub fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::bad_input(what.to_owned()));
        if self.cardinalities.is_empty() && self.numeric == 0 {
            return bad("nothing to generate: neither categorical nor numeric features");
        }
        if self.cardinalities.len() > 4096 || self.numeric > 4096 {
            return bad("at most 4096 categorical and 4096 numeric features");
        }
        if self.cardinalities.iter().any(|&n| n == 0 || n > 1 << 40) {
            return bad("a cardinality must lie between 1 and 2^40");
        }
        if !(0.0..=3.0).contains(&self.zipf) {
            return bad("the exponent of the Zipf distribution must lie between 0 and 3");
        }
        if !(0.0..=0.9).contains(&self.missing) {
            return bad("the share of missing values must lie between 0 and 0.9");
        }
        let sizes = [self.effects, self.interactions, self.numeric_effects];
        if sizes.iter().any(|s| !(0.0..=100.0).contains(s)) || !(-100.0..=100.0).contains(&self.bias) {
            return bad("effects must lie between 0 and 100, the bias between -100 and 100");
        }
        Ok(())
    }
}

/// A [`RowSource`] of generated rows, in memory.
pub struct Generator {
    world: Arc<World>,
    rows: Range<u64>,
    threads: usize,
    blocks: Ordered<Blocks>,
    block: Block,
    next: u64,
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator").field("rows", &self.rows).field("threads", &self.threads).finish()
    }
}

/// Constants of all rows.
#[derive(Debug)]
struct World {
    options: GeneratorOptions,
    schema: Schema,
    features: Vec<Feature>,
    numbers: Vec<Number>,
    /// Scale of the factors.
    factor_scale: f32,
    missing: u64,
}

#[derive(Debug)]
struct Feature {
    zipf: Zipf,
    salt: u64,
    scale: f32,
    may_miss: bool,
}

#[derive(Debug)]
struct Number {
    scale: f32,
    may_miss: bool,
}

/// Four independent numbers, uniform with mean 0 and variance 1, from one random word.
#[inline]
fn four(word: u64) -> [f32; 4] {
    // Uniform over width sqrt(12).
    std::array::from_fn(|i| {
        (((word >> (16 * i)) & 0xffff) as f32 * (1.0 / 65536.0) - 0.499_992_37) * 3.464_101_6
    })
}

impl World {
    fn new(options: GeneratorOptions) -> Self {
        let n = options.cardinalities.len();
        let column = |j: usize| format!("I{}", j + 1);
        let schema = Schema {
            label: "label".to_owned(),
            numeric: (0..options.numeric)
                .map(|j| Numeric { mean: 4.575, scale: 0.39, ..Numeric::new(column(j), Transform::Log1p) })
                .collect(),
            categorical: (0..n)
                .map(|f| Categorical { name: format!("C{}", f + 1), kind: Kind::Hex })
                .collect(),
            crosses: Vec::new(),
        };
        // Features have weights from 0.5 to 1.5.
        let weight = |i: usize| 0.5 + (i * 7 % 13) as f64 / 12.0;
        let norm = |count: usize| (0..count).map(|i| weight(i).powi(2)).sum::<f64>().sqrt().max(1e-9);
        let salt = mix(options.seed ^ 0x5c12_1fe4);
        let features = options.cardinalities.iter().enumerate().map(|(f, &cardinality)| {
            let salt = mix(salt.wrapping_add(f as u64));
            Feature {
                zipf: Zipf::new(cardinality, options.zipf, mix(salt)),
                salt,
                scale: (options.effects * weight(f) / norm(n)) as f32,
                may_miss: f % 5 == 4,
            }
        });
        let numbers = (0..options.numeric).map(|j| {
            let sign = if mix(salt ^ j as u64) & 1 == 0 { 1.0 } else { -1.0 };
            // The deviation of the uniform distribution on 0 ..= MAX_POWER.
            let deviation = (((MAX_POWER + 1).pow(2) - 1) as f64 / 12.0).sqrt();
            Number {
                scale: (sign * options.numeric_effects * weight(j) / (norm(options.numeric) * deviation))
                    as f32,
                may_miss: j % 3 == 2,
            }
        });
        let pairs = (n * n.saturating_sub(1) / 2).max(1) as f64;
        Self {
            features: features.collect(),
            numbers: numbers.collect(),
            factor_scale: (options.interactions / (pairs * FACTORS as f64).sqrt()).sqrt() as f32,
            missing: (options.missing * 2f64.powi(32)) as u64,
            schema,
            options,
        }
    }

    /// Appends row `row` with untransformed counts, and NaN for missing ones. Returns the probability of label 1.
    fn row(&self, row: u64, batch: &mut Batch) -> f32 {
        let seed = mix(mix(self.options.seed).wrapping_add(row.wrapping_mul(0xd134_2543_de82_ef95)));
        let mut random = SplitMix64::new(seed);
        // The row uses the numbers from the second one on; a change here would change the rows of every seed.
        random.next_u64();
        let mut draw = || random.next_u64();
        let mut logit = self.options.bias as f32;
        for number in &self.numbers {
            let word = draw();
            let missing = number.may_miss && (word & 0xffff_ffff) < self.missing;
            // A count between 2^power and 2^(power + 1) - 1.
            let power = ((word >> 32) * (MAX_POWER + 1)) >> 32;
            let offset = if power == 0 { 0 } else { draw() >> (64 - power) };
            let count = (1u64 << power) + offset;
            if missing {
                batch.numeric.push(f32::NAN);
            } else {
                batch.numeric.push(count as f32);
                let log2 = power as f32 + offset as f32 / (1u64 << power) as f32;
                logit += number.scale * (log2 - 0.5 * MAX_POWER as f32 - 0.5);
            }
        }
        let (mut sum, mut squares) = ([0f32; FACTORS], 0f32);
        for feature in &self.features {
            let (a, b) = (draw(), draw());
            let missing = feature.may_miss && (mix(b) & 0xffff_ffff) < self.missing;
            let id = if missing { MISSING } else { feature.zipf.id(a, b) };
            batch.ids.push(id);
            let hash = mix(feature.salt ^ id.wrapping_mul(0x9fb2_1c65_1e98_df25));
            let effect: f32 = four(hash).iter().sum();
            logit += feature.scale * 0.5 * effect;
            for (s, v) in sum.iter_mut().zip(four(mix(hash))) {
                let v = v * self.factor_scale;
                *s += v;
                squares += v * v;
            }
        }
        logit += 0.5 * (sum.iter().map(|s| s * s).sum::<f32>() - squares);
        let p = 1.0 / (1.0 + (-logit).exp());
        let uniform = (draw() >> 40) as f32 * (1.0 / (1u64 << 24) as f32);
        batch.labels.push(f32::from(u8::from(uniform < p)));
        p
    }
}

/// Takes the numbers of the next block of rows from `rows`; `None` at the end.
fn next_block(rows: &mut Range<u64>) -> Option<Range<u64>> {
    let end = rows.start.saturating_add(BLOCK).min(rows.end);
    let block = rows.start..end;
    rows.start = end;
    (!block.is_empty()).then_some(block)
}

/// Generates blocks of rows.
struct Blocks(Arc<World>);

impl Work for Blocks {
    type Source = Range<u64>;
    type Job = Range<u64>;
    type Out = Batch;

    fn take(&self, source: &mut Range<u64>) -> Option<Range<u64>> {
        next_block(source)
    }

    fn run(&self, job: Range<u64>, out: &mut Batch) {
        out.clear();
        for row in job {
            self.0.row(row, out);
        }
        let columns = &self.0.schema.numeric;
        for row in out.numeric.chunks_exact_mut(columns.len().max(1)) {
            for (x, column) in row.iter_mut().zip(columns) {
                *x = if x.is_nan() { 0.0 } else { column.apply(*x) };
            }
        }
    }
}

impl Generator {
    /// A generator with `threads` threads (0: the calling thread).
    ///
    /// # Errors
    /// The options are invalid.
    pub fn new(options: GeneratorOptions, threads: usize) -> Result<Self> {
        options.check()?;
        let rows = options.first_row..options.first_row.saturating_add(options.rows);
        let world = Arc::new(World::new(options));
        let blocks = Ordered::new(Blocks(world.clone()), rows.clone(), threads);
        Ok(Self { world, next: rows.start, rows, threads, blocks, block: Block::default() })
    }

    /// The options.
    pub fn options(&self) -> &GeneratorOptions {
        &self.world.options
    }

    /// Continues with row `row`, counted from row 0 of the seed.
    fn seek(&mut self, row: u64) {
        self.next = row.min(self.rows.end);
        self.blocks = Ordered::new(Blocks(self.world.clone()), self.next..self.rows.end, self.threads);
        self.block.clear();
    }
}

impl BlockSource for Generator {
    fn block(&mut self) -> &mut Block {
        &mut self.block
    }

    fn read_block(&mut self) -> Result<bool> {
        let block = &mut self.block;
        Ok(self.blocks.next(|new| std::mem::swap(new, block.refill())).is_some())
    }
}

impl RowSource for Generator {
    fn schema(&self) -> &Schema {
        &self.world.schema
    }

    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<usize> {
        let read = self.batch_from_blocks(rows, batch)?;
        self.next += read as u64;
        Ok(read)
    }

    /// Rows are independent of each other, so that all epochs have the same order.
    fn rewind(&mut self, _epoch: u64) -> Result<()> {
        self.seek(self.rows.start);
        Ok(())
    }

    fn skip(&mut self, rows: u64) -> Result<u64> {
        let skipped = rows.min(self.rows.end - self.next);
        self.seek(self.next + skipped);
        Ok(skipped)
    }

    fn rows(&self) -> Option<u64> {
        Some(self.rows.end - self.rows.start)
    }

    fn progress(&self) -> Option<f64> {
        Some((self.next - self.rows.start) as f64 / (self.rows.end - self.rows.start).max(1) as f64)
    }
}

#[cfg(test)]
mod tests;
