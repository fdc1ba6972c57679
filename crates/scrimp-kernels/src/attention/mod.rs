//! Attention over a paged key/value cache, for prefill and decode alike.
//!
//! ```text
//!   s[i][h][j] = scale q[i][h] . k[j][h / group]        (optionally cap tanh(s / cap)), + bias[j]
//!   out[i][h]  = sum over j of softmax_j(s[i][h])[j] v[j][h / group]        j over the keys that token i sees
//! ```
//! With sinks (gpt-oss, arXiv 2508.10925, section 2.2), `exp(sink[h])` is another term in the sum of the softmax.
//!
//!
//! A task is one KV head and a block of *rows*. A row is a pair (token, query head of the group): all query heads of a
//! group and neighboring tokens share the loads of K and V ([`qk_pv`]). Pages come from a [`KvView`]; [`storage`] has
//! their layouts.
//!
//! *Prefill*: tasks are blocks of rows. *Decode* (few rows): tasks are segments of keys, so that all threads can share one
//! KV head; their results are merged in order. The order of additions depends on shapes only, so the bits are the same
//! for every number of threads.
//!
//! *Error*, relative to the largest value: with f32 and f16 storage, every level is within 1e-5 of exact attention. With
//! bf16 storage, every level also rounds queries and probabilities to bf16. Levels then differ by f32 rounding (1e-5),
//! or by 2^-8 of the share of a probability that rounds to the other neighbor.
//!
//! *Packed pages* (int8, int4): each page has its own format, and a head may have packed and bf16 pages. The reference is
//! exact attention over the numbers that [`Packing`] reads from a page. Against it, probabilities are rounded to bf16 and
//! queries are not. With AMX, int8 and int4 pages and their queries are bf16.
//!
//! *Accumulated scores*: [`AccumulatedScores`] sums the attention that each key received, per query head, for eviction
//! policies. It costs one multiply-add per 16 scores, and nothing without a request.

mod accumulated_scores;
mod amx;
mod batch;
mod codes;
mod format;
mod packed_page;
mod qk_pv;
mod rows;
mod score_sums;
mod scratch;
mod sparse;
pub mod storage;
mod tables;
mod unpack;

pub use accumulated_scores::{AccumulatedScores, ScoresRequest};
pub use batch::{AttentionCall, attend_batch};
pub use scratch::AttentionScratch;
pub use storage::{
    PageGeometry, PageRows, Storage, StorageKind,
    packing::{PackedKind, Packing},
    sparse::Sparse,
};

use crate::exec::{DisjointSliceMut, Exec};
use rows::{BlockTask, Sink, TaskKernels};
use score_sums::Columns;
use std::ops::Range;

/// Fewest and most keys of a segment in decode, and how many segments to aim at.
const DECODE_SEGMENT: (usize, usize) = (256, 1024);
const DECODE_UNITS: usize = 16;
/// Keys that a block of rows is scored against at once in prefill (bounds the scratch memory).
const PREFILL_SEGMENT: usize = 8192;
/// Query rows of a task, and the most that a task may have (those of [`tiles`]).
const UNIT_ROWS: usize = 24;
const MOST_ROWS: usize = amx::ROWS;
/// Of the blocks of rows that are left, one in so many goes to the next accumulator of column sums.
const STAT_SHARE: usize = 4;
/// The smallest accumulator gets one in so many of all blocks.
const STAT_SMALLEST: usize = 32;

/// One page of keys and of values of a KV head, as a [`Storage`] wrote them; both start at a multiple of 64 bytes.
#[derive(Debug, Clone, Copy)]
pub struct PageView<'a> {
    /// The keys.
    pub k: &'a [u8],
    /// The values.
    pub v: &'a [u8],
    /// Added to the scores of the page's keys (`[page_tokens]`), `None` where all are 0.
    pub bias: Option<&'a [f32]>,
    /// How the page is packed, where it is (among bf16 pages only).
    pub packed: Option<PackedKind>,
}

/// The keys and values that a layer's queries see. Keys are numbered from 0 for each KV head.
pub trait KvView: Sync {
    /// Keys of `kv_head`.
    fn n_keys(&self, kv_head: usize) -> usize;
    /// The page with keys `index * page_tokens..`; unused slots of its last tile hold finite numbers.
    fn page(&self, kv_head: usize, index: usize) -> PageView<'_>;
    /// Whether some page of `kv_head` has a bias.
    fn has_bias(&self, kv_head: usize) -> bool;
    /// The keys that query `token` sees, within `0..n_keys`.
    fn visible(&self, kv_head: usize, token: usize) -> Range<usize>;
}

