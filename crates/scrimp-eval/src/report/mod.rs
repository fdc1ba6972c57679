//! Reports of measurements: a chart and a table.

mod chart;
pub mod kv;
mod table;
