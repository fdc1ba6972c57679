//! Single rows as JSON objects, for servers.

use super::{
    Batch,
    jsonl::JsonLines,
    roles::Filler,
    text::{Parse as _, Scratch},
};
use crate::schema::Schema;

/// Parses JSON objects into rows. Absent and null columns are missing values; labels are ignored.
pub struct JsonRows {
    parser: JsonLines,
    scratch: Scratch,
}

impl std::fmt::Debug for JsonRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JsonRows")
    }
}

impl JsonRows {
    /// A parser for rows of `schema`.
    pub fn new(schema: &Schema) -> Self {
        let filler = Filler::new(schema.clone(), super::OpenOptions::default().missing, false);
        Self { parser: JsonLines::new(filler), scratch: Scratch::default() }
    }

    /// Appends the row in `json`.
    ///
    /// # Errors
    /// `json` is not an object, or a value is invalid for its column; `batch` is unchanged.
    pub fn push(&mut self, json: &[u8], batch: &mut Batch) -> Result<(), String> {
        let before = (batch.labels.len(), batch.numeric.len(), batch.ids.len());
        let result = self.parser.line(json, batch, &mut self.scratch);
        if result.is_err() {
            batch.labels.truncate(before.0);
            batch.numeric.truncate(before.1);
            batch.ids.truncate(before.2);
        }
        result
    }
}
