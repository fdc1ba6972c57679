//! Compressing language models: pruning, quantizing, and settings that fit a memory limit.
//!
//! | module | task |
//! |---|---|
//! | [`pruning`] | chooses the weights that become zero, and adjusts the others |
//! | [`quantizing`] | rounds weights to a storage format, and chooses the format of the output matrix |
//! | `drift` | fits matrices to the outputs of the original, given the inputs of the compressed model |
//! | [`compress()`] | compresses a checkpoint layer by layer into one file |
//! | [`budget`], [`ParetoFront`] | chooses a format or a sparsity per matrix from measured loss increases |
//! | `fit` (feature `fit`) | chooses weights and KV cache for a memory limit |
#![forbid(unsafe_code)]

mod assemble;
pub mod budget;
mod calibration;
mod checkpoint_dir;
mod compress;
mod drift;
#[cfg(feature = "fit")]
pub mod fit;
mod format;
mod layer;
mod layer_pass;
mod matrix;
mod matrix_configs;
pub mod pareto_front;
pub mod pruning;
pub mod quantizing;

pub use calibration::{Calibration, MAX_TOKENS};
pub use compress::{Options, Progress, Report, compress};
pub use format::Format;
pub use layer::Dense;
pub use matrix::{MatrixOptions, compress_matrix};
pub use matrix_configs::{Budget, MatrixConfig, MatrixConfigs};
pub use pareto_front::ParetoFront;
pub use pruning::{Inputs, Job, PRUNERS, Pruner, Statistics, pruner};
pub use quantizing::{
    output::{ALLOWED_KL, Output},
    rounding::Rounding,
};

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
