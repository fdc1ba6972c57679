//! Click logs: batches of rows with a label, numbers and categories.
//!
//! [`Data::find`] finds files or a generator by name. [`DataSet::find`] recognizes the format of files (Criteo's, CSV, JSON
//! lines or Parquet; plain, gzip or Zstandard), [`DataSet::infer`] infers a schema, and [`DataSet::open`] reads rows in the order
//! of the file, with several threads and within bounded memory. [`Shuffled`] shuffles rows.

#[cfg(feature = "arrow")]
mod arrow;
mod batch;
#[cfg(any(feature = "arrow", feature = "parquet"))]
mod columns;
mod criteo;
mod csv;
mod digest;
#[cfg(any(feature = "arrow", feature = "parquet"))]
mod guard;
mod infer;
mod input;
mod jsonl;
pub(crate) mod ordered;
#[cfg(feature = "parquet")]
mod parquet;
mod roles;
mod rows;
mod set;
mod shuffle;
mod splits;
mod text;
mod typed;
mod values;

#[cfg(feature = "arrow")]
pub use arrow::{ArrowError, ArrowRows, arrow_scores};
pub use batch::{Batch, Memory, RowSource};
pub(crate) use batch::{Block, BlockSource};
#[cfg(any(feature = "arrow", feature = "parquet"))]
pub use columns::rows_of_columns;
pub(crate) use digest::Digested;
#[cfg(any(feature = "arrow", feature = "parquet"))]
pub use guard::hide_guarded_panics;
pub use infer::Hints;
pub use rows::JsonRows;
pub use set::{DataSet, Format, OpenOptions};
pub use shuffle::{Fold, Folded, Shuffled};
pub use splits::{Data, PRESETS, Split, preset};
pub use typed::{Unit, Value};

use crate::{
    Error,
    schema::{Schema, cross},
};

#[cfg(feature = "prepare")]
/// Calls `each` with the text of each field of a CSV line (commas, quotes as in RFC 4180).
pub(crate) fn fields(line: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<usize, String> {
    csv::fields(line, b',', &mut Vec::new(), |_, text| {
        each(text);
        Ok(())
    })
}

/// The error of an invalid row that exceeds the number of rows that may be left out. `line` counts from 1. Rows without
/// labels are scored: each needs its score, so none is left out.
pub(crate) fn bad_row(
    path: &std::path::Path,
    line: u64,
    what: impl std::fmt::Display,
    options: &OpenOptions,
) -> Error {
    let error = Error::bad_row(path, line, what);
    match options.labels {
        true => error.with_hint("`skip_bad_rows` N leaves out up to N such rows and reports their number"),
        false => error,
    }
}

/// The indices of the categorical columns of each cross.
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
