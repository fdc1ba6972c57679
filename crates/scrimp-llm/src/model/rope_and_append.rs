//! Between a layer's projections and its attention: queries and keys are turned to their positions, keys and values stored.
//!
//! One region does it for all sequences. One with few tokens is a unit, whose keys and values go to its cache there and then; the
//! rows of longer ones are turned in units, and stored by all threads together afterwards.

use super::{
    forward::{Buffers, Context, SequenceChunk},
    reconstruction::rotate,
    weights::Layer,
};
use scrimp_kernels::ops::RopeTable;
use scrimp_kv::PARALLEL_TOKENS;

/// Tokens of a longer sequence in a unit.
const TOKENS_PER_UNIT: usize = 8;

/// Consecutive rows of one sequence.
struct Unit<'a, 'p, 'm> {
    /// The first of them, among those of all sequences.
    first: usize,
    q: &'a mut [f32],
    k: &'a mut [f32],
    v: &'a [f32],
    /// The sequence, where these are all of its rows: then they are stored.
    part: Option<&'a mut SequenceChunk<'p, 'm>>,
    /// They could not be stored.
    failed: bool,
}

/// Splits the rows of `n` tokens off the front.
fn take<'a>(rows: &mut &'a mut [f32], n: usize, width: usize) -> &'a mut [f32] {
    rows.split_off_mut(..n * width).expect("rows of all tokens")
}

impl SequenceChunk<'_, '_> {
    /// Appends its keys and values to its cache.
    fn store(&mut self, context: Context<'_>, layer: usize, q: &[f32], k: &[f32], v: &[f32]) {
        let session = &mut *self.session;
        let position = session.kv.next_position(layer);
        self.error = session.kv.append(layer, k, v, context.pool).err().map(Into::into);
        if let Some(sampled) = session.sampled.as_mut().filter(|_| self.error.is_none()) {
            sampled.take(layer, position, q, context.config.q_dim());
        }
    }
}

impl Buffers {
    /// Turns `q` and `k` of all parts (after their norms, where the family has them) and appends `k` and `v` to the caches of those
    /// that have not failed.
    pub(super) fn turn_and_store(
        &mut self,
        context: Context<'_>,
        layer: &Layer,
        index: usize,
        parts: &mut [SequenceChunk<'_, '_>],
    ) {
        let Context { pool, config, .. } = context;
        let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
        let local = config.sliding_window[index].is_some() && config.rope_local.is_some();
        let rope = if local { &self.rope_local } else { &self.rope };
        let (mut q, mut k, mut v) = (&mut self.q[..], &mut self.k[..], &self.v[..]);
        let mut units = Vec::with_capacity(parts.len());
        for part in &mut *parts {
            let rows = part.rows();
            let few = rows.len() < PARALLEL_TOKENS;
            let tokens = if few { rows.len().max(1) } else { TOKENS_PER_UNIT };
            let mut part = few.then_some(part);
            for first in rows.clone().step_by(tokens) {
                let n = tokens.min(rows.end - first);
                let (q, k) = (take(&mut q, n, q_dim), take(&mut k, n, kv_dim));
                let v = v.split_off(..n * kv_dim).expect("rows of all tokens");
                units.push(Unit { first, q, k, v, part: part.take(), failed: false });
            }
        }
        pool.chunks(&mut units, 1, |_, units| {
            for unit in units {
                turn(context, layer.q_norm.as_deref(), rope, unit.first, (unit.q, q_dim));
                turn(context, layer.k_norm.as_deref(), rope, unit.first, (unit.k, kv_dim));
                if let Some(part) = unit.part.as_mut().filter(|part| part.error.is_none()) {
                    part.store(context, index, unit.q, unit.k, unit.v);
                    unit.failed = part.error.is_some();
                }
            }
        });
        // Several that ask for the last pages at once may all fail: one after the other, some do not.
        for unit in units.into_iter().filter(|unit| unit.failed) {
            if let Some(part) = unit.part {
                part.store(context, index, unit.q, unit.k, unit.v);
            }
        }
        for part in parts {
            let rows = part.rows();
            if part.error.is_none() && rows.len() >= PARALLEL_TOKENS {
                let q = &self.q[rows.start * q_dim..rows.end * q_dim];
                let kv = rows.start * kv_dim..rows.end * kv_dim;
                part.store(context, index, q, &self.k[kv.clone()], &self.v[kv]);
            }
        }
    }
}

/// Normalizes the heads of tokens `first..`, `width` elements each, and turns them.
fn turn(
    context: Context<'_>,
    norm: Option<&[f32]>,
    rope: &RopeTable,
    first: usize,
    (rows, width): (&mut [f32], usize),
) {
    let Context { level, config, .. } = context;
    for (i, row) in rows.chunks_exact_mut(width).enumerate() {
        let (cos, sin) = rope.row(first + i);
        for head in row.chunks_exact_mut(config.head_dim) {
            if let Some(weight) = norm {
                context.norm(weight).apply_in_place(level, head);
            }
            rotate(level, config, head, cos, sin);
        }
    }
}
