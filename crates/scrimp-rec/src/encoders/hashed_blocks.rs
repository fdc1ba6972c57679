//! What hashing, ROBE and MEM-REC have in common: blocks of the vector looked up in one table by hashes of the id.
//!
//! ```text
//! z(x) = signs(x) * alpha(x) * norm * [ sum of k rows of M | sum of k other rows of M | ... ]        dim / width blocks
//! signs(x) = 1 or -1, for each eight values
//! alpha(x) = sum of weight_k rows of w                                                    one for each group of blocks
//! ```
//!
//! The gradients: dM[row] += signs alpha norm dz, dalpha = norm * sum over a group of  <signs dz, row>, dw[row'] += dalpha.

use super::{
    Encoder, EncoderConfig, Exec, KeyMap, Param, Stored,
    hash_indexer::{Addressing, Prepared},
    rows_of,
};
use crate::{Error, Result};
use scrimp_kernels::embedding::{
    Backward, Bags, Batch, IdHash, Optimizer, Probes, RowRange, Scales, forward,
};

/// The seeds of the two tables' hashes, apart from each other and from other uses of the seed.
pub(super) const TABLE: u64 = 0x7461_626c;
pub(super) const WEIGHTS: u64 = 0x7765_6967;

pub(super) struct Bloom {
    features: usize,
    bagged: bool,
    addressing: Addressing,
    table: Param,
    alpha: Option<Param>,
    hot: Option<Hot>,
    quantized: super::Precision,
    prepared: Prepared,
}

/// Rows of frequent ids, added to what the tables give. Row 0 is zero: that of all other ids.
struct Hot {
    keys: Vec<u64>,
    row_of: KeyMap<u32>,
    table: Param,
}

/// The rows of each feature: one table for all, or one after another.
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

pub(super) fn hashes(seed: u64, features: usize) -> Vec<IdHash> {
    (0..features).map(|f| IdHash::new(seed, f as u32)).collect()
}

impl Bloom {
    /// `stride` is 1 for rows that overlap.
    pub(super) fn new(config: &EncoderConfig, stride: usize, spread: f32) -> Result<Self> {
        let c = config;
        let rows: usize = c.rows.iter().map(|&r| r as usize).sum();
        let len = (rows.saturating_sub(1)) * stride + c.width;
        let alpha = if c.weight_rows.is_empty() {
            None
        } else {
            let rows: usize = c.weight_rows.iter().map(|&r| r as usize).sum();
            let k = c.weight_k as f32;
            Some(Param::new(rows * c.groups, c.groups, c.groups, c.seed ^ WEIGHTS, 1.0 / k, 0.05 / k)?)
        };
        Ok(Self {
            features: c.features,
            bagged: c.bagged,
            addressing: Addressing::new(c),
            table: Param::new(len, c.width, stride, c.seed ^ TABLE, 0.0, spread)?,
            alpha,
            hot: None,
            quantized: c.precision,
            prepared: Prepared::default(),
        })
    }

    /// The same with rows for the ids of `keys`.
    pub(super) fn with_hot(mut self, config: &EncoderConfig, keys: &[u64]) -> Result<Self> {
        if keys.len() != config.hot as usize {
            return Err(Error::bad_input(format!("{} frequent ids, not {}", keys.len(), config.hot)));
        }
        if !keys.is_empty() {
            let len = (keys.len() + 1) * config.dim;
            let table = Param::new(len, config.dim, config.dim, config.seed, 0.0, 0.0)?;
            let row_of = keys.iter().zip(1..).map(|(&key, row)| (key, row)).collect();
            self.hot = Some(Hot { keys: keys.to_vec(), row_of, table });
        }
        Ok(self)
    }

    fn bags(&self) -> Bags<'static> {
        Bags::Fixed(if self.bagged { self.features } else { 1 })
    }
}

impl Bloom {
    fn bags_forward(&self, exec: Exec<'_>, ids: &[u64], bags: Bags<'_>, out: &mut [f32]) {
        let weights = self.alpha.as_ref().map_or(&[][..], Param::floats);
        self.addressing.forward(exec, self.table.table(), weights, ids, bags, out);
        if let Some(hot) = &self.hot {
            let rows = hot.rows(exec, ids, self.features);
            let probes = Probes::Given { probes: &rows, weights: &[], per: 1 };
            let (table, scales) = (hot.table.table(), Scales::One(1.0));
            let batch = Batch { table, probes, k: 1, scales, bags, add: true };
            forward(exec.pool, exec.level, &batch, out);
        }
    }
}

impl Hot {
    fn rows(&self, exec: Exec<'_>, ids: &[u64], features: usize) -> Vec<u32> {
        rows_of(exec, &self.row_of, features, ids, 0)
    }
}

impl Encoder for Bloom {
    fn vectors(&self) -> usize {
        if self.bagged { 1 } else { self.features }
    }

    fn forward(&self, exec: Exec<'_>, ids: &[u64], out: &mut [f32]) {
        self.bags_forward(exec, ids, self.bags(), out);
    }

    fn forward_bags(&self, exec: Exec<'_>, ids: &[u64], offsets: &[usize], out: &mut [f32]) {
        self.bags_forward(exec, ids, Bags::Offsets(offsets), out);
    }

    fn backward(&mut self, exec: Exec<'_>, ids: &[u64], grad: &[f32], optimizer: Optimizer) {
        let bags = self.bags();
        let weights = self.alpha.as_ref().map_or(&[][..], Param::floats);
        let table = self.table.table();
        self.addressing.prepare(exec, &table, weights, ids, bags, grad, &mut self.prepared);
        if let (Some(alpha), Some(batch)) = (&mut self.alpha, self.addressing.weight_batch(&self.prepared)) {
            alpha.step(exec, optimizer, &batch);
        }
        let batch = self.addressing.table_batch(&self.prepared, bags, grad);
        self.table.step(exec, optimizer, &batch);
        if let Some(hot) = &mut self.hot {
            let rows = hot.rows(exec, ids, self.features);
            let batch = Backward { bags, ..Backward::given(&rows, 1, 1, grad) };
            hot.table.step(exec, optimizer, &batch);
            if let Stored::F32(values) = &mut hot.table.values {
                values[..hot.table.width].fill(0.0);
                hot.table.round(0..hot.table.width);
            }
        }
    }

    fn params(&self) -> Vec<(&'static str, &Param)> {
        let table = ("table", &self.table);
        std::iter::once(table)
            .chain(self.alpha.as_ref().map(|a| ("alpha", a)))
            .chain(self.hot.as_ref().map(|h| ("hot", &h.table)))
            .collect()
    }

    fn params_mut(&mut self) -> Vec<(&'static str, &mut Param)> {
        let table = ("table", &mut self.table);
        std::iter::once(table)
            .chain(self.alpha.as_mut().map(|a| ("alpha", a)))
            .chain(self.hot.as_mut().map(|h| ("hot", &mut h.table)))
            .collect()
    }

    fn bytes(&self) -> usize {
        self.params().iter().map(|(_, p)| p.bytes()).sum::<usize>() + self.keys().len() * 8
    }

    fn keys(&self) -> &[u64] {
        self.hot.as_ref().map_or(&[], |hot| &hot.keys)
    }

    fn quantize(&mut self) {
        self.table.quantize(self.quantized);
        if let Some(hot) = &mut self.hot {
            hot.table.quantize(self.quantized);
        }
    }
}
