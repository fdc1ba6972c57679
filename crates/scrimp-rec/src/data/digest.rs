//! A hash of the rows of a source, which tells data sets apart.

use super::{Batch, RowSource};
use crate::{Result, schema::Schema};
use xxhash_rust::xxh3::Xxh3;

/// A source that hashes its rows (XXH3, 64 bits). Rows count, and the sizes of batches do not.
pub(crate) struct Digested<S> {
    source: S,
    labels: Xxh3,
    numeric: Xxh3,
    ids: Xxh3,
}

impl<S: RowSource> Digested<S> {
    /// The rows of `source`.
    pub(crate) fn new(source: S) -> Self {
        Self { source, labels: Xxh3::new(), numeric: Xxh3::new(), ids: Xxh3::new() }
    }

    /// The source, whose rows are not hashed.
    pub(crate) fn source(&mut self) -> &mut S {
        &mut self.source
    }

    /// The hash of all rows so far.
    pub(crate) fn digest(&self) -> u64 {
        let parts = [&self.labels, &self.numeric, &self.ids].map(|part| part.digest().to_le_bytes());
        xxhash_rust::xxh3::xxh3_64(&parts.concat())
    }
}

impl<S: RowSource> RowSource for Digested<S> {
    fn schema(&self) -> &Schema {
        self.source.schema()
    }

    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<usize> {
        let rows = self.source.next_batch(rows, batch)?;
        self.labels.update(bytemuck::cast_slice(&batch.labels));
        self.numeric.update(bytemuck::cast_slice(&batch.numeric));
        self.ids.update(bytemuck::cast_slice(&batch.ids));
        Ok(rows)
    }

    fn rewind(&mut self, epoch: u64) -> Result<()> {
        (self.labels, self.numeric, self.ids) = (Xxh3::new(), Xxh3::new(), Xxh3::new());
        self.source.rewind(epoch)
    }

    fn rows(&self) -> Option<u64> {
        self.source.rows()
    }

    fn progress(&self) -> Option<f64> {
        self.source.progress()
    }

    fn bad_rows(&self) -> u64 {
        self.source.bad_rows()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Memory;

    #[test]
    fn other_rows_have_another_digest_and_other_batches_the_same() {
        let schema = Schema { numeric: Vec::new(), ..Schema::criteo() };
        let n = schema.n_categorical();
        let data = Batch {
            labels: (0..100).map(|i| (i % 2) as f32).collect(),
            numeric: Vec::new(),
            ids: (0..100 * n as u64).collect(),
        };
        let digest = |data: &Batch, batch: usize| {
            let mut source = Digested::new(Memory::new(schema.clone(), data.clone()));
            let mut rows = Batch::default();
            while source.next_batch(batch, &mut rows).unwrap() > 0 {}
            source.digest()
        };
        let want = digest(&data, 7);
        assert_eq!(digest(&data, 100), want);
        for change in [
            |d: &mut Batch| d.labels[99] = 0.0,
            |d: &mut Batch| d.ids[1] = 7,
            |d: &mut Batch| d.ids.swap(0, 1),
        ] {
            let mut other = data.clone();
            change(&mut other);
            assert_ne!(digest(&other, 7), want);
        }
    }
}
