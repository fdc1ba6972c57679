//! The step between projections and attention: applies RoPE to queries and keys, and appends keys and values to caches.
//!
//! One parallel region serves all sequences. A task applies RoPE to consecutive rows of one chunk. A chunk with few
//! tokens is one task, which also appends to the cache; the keys and values of longer chunks are appended afterwards by
//! all threads together.

use super::{
    chunk::{LayerPlace, SequenceChunk},
    forward::Pass,
    weights::LayerNorms,
};
use crate::config::{ModelConfig, RopePairs};
use scrimp_kernels::{
    Exec, SimdLevel,
    ops::{self, RopeTable},
};
use scrimp_kv::PARALLEL_TOKENS;

/// Tokens of a longer chunk in a task.
const TOKENS_PER_TASK: usize = 8;

/// Consecutive rows of one chunk.
struct Task<'a, 'c> {
    /// The first row in the pass.
    first: usize,
    q: &'a mut [f32],
    k: &'a mut [f32],
    v: &'a mut [f32],
    /// The chunk, if the task has all of its rows. Then the task appends them.
    chunk: Option<&'a mut SequenceChunk<'c>>,
    /// The rows could not be appended.
    failed: bool,
}

/// Splits the rows of `n` tokens off the front.
pub(super) fn take<'a>(rows: &mut &'a mut [f32], n: usize, width: usize) -> &'a mut [f32] {
    rows.split_off_mut(..n * width).expect("rows of all tokens")
}

impl SequenceChunk<'_> {
    /// Appends its keys and values to its cache.
    fn append(&mut self, exec: Exec<'_>, place: LayerPlace, q: &[f32], k: &[f32], v: &[f32]) {
        let layer = place.kv;
        let position = self.kv.next_position(layer);
        self.error = self.kv.append(layer, k, v, exec.pool).err().map(Into::into);
        if let Some(sampled) = self.sampled_queries.as_mut().filter(|_| place.full && self.error.is_none()) {
            sampled.add(layer, position, q, q.len() / self.n.max(1));
        }
    }
}

impl Pass<'_> {
    /// Applies RoPE to `q` and `k` of all chunks (after their norms, if the family has them) and appends `k` and `v`
    /// to the caches of the chunks without an error. A layer without keys and values of its own has only `q`.
    pub(super) fn rope_and_append(
        &mut self,
        norms: &LayerNorms,
        place: LayerPlace,
        chunks: &mut [SequenceChunk<'_>],
    ) {
        let Self { exec, config, buffers, .. } = self;
        let (exec, own, heads) = (*exec, !place.shares_kv, place.heads);
        let (q_dim, kv_dim) = (heads.q_dim(), if own { heads.kv_dim() } else { 0 });
        let rope = if place.local_rope { &buffers.rope_local } else { &buffers.rope };
        let (rope, temperature) = (place.rope.then_some(rope), &buffers.temperature);
        let (mut q, mut k, mut v) = (&mut buffers.q[..], &mut buffers.k[..], &mut buffers.v[..]);
        let mut tasks = Vec::with_capacity(chunks.len());
        for chunk in &mut *chunks {
            let rows = chunk.rows();
            let few = rows.len() < PARALLEL_TOKENS;
            let tokens = if few { rows.len().max(1) } else { TOKENS_PER_TASK };
            let mut chunk = few.then_some(chunk);
            for first in rows.clone().step_by(tokens) {
                let n = tokens.min(rows.end - first);
                let (q, k, v) = (take(&mut q, n, q_dim), take(&mut k, n, kv_dim), take(&mut v, n, kv_dim));
                tasks.push(Task { first, q, k, v, chunk: chunk.take(), failed: false });
            }
        }
        exec.pool.chunks(&mut tasks, 1, |_, tasks| {
            for task in tasks {
                let heads = Heads { exec, config, dim: heads.head_dim, rope, first: task.first };
                heads.norm_and_rope(norms.q_norm.as_deref(), task.q, q_dim);
                let factors = temperature.get(task.first..).unwrap_or_default();
                for (q, &factor) in task.q.chunks_exact_mut(q_dim).zip(factors) {
                    ops::scale(exec.level, factor, q);
                }
                if !own {
                    continue;
                }
                heads.norm_and_rope(norms.k_norm.as_deref(), task.k, kv_dim);
                if let Some(weight) = &norms.v_norm {
                    let parts = task.v.chunks_exact_mut(weight.len());
                    parts.for_each(|part| config.rms_norm(weight).apply_in_place(exec.level, part));
                }
                if let Some(chunk) = task.chunk.as_mut().filter(|chunk| chunk.error.is_none()) {
                    chunk.append(exec, place, task.q, task.k, task.v);
                    task.failed = chunk.error.is_some();
                }
            }
        });
        // Chunks that compete for the last pages may all fail. In sequence, some succeed.
        for task in tasks.into_iter().filter(|task| task.failed) {
            if let Some(chunk) = task.chunk {
                chunk.append(exec, place, task.q, task.k, task.v);
            }
        }
        for chunk in chunks {
            let rows = chunk.rows();
            if own && chunk.error.is_none() && rows.len() >= PARALLEL_TOKENS {
                let q = &buffers.q[rows.start * q_dim..rows.end * q_dim];
                let kv = rows.start * kv_dim..rows.end * kv_dim;
                chunk.append(exec, place, q, &buffers.k[kv.clone()], &buffers.v[kv]);
            }
        }
    }
}

/// The rows from `first` on, by heads.
struct Heads<'a> {
    exec: Exec<'a>,
    config: &'a ModelConfig,
    /// Elements per head.
    dim: usize,
    /// `None`: the layer has no positions.
    rope: Option<&'a RopeTable>,
    first: usize,
}

impl Heads<'_> {
    /// Normalizes the heads of `rows`, `[n][width]`, each or all together, and applies RoPE to them.
    fn norm_and_rope(&self, norm: Option<&[f32]>, rows: &mut [f32], width: usize) {
        let Self { exec, config, dim, rope, first } = *self;
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            let angles = rope.map(|rope| rope.row(first + i));
            if let Some(weight) = norm {
                row.chunks_exact_mut(weight.len())
                    .for_each(|part| config.rms_norm(weight).apply_in_place(exec.level, part));
            }
            if let Some((cos, sin)) = angles {
                row.chunks_exact_mut(dim).for_each(|head| apply_rope(exec.level, config, head, cos, sin));
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
