//! Recommender models with small embedding tables: click logs, encoders, training, metrics.
//!
//! | entry point | purpose |
//! |---|---|
//! | [`data::RowSource`] | batches of rows of a click log, from files or a generator |
//! | [`schema::Schema`] | label, numbers and categories, and their transforms |
//! | [`generate::Generator`] | synthetic rows with a known best AUC |
//! | [`encoders`], [`EmbeddingBag`] | compressed embeddings |
//! | [`model::Model`] | DLRM: prediction, training step, model file |
//! | [`recipe::train`] | a complete training |
//! | [`distill::compress`] | a smaller copy of a trained model |
//! | [`train::train`], [`train::evaluate`] | epochs, early stopping, checkpoints |
//! | [`metrics`] | AUC, log loss, calibration |
#![forbid(unsafe_code)]

pub mod bench;
pub mod data;
pub mod distill;
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
