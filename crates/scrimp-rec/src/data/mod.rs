//! Click logs: rows of a label, numbers and categories, a batch at a time.
//!
//! [`DataSet::find`] says what is at a path (Criteo's format, CSV, JSON lines or Parquet; plain, gzip or Zstandard),
//! [`DataSet::infer`] makes a schema for it, and [`DataSet::open`] reads it: in bounded memory, parsed by several
//! threads, in the order of the file. [`Shuffled`] shuffles.

mod batch;
mod criteo;
mod csv;
mod infer;
mod input;
mod jsonl;
pub(crate) mod ordered;
#[cfg(feature = "parquet")]
mod parquet;
mod roles;
mod set;
mod shuffle;
mod text;
mod values;

pub use batch::{Batch, Memory, RowSource};
pub use infer::Hints;
pub use set::{DataSet, Format, OpenOptions};
pub use shuffle::{Fold, Folded, Shuffled};

use crate::schema::{Schema, cross};

/// Where the parts of each cross are among the categorical columns.
#[derive(Debug, Clone)]
pub(crate) struct Crosses(Vec<Vec<usize>>);

impl Crosses {
    pub(crate) fn new(schema: &Schema) -> Self {
        let place = |name: &String| schema.categorical.iter().position(|c| c.name == *name).unwrap_or(0);
        Self(schema.crosses.iter().map(|c| c.iter().map(place).collect()).collect())
    }

    /// Appends the crosses of the row whose ids start at `start`.
    #[inline]
    pub(crate) fn append(&self, start: usize, ids: &mut Vec<u64>) {
        for parts in &self.0 {
            ids.push(cross(parts.iter().map(|&i| ids[start + i])));
        }
    }
}

#[cfg(test)]
mod tests;
