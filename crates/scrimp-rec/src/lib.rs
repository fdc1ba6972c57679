//! Recommender models whose embedding tables fit a cache: click logs, encoders, training, metrics.
//!
//! | entry point | what it does |
//! |---|---|
//! | [`data::RowSource`] | rows of a click log, a batch at a time, from a file or a generator |
//! | [`schema::Schema`] | which columns are label, numbers and categories, and what is done to them |
//! | [`generate::Generator`] | synthetic rows with a known best AUC |
//! | [`encoders`], [`EmbeddingBag`] | compressed embeddings |
//! | [`model::Model`] | DLRM: predicts, learns, is saved and loaded |
//! | [`train::train`], [`train::evaluate`] | epochs, early stopping, checkpoints |
//! | [`metrics`] | AUC, log loss, calibration |
#![forbid(unsafe_code)]

pub mod bench;
pub mod data;
mod embedding_bag;
pub mod encoders;
pub mod generate;
pub mod metrics;
pub mod model;
#[cfg(feature = "prepare")]
pub mod prepare;
pub mod recipe;
pub mod schema;
pub mod train;

pub use embedding_bag::EmbeddingBag;
pub use scrimp_base::{Error, Result};
