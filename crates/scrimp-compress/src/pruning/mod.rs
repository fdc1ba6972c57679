//! Pruning: which weights of a model become zero, and how the other weights compensate.
//!
//! | method | weights that become zero | other weights | statistics of the inputs |
//! |---|---|---|---|
//! | [`magnitude`] | the smallest of a matrix | unchanged | none |
//! | [`wanda`] | the smallest `abs(w) * norm(x)` of a row | unchanged | norm of each feature |
//! | [`sparsegpt`] | the weights with the least second-order loss | compensate | `X^T X` |
//!
//! To add a method, write one file with a [`Pruner`] in it and add it to [`PRUNERS`].

pub mod gram;
mod inputs;
pub(crate) mod linalg;
pub mod magnitude;
pub(crate) mod select;
pub mod sparsegpt;
pub mod wanda;

pub use inputs::{Factor, Inputs, Statistics};

use crate::{Dense, Rounding};
use scrimp_kernels::Pool;
use scrimp_llm::error::{Error, Result};

/// Every method.
pub const PRUNERS: &[&dyn Pruner] = &[&magnitude::Magnitude, &wanda::Wanda, &sparsegpt::SparseGpt];

/// The arguments of [`Pruner::prune`].
#[derive(Debug)]
pub struct Job<'a> {
    /// The threads.
    pub pool: &'a Pool,
    /// The weights, to be changed.
    pub weight: &'a mut Dense,
    /// Statistics of the layer's inputs.
    pub inputs: &'a Inputs,
    /// Share of the weights that become zero, in `[0, 1)`.
    pub sparsity: f64,
    /// Zeros of the original stay zero, even beyond `sparsity` (the checkpoint was pruned before).
    pub keep_zeros: bool,
    /// How weights will be stored.
    pub rounding: &'a mut Rounding,
}

/// A pruning method.
pub trait Pruner: Sync {
    /// The method's name in settings and files.
    fn name(&self) -> &'static str;

    /// One line for lists of methods.
    fn about(&self) -> &'static str;

    /// The statistics of the inputs that it needs.
    fn needs(&self) -> Statistics;

    /// Sets the share `sparsity` of the weights to zero. A method that also rounds fixes the scales of `rounding` and
    /// makes weights multiples of them; the caller rounds all other weights.
    fn prune(&self, job: Job<'_>);
}

impl std::fmt::Debug for dyn Pruner + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The method called `name`.
///
/// # Errors
/// When there is no such method; the hint lists all methods.
pub fn pruner(name: &str) -> Result<&'static dyn Pruner> {
    PRUNERS.iter().copied().find(|p| p.name() == name).ok_or_else(|| {
        let known: Vec<_> = PRUNERS.iter().map(|p| p.name()).collect();
        Error::bad_input(format!("there is no pruning method `{name}`"))
            .with_hint(format!("these are: {}", known.join(", ")))
    })
}
