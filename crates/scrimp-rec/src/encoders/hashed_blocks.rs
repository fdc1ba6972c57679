//! The encoder behind `hashing`, `robe` and `memrec`: hashes of an id find the blocks of its vector in one table.
//!
//! ```text
//! z(x) = signs(x) * alpha(x) * norm * [ sum of num_hashes rows of M | sum of other rows of M | ... ]
//!                                                                                  dim / block_dim blocks
//! signs(x) = 1 or -1, one for each 8 values
//! alpha(x) = sum of weight_num_hashes rows of w                                    one for each group of blocks
//! norm     = 1 / sqrt(num_hashes)
//! ```
//!
//! The gradients: dM\[row\] += signs alpha norm dz, dalpha = norm * sum over a group of <signs dz, row>,
//! dw\[row'\] += dalpha.

use super::{
    Encoder, EncoderConfig, Exec, KeyMap, Param, Precision, Stored,
    hash_indexer::{BackwardContext, HashIndexer, Lookups, Tables},
    param::ParamInit,
    rows_of,
};
use crate::{Error, Result};
use scrimp_kernels::embedding::{
    Backward, Bags, Batch, IdHash, Indices, Optimizer, RowRange, Scales, forward,
};

/// Distinguishes the hashes of the table from other uses of the seed.
pub(super) const TABLE: u64 = 0x7461_626c;
/// The same for the weight table.
pub(super) const WEIGHTS: u64 = 0x7765_6967;

pub(super) struct HashedBlocks {
    features: usize,
    bagged: bool,
    indexer: HashIndexer,
    table: Param,
    alpha: Option<Param>,
    frequent: Option<FrequentIds>,
    precision: Precision,
    context: BackwardContext,
}

/// Rows of frequent ids, which are added to the hashed blocks. Row 0 stays zero and serves all other ids.
struct FrequentIds {
    keys: Vec<u64>,
    row_of: KeyMap<u32>,
    table: Param,
}

/// The rows of each feature: the whole table if `rows` has one entry, else one range per feature.
pub(super) fn ranges(rows: &[u32], features: usize) -> Vec<RowRange> {
    if let [rows] = *rows {
        return vec![RowRange { base: 0, rows }; features];
    }
    let mut base = 0;
    rows.iter()
        .map(|&rows| {
            let range = RowRange { base, rows };
            base += rows;
            range
        })
        .collect()
}

/// A hash function for each feature.
pub(super) fn hashes(seed: u64, features: usize) -> Vec<IdHash> {
    (0..features).map(|f| IdHash::new(seed, f as u32)).collect()
}

impl HashedBlocks {
    /// An encoder with random tables. `stride` is the distance between rows: `block_dim`, or 1 for overlapping rows.
    /// Initial values lie in `-spread .. spread`.
    pub(super) fn new(config: &EncoderConfig, stride: usize, spread: f32) -> Result<Self> {
        let c = config;
        let rows: usize = c.rows.iter().map(|&r| r as usize).sum();
        let table = ParamInit {
            len: rows.saturating_sub(1) * stride + c.block_dim,
            block_dim: c.block_dim,
            stride,
            seed: c.seed ^ TABLE,
            middle: 0.0,
            spread,
        };
        let weight_rows: usize = c.weight_rows.iter().map(|&r| r as usize).sum();
        let share = 1.0 / c.weight_num_hashes as f32;
        let alpha = ParamInit {
            middle: share,
            spread: 0.05 / c.weight_num_hashes as f32,
            ..ParamInit::rows(weight_rows, c.groups, c.seed ^ WEIGHTS)
        };
        Ok(Self {
            features: c.features,
            bagged: c.bagged,
            indexer: HashIndexer::new(c),
            table: Param::new(table)?,
            alpha: if c.weight_rows.is_empty() { None } else { Some(Param::new(alpha)?) },
            frequent: None,
            precision: c.precision,
            context: BackwardContext::default(),
        })
    }

    /// Adds a row for each of `keys`, the frequent ids.
    ///
    /// # Errors
    /// The number of keys differs from the configuration; no memory.
    pub(super) fn with_frequent_ids(mut self, config: &EncoderConfig, keys: &[u64]) -> Result<Self> {
        if keys.len() != config.frequent_ids as usize {
            let wanted = config.frequent_ids;
            return Err(Error::bad_input(format!("{} frequent ids, not {wanted}", keys.len())));
        }
        if !keys.is_empty() {
            let table = Param::new(ParamInit::rows(keys.len() + 1, config.dim, config.seed))?;
            let row_of = keys.iter().zip(1..).map(|(&key, row)| (key, row)).collect();
            self.frequent = Some(FrequentIds { keys: keys.to_vec(), row_of, table });
        }
        Ok(self)
    }

