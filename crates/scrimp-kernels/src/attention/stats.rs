//! The attention that each key received, summed over queries: what eviction policies look at.

use super::{AttentionArgs, storage::TILE};
use crate::{shared::SharedMut, threads::Pool};
use std::ops::Range;

/// Which sums a call of attention adds to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatsRequest {
    /// Over all queries.
    pub sum: bool,
    /// Over the queries from this token of the call on (`>= n_tokens`: none of them).
    pub recent_from: Option<usize>,
    /// Of the last query alone; it replaces what was there.
    pub last: bool,
}

impl StatsRequest {
    /// Whether a call with `n_tokens` queries has something to add.
    pub(crate) fn wants_any(self, n_tokens: usize) -> bool {
        self.sum || self.last || self.recent_from.is_some_and(|from| from < n_tokens)
    }

    /// Whether some of `rows` counts.
    pub(crate) fn wants_row(self, args: &AttentionArgs<'_>, rows: &Range<usize>) -> bool {
        let last_token = (rows.end - 1) / (args.n_heads / args.n_kv_heads);
        self.sum
            || self.recent_from.is_some_and(|from| last_token >= from)
            || self.last && last_token + 1 == args.n_tokens
    }

    /// Whether the queries of `token` count for kind `kind` of [`KINDS`].
    pub(crate) fn counts(self, kind: usize, token: usize, n_tokens: usize) -> bool {
        match kind {
            0 => self.sum,
            1 => self.recent_from.is_some_and(|from| token >= from),
            _ => self.last && token + 1 == n_tokens,
        }
    }
}

/// Kinds of sums: all queries, recent ones, the last.
pub(crate) const KINDS: usize = 3;

/// Normalised attention per (query head, key), summed over queries. Keys are numbered as in the KV head's table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ColumnStats {
    /// Over all queries: `[n_heads][keys of the KV head]`.
    pub sum: Vec<Vec<f32>>,
    /// Over the recent queries.
    pub recent: Vec<Vec<f32>>,
    /// Of the last query.
    pub last: Vec<Vec<f32>>,
}

impl ColumnStats {
    fn kind(&mut self, kind: usize) -> &mut Vec<Vec<f32>> {
        match kind {
            0 => &mut self.sum,
            1 => &mut self.recent,
            _ => &mut self.last,
        }
    }
}

/// Where the sums of each lane stand: `[kv_head][lane][kind wanted][group][keys, padded]`.
pub(crate) struct LaneLayout {
    /// Kinds that are wanted, and their place.
    kinds: [Option<usize>; KINDS],
    n_kinds: usize,
    group: usize,
    /// Keys and padded keys of each KV head.
    keys: Vec<(usize, usize)>,
    last: bool,
}

impl LaneLayout {
    pub(crate) fn new(args: &AttentionArgs<'_>, request: StatsRequest) -> Self {
        let wanted = [request.sum, request.recent_from.is_some_and(|f| f < args.n_tokens), request.last];
        let mut n_kinds = 0;
        let kinds = wanted.map(|wanted| {
            wanted.then(|| {
                n_kinds += 1;
                n_kinds - 1
            })
        });
        let keys = (0..args.n_kv_heads).map(|head| {
            let n = args.kv.n_keys(head);
            (n, n.next_multiple_of(TILE))
        });
        let group = args.n_heads / args.n_kv_heads;
        Self { kinds, n_kinds, group, keys: keys.collect(), last: request.last }
    }

    fn lane_len(&self, head: usize) -> usize {
        self.n_kinds * self.group * self.keys[head].1
    }

    pub(crate) fn len(&self, lanes: usize) -> usize {
        (0..self.keys.len()).map(|head| self.lane_len(head) * lanes).sum()
    }

    /// The sums of one lane of one KV head.
    pub(crate) fn range(&self, head: usize, lane: usize, lanes: usize) -> Range<usize> {
        let start = (0..head).map(|h| self.lane_len(h) * lanes).sum::<usize>() + lane * self.lane_len(head);
        start..start + self.lane_len(head)
    }

    /// Within a lane, the sums of `kind` for query head `member` of the group.
    pub(crate) fn columns(&self, head: usize, kind: usize, member: usize) -> Option<Range<usize>> {
        let padded = self.keys[head].1;
        self.kinds[kind].map(|place| {
            let start = (place * self.group + member) * padded;
            start..start + padded
        })
    }

    /// Query heads of a group.
    pub(crate) fn group(&self) -> usize {
        self.group
    }

    /// Adds the lanes, in order, to what `columns` holds.
    pub(crate) fn add_to(&self, columns: &mut ColumnStats, sums: &[f32], lanes: usize, pool: &Pool) {
        let n_heads = self.keys.len() * self.group;
        for kind in (0..KINDS).filter(|&kind| self.kinds[kind].is_some()) {
            let rows = columns.kind(kind);
            rows.resize_with(n_heads, Vec::new);
            for (head, row) in rows.iter_mut().enumerate() {
                if kind == 2 && self.last {
                    row.clear();
                }
                row.resize(self.keys[head / self.group].0, 0.0);
            }
            let rows = SharedMut::new(rows);
            pool.run(n_heads, |head, _| {
                // SAFETY: the pool runs every unit once, and each has a row of its own.
                let row = &mut unsafe { rows.slice(head..head + 1) }[0];
                let (kv_head, member) = (head / self.group, head % self.group);
                let Some(part) = self.columns(kv_head, kind, member) else { return };
                for lane in 0..lanes {
                    let lane = &sums[self.range(kv_head, lane, lanes)][part.clone()];
                    row.iter_mut().zip(lane).for_each(|(sum, x)| *sum += x);
                }
            });
        }
    }
}
