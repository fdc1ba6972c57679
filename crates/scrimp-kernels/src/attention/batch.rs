//! Attention of many sequences in one parallel region.
//!
//! A call is one sequence: its queries, its keys and its output. The cut of a call into tasks depends on that call
//! alone, so its result has the same bits in any batch.

use super::{
    AttentionArgs, DECODE_SEGMENT, DECODE_UNITS, PREFILL_SEGMENT, UNIT_ROWS,
    rows::{self, BlockTask, Sink, TaskKernels},
    scratch::AttentionScratch,
};
use crate::{
    arch::SimdLevel,
    exec::{DisjointSliceMut, Exec},
};

/// One sequence's attention.
pub struct AttentionCall<'a> {
    /// What to compute.
    pub args: AttentionArgs<'a>,
    /// The result, `[n_tokens][n_heads][head_dim]`.
    pub out: &'a mut [f32],
}

/// A task of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    call: usize,
    head: usize,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    /// Prefill: a block of rows against all keys.
    Rows(usize),
    /// Decode: all rows against the keys from `start` on, where those are all that there are.
    Keys { start: usize },
    /// Decode: all rows against a segment of the keys; the partial result goes to `at`, to be merged.
    Segment { start: usize, at: usize },
}

/// A call as workers see it.
struct Job<'a> {
    args: &'a AttentionArgs<'a>,
    level: SimdLevel,
    kernels: TaskKernels,
    /// Rows of each KV head: tokens times query heads of the group.
    rows: usize,
    /// Keys of a segment.
    segment: usize,
    out: DisjointSliceMut<'a, f32>,
}

/// [`attend`](super::attend) without column sums, for many sequences.
///
/// # Panics
/// As [`attend`](super::attend).
pub fn attend_batch(exec: Exec<'_>, calls: &mut [AttentionCall<'_>], scratch: &mut AttentionScratch) {
    let Exec { pool, level } = exec;
    scratch.prepare(pool.threads());
    let mut tasks = std::mem::take(&mut scratch.tasks);
    let mut partial = std::mem::take(&mut scratch.partial);
    tasks.clear();
    let mut partial_len = 0;
    let mut jobs = Vec::with_capacity(calls.len());
    for call in &mut *calls {
        super::check(&call.args, call.out);
        let (args, index) = (&call.args, jobs.len());
        let rows = args.n_tokens * (args.n_heads / args.n_kv_heads);
        let mut segment = PREFILL_SEGMENT;
        let kernels = TaskKernels::new(level, args);
        if rows > UNIT_ROWS {
            // The last rows see the most keys: long tasks first.
            let blocks = rows.div_ceil(kernels.task_rows());
            let blocks = (0..args.n_kv_heads).flat_map(|h| (0..blocks).rev().map(move |b| (h, b)));
            tasks.extend(blocks.map(|(head, block)| Task { call: index, head, what: What::Rows(block) }));
        } else if rows > 0 {
            segment = segment_of(args);
            cut_keys(args, index, segment, &mut tasks, &mut partial_len);
        }
        jobs.push(Job { args, level, kernels, rows, segment, out: DisjointSliceMut::new(&mut *call.out) });
    }
    if partial.len() < partial_len {
        partial.resize(partial_len, 0.0);
    }
    {
        let (partial, scratch, tasks, jobs) = (DisjointSliceMut::new(&mut partial), &*scratch, &tasks, &jobs);
        pool.run(tasks.len(), |task, thread| {
            let Task { call, head, what } = tasks[task];
            jobs[call].run(head, what, &partial, scratch, thread);
        });
    }
    for same in tasks.chunk_by(|a, b| (a.call, a.head) == (b.call, b.head)) {
        if let What::Segment { at, .. } = same[0].what {
            let Job { args, rows, out, .. } = &jobs[same[0].call];
            let parts = &partial[at..at + same.len() * partial_stride(args, *rows)];
            // SAFETY: the parallel region is over, so no other thread accesses the output.
            let out = unsafe { out.slice(0..args.q.len()) };
            rows::merge(args, same[0].head, *rows, parts, out);
        }
    }
    drop(jobs);
    scratch.partial = partial;
    scratch.tasks = tasks;
}

/// Keys of a segment: one KV head can use all threads, and segments are worth their beginnings. Keys behind the visible
/// ones do not count: a token has the same bits whether or not later tokens were appended.
fn segment_of(args: &AttentionArgs<'_>) -> usize {
    let visible = |head| rows::union_of_visible(args, head, 0..args.n_tokens).end;
    let keys: usize = (0..args.n_kv_heads).map(visible).sum();
    (keys / DECODE_UNITS).next_multiple_of(64).clamp(DECODE_SEGMENT.0, DECODE_SEGMENT.1)
}

/// Floats of the partial result of a task.
fn partial_stride(args: &AttentionArgs<'_>, rows: usize) -> usize {
    rows * (args.geometry.head_dim + 2)
}

/// Pushes the tasks of a decode step.
fn cut_keys(
    args: &AttentionArgs<'_>,
    call: usize,
    segment: usize,
    tasks: &mut Vec<Task>,
    partial_len: &mut usize,
) {
    let rows = args.n_tokens * (args.n_heads / args.n_kv_heads);
    for head in 0..args.n_kv_heads {
        let keys = rows::union_of_visible(args, head, 0..args.n_tokens);
        let first = keys.start / segment;
        let last = keys.end.div_ceil(segment).max(first + 1);
        if last == first + 1 {
            tasks.push(Task { call, head, what: What::Keys { start: first * segment } });
            continue;
        }
        for start in (first..last).map(|i| i * segment) {
            tasks.push(Task { call, head, what: What::Segment { start, at: *partial_len } });
            *partial_len += partial_stride(args, rows);
        }
    }
}

impl Job<'_> {
    fn run(
        &self,
        head: usize,
        what: What,
        partial: &DisjointSliceMut<'_, f32>,
        scratch: &AttentionScratch,
        thread: usize,
    ) {
        let Self { args, level, kernels, rows, segment, out } = *self;
        let mut sink = Sink::Rows(out);
        let (rows, only) = match what {
            What::Rows(block) => {
                let task_rows = kernels.task_rows();
                (block * task_rows..((block + 1) * task_rows).min(rows), None)
            }
            What::Keys { start } => (0..rows, Some(start..start + segment)),
            What::Segment { start, at } => {
                // SAFETY: the pool runs every task once, and tasks have parts of their own.
                sink = Sink::Partial(unsafe { partial.slice(at..at + partial_stride(args, rows)) });
                (0..rows, Some(start..start + segment))
            }
        };
        let task = BlockTask { args, level, kernels, head, rows, segment, only };
        task.run(&mut scratch.thread(thread), &mut sink, None);
    }
}