/// One call of attention.
#[derive(Clone, Copy)]
pub struct AttentionArgs<'a> {
    /// Format of the pages that are not packed.
    pub storage: StorageKind,
    /// Sizes of the pages.
    pub geometry: PageGeometry,
    /// Query tokens.
    pub n_tokens: usize,
    /// Query heads, a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// KV heads.
    pub n_kv_heads: usize,
    /// `[n_tokens][n_heads][head_dim]`, after RoPE.
    pub q: &'a [f32],
    /// Keys and values.
    pub kv: &'a dyn KvView,
    /// Factor on `q . k`.
    pub scale: f32,
    /// Soft cap on scores.
    pub softcap: Option<f32>,
    /// A score for each query head that takes a share of the softmax and has no value (`[n_heads]`).
    pub sinks: Option<&'a [f32]>,
    /// First token whose output is wanted. The outputs of earlier ones hold anything afterwards; they cost less, but
    /// still count in column sums.
    pub wanted_from: usize,
}

/// Computes attention into `out` (`[n_tokens][n_heads][head_dim]`) and, on request, adds to column sums.
///
/// A row that sees no key, or only keys with a bias of minus infinity, gives zeros.
///
/// # Panics
/// When the lengths of `q`, `out` or of a page do not fit the shapes, `n_heads` is no multiple of `n_kv_heads`, or a
/// page is packed and `storage` is not bf16.
pub fn attend(
    exec: Exec<'_>,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
    stats: Option<(ScoresRequest, &mut AccumulatedScores)>,
    scratch: &mut AttentionScratch,
) {
    match stats.filter(|(request, _)| request.wants_any(args.n_tokens)) {
        Some((request, columns)) => {
            check(args, out);
            scratch.prepare(exec.pool.threads());
            attend_with_stats(exec, args, out, (request, columns), scratch);
        }
        None => attend_batch(exec, &mut [AttentionCall { args: *args, out }], scratch),
    }
}

/// Panics where shapes do not fit.
fn check(args: &AttentionArgs<'_>, out: &[f32]) {
    let width = args.n_heads * args.geometry.head_dim;
    assert!(args.n_kv_heads > 0 && args.n_heads.is_multiple_of(args.n_kv_heads), "query heads per KV head");
    assert!(args.geometry.head_dim > 0 && args.geometry.page_tokens.is_multiple_of(storage::TILE));
    assert_eq!(args.q.len(), args.n_tokens * width, "length of q");
    assert_eq!(out.len(), args.n_tokens * width, "length of out");
    assert!(args.sinks.is_none_or(|sinks| sinks.len() == args.n_heads), "length of the sinks");
}

/// With column sums: a task is a run of blocks of a head (see [`lane_blocks`]), and has sums of its
/// own, which are added in order afterwards.
fn attend_with_stats(
    exec: Exec<'_>,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
    (request, columns): (ScoresRequest, &mut AccumulatedScores),
    scratch: &mut AttentionScratch,
) {
    let Exec { pool, level } = exec;
    let kernels = TaskKernels::new(level, args);
    let group = args.n_heads / args.n_kv_heads;
    let rows = args.n_tokens * group;
    let task_rows = kernels.task_rows();
    let lanes = lane_blocks(rows.div_ceil(task_rows));
    let rows_of = |blocks: &Range<usize>| blocks.start * task_rows..(blocks.end * task_rows).min(rows);
    let layout = accumulated_scores::LaneLayout::new(args, request, lanes.iter().map(rows_of));
    let mut lines = std::mem::take(&mut scratch.sums);
    let sums = lines.at_least(layout.len());
    {
        let (out, sums, scratch) = (DisjointSliceMut::new(out), DisjointSliceMut::new(&mut *sums), &*scratch);
        // Long tasks first, so that threads end together.
        pool.run(args.n_kv_heads * lanes.len(), |task, thread| {
            let (lane, head) = (task / args.n_kv_heads, task % args.n_kv_heads);
            // SAFETY: the pool runs every task once, and the ranges of lanes are apart.
            let sums = unsafe { sums.slice(layout.range(head, lane)) };
            sums.fill(0.0);
            for block in lanes[lane].clone().rev() {
                let rows = rows_of(&(block..block + 1));
                let counts = request.wants_row(args, &rows);
                if !counts && rows.end <= args.wanted_from * group {
                    continue;
                }
                let segment = if counts { usize::MAX } else { PREFILL_SEGMENT };
                let task = BlockTask { args, level, kernels, head, rows, segment, only: None };
                let columns = Columns { request, layout: &layout, lane, sums: &mut *sums };
                task.run(&mut scratch.thread(thread), &mut Sink::Rows(out), Some(columns));
            }
        });
    }
    layout.add_to(columns, sums, pool);
    scratch.sums = lines;
}

/// The blocks of each lane, last blocks first: each lane is a part of the blocks that are left, so that lanes get
/// smaller and any number of threads ends together, and yet there are few of them.
fn lane_blocks(blocks: usize) -> Vec<Range<usize>> {
    let mut lanes = Vec::new();
    let mut end = blocks;
    while end > 0 {
        let start = end.saturating_sub(end.div_ceil(STAT_SHARE).max(blocks.div_ceil(STAT_SMALLEST)));
        lanes.push(start..end);
        end = start;
    }
    lanes
}

#[cfg(test)]
mod tests;
