//! Click logs: rows of a label, numbers and categories, a batch at a time.

mod batch;

pub use batch::{Batch, Memory, RowSource};
