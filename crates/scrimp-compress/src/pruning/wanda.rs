//! Wanda: the score of a weight is its effect on the output, `abs(w) * norm(x)`.
//!
//! Sun et al. 2023, "A simple and effective pruning approach for large language models" (arXiv 2306.11695), section 3:
//! `score(w_ij) = abs(w_ij) * norm(X_j)`, compared within each row (output feature); other weights are unchanged.

use super::{
    Job, Pruner, Statistics,
    select::{share, smallest},
};

/// Wanda.
#[derive(Debug)]
pub struct Wanda;

impl Pruner for Wanda {
    fn name(&self) -> &'static str {
        "wanda"
    }

    fn about(&self) -> &'static str {
        "Removes the smallest products of weight and input norm"
    }

    fn needs(&self) -> Statistics {
        Statistics::Norms
    }

    fn prune(&self, job: Job<'_>) {
        let norms = job.inputs.norms();
        let count = share(job.sparsity, job.weight.cols);
        job.pool.chunks(&mut job.weight.data, job.weight.cols, |_, row| {
            let scores: Vec<f32> = row.iter().zip(&norms).map(|(w, norm)| w.abs() * norm).collect();
            for (w, gone) in row.iter_mut().zip(smallest(&scores, count)) {
                if gone {
                    *w = 0.0;
                }
            }
        });
    }
}
