//! Where Bloom-coded look-ups find their rows, apart from who owns the tables: forward and backward over plain slices.

use super::{
    EncoderConfig, Exec,
    hashed_blocks::{TABLE, WEIGHTS, hashes, ranges},
};
use scrimp_kernels::embedding::{
    Backward, Bags, Batch, IdHash, Probes, Probing, RowRange, Scales, Table, dots, forward, probe,
};

/// Hashes and shapes of an encoder of blocks (see `bloom.rs` for the formulas).
#[derive(Debug)]
pub struct Addressing {
    features: usize,
    per: usize,
    k: usize,
    norm: f32,
    signs: bool,
    hashes: Vec<IdHash>,
    ranges: Vec<RowRange>,
    weights: Option<WeightAddressing>,
}

#[derive(Debug)]
struct WeightAddressing {
    hashes: Vec<IdHash>,
    ranges: Vec<RowRange>,
    k: usize,
    groups: usize,
}

/// What a backward pass works out before any table changes; memory is kept from batch to batch.
#[derive(Debug, Default)]
pub struct Prepared {
    probes: Vec<u32>,
    signs: Vec<u64>,
    weight_probes: Vec<u32>,
    scales: Vec<f32>,
    dots: Vec<f32>,
    weight_grad: Vec<f32>,
}

impl Addressing {
    /// Of an encoder of this configuration, which has been checked (by `plan` or `build`).
    pub fn new(c: &EncoderConfig) -> Self {
        let weights = (!c.weight_rows.is_empty()).then(|| WeightAddressing {
            hashes: hashes(c.seed ^ WEIGHTS, c.features),
            ranges: ranges(&c.weight_rows, c.features),
            k: c.weight_k,
            groups: c.groups,
        });
        Self {
            features: c.features,
            per: c.dim / c.width * c.k,
            k: c.k,
            norm: 1.0 / (c.k as f32).sqrt(),
            signs: c.signs,
            hashes: hashes(c.seed ^ TABLE, c.features),
            ranges: ranges(&c.rows, c.features),
            weights,
        }
    }

    /// Categorical features.
    pub fn features(&self) -> usize {
        self.features
    }

    fn probing(&self) -> Probing<'_> {
        Probing { hashes: &self.hashes, ranges: &self.ranges, probes: self.per, signs: self.signs }
    }

    /// The sums of `bags` of look-ups. `weights` is the weight table, where the configuration has one.
    pub fn forward(
        &self,
        exec: Exec<'_>,
        table: Table<'_>,
        weights: &[f32],
        ids: &[u64],
        bags: Bags<'_>,
        out: &mut [f32],
    ) {
        let scales = match &self.weights {
            None => Scales::One(self.norm),
            Some(w) => Scales::Hashed { weights, probing: w.probing(), groups: w.groups, scale: self.norm },
        };
        let probes = Probes::Hashed { ids, probing: self.probing() };
        let batch = Batch { table, probes, k: self.k, scales, bags, add: false };
        forward(exec.pool, exec.level, &batch, out);
    }

    /// Finds rows again, and what the weights' gradients are, for the gradients `grad` of the outputs of `forward`.
    pub fn prepare(
        &self,
        exec: Exec<'_>,
        table: &Table<'_>,
        weights: &[f32],
        ids: &[u64],
        bags: Bags<'_>,
        grad: &[f32],
        to: &mut Prepared,
    ) {
        to.probes.resize(ids.len() * self.per, 0);
        to.signs.resize(if self.signs { ids.len() } else { 0 }, 0);
        probe(exec.pool, ids, &self.probing(), &mut to.probes, &mut to.signs);
        let Some(w) = &self.weights else { return };
        to.weight_probes.resize(ids.len() * w.k, 0);
        probe(exec.pool, ids, &w.probing(), &mut to.weight_probes, &mut []);
        let (groups, k, norm) = (w.groups, w.k, self.norm);
        to.scales.resize(ids.len() * groups, 0.0);
        let probes = &to.weight_probes;
        exec.pool.chunks(&mut to.scales, 1024 * groups, |unit, out| {
            for (i, out) in out.iter_mut().enumerate() {
                let (l, g) = (unit * 1024 + i / groups, i % groups);
                let rows = &probes[l * k..(l + 1) * k];
                *out = norm * rows.iter().map(|&row| weights[row as usize * groups + g]).sum::<f32>();
            }
        });
        // The gradient of alpha needs the rows as they were in the forward pass.
        to.dots.resize(to.probes.len(), 0.0);
        let batch = Backward {
            probes: &to.probes,
            per: self.per,
            k: self.k,
            weights: &[],
            signs: &to.signs,
            scales: &[norm],
            groups: 0,
            bags,
            grad,
        };
        dots(exec.pool, exec.level, table, &batch, &mut to.dots);
        to.weight_grad.resize(ids.len() * groups, 0.0);
        for (out, dots) in to.weight_grad.iter_mut().zip(to.dots.chunks_exact(self.per / groups)) {
            *out = norm * dots.iter().sum::<f32>();
        }
    }

    /// The table's gradients, after [`Addressing::prepare`] with the same `bags` and `grad`.
    pub fn table_batch<'a>(&'a self, from: &'a Prepared, bags: Bags<'a>, grad: &'a [f32]) -> Backward<'a> {
        let (scales, groups) = match &self.weights {
            Some(w) => (&from.scales[..], w.groups),
            None => (std::slice::from_ref(&self.norm), 0),
        };
        let Prepared { probes, signs, .. } = from;
        Backward { probes, per: self.per, k: self.k, weights: &[], signs, scales, groups, bags, grad }
    }

    /// The weight table's gradients, likewise; `None` where there is no weight table.
    pub fn weight_batch<'a>(&self, from: &'a Prepared) -> Option<Backward<'a>> {
        let w = self.weights.as_ref()?;
        Some(Backward {
            probes: &from.weight_probes,
            per: w.k,
            k: w.k,
            weights: &[],
            signs: &[],
            scales: &[1.0],
            groups: 0,
            bags: Bags::Fixed(1),
            grad: &from.weight_grad,
        })
    }
}

impl WeightAddressing {
    fn probing(&self) -> Probing<'_> {
        Probing { hashes: &self.hashes, ranges: &self.ranges, probes: self.k, signs: false }
    }
}
