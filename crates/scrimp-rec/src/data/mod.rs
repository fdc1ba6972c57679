//! Click logs: rows of a label, numbers and categories, a batch at a time.

mod batch;
pub(crate) mod ordered;
mod shuffle;

pub use batch::{Batch, Memory, RowSource};
pub use shuffle::{Fold, Folded, Shuffled};
