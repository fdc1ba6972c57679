//! [`Batch`]es of rows from a [`RowSource`].

use crate::{Result, schema::Schema};

/// Rows, row-major: row `r` has label `labels[r]`, numbers `numeric[r * n_numeric ..][.. n_numeric]` and ids
/// `ids[r * n_categorical ..][.. n_categorical]`. Refilling a batch reuses its buffers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// 0.0 or 1.0 per row; NaN without a label (scoring).
    pub labels: Vec<f32>,
    /// Transformed numbers, `[rows, n_numeric]`; never NaN.
    pub numeric: Vec<f32>,
    /// Ids, `[rows, n_categorical]`; a text has the same id in every file ([`crate::schema::id_of`]).
    pub ids: Vec<u64>,
}

impl Batch {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Removes all rows and keeps the buffers.
    pub fn clear(&mut self) {
        self.labels.clear();
        self.numeric.clear();
        self.ids.clear();
    }

    /// Appends rows `range` of `from`, which has the same schema.
    pub fn extend(&mut self, from: &Self, range: std::ops::Range<usize>) {
        let rows = from.rows().max(1);
        let (n, c) = (from.numeric.len() / rows, from.ids.len() / rows);
        self.labels.extend_from_slice(&from.labels[range.clone()]);
        self.numeric.extend_from_slice(&from.numeric[range.start * n..range.end * n]);
        self.ids.extend_from_slice(&from.ids[range.start * c..range.end * c]);
    }
}

/// Rows in a fixed order, read in batches within bounded memory.
pub trait RowSource: Send {
    /// The columns, constant for a source.
    fn schema(&self) -> &Schema;

    /// Replaces the contents of `batch` by the next rows: `rows`, fewer at the end, 0 after the end. Returns their number.
    ///
    /// # Errors
    /// A file cannot be read, or it has too many invalid rows. After an error the source must not be used.
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<usize>;

    /// Starts an epoch. Shuffled sources have a different order in each epoch. The order of an epoch is reproducible and
    /// independent of the number of threads.
    ///
    /// # Errors
    /// A file cannot be opened.
    fn rewind(&mut self, epoch: u64) -> Result<()>;

    /// Skips the next `rows` rows, to resume an epoch. Returns the number of skipped rows.
    ///
    /// # Errors
    /// As [`RowSource::next_batch`].
    fn skip(&mut self, rows: u64) -> Result<u64> {
        let (mut batch, mut done) = (Batch::default(), 0);
        while done < rows {
            let want = usize::try_from(rows - done).unwrap_or(usize::MAX).min(8192);
            match self.next_batch(want, &mut batch)? {
                0 => break,
                n => done += n as u64,
            }
        }
        Ok(done)
    }

    /// The number of rows of an epoch, if it is known without reading them.
    fn rows(&self) -> Option<u64> {
        None
    }

    /// The finished part of this epoch, from 0 to 1, if it is known (by bytes).
    fn progress(&self) -> Option<f64> {
        None
    }

    /// The number of invalid rows so far, which were left out.
    fn bad_rows(&self) -> u64 {
        0
    }
}

impl<S: RowSource + ?Sized> RowSource for Box<S> {
    fn schema(&self) -> &Schema {
        (**self).schema()
    }
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<usize> {
        (**self).next_batch(rows, batch)
    }
    fn rewind(&mut self, epoch: u64) -> Result<()> {
        (**self).rewind(epoch)
    }
    fn skip(&mut self, rows: u64) -> Result<u64> {
        (**self).skip(rows)
    }
    fn rows(&self) -> Option<u64> {
        (**self).rows()
    }
    fn progress(&self) -> Option<f64> {
        (**self).progress()
    }
    fn bad_rows(&self) -> u64 {
        (**self).bad_rows()
    }
}

/// Rows that a source has read and not yet delivered.
#[derive(Debug, Default)]
pub(crate) struct Block {
    rows: Batch,
    used: usize,
}

impl Block {
    /// The rows, to be refilled. All of them count as not delivered.
    pub(crate) fn refill(&mut self) -> &mut Batch {
        self.used = 0;
        &mut self.rows
    }

    /// Removes all rows.
    pub(crate) fn clear(&mut self) {
        self.refill().clear();
    }

    /// The number of rows that are not delivered.
    pub(crate) fn left(&self) -> usize {
        self.rows.rows() - self.used
    }
}

/// A source that reads its rows in blocks.
pub(crate) trait BlockSource {
    /// The current block.
    fn block(&mut self) -> &mut Block;

    /// Reads the next block with rows. Returns false at the end of the source.
    fn read_block(&mut self) -> Result<bool>;

    /// [`RowSource::next_batch`], from blocks.
    fn batch_from_blocks(&mut self, rows: usize, batch: &mut Batch) -> Result<usize> {
        batch.clear();
        while batch.rows() < rows {
            if self.block().left() == 0 && !self.read_block()? {
                break;
            }
            let block = self.block();
            let take = (rows - batch.rows()).min(block.left());
            batch.extend(&block.rows, block.used..block.used + take);
            block.used += take;
        }
        Ok(batch.rows())
    }
}

/// Rows in memory, in a fixed order.
#[derive(Debug, Clone)]
pub struct Memory {
    schema: Schema,
    data: Batch,
    next: usize,
}

impl Memory {
    /// The rows of `data`, in the shape of `schema`.
    ///
    /// # Panics
    /// The lengths of `data` do not match `schema`.
    pub fn new(schema: Schema, data: Batch) -> Self {
        assert_eq!(data.numeric.len(), data.rows() * schema.n_numeric());
        assert_eq!(data.ids.len(), data.rows() * schema.n_categorical());
        Self { schema, data, next: 0 }
    }

    /// The remaining rows of `source`.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn read(source: &mut dyn RowSource) -> Result<Self> {
        let (mut data, mut batch) = (Batch::default(), Batch::default());
        while source.next_batch(8192, &mut batch)? > 0 {
            data.extend(&batch, 0..batch.rows());
        }
        Ok(Self::new(source.schema().clone(), data))
    }

    /// All rows.
    pub fn data(&self) -> &Batch {
        &self.data
    }
}

impl RowSource for Memory {
    fn schema(&self) -> &Schema {
        &self.schema
    }

    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<usize> {
        let end = self.next.saturating_add(rows).min(self.data.rows());
        batch.clear();
        batch.extend(&self.data, self.next..end);
        self.next = end;
        Ok(batch.rows())
    }

    fn rewind(&mut self, _epoch: u64) -> Result<()> {
        self.next = 0;
        Ok(())
    }

    fn rows(&self) -> Option<u64> {
        Some(self.data.rows() as u64)
    }

    fn progress(&self) -> Option<f64> {
        Some(self.next as f64 / self.data.rows().max(1) as f64)
    }
}
