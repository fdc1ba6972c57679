//! Adapters of sources: another order of rows ([`Shuffled`]) and a subset of rows ([`Folded`]).

use super::{Batch, RowSource};
use crate::{Result, schema::Schema};
use scrimp_base::SplitMix64;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Shuffles the rows within windows of `window` rows, one of which is in memory. The order depends on the seed, the epoch and
/// the number of the window only.
pub struct Shuffled<S> {
    source: S,
    window: usize,
    seed: u64,
    epoch: u64,
    /// Windows read in this epoch.
    windows: u64,
    rows: Batch,
    order: Vec<u32>,
    used: usize,
    piece: Batch,
}

impl<S: RowSource> Shuffled<S> {
    /// Shuffles `source`. `window` is clamped to `1 ..= 2^31`.
    pub fn new(source: S, window: usize, seed: u64) -> Self {
        Self {
            source,
            window: window.clamp(1, 1 << 31),
            seed,
            epoch: 0,
            windows: 0,
            rows: Batch::default(),
            order: Vec::new(),
            used: 0,
            piece: Batch::default(),
        }
    }

    /// The source.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Reads and permutes the next window. Returns false at the end.
    fn refill(&mut self) -> Result<bool> {
        self.rows.clear();
        while self.rows.rows() < self.window {
            let want = (self.window - self.rows.rows()).min(8192);
            let n = self.source.next_batch(want, &mut self.piece)?;
            if n == 0 {
                break;
            }
            self.rows.extend(&self.piece, 0..n);
        }
        let n = self.rows.rows();
        self.order.clear();
        self.order.extend(0..n as u32);
        let key = [self.epoch, self.windows];
        let seed = xxh3_64_with_seed(&key.map(u64::to_le_bytes).concat(), self.seed);
        SplitMix64::new(seed).shuffle(&mut self.order);
        self.windows += 1;
        self.used = 0;
        Ok(n > 0)
    }
}

impl<S: RowSource> RowSource for Shuffled<S> {
    fn schema(&self) -> &Schema {
        self.source.schema()
    }

    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<usize> {
        batch.clear();
        while batch.rows() < rows {
            if self.used == self.order.len() && !self.refill()? {
                break;
            }
            let take = (rows - batch.rows()).min(self.order.len() - self.used);
            for &row in &self.order[self.used..self.used + take] {
                batch.extend(&self.rows, row as usize..row as usize + 1);
            }
            self.used += take;
        }
        Ok(batch.rows())
    }

    fn rewind(&mut self, epoch: u64) -> Result<()> {
        self.source.rewind(epoch)?;
        (self.epoch, self.windows, self.used) = (epoch, 0, 0);
        self.rows.clear();
        self.order.clear();
        Ok(())
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

/// A subset of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    /// All but one row in `n`.
    Rest(u64),
    /// One row in `n`.
    OneIn(u64),
}

/// A subset of the rows of a source. A hash of the row number selects rows: [`Fold::Rest`] and [`Fold::OneIn`] of the same
/// number are disjoint and cover all rows.
pub struct Folded<S> {
    source: S,
    fold: Fold,
    number: u64,
    piece: Batch,
    used: usize,
}

impl<S: RowSource> Folded<S> {
    /// The rows of `source` in `fold`.
    pub fn new(source: S, fold: Fold) -> Self {
        Self { source, fold, number: 0, piece: Batch::default(), used: 0 }
    }

    fn wanted(&self, number: u64) -> bool {
        let hash = xxh3_64_with_seed(&number.to_le_bytes(), 0x5f01_d0f0);
        match self.fold {
            Fold::Rest(n) => !hash.is_multiple_of(n.max(1)),
            Fold::OneIn(n) => hash.is_multiple_of(n.max(1)),
        }
    }
}

impl<S: RowSource> RowSource for Folded<S> {
    fn schema(&self) -> &Schema {
        self.source.schema()
    }

    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<usize> {
        batch.clear();
        while batch.rows() < rows {
            if self.used == self.piece.rows() {
                self.used = 0;
                if self.source.next_batch(8192, &mut self.piece)? == 0 {
                    break;
                }
            }
            if self.wanted(self.number) {
                batch.extend(&self.piece, self.used..self.used + 1);
            }
            self.used += 1;
            self.number += 1;
        }
        Ok(batch.rows())
    }

    fn rewind(&mut self, epoch: u64) -> Result<()> {
        (self.number, self.used) = (0, 0);
        self.piece.clear();
        self.source.rewind(epoch)
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

    fn numbered(n: u64) -> Memory {
        let schema = crate::schema::Schema {
            label: "y".into(),
            numeric: vec![],
            categorical: vec![crate::schema::Categorical { name: "c".into(), kind: Default::default() }],
            crosses: vec![],
        };
        let data = Batch {
            labels: (0..n).map(|i| (i % 2) as f32).collect(),
            numeric: vec![],
            ids: (0..n).collect(),
        };
        Memory::new(schema, data)
    }

    fn ids(source: &mut dyn RowSource, batch: usize) -> Vec<u64> {
        let (mut all, mut b) = (Vec::new(), Batch::default());
        while source.next_batch(batch, &mut b).unwrap() > 0 {
            assert!(b.ids.iter().zip(&b.labels).all(|(&id, &y)| (id % 2) as f32 == y));
            all.extend_from_slice(&b.ids);
        }
        all
    }

    #[test]
    fn a_shuffle_is_a_permutation_within_windows_that_seed_and_epoch_choose() {
        let mut s = Shuffled::new(numbered(1000), 128, 7);
        let first = ids(&mut s, 33);
        for (w, window) in first.chunks(128).enumerate() {
            let mut sorted = window.to_vec();
            sorted.sort_unstable();
            let start = w as u64 * 128;
            assert_eq!(sorted, (start..(start + 128).min(1000)).collect::<Vec<_>>());
            assert_ne!(sorted, window);
        }
        s.rewind(0).unwrap();
        assert_eq!(ids(&mut s, 500), first, "the batch size does not matter");
        s.rewind(1).unwrap();
        assert_ne!(ids(&mut s, 33), first);
        s.rewind(0).unwrap();
        assert_eq!(s.skip(300).unwrap(), 300);
        assert_eq!(ids(&mut s, 33), first[300..]);
        assert_ne!(ids(&mut Shuffled::new(numbered(1000), 128, 8), 33), first);
    }

    #[test]
    fn folds_are_a_partition() {
        let mut rest = ids(&mut Folded::new(numbered(20_000), Fold::Rest(10)), 77);
        let one = ids(&mut Folded::new(numbered(20_000), Fold::OneIn(10)), 77);
        assert!((1800..2200).contains(&one.len()));
        rest.extend(&one);
        rest.sort_unstable();
        assert_eq!(rest, (0..20_000).collect::<Vec<_>>());
    }
}
