//! The Pareto front of file size and loss increase. One measurement compares all sizes without compressing.
//!
//! The measurement is that of [`crate::budget`]: [`Budget::Size`](crate::Budget::Size) chooses the same configurations
//! for a size.

use crate::{
    Calibration, MatrixConfigs, Progress, Pruner,
    assemble::extra_bytes,
    budget::{self, Candidate, Goal, Search},
    compress::outside_matrices,
    quantizing::output,
};
use scrimp_kernels::Exec;
use scrimp_llm::{checkpoint::Checkpoint, error::Result};

/// The sizes that a compressed model can have, with their loss increases.
#[derive(Debug)]
pub struct ParetoFront {
    matrices: Vec<Vec<Candidate>>,
    /// Bytes of the file that do not belong to a matrix.
    outside: usize,
}

/// A size with its predicted loss increase.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Approximate bytes of the file.
    pub bytes: u64,
    /// Divergence from the original's predictions, nats per token: the sum of the divergences of all matrices.
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
        let output = output::candidates(exec, checkpoint, calibration)?;
        let outside = outside_matrices(checkpoint) + extra_bytes(checkpoint)?;
        let search = Search { exec, checkpoint, output: Some(&output), method, calibration };
        let matrices = search.measure(Goal::Bytes(0.0), &mut |done| {
            progress(Progress { done, total, what: "layers, in all formats" });
        })?;
        Ok(Self { matrices, outside })
    }

    /// The size of the smallest possible file.
    pub fn smallest(&self) -> u64 {
        budget::smallest(&self.matrices) as u64 + self.outside as u64 + 1
    }

    /// The configurations that [`Budget::Size`](crate::Budget::Size) chooses for a file of `bytes`; `None` if no file
    /// is that small.
    pub fn matrix_configs(&self, bytes: u64) -> Option<MatrixConfigs> {
        Some(budget::matrix_configs(&self.allocate(bytes)?))
    }

    fn allocate(&self, bytes: u64) -> Option<Vec<Candidate>> {
        budget::allocate(&self.matrices, (bytes as f64 - self.outside as f64).max(0.0))
    }

    /// The best file of at most `bytes`, if there is one.
    pub fn at(&self, bytes: u64) -> Option<Point> {
        let chosen = self.allocate(bytes)?;
        let layers: f64 = chosen.iter().map(|c| c.size).sum();
        let kl = chosen.iter().map(|c| c.loss_increase).sum();
        Some(Point { bytes: layers as u64 + self.outside as u64, kl })
    }
}
