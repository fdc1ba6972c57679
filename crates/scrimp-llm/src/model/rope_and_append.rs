//! The step between a layer's projections and its attention: rotate queries and keys, append keys and values to the caches.
//!
//! One parallel region covers all sequences. A sequence with few tokens is one task, which also appends to its cache. The rows of a
//! longer sequence are split into several tasks, and all threads together append them afterwards.

use super::{
    forward::{Buffers, Context, SequenceChunk},
    weights::Layer,
};
use crate::config::{ModelConfig, RopePairs};
use scrimp_kernels::{
    SimdLevel,
    ops::{self, RopeTable},
};
use scrimp_kv::PARALLEL_TOKENS;

/// Tokens per task of a longer sequence.
const TOKENS_PER_TASK: usize = 8;

/// Consecutive rows of one sequence.
struct Task<'a, 'p, 'm> {
    /// The index of the first row among the rows of all sequences.
    first: usize,
    q: &'a mut [f32],
    k: &'a mut [f32],
    v: &'a [f32],
    /// The sequence, if the task has all of its rows and appends them.
    chunk: Option<&'a mut SequenceChunk<'p, 'm>>,
    /// Whether the append failed.
    failed: bool,
}

/// Splits the rows of `n` tokens off the front.
fn take<'a>(rows: &mut &'a mut [f32], n: usize, width: usize) -> &'a mut [f32] {
    rows.split_off_mut(..n * width).expect("rows of all tokens")
}

impl SequenceChunk<'_, '_> {
    /// Appends keys and values to the sequence's cache.
    fn append(&mut self, context: Context<'_>, layer: usize, q: &[f32], k: &[f32], v: &[f32]) {
        let session = &mut *self.session;
        let position = session.kv.next_position(layer);
        self.error = session.kv.append(layer, k, v, context.pool).err().map(Into::into);
        if let Some(sampled) = session.sampled_queries.as_mut().filter(|_| self.error.is_none()) {
            sampled.add(layer, position, q, context.config.q_dim());
        }
    }
}

impl Buffers {
    /// Rotates `q` and `k` of all chunks (after their norms, where the family has them) and appends `k` and `v` to the caches of the
    /// chunks that have not failed.
    pub(super) fn rope_and_append(
        &mut self,
        context: Context<'_>,
        layer: &Layer,
        index: usize,
        chunks: &mut [SequenceChunk<'_, '_>],
    ) {
        let Context { pool, config, .. } = context;
        let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
        let local = config.sliding_window[index].is_some() && config.rope_local.is_some();
        let rope = if local { &self.rope_local } else { &self.rope };
        let (mut q, mut k, mut v) = (&mut self.q[..], &mut self.k[..], &self.v[..]);
        let mut tasks = Vec::with_capacity(chunks.len());
        for chunk in &mut *chunks {
            let rows = chunk.rows();
            let few = rows.len() < PARALLEL_TOKENS;
            let tokens = if few { rows.len().max(1) } else { TOKENS_PER_TASK };
            let mut chunk = few.then_some(chunk);
            for first in rows.clone().step_by(tokens) {
                let n = tokens.min(rows.end - first);
                let (q, k) = (take(&mut q, n, q_dim), take(&mut k, n, kv_dim));
                let v = v.split_off(..n * kv_dim).expect("rows of all tokens");
                tasks.push(Task { first, q, k, v, chunk: chunk.take(), failed: false });
            }
        }
        let (q_rows, k_rows) = (
            Rows { norm: layer.q_norm.as_deref(), width: q_dim },
            Rows { norm: layer.k_norm.as_deref(), width: kv_dim },
        );
        pool.chunks(&mut tasks, 1, |_, tasks| {
            for task in tasks {
                q_rows.norm_and_rope(context, rope, task.first, task.q);
                k_rows.norm_and_rope(context, rope, task.first, task.k);
                if let Some(chunk) = task.chunk.as_mut().filter(|chunk| chunk.error.is_none()) {
                    chunk.append(context, index, task.q, task.k, task.v);
                    task.failed = chunk.error.is_some();
                }
            }
        });
        // Concurrent appends that compete for the last pages may all fail. One after the other, the first ones succeed.
        for task in tasks.into_iter().filter(|task| task.failed) {
            if let Some(chunk) = task.chunk {
                chunk.append(context, index, task.q, task.k, task.v);
            }
        }
        for chunk in chunks {
            let rows = chunk.rows();
            if chunk.error.is_none() && rows.len() >= PARALLEL_TOKENS {
                let q = &self.q[rows.start * q_dim..rows.end * q_dim];
                let kv = rows.start * kv_dim..rows.end * kv_dim;
                chunk.append(context, index, q, &self.k[kv.clone()], &self.v[kv]);
            }
        }
    }
}

/// Rows of queries or keys.
struct Rows<'a> {
    /// The weight of the norm over each head, if the family has one.
    norm: Option<&'a [f32]>,
    width: usize,
}

impl Rows<'_> {
    /// Normalizes and rotates the heads of `rows`, the rows of tokens `first..`.
    fn norm_and_rope(&self, context: Context<'_>, rope: &RopeTable, first: usize, rows: &mut [f32]) {
        let Context { level, config, .. } = context;
        for (i, row) in rows.chunks_exact_mut(self.width).enumerate() {
            let (cos, sin) = rope.row(first + i);
            for head in row.chunks_exact_mut(config.head_dim) {
                if let Some(weight) = self.norm {
                    context.norm(weight).apply_in_place(level, head);
                }
                apply_rope(level, config, head, cos, sin);
            }
        }
    }
}

/// Rotates the pairs of a head (`[head_dim]`).
pub(super) fn apply_rope(level: SimdLevel, config: &ModelConfig, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    match config.rope_pairs {
        RopePairs::Halves => ops::rotate_halves(level, head, cos, sin),
        RopePairs::Adjacent => ops::rotate_adjacent(level, head, cos, sin),
    }
}
