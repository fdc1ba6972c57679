//! The Pareto front of file size and loss increase. One measurement compares all sizes without compressing.
//!
//! The measurement is that of [`crate::budget`]: [`Budget::Size`](crate::Budget::Size) chooses the same configurations
//! for a size.

use crate::{
    Calibration, LayerConfigs, Output, Progress, Pruner,
    assemble::extra_bytes,
    budget::{self, Candidate, Goal, Search},
    compress::{PLANNED, for_layers, outside_layers},
    quantizing::output,
};
use scrimp_kernels::{Exec, quant::packed::PackedView};
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    load::Encoding,
    model::{LinearWeights, projections::StoredMatrix},
};
use std::collections::BTreeMap;

/// The sizes that a compressed model can have, with their loss increases.
#[derive(Debug)]
pub struct ParetoFront {
    layers: Vec<Vec<Candidate>>,
    /// Bytes of the file that do not belong to the layers' matrices.
    outside: usize,
    /// Divergence of the output matrix alone, nats per token.
    output_kl: f64,
}

/// A size with its predicted loss increase.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Approximate bytes of the file.
    pub bytes: u64,
    /// Divergence from the original's predictions, nats per token: the sum of the layers' divergences.
    pub kl: f64,
}

impl ParetoFront {
    /// Measures `checkpoint`. The cost is that of some dozen runs of 1024 tokens, and of pruning each matrix as often.
    ///
    /// # Errors
    /// When the checkpoint is damaged or was compressed before.
    pub fn measure(
        exec: Exec<'_>,
        checkpoint: &Checkpoint,
        method: &dyn Pruner,
        calibration: &Calibration,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self> {
        let total = checkpoint.config().n_layers;
        progress(Progress { done: 0, total, what: "output matrix" });
        let (packed, measured) = output::compress(exec, checkpoint, Output::Measured, calibration)?;
        let compressed: BTreeMap<_, _> = packed.iter().map(|p| (p.name.as_str(), p.bytes.len())).collect();
        let outside = outside_layers(checkpoint, &compressed).bytes + extra_bytes(checkpoint)?;
        let output_kl = packed.as_ref().and(measured.last()).map_or(0.0, |m| m.kl);
        let embedding = packed.filter(|p| p.name == "token_embd.weight");
        let embedding = embedding.map(|p| {
            let Encoding::Packed(format) = p.encoding else {
                return Err(Error::bad_input("the output matrix was not packed"));
            };
            let view = PackedView::new(format, p.shape[0], p.shape[1], &p.bytes)
                .map_err(|e| Error::bad_input(e.to_string()))?;
            LinearWeights::pack(exec.pool, &StoredMatrix::Packed(view))
        });
        let embedding = embedding.transpose()?;
        let search = Search { exec, checkpoint, embedding: embedding.as_ref(), method, calibration };
        let layers = search.measure(Goal::Bytes(0), &mut |done| {
            progress(Progress { done, total, what: "layers, in all formats" });
        })?;
        Ok(Self { layers, outside, output_kl })
    }

    /// The size of the smallest possible file.
    pub fn smallest(&self) -> u64 {
        (budget::smallest(&self.layers) / PLANNED) as u64 + self.outside as u64 + 1
    }

    /// The configurations that [`Budget::Size`](crate::Budget::Size) chooses for a file of `bytes`; `None` if no file
    /// is that small.
    pub fn layer_configs(&self, bytes: u64) -> Option<LayerConfigs> {
        Some(budget::layer_configs(&self.allocate(bytes)?))
    }

    fn allocate(&self, bytes: u64) -> Option<Vec<Candidate>> {
        budget::allocate(&self.layers, for_layers(bytes as f64, self.outside) as f64)
    }

    /// The best file of at most `bytes`, if there is one.
    pub fn at(&self, bytes: u64) -> Option<Point> {
        let chosen = self.allocate(bytes)?;
        let layers: f64 = chosen.iter().map(|c| c.size).sum();
        let kl = self.output_kl + chosen.iter().map(|c| c.loss_increase).sum::<f64>();
        Some(Point { bytes: layers as u64 + self.outside as u64, kl })
    }
}
