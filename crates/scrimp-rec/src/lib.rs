//! Recommender models whose embedding tables fit a cache: click logs, encoders, training, metrics.
//!
//! | entry point | what it does |
//! |---|---|
//! | [`data::RowSource`] | rows of a click log, a batch at a time, from a file or a generator |
//! | [`schema::Schema`] | which columns are label, numbers and categories, and what is done to them |
//! | [`generate::Generator`] | synthetic rows with a known best AUC |
//! | [`metrics`] | AUC, log loss, calibration |
#![forbid(unsafe_code)]

pub mod bench;
pub mod data;
pub mod encoders;
pub mod error;
pub mod generate;
pub mod metrics;
pub mod model;
pub mod output;
pub mod prepare;
pub mod schema;
pub mod train;

pub use error::{Error, Result};
