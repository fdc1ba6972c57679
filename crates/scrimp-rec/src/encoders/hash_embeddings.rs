//! Hash embeddings (Svenstrup et al., arXiv 1709.03933): hashes select `num_hashes` rows of a shared table, and the vector is
//! their weighted sum. A further hash selects the weights of an id.
//!
//! *Size.* The weights take a third of the budget, or what weights for all ids take if that is less.

use super::{
    Encoder, EncoderConfig, EncoderEntry, EncoderOptions, Exec, IdCounts, Param, ParamInit, hashed_blocks,
    too_small,
};
use crate::{Error, Result};
use scrimp_kernels::embedding::{
    Backward, Bags, Batch, Hashing, IdHash, Indices, Optimizer, RowRange, Scales, dots, forward, hash_indices,
};

pub(super) const ENTRY: EncoderEntry = EncoderEntry {
    name: "hash-embeddings",
    about: "k rows by hash, with k weights per id (Svenstrup et al., 2017)",
    plan,
    build,
};

fn plan(options: &EncoderOptions, id_counts: &IdCounts) -> Result<EncoderConfig> {
    let num_hashes = options.num_hashes.unwrap_or(2);
    let weight_rows =
        (options.budget / 3 / (4 * num_hashes as u64)).min(id_counts.total().next_power_of_two());
    let rest = options.budget - weight_rows * 4 * num_hashes as u64;
    let rows = options.precision.rows_in(rest, options.dim);
    if rows == 0 || weight_rows == 0 {
        return Err(too_small(options));
    }
    let most = |rows: u64| u32::try_from(rows).unwrap_or(u32::MAX).min(u32::MAX >> 2);
    let base = options.base(id_counts.distinct.len());
    Ok(EncoderConfig {
        rows: vec![most(rows)],
        weight_rows: vec![most(weight_rows)],
        num_hashes,
        weight_num_hashes: 1,
        groups: 1,
        ..base
    })
}

fn build(config: &EncoderConfig, _: &[u64]) -> Result<Box<dyn Encoder>> {
    let c = config;
    let ([rows], [weight_rows]) = (&c.rows[..], &c.weight_rows[..]) else {
        return Err(Error::bad_input("encoder hash-embeddings has one table and one of weights"));
    };
    let spread = super::memrec::spread(c);
    Ok(Box::new(HashEmbeddings {
        features: c.features,
        num_hashes: c.num_hashes,
        hashes: hashed_blocks::hashes(c.seed ^ 1, c.features),
        ranges: hashed_blocks::ranges(&c.rows, c.features),
        weight_hashes: hashed_blocks::hashes(c.seed ^ 2, c.features),
        weight_ranges: hashed_blocks::ranges(&c.weight_rows, c.features),
        table: Param::new(ParamInit { spread, ..ParamInit::rows(*rows as usize, c.dim, c.seed ^ 3) })?,
        weights: Param::new(ParamInit {
            middle: 1.0 / (c.num_hashes as f32).sqrt(),
            spread: 0.3,
            ..ParamInit::rows(*weight_rows as usize, c.num_hashes, c.seed ^ 4)
        })?,
        precision: c.precision,
    }))
}

struct HashEmbeddings {
    features: usize,
    num_hashes: usize,
    hashes: Vec<IdHash>,
    ranges: Vec<RowRange>,
    weight_hashes: Vec<IdHash>,
    weight_ranges: Vec<RowRange>,
    table: Param,
    weights: Param,
    precision: super::Precision,
}

impl HashEmbeddings {
    /// The rows of the table, the rows of the weight table, and the weights.
    fn lookup(&self, exec: Exec<'_>, ids: &[u64]) -> (Vec<u32>, Vec<u32>, Vec<f32>) {
        let hashing = |hashes, ranges, per_lookup| Hashing { hashes, ranges, per_lookup, signs: false };
        let mut rows = vec![0; ids.len() * self.num_hashes];
        hash_indices(
            exec.pool,
            ids,
            &hashing(&self.hashes, &self.ranges, self.num_hashes),
            &mut rows,
            &mut [],
        );
        let mut weight_rows = vec![0; ids.len()];
        hash_indices(
            exec.pool,
            ids,
            &hashing(&self.weight_hashes, &self.weight_ranges, 1),
            &mut weight_rows,
            &mut [],
        );
        let (num_hashes, values) = (self.num_hashes, self.weights.floats());
        let mut weights = vec![0.0; ids.len() * num_hashes];
        exec.pool.chunks(&mut weights, 1024 * num_hashes, |chunk, out| {
            for (out, &row) in out.chunks_exact_mut(num_hashes).zip(&weight_rows[chunk * 1024..]) {
                out.copy_from_slice(&values[row as usize * num_hashes..][..num_hashes]);
            }
        });
        (rows, weight_rows, weights)
    }
}

impl Encoder for HashEmbeddings {
    fn vectors(&self) -> usize {
        self.features
    }

    fn forward(&self, exec: Exec<'_>, ids: &[u64], out: &mut [f32]) {
        let (rows, _, weights) = self.lookup(exec, ids);
        let batch = Batch {
            table: self.table.table(),
            indices: Indices::Given { indices: &rows, weights: &weights, per_lookup: self.num_hashes },
            num_hashes: self.num_hashes,
            scales: Scales::One(1.0),
            bags: Bags::Fixed(1),
            add: false,
        };
        forward(exec, &batch, out);
    }

    fn backward(&mut self, exec: Exec<'_>, ids: &[u64], grad: &[f32], optimizer: Optimizer) {
        let (rows, weight_rows, weights) = self.lookup(exec, ids);
        let batch =
            Backward { weights: &weights, ..Backward::given(&rows, self.num_hashes, self.num_hashes, grad) };
        // The gradient of a weight is the row's product with the vector's gradient.
        let mut weight_grad = vec![0.0; weights.len()];
        dots(exec, &self.table.table(), &batch, &mut weight_grad);
        self.table.step(exec, optimizer, &batch);
        let weight_batch = Backward::given(&weight_rows, 1, 1, &weight_grad);
        self.weights.step(exec, optimizer, &weight_batch);
    }

    fn params(&self) -> Vec<(&'static str, &Param)> {
        vec![("table", &self.table), ("weights", &self.weights)]
    }

    fn params_mut(&mut self) -> Vec<(&'static str, &mut Param)> {
        vec![("table", &mut self.table), ("weights", &mut self.weights)]
    }

    fn quantize(&mut self) {
        self.table.quantize(self.precision);
    }
}
