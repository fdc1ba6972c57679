//! Accumulated attention scores: the attention that each key received, summed over queries. Eviction policies read
//! them.
//!
//! ```text
//! sum[h][j]  = sum over queries i of p[i][h][j]         p: the softmax of the scores; `recent`, `last`: fewer queries
//! peak[h][j] = max over queries i of p[i][h][j]
//!
//! lanes: [kv_head][lane][kind][row of the KV head][keys, padded to 16]         a lane: the sums of some query rows
//! ```
//! Each lane adds its rows in order, and the lanes are added in order at the end, so the sums have the same bits for
//! every number of threads. Source: accumulated scores are the policy of H2O (Zhang et al. 2023, section 4); those of
//! the last query are the policy of TOVA (Oren et al. 2024, section 3).

use super::{AttentionArgs, storage::TILE};
use crate::exec::Pool;
use std::ops::Range;

/// Which sums a call of attention adds to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScoresRequest {
    /// Over all queries.
    pub sum: bool,
    /// Over the queries from this token of the call on (`>= n_tokens`: none of them).
    pub recent_from: Option<usize>,
    /// Of the last query alone; it replaces the sums of earlier calls.
    pub last: bool,
    /// The maximum over the queries of this call and of earlier ones.
    pub peak: bool,
    /// One row for each KV head, the mean over its query heads (of peaks the largest), instead of one for each query
    /// head: a third of the rows or less to add to.
    pub per_kv_head: bool,
}

impl ScoresRequest {
    /// Whether a call with `n_tokens` queries has something to add.
    pub(crate) fn wants_any(self, n_tokens: usize) -> bool {
        self.sum || self.last || self.peak || self.recent_from.is_some_and(|from| from < n_tokens)
    }

    /// Whether some of `rows` counts.
    pub(crate) fn wants_row(self, args: &AttentionArgs<'_>, rows: &Range<usize>) -> bool {
        let last_token = (rows.end - 1) / (args.n_heads / args.n_kv_heads);
        self.sum
            || self.peak
            || self.recent_from.is_some_and(|from| last_token >= from)
            || self.last && last_token + 1 == args.n_tokens
    }

    /// The first token whose queries count for kind `kind` of [`KINDS`]; all later ones count too.
    pub(crate) fn first(self, kind: usize, n_tokens: usize) -> Option<usize> {
        match kind {
            0 => self.sum.then_some(0),
            1 => self.recent_from,
            2 => self.last.then(|| n_tokens - 1),
            _ => self.peak.then_some(0),
        }
    }
}

/// Kinds of sums: all queries, recent ones, the last, and the most of all queries.
pub(crate) const KINDS: usize = 4;
/// The kind that is a maximum.
pub(crate) const PEAK: usize = 3;

/// Normalized attention per (query head, key), summed over queries. Keys are numbered as in the KV head's table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AccumulatedScores {
    /// Over all queries: `[n_heads][keys of the KV head]`, or `[n_kv_heads]` of them with
    /// [`ScoresRequest::per_kv_head`].
    pub sum: Vec<Vec<f32>>,
    /// Over the recent queries.
    pub recent: Vec<Vec<f32>>,
    /// Of the last query.
    pub last: Vec<Vec<f32>>,
    /// The most that one query gave.
    pub peak: Vec<Vec<f32>>,
}

impl AccumulatedScores {
    /// How many rows of sums there are: one for each query head, or for each KV head. `None` where nothing was added
    /// yet.
    pub fn rows(&self) -> Option<usize> {
        [&self.sum, &self.recent, &self.last, &self.peak].map(Vec::len).into_iter().find(|&n| n > 0)
    }

    fn kind(&mut self, kind: usize) -> &mut Vec<Vec<f32>> {
        match kind {
            0 => &mut self.sum,
            1 => &mut self.recent,
            2 => &mut self.last,
            _ => &mut self.peak,
        }
    }
}

