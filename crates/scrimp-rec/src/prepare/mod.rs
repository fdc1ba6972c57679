//! Public data made ready for training.

pub mod flights;
mod tar;
