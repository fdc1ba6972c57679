//! Compressing language models: pruning, quantizing, and settings that fit a memory limit.
//!
//! | module | task |
//! |---|---|
//! | [`pruning`] | chooses the weights that become zero, and adjusts the others |
//! | [`quantizing`] | rounds weights to a storage format, and chooses the format of the output matrix |
//! | [`compress()`] | compresses a checkpoint layer by layer into one file |
//! | [`budget`], [`ParetoFront`] | chooses formats and sparsities per layer from measured loss increases |
//! | `fit` (feature `fit`) | chooses weights and KV cache for a memory limit |
#![forbid(unsafe_code)]

mod assemble;
pub mod budget;
mod calibration;
mod checkpoint_dir;
mod compress;
#[cfg(feature = "fit")]
pub mod fit;
mod layer;
mod layer_configs;
mod layer_pass;
mod matrix;
pub mod pareto_front;
pub mod pruning;
pub mod quantizing;

pub use calibration::{Calibration, MAX_TOKENS};
pub use compress::{Options, Progress, Report, compress};
pub use layer::Dense;
pub use layer_configs::{Budget, LayerConfig, LayerConfigs};
pub use matrix::{MatrixOptions, compress_matrix};
pub use pareto_front::ParetoFront;
pub use pruning::{Inputs, Job, PRUNERS, Pruner, Statistics, pruner};
pub use quantizing::{
    output::{ALLOWED_KL, Measured, Output},
    rounding::Rounding,
};

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
