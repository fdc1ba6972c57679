//! Conversion of public data sets to files for training.

pub mod flights;
mod tar;
