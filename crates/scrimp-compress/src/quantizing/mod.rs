//! Quantizing: weights rounded to the scales of a format, and the format of the output matrix.

pub mod output;
pub mod rounding;
