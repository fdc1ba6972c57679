//! What a model's weights lose at any size: measured once, so that sizes can be tried without compressing.
//!
//! The measurement is that of [`crate::budget`], so a size that is asked for here is chosen in the same way by
//! [`Budget::Size`](crate::Budget::Size).

use crate::{
    Calibration, LayerConfigs, Output, Progress, Pruner,
    assemble::extra_bytes,
    budget::{self, Candidate, Goal},
    compress::{PLANNED, for_layers, outside_layers},
    quantizing::output,
    runner::{Machine, Packed},
};
use scrimp_kernels::{Pool, SimdLevel, quant::packed::PackedView};
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    load::Encoding,
    model::projections::StoredMatrix,
};
use std::collections::BTreeMap;

/// Sizes of a compressed model, and what they cost.
#[derive(Debug)]
pub struct ParetoFront {
    layers: Vec<Vec<Candidate>>,
    /// Bytes of the file that do not belong to the layers' matrices.
    outside: usize,
    /// Divergence of the output matrix alone, nats per token.
    output_kl: f64,
}

/// A size, and what it is expected to cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Bytes of the file, about.
    pub bytes: u64,
    /// Divergence from the original's predictions, nats per token: the sum of what each layer does alone.
    pub kl: f64,
}

impl ParetoFront {
    /// Measures `checkpoint`: as much work as running 1024 tokens some dozen times, and pruning each matrix as often.
    ///
    /// # Errors
    /// When the checkpoint is damaged or was compressed before.
    pub fn measure(
        checkpoint: &Checkpoint,
        pool: &Pool,
        level: SimdLevel,
        method: &dyn Pruner,
        calibration: &Calibration,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self> {
        let machine = Machine { pool, level, config: checkpoint.config() };
        let total = machine.config.n_layers;
        progress(Progress { done: 0, total, what: "output matrix" });
        let (packed, measured) = output::compress(machine, checkpoint, Output::Measured, calibration)?;
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
            Packed::new(machine, &StoredMatrix::Packed(view))
        });
        let embedding = embedding.transpose()?;
        let layers = budget::measure(
            machine,
            checkpoint,
            embedding.as_ref(),
            method,
            calibration,
            Goal::Bytes(0),
            &mut |done| progress(Progress { done, total, what: "layers, in all formats" }),
        )?;
        Ok(Self { layers, outside, output_kl })
    }

    /// The smallest file that there can be.
    pub fn smallest(&self) -> u64 {
        (budget::smallest(&self.layers) / PLANNED) as u64 + self.outside as u64 + 1
    }

    /// What [`Budget::Size`](crate::Budget::Size) would choose for a file of `bytes`; `None` where it cannot be so small.
    pub fn choices(&self, bytes: u64) -> Option<LayerConfigs> {
        Some(budget::choices(&self.allocate(bytes)?))
    }

    fn allocate(&self, bytes: u64) -> Option<Vec<Candidate>> {
        budget::allocate(&self.layers, for_layers(bytes as f64, self.outside) as f64)
    }

    /// The best file of at most `bytes`; `None` where there is none.
    pub fn at(&self, bytes: u64) -> Option<Point> {
        let chosen = self.allocate(bytes)?;
        let layers: f64 = chosen.iter().map(|c| c.size).sum();
        let kl = self.output_kl + chosen.iter().map(|c| c.harm).sum::<f64>();
        Some(Point { bytes: layers as u64 + self.outside as u64, kl })
    }
}
