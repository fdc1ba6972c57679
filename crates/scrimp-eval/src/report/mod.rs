//! Measurements that are written up: a chart and a table.

mod chart;
pub mod kv;
mod table;
