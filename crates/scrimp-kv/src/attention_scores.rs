//! Accumulated attention scores: how much attention each kept token of a layer received.
//!
//! Eviction policies read them. A row holds one number per kept token of a head; when tokens are dropped from the
//! block table, their numbers are dropped from the rows.

use crate::{block_table::BlockTable, error::KvError};
use scrimp_kernels::attention::{AccumulatedScores, ScoresRequest};
use std::ops::Range;

/// The scores that an attention call accumulates. Positions are positions in the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScoresWanted {
    /// The sum over all queries.
    pub sum: bool,
    /// The sum over the queries from this position on.
    pub recent_from: Option<u32>,
    /// The scores of the call's last query.
    pub last: bool,
    /// The maximum over all queries.
    pub max: bool,
    /// One row per query head instead of one row per KV head. A KV head's row is the mean over its query heads (the
    /// maximum for [`ScoresWanted::max`]) and takes less time. Accumulated rows of the other kind are cleared.
    pub per_query_head: bool,
}

impl ScoresWanted {
    /// Whether the call accumulates anything.
    pub fn any(self) -> bool {
        self.sum || self.recent_from.is_some() || self.last || self.max
    }
}

/// Scores that are computed after the prefill. One row per KV head, one number per kept token; a row may be shorter
/// than the head's tokens, and then the later tokens have no score.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PostPrefillScores {
    /// KVzip's reconstruction scores: the maximum attention while the model repeats the text (arXiv 2505.23416, §3).
    pub reconstruction: Vec<Vec<f32>>,
    /// The expected attention of future queries (arXiv 2510.00636, §3).
    pub expected: Vec<Vec<f32>>,
    /// The maximum attention of future queries.
    pub expected_max: Vec<Vec<f32>>,
}

/// The scores of one layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct LayerScores {
    pub(crate) accumulated: AccumulatedScores,
    /// Positions of the queries in `accumulated.sum`.
    pub(crate) queries: Vec<Range<u32>>,
    pub(crate) post_prefill: PostPrefillScores,
}

impl LayerScores {
    /// The kernels' request for a call whose queries have these positions. The caller adds the result to
    /// [`LayerScores::accumulated`].
    pub(crate) fn request(
        &mut self,
        wanted: ScoresWanted,
        queries: Range<u32>,
        rows: usize,
    ) -> ScoresRequest {
        if self.accumulated.rows().is_some_and(|n| n != rows) {
            self.clear_accumulated();
        }
        let recent_from = wanted.recent_from.map(|p| p.saturating_sub(queries.start) as usize);
        if wanted.sum {
            match self.queries.last_mut() {
                Some(last) if last.end == queries.start => last.end = queries.end,
                _ => self.queries.push(queries),
            }
        }
        let ScoresWanted { sum, last, max, per_query_head, .. } = wanted;
        ScoresRequest { sum, recent_from, last, peak: max, per_kv_head: !per_query_head }
    }

    /// How many of the accumulated queries could see a token at `position`.
    pub(crate) fn queries_from(&self, position: u32) -> u32 {
        self.queries.iter().map(|q| q.end.saturating_sub(q.start.max(position))).sum()
    }

    /// # Errors
    /// When a row is longer than the tokens of its KV head.
    pub(crate) fn set_accumulated(
        &mut self,
        heads: &[BlockTable],
        scores: AccumulatedScores,
        queries: Vec<Range<u32>>,
    ) -> Result<(), KvError> {
        for rows in [&scores.sum, &scores.recent, &scores.last, &scores.peak] {
            let group = rows.len() / heads.len();
            let fits = rows.len().is_multiple_of(heads.len())
                && rows.iter().enumerate().all(|(h, row)| row.len() <= heads[h / group].len());
            if !fits {
                return Err(bad_rows());
            }
        }
        (self.accumulated, self.queries) = (scores, queries);
        Ok(())
    }

    /// # Errors
    /// When the number of rows is not the number of KV heads, or a row is longer than the tokens of its KV head.
    pub(crate) fn set_post_prefill(
        &mut self,
        heads: &[BlockTable],
        scores: PostPrefillScores,
    ) -> Result<(), KvError> {
        for rows in [&scores.reconstruction, &scores.expected, &scores.expected_max] {
            let fits = rows.is_empty()
                || rows.len() == heads.len()
                    && rows.iter().zip(heads).all(|(row, head)| row.len() <= head.len());
            if !fits {
                return Err(bad_rows());
            }
        }
        self.post_prefill = scores;
        Ok(())
    }

    pub(crate) fn clear_accumulated(&mut self) {
        self.accumulated = AccumulatedScores::default();
        self.queries.clear();
    }

    /// Calls `change(kv_head, row)` for every row.
    pub(crate) fn each_row(&mut self, n_kv_heads: usize, mut change: impl FnMut(usize, &mut Vec<f32>)) {
        let (accumulated, post_prefill) = (&mut self.accumulated, &mut self.post_prefill);
        for rows in [
            &mut accumulated.sum,
            &mut accumulated.recent,
            &mut accumulated.last,
            &mut accumulated.peak,
            &mut post_prefill.reconstruction,
            &mut post_prefill.expected,
            &mut post_prefill.expected_max,
        ] {
            let group = (rows.len() / n_kv_heads).max(1);
            for (head, row) in rows.iter_mut().enumerate() {
                change(head / group, row);
            }
        }
    }
}

fn bad_rows() -> KvError {
    KvError::BadInput("attention scores do not fit the layer's heads and tokens".into())
}
