//! The row numbers of hashed lookups: forward and backward passes over tables that the caller owns.
//!
//! [`HashIndexer`] holds hashes and shapes only, so that the same code serves tables of this crate and tensors of
//! PyTorch. `hashed_blocks.rs` has the formulas.

use super::{
    EncoderConfig, Exec,
    hashed_blocks::{TABLE, WEIGHTS, hashes, ranges},
};
use scrimp_kernels::embedding::{
    Backward, Bags, Batch, Hashing, IdHash, Indices, RowRange, Scales, Table, dots, forward, hash_indices,
};

/// Lookups of a thread's task.
const CHUNK: usize = 1024;

/// The hashes and the shape of an encoder of blocks.
#[derive(Debug)]
pub struct HashIndexer {
    features: usize,
    /// Rows of the table that a lookup reads: blocks times `num_hashes`.
    rows_per_lookup: usize,
    num_hashes: usize,
    norm: f32,
    signs: bool,
    hashes: Vec<IdHash>,
    ranges: Vec<RowRange>,
    weights: Option<WeightIndexer>,
}

/// The same for the weight table.
#[derive(Debug)]
struct WeightIndexer {
    hashes: Vec<IdHash>,
    ranges: Vec<RowRange>,
    num_hashes: usize,
    groups: usize,
}

/// The tables of a lookup.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    /// The table of blocks.
    pub table: Table<'a>,
    /// The weight table, `[weight_rows, groups]`; empty where the configuration has none.
    pub weights: &'a [f32],
}

/// A batch of lookups.
#[derive(Debug, Clone, Copy)]
pub struct Lookups<'a> {
    /// Ids, sample after sample, one for each feature.
    pub ids: &'a [u64],
    /// The lookups that are added up into one output.
    pub bags: Bags<'a>,
}

/// Intermediate results of a backward pass, computed before a table changes. Its buffers are reused.
#[derive(Debug, Default)]
pub struct BackwardContext {
    indices: Vec<u32>,
    signs: Vec<u64>,
    weight_indices: Vec<u32>,
    scales: Vec<f32>,
    dots: Vec<f32>,
    weight_grad: Vec<f32>,
}

impl HashIndexer {
    /// The indexer of `config`, which must come from [`super::plan`] or have passed the checks of [`super::build`].
    pub fn new(config: &EncoderConfig) -> Self {
        let c = config;
        let weights = (!c.weight_rows.is_empty()).then(|| WeightIndexer {
            hashes: hashes(c.seed ^ WEIGHTS, c.features),
            ranges: ranges(&c.weight_rows, c.features),
            num_hashes: c.weight_num_hashes,
            groups: c.groups,
        });
        Self {
            features: c.features,
            rows_per_lookup: c.dim / c.block_dim * c.num_hashes,
            num_hashes: c.num_hashes,
            norm: 1.0 / (c.num_hashes as f32).sqrt(),
            signs: c.signs,
            hashes: hashes(c.seed ^ TABLE, c.features),
            ranges: ranges(&c.rows, c.features),
            weights,
        }
    }

    /// The number of categorical features.
    pub fn features(&self) -> usize {
        self.features
    }

