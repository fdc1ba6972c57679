//! Magnitude pruning: the smallest weights of each matrix become zero. It needs no calibration and is the baseline.
//!
//! Han et al. 2015, "Learning both weights and connections for efficient neural networks" (arXiv 1506.02626).
//! `score(w) = abs(w)`, compared within a matrix.

use super::{
    Job, Pruner, Statistics,
    select::{share, smallest},
};

/// Magnitude pruning.
#[derive(Debug)]
pub struct Magnitude;

impl Pruner for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn about(&self) -> &'static str {
        "Removes the smallest weights"
    }

    fn needs(&self) -> Statistics {
        Statistics::None
    }

    fn prune(&self, job: Job<'_>) {
        let weights = &mut job.weight.data;
        let scores: Vec<f32> = weights.iter().map(|w| w.abs()).collect();
        let gone = smallest(&scores, share(job.sparsity, scores.len()));
        for (w, gone) in weights.iter_mut().zip(gone) {
            if gone {
                *w = 0.0;
            }
        }
    }
}
