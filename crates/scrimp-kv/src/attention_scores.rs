//! The attention that a layer's tokens received: what eviction policies look at.
//!
//! Rows go with the layer's tables: a number for each kept token, dropped with it.

use crate::{block_table::HeadTable, error::KvError};
use scrimp_kernels::attention::{ColumnStats, StatsRequest};
use std::ops::Range;

/// Which column sums an attention call adds to; positions are those of the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatsWanted {
    /// Over all queries.
    pub sum: bool,
    /// Over the queries from this position on.
    pub recent_from: Option<u32>,
    /// Of the last query of the call.
    pub last: bool,
    /// The most that one query gave.
    pub peak: bool,
    /// One row for each KV head, the mean over its query heads (the largest of [`StatsWanted::peak`]), in the place of one for each query head,
    /// which takes longer. Rows of the other kind are forgotten.
    pub per_kv_head: bool,
}

impl StatsWanted {
    /// Whether some sums are wanted.
    pub fn any(self) -> bool {
        self.sum || self.recent_from.is_some() || self.last || self.peak
    }
}

/// Scores that come from more than reading the text once; per KV head, one number per kept token (tokens behind the end of
/// a row have none).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PassScores {
    /// The most attention that a token got while the model repeated the text.
    pub repeated: Vec<Vec<f32>>,
    /// The attention that a token can expect of queries to come.
    pub expected: Vec<Vec<f32>>,
}

/// What is known of one layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Received {
    pub(crate) stats: ColumnStats,
    /// Positions of the queries that sums over all queries hold.
    pub(crate) queries: Vec<Range<u32>>,
    pub(crate) passes: PassScores,
}

impl Received {
    /// What the kernels are asked for, given the positions of a call's queries: these sums are added to [`Received::stats`] next.
    pub(crate) fn request(&mut self, wanted: StatsWanted, queries: Range<u32>, rows: usize) -> StatsRequest {
        if self.stats.rows().is_some_and(|n| n != rows) {
            self.forget_stats();
        }
        let recent_from = wanted.recent_from.map(|p| p.saturating_sub(queries.start) as usize);
        if wanted.sum {
            match self.queries.last_mut() {
                Some(last) if last.end == queries.start => last.end = queries.end,
                _ => self.queries.push(queries),
            }
        }
        let StatsWanted { sum, last, peak, per_kv_head, .. } = wanted;
        StatsRequest { sum, recent_from, last, peak, per_kv_head }
    }

    /// Of the queries that sums over all queries hold, how many could see a token at `position`.
    pub(crate) fn queries_from(&self, position: u32) -> u32 {
        self.queries.iter().map(|q| q.end.saturating_sub(q.start.max(position))).sum()
    }

    /// # Errors
    /// When a row is longer than the tokens of its KV head.
    pub(crate) fn set_stats(
        &mut self,
        heads: &[HeadTable],
        stats: ColumnStats,
        queries: Vec<Range<u32>>,
    ) -> Result<(), KvError> {
        for rows in [&stats.sum, &stats.recent, &stats.last, &stats.peak] {
            let group = rows.len() / heads.len();
            let fits = rows.len().is_multiple_of(heads.len())
                && rows.iter().enumerate().all(|(h, row)| row.len() <= heads[h / group].len());
            if !fits {
                return Err(KvError::BadInput("column sums do not fit the layer's heads and tokens".into()));
            }
        }
        (self.stats, self.queries) = (stats, queries);
        Ok(())
    }

    /// # Errors
    /// When rows do not fit the KV heads and their tokens.
    pub(crate) fn set_passes(&mut self, heads: &[HeadTable], passes: PassScores) -> Result<(), KvError> {
        for rows in [&passes.repeated, &passes.expected] {
            let fits = rows.is_empty()
                || rows.len() == heads.len()
                    && rows.iter().zip(heads).all(|(row, head)| row.len() <= head.len());
            if !fits {
                return Err(KvError::BadInput("scores do not fit the layer's heads and tokens".into()));
            }
        }
        self.passes = passes;
        Ok(())
    }

    pub(crate) fn forget_stats(&mut self) {
        self.stats = ColumnStats::default();
        self.queries.clear();
    }

    /// Calls `change(kv_head, numbers)` for every row.
    pub(crate) fn each_row(&mut self, n_kv_heads: usize, mut change: impl FnMut(usize, &mut Vec<f32>)) {
        let (stats, passes) = (&mut self.stats, &mut self.passes);
        for rows in [
            &mut stats.sum,
            &mut stats.recent,
            &mut stats.last,
            &mut stats.peak,
            &mut passes.repeated,
            &mut passes.expected,
        ] {
            let group = (rows.len() / n_kv_heads).max(1);
            for (head, row) in rows.iter_mut().enumerate() {
                change(head / group, row);
            }
        }
    }
}