    fn bags(&self) -> Bags<'static> {
        Bags::Fixed(if self.bagged { self.features } else { 1 })
    }

    fn tables(&self) -> Tables<'_> {
        let weights = self.alpha.as_ref().map_or(&[][..], Param::floats);
        Tables { table: self.table.table(), weights }
    }

    fn pooled(&self, exec: Exec<'_>, lookups: Lookups<'_>, out: &mut [f32]) {
        self.indexer.forward(exec, self.tables(), lookups, out);
        if let Some(frequent) = &self.frequent {
            let rows = frequent.rows(exec, lookups.ids, self.features);
            let indices = Indices::Given { indices: &rows, weights: &[], per_lookup: 1 };
            let (table, scales) = (frequent.table.table(), Scales::One(1.0));
            let batch = Batch { table, indices, num_hashes: 1, scales, bags: lookups.bags, add: true };
            forward(exec, &batch, out);
        }
    }
}

impl FrequentIds {
    fn rows(&self, exec: Exec<'_>, ids: &[u64], features: usize) -> Vec<u32> {
        rows_of(exec, &self.row_of, features, ids, 0)
    }

    fn step(&mut self, exec: Exec<'_>, optimizer: Optimizer, rows: &[u32], bags: Bags<'_>, grad: &[f32]) {
        let batch = Backward { bags, ..Backward::given(rows, 1, 1, grad) };
        self.table.step(exec, optimizer, &batch);
        let dim = self.table.block_dim;
        if let Stored::F32(values) = &mut self.table.values {
            values[..dim].fill(0.0);
            self.table.round(0..dim);
        }
    }
}

impl Encoder for HashedBlocks {
    fn vectors(&self) -> usize {
        if self.bagged { 1 } else { self.features }
    }

    fn forward(&self, exec: Exec<'_>, ids: &[u64], out: &mut [f32]) {
        self.pooled(exec, Lookups { ids, bags: self.bags() }, out);
    }

    fn forward_bags(&self, exec: Exec<'_>, ids: &[u64], offsets: &[usize], out: &mut [f32]) {
        self.pooled(exec, Lookups { ids, bags: Bags::Offsets(offsets) }, out);
    }

    fn backward(&mut self, exec: Exec<'_>, ids: &[u64], grad: &[f32], optimizer: Optimizer) {
        let bags = self.bags();
        let mut context = std::mem::take(&mut self.context);
        self.indexer.prepare_backward(exec, self.tables(), Lookups { ids, bags }, grad, &mut context);
        if let (Some(alpha), Some(batch)) = (&mut self.alpha, self.indexer.weight_batch(&context)) {
            alpha.step(exec, optimizer, &batch);
        }
        self.table.step(exec, optimizer, &self.indexer.table_batch(&context, bags, grad));
        self.context = context;
        if let Some(frequent) = &mut self.frequent {
            let rows = frequent.rows(exec, ids, self.features);
            frequent.step(exec, optimizer, &rows, bags, grad);
        }
    }

    // The names are those of the tensors in model files.
    fn params(&self) -> Vec<(&'static str, &Param)> {
        let table = ("table", &self.table);
        std::iter::once(table)
            .chain(self.alpha.as_ref().map(|a| ("alpha", a)))
            .chain(self.frequent.as_ref().map(|f| ("hot", &f.table)))
            .collect()
    }

    fn params_mut(&mut self) -> Vec<(&'static str, &mut Param)> {
        let table = ("table", &mut self.table);
        std::iter::once(table)
            .chain(self.alpha.as_mut().map(|a| ("alpha", a)))
            .chain(self.frequent.as_mut().map(|f| ("hot", &mut f.table)))
            .collect()
    }

    fn bytes(&self) -> usize {
        self.params().iter().map(|(_, p)| p.bytes()).sum::<usize>() + self.keys().len() * 8
    }

    fn keys(&self) -> &[u64] {
        self.frequent.as_ref().map_or(&[], |frequent| &frequent.keys)
    }

    fn quantize(&mut self) {
        self.table.quantize(self.precision);
        if let Some(frequent) = &mut self.frequent {
            frequent.table.quantize(self.precision);
        }
    }
}