    fn hashing(&self) -> Hashing<'_> {
        Hashing {
            hashes: &self.hashes,
            ranges: &self.ranges,
            per_lookup: self.rows_per_lookup,
            signs: self.signs,
        }
    }

    /// Writes the sums of the bags to `out`, `[bags, dim]`.
    pub fn forward(&self, exec: Exec<'_>, tables: Tables<'_>, lookups: Lookups<'_>, out: &mut [f32]) {
        let (Tables { table, weights }, Lookups { ids, bags }) = (tables, lookups);
        let scales = match &self.weights {
            None => Scales::One(self.norm),
            Some(w) => Scales::Hashed { weights, hashing: w.hashing(), groups: w.groups, scale: self.norm },
        };
        let indices = Indices::Hashed { ids, hashing: self.hashing() };
        let batch = Batch { table, indices, num_hashes: self.num_hashes, scales, bags, add: false };
        forward(exec, &batch, out);
    }

    /// Fills `context` for the gradients `grad` of the outputs of [`HashIndexer::forward`]: row numbers, scales, and the
    /// gradients of the weights.
    pub fn prepare_backward(
        &self,
        exec: Exec<'_>,
        tables: Tables<'_>,
        lookups: Lookups<'_>,
        grad: &[f32],
        context: &mut BackwardContext,
    ) {
        let Lookups { ids, bags } = lookups;
        context.indices.resize(ids.len() * self.rows_per_lookup, 0);
        context.signs.resize(if self.signs { ids.len() } else { 0 }, 0);
        hash_indices(exec.pool, ids, &self.hashing(), &mut context.indices, &mut context.signs);
        let Some(weights) = &self.weights else { return };
        weights.prepare_scales(exec, tables.weights, ids, self.norm, context);
        // The gradient of alpha needs the rows before this step changes them.
        context.dots.resize(context.indices.len(), 0.0);
        let batch = Backward {
            indices: &context.indices,
            per_lookup: self.rows_per_lookup,
            num_hashes: self.num_hashes,
            weights: &[],
            signs: &context.signs,
            scales: &[self.norm],
            groups: 0,
            bags,
            grad,
        };
        dots(exec, &tables.table, &batch, &mut context.dots);
        context.weight_grad.resize(ids.len() * weights.groups, 0.0);
        let group_dots = context.dots.chunks_exact(self.rows_per_lookup / weights.groups);
        for (out, dots) in context.weight_grad.iter_mut().zip(group_dots) {
            *out = self.norm * dots.iter().sum::<f32>();
        }
    }

    /// The gradients of the table, after [`HashIndexer::prepare_backward`] with the same `bags` and `grad`.
    pub fn table_batch<'a>(
        &'a self,
        context: &'a BackwardContext,
        bags: Bags<'a>,
        grad: &'a [f32],
    ) -> Backward<'a> {
        let (scales, groups) = match &self.weights {
            Some(w) => (&context.scales[..], w.groups),
            None => (std::slice::from_ref(&self.norm), 0),
        };
        Backward {
            indices: &context.indices,
            per_lookup: self.rows_per_lookup,
            num_hashes: self.num_hashes,
            weights: &[],
            signs: &context.signs,
            scales,
            groups,
            bags,
            grad,
        }
    }

    /// The gradients of the weight table, after [`HashIndexer::prepare_backward`]; `None` without a weight table.
    pub fn weight_batch<'a>(&self, context: &'a BackwardContext) -> Option<Backward<'a>> {
        let w = self.weights.as_ref()?;
        Some(Backward {
            indices: &context.weight_indices,
            per_lookup: w.num_hashes,
            num_hashes: w.num_hashes,
            weights: &[],
            signs: &[],
            scales: &[1.0],
            groups: 0,
            bags: Bags::Fixed(1),
            grad: &context.weight_grad,
        })
    }
}

impl WeightIndexer {
    fn hashing(&self) -> Hashing<'_> {
        Hashing { hashes: &self.hashes, ranges: &self.ranges, per_lookup: self.num_hashes, signs: false }
    }

    /// Finds the rows of the weight table, and from them the scales `norm * alpha`, `[ids, groups]`.
    fn prepare_scales(
        &self,
        exec: Exec<'_>,
        weights: &[f32],
        ids: &[u64],
        norm: f32,
        context: &mut BackwardContext,
    ) {
        let (groups, num_hashes) = (self.groups, self.num_hashes);
        context.weight_indices.resize(ids.len() * num_hashes, 0);
        hash_indices(exec.pool, ids, &self.hashing(), &mut context.weight_indices, &mut []);
        context.scales.resize(ids.len() * groups, 0.0);
        let indices = &context.weight_indices;
        exec.pool.chunks(&mut context.scales, CHUNK * groups, |chunk, out| {
            for (i, out) in out.iter_mut().enumerate() {
                let (lookup, group) = (chunk * CHUNK + i / groups, i % groups);
                let rows = &indices[lookup * num_hashes..(lookup + 1) * num_hashes];
                *out = norm * rows.iter().map(|&row| weights[row as usize * groups + group]).sum::<f32>();
            }
        });
    }
}
