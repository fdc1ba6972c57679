//! The full embedding table: a row for each id of the training data. Other ids have a zero vector.

use super::{
    Encoder, EncoderConfig, EncoderEntry, EncoderOptions, Exec, IdCounts, KeyMap, Param, ParamInit, rows_of,
};
use crate::{Error, Result};
use scrimp_kernels::embedding::{Backward, Batch, Optimizer, forward};

pub(super) const ENTRY: EncoderEntry =
    EncoderEntry { name: "full", about: "a row of its own for each id", plan, build };

fn plan(options: &EncoderOptions, id_counts: &IdCounts) -> Result<EncoderConfig> {
    let values = usize::try_from(id_counts.total()).unwrap_or(usize::MAX).saturating_mul(options.dim);
    let full = options.precision.bytes(values, options.dim, options.dim) as u64;
    if full > options.budget {
        return Err(Error::bad_input(format!(
            "encoder full: {} ids take {full} bytes, the budget is {}",
            id_counts.total(),
            options.budget
        ))
        .with_hint("use another `encoder`, or neither `budget` nor `compression`"));
    }
    if id_counts.keys.len() as u64 != id_counts.total() || id_counts.keys.is_empty() {
        return Err(Error::bad_input("encoder full: too many ids to keep").with_hint("use another `encoder`"));
    }
    // The last row, zero, serves ids that are not in the training data.
    let rows = id_counts.keys.len() as u64 + 1;
    let rows = u32::try_from(rows).map_err(|_| Error::bad_input("encoder full: too many ids"))?;
    Ok(EncoderConfig { rows: vec![rows], num_hashes: 1, ..options.base(id_counts.distinct.len()) })
}

fn build(config: &EncoderConfig, keys: &[u64]) -> Result<Box<dyn Encoder>> {
    let [rows] = config.rows[..] else { return Err(Error::bad_input("encoder full has one table")) };
    if keys.len() + 1 != rows as usize {
        return Err(Error::bad_input(format!("encoder full: {} ids for {rows} rows", keys.len())));
    }
    let dim = config.dim;
    let spread = super::memrec::spread(config);
    let mut table = Param::new(ParamInit { spread, ..ParamInit::rows(rows as usize, dim, config.seed) })?;
    if let super::Stored::F32(values) = &mut table.values {
        values[keys.len() * dim..].fill(0.0);
    }
    let row_of = keys.iter().enumerate().map(|(row, &key)| (key, row as u32)).collect();
    let features = config.features;
    Ok(Box::new(Full { features, keys: keys.to_vec(), row_of, table, precision: config.precision }))
}

struct Full {
    features: usize,
    keys: Vec<u64>,
    row_of: KeyMap<u32>,
    table: Param,
    precision: super::Precision,
}

impl Full {
    fn rows(&self, exec: Exec<'_>, ids: &[u64]) -> Vec<u32> {
        rows_of(exec, &self.row_of, self.features, ids, self.keys.len() as u32)
    }
}

impl Encoder for Full {
    fn vectors(&self) -> usize {
        self.features
    }

    fn forward(&self, exec: Exec<'_>, ids: &[u64], out: &mut [f32]) {
        let rows = self.rows(exec, ids);
        let batch = Batch::given(self.table.table(), &rows, 1, 1);
        forward(exec, &batch, out);
    }

    fn backward(&mut self, exec: Exec<'_>, ids: &[u64], grad: &[f32], optimizer: Optimizer) {
        let rows = self.rows(exec, ids);
        let batch = Backward::given(&rows, 1, 1, grad);
        self.table.step(exec, optimizer, &batch);
    }

    fn params(&self) -> Vec<(&'static str, &Param)> {
        vec![("table", &self.table)]
    }

    fn params_mut(&mut self) -> Vec<(&'static str, &mut Param)> {
        vec![("table", &mut self.table)]
    }

    /// The rows of known ids. The list of ids is not counted: a system whose ids are row numbers needs none.
    fn bytes(&self) -> usize {
        self.table.bytes() * self.keys.len() / (self.keys.len() + 1)
    }

    fn keys(&self) -> &[u64] {
        &self.keys
    }

    fn quantize(&mut self) {
        self.table.quantize(self.precision);
    }
}