/// Where the sums of each lane stand: `[kv_head][lane][kind that the lane adds to][row of the KV head][keys, padded]`.
///
/// A lane is a run of rows. Most lanes have no recent rows, and need no room for their sums.
pub(crate) struct LaneLayout {
    /// For each lane, the place of each kind among those that it adds to.
    lanes: Vec<[Option<usize>; KINDS]>,
    /// Rows of a KV head: one, or one for each of its query heads.
    rows: usize,
    /// Keys and padded keys of each KV head.
    keys: Vec<(usize, usize)>,
    /// Requested kinds.
    wanted: [bool; KINDS],
    /// First number of each KV head and lane; then the end.
    starts: Vec<usize>,
}

impl LaneLayout {
    /// The layout for lanes with these rows.
    pub(crate) fn new(
        args: &AttentionArgs<'_>,
        request: ScoresRequest,
        lanes: impl Iterator<Item = Range<usize>>,
    ) -> Self {
        let group = args.n_heads / args.n_kv_heads;
        let rows = if request.per_kv_head { 1 } else { group };
        let places = |queries: Range<usize>| {
            let mut n = 0;
            std::array::from_fn(|kind| {
                let first = request.first(kind, args.n_tokens);
                let counts = first.is_some_and(|first| (queries.end - 1) / group >= first);
                n += usize::from(counts);
                counts.then(|| n - 1)
            })
        };
        let of_lanes: Vec<_> = lanes.map(places).collect();
        let keys: Vec<_> = (0..args.n_kv_heads)
            .map(|head| {
                let n = args.kv.n_keys(head);
                (n, n.next_multiple_of(TILE))
            })
            .collect();
        let mut starts = vec![0];
        for &(_, padded) in &keys {
            for lane in &of_lanes {
                let end = starts[starts.len() - 1] + lane.iter().flatten().count() * rows * padded;
                starts.push(end);
            }
        }
        let wanted = std::array::from_fn(|kind| {
            request.first(kind, args.n_tokens).is_some_and(|from| from < args.n_tokens)
        });
        Self { lanes: of_lanes, rows, keys, wanted, starts }
    }

    /// Numbers in all.
    pub(crate) fn len(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// The sums of one lane of one KV head.
    pub(crate) fn range(&self, head: usize, lane: usize) -> Range<usize> {
        let at = head * self.lanes.len() + lane;
        self.starts[at]..self.starts[at + 1]
    }

    /// Within a lane, row `row` of the sums of `kind`.
    pub(crate) fn columns(&self, head: usize, lane: usize, kind: usize, row: usize) -> Option<Range<usize>> {
        let padded = self.keys[head].1;
        self.lanes[lane][kind].map(|place| {
            let start = (place * self.rows + row) * padded;
            start..start + padded
        })
    }

    /// Keys of a head, rounded up to whole tiles.
    pub(crate) fn padded(&self, head: usize) -> usize {
        self.keys[head].1
    }

    /// Rows of a KV head.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Adds the lanes, in order, to the sums in `columns`.
    pub(crate) fn add_to(&self, columns: &mut AccumulatedScores, sums: &[f32], pool: &Pool) {
        let n_rows = self.keys.len() * self.rows;
        for kind in (0..KINDS).filter(|&kind| self.wanted[kind]) {
            let rows = columns.kind(kind);
            rows.resize_with(n_rows, Vec::new);
            for (i, row) in rows.iter_mut().enumerate() {
                if kind == 2 {
                    row.clear();
                }
                row.resize(self.keys[i / self.rows].0, 0.0);
            }
            pool.chunks(rows, 1, |i, row| {
                let row = &mut row[0];
                let (kv_head, of_head) = (i / self.rows, i % self.rows);
                for lane in 0..self.lanes.len() {
                    if let Some(part) = self.columns(kv_head, lane, kind, of_head) {
                        let sums = &sums[self.range(kv_head, lane)][part];
                        match kind {
                            PEAK => row.iter_mut().zip(sums).for_each(|(most, x)| *most = most.max(*x)),
                            _ => row.iter_mut().zip(sums).for_each(|(sum, x)| *sum += x),
                        }
                    }
                }
            });
        }
    }
}
