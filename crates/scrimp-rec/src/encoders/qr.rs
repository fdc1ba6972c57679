//! Quotient-remainder embeddings (Shi et al., "Compositional Embeddings Using Complementary Partitions", arXiv 1909.02107).
//!
//! A hash maps an id of a feature with n ids to `0..n`, and m splits the hash into quotient and remainder. The vector is the
//! element-wise product of the quotient's row and the remainder's row.
//!
//! *Size.* A feature has m and n/m rows. For compression c the paper takes m = n / c. If the smallest size, `2 sqrt(n)` rows,
//! exceeds the budget, the hash maps to fewer values than n.

use super::{
    Encoder, EncoderConfig, EncoderEntry, EncoderOptions, Exec, IdCounts, Param, ParamInit, hashed_blocks,
    too_small,
};
use crate::{Error, Result};
use scrimp_kernels::embedding::{Backward, Batch, IdHash, Optimizer, RowRange, forward};

pub(super) const ENTRY: EncoderEntry = EncoderEntry {
    name: "qr",
    about: "the product of a row for the quotient and one for the remainder (Shi et al., 2020)",
    plan,
    build,
};

fn plan(options: &EncoderOptions, id_counts: &IdCounts) -> Result<EncoderConfig> {
    // Each int4 table is padded to whole bytes.
    let odd = u64::from(options.precision == super::Precision::Int4);
    let most = options.precision.rows_in(options.budget, options.dim).saturating_sub(odd);
    let sizes = |share: f64, c: f64| -> Vec<(u32, u32)> {
        let size = |&n: &u64| {
            let n = (n as f64 * share).max(1.0);
            let m = (n / c).max(n.sqrt()).ceil().min(1e9);
            (m as u32, (n / m).ceil() as u32)
        };
        id_counts.distinct.iter().map(size).collect()
    };
    let rows = |sizes: &[(u32, u32)]| sizes.iter().map(|&(m, q)| u64::from(m) + u64::from(q)).sum::<u64>();
    // The least compression that fits; at the highest compression, the largest share of hash values that fits.
    let (mut share, mut c) = (1.0, 1.0);
    while rows(&sizes(share, c)) > most && c < 1e9 {
        c *= 1.05;
    }
    while rows(&sizes(share, c)) > most && share > 1e-12 {
        share *= 0.9;
    }
    let sizes = sizes(share, c);
    if rows(&sizes) > most {
        return Err(too_small(options));
    }
    let (rows, weight_rows) = sizes.into_iter().unzip();
    Ok(EncoderConfig { rows, weight_rows, num_hashes: 1, ..options.base(id_counts.distinct.len()) })
}

fn build(config: &EncoderConfig, _: &[u64]) -> Result<Box<dyn Encoder>> {
    let c = config;
    if c.rows.len() != c.features || c.weight_rows.len() != c.features {
        return Err(Error::bad_input("encoder qr has two tables per feature"));
    }
    let total = |rows: &[u32]| rows.iter().map(|&r| r as usize).sum::<usize>();
    let spread = super::memrec::spread(c);
    let table = |rows: &[u32], seed, middle, spread| {
        Param::new(ParamInit { middle, spread, ..ParamInit::rows(total(rows), c.dim, seed) })
    };
    Ok(Box::new(Qr {
        features: c.features,
        hashes: hashed_blocks::hashes(c.seed, c.features),
        remainders: hashed_blocks::ranges(&c.rows, c.features),
        quotients: hashed_blocks::ranges(&c.weight_rows, c.features),
        remainder: table(&c.rows, c.seed ^ 1, 0.0, spread)?,
        quotient: table(&c.weight_rows, c.seed ^ 2, 1.0, 0.5)?,
        precision: c.precision,
    }))
}

struct Qr {
    features: usize,
    hashes: Vec<IdHash>,
    remainders: Vec<RowRange>,
    quotients: Vec<RowRange>,
    remainder: Param,
    quotient: Param,
    precision: super::Precision,
}

impl Qr {
    fn rows(&self, ids: &[u64]) -> (Vec<u32>, Vec<u32>) {
        let split = |(l, &id): (usize, &u64)| {
            let f = l % self.features;
            let (m, q) = (self.remainders[f], self.quotients[f]);
            let values = u64::from(m.rows) * u64::from(q.rows);
            let value = ((u128::from(self.hashes[f].hash(id)) * u128::from(values)) >> 64) as u64;
            let (quotient, remainder) = (value / u64::from(m.rows), value % u64::from(m.rows));
            (m.base + remainder as u32, q.base + quotient as u32)
        };
        ids.iter().enumerate().map(split).unzip()
    }
}

fn lookup(exec: Exec<'_>, table: &Param, rows: &[u32], out: &mut [f32]) {
    let batch = Batch::given(table.table(), rows, 1, 1);
    forward(exec, &batch, out);
}

/// `a *= b`
fn multiply(exec: Exec<'_>, a: &mut [f32], b: &[f32]) {
    exec.pool.chunks(a, 8192, |chunk, a| {
        for (a, b) in a.iter_mut().zip(&b[chunk * 8192..]) {
            *a *= b;
        }
    });
}

impl Encoder for Qr {
    fn vectors(&self) -> usize {
        self.features
    }

    fn forward(&self, exec: Exec<'_>, ids: &[u64], out: &mut [f32]) {
        let (remainders, quotients) = self.rows(ids);
        let mut other = vec![0.0; out.len()];
        lookup(exec, &self.remainder, &remainders, out);
        lookup(exec, &self.quotient, &quotients, &mut other);
        multiply(exec, out, &other);
    }

    fn backward(&mut self, exec: Exec<'_>, ids: &[u64], grad: &[f32], optimizer: Optimizer) {
        let (remainders, quotients) = self.rows(ids);
        let mut to_quotient = vec![0.0; grad.len()];
        let mut to_remainder = vec![0.0; grad.len()];
        lookup(exec, &self.remainder, &remainders, &mut to_quotient);
        lookup(exec, &self.quotient, &quotients, &mut to_remainder);
        multiply(exec, &mut to_quotient, grad);
        multiply(exec, &mut to_remainder, grad);
        let batch = |indices, grad| Backward::given(indices, 1, 1, grad);
        self.remainder.step(exec, optimizer, &batch(&remainders, &to_remainder));
        self.quotient.step(exec, optimizer, &batch(&quotients, &to_quotient));
    }

    fn params(&self) -> Vec<(&'static str, &Param)> {
        vec![("remainder", &self.remainder), ("quotient", &self.quotient)]
    }

    fn params_mut(&mut self) -> Vec<(&'static str, &mut Param)> {
        vec![("remainder", &mut self.remainder), ("quotient", &mut self.quotient)]
    }

    fn quantize(&mut self) {
        self.remainder.quantize(self.precision);
        self.quotient.quantize(self.precision);
    }
}
