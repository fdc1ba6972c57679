//! Products of rows with the gradients of their outputs: the gradients of weights and scales.
//!
//! ```text
//! out[l * per_lookup + p] = < signs(l) * grad of the block of p, row(p) >
//! ```
//! The products are summed in 16 lanes with a fixed reduction: every level gives the same bits.

use super::{
    backward::Backward,
    gather::place,
    signs::{flip, flip_lanes},
    table::{Stored, Table, Values},
};
use crate::{
    arch::{Kernel, Level},
    exec::{DisjointSliceMut, Exec},
};

/// `out[l * per_lookup + p] = dot(signs * grad of the block, row(p))`: what the weights and scales of lookups are
/// trained with.
///
/// # Panics
/// When sizes do not fit each other, or an index lies outside the table.
pub fn dots(exec: Exec<'_>, table: &Table<'_>, batch: &Backward<'_>, out: &mut [f32]) {
    let Exec { pool, level } = exec;
    let (lookups, dim) = batch.check(table.block_dim);
    assert_eq!(out.len(), batch.indices.len());
    let bags = batch.bags.count(lookups);
    let out = DisjointSliceMut::new(out);
    let at_once = 64;
    pool.run(bags.div_ceil(at_once), |task, _| {
        for bag in task * at_once..bags.min((task + 1) * at_once) {
            let range = batch.bags.range(bag, lookups);
            let indices = range.start * batch.per_lookup..range.end * batch.per_lookup;
            // SAFETY: bags do not overlap: `Bags::range` of different bags are different lookups.
            let out = unsafe { out.slice(indices.clone()) };
            let grad = &batch.grad[bag * dim..(bag + 1) * dim];
            let dots = Dots {
                values: &[],
                factor: 1.0,
                table,
                indices: &batch.indices[indices],
                signs: if batch.signs.is_empty() { &[] } else { &batch.signs[range.clone()] },
                grad,
                per_lookup: batch.per_lookup,
                num_hashes: batch.num_hashes,
                out,
            };
            match table.values {
                Values::F32(values) => level.run(Dots::<f32> { values, ..dots }),
                Values::Bf16(values) => level.run(dots.of(values, 1.0)),
                Values::Int8 { q, scale } => level.run(dots.of(q, scale)),
                Values::Int4 { q, scale, .. } => level.run(dots.of(q, scale)),
            }
        }
    });
}

struct Dots<'a, T> {
    values: &'a [T],
    factor: f32,
    table: &'a Table<'a>,
    indices: &'a [u32],
    signs: &'a [u64],
    grad: &'a [f32],
    per_lookup: usize,
    num_hashes: usize,
    out: &'a mut [f32],
}

impl<'a> Dots<'a, f32> {
    /// The same of a table of another type, whose values are multiplied with `factor`.
    fn of<T>(self, values: &'a [T], factor: f32) -> Dots<'a, T> {
        let Dots { table, indices, signs, grad, per_lookup, num_hashes, out, .. } = self;
        Dots { values, factor, table, indices, signs, grad, per_lookup, num_hashes, out }
    }
}

impl<T: Stored> Kernel for Dots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let (block_dim, half) = (self.table.block_dim, self.table.half());
        for (p, (&index, out)) in self.indices.iter().zip(self.out.iter_mut()).enumerate() {
            let b = p % self.per_lookup / self.num_hashes;
            let (signs, at) = (self.signs.get(p / self.per_lookup).copied().unwrap_or(0), b * block_dim);
            let (start, shift) = place::<T>(index, self.table.stride, half);
            let (row, grad) = (&self.values[start..start + block_dim], &self.grad[at..at + block_dim]);
            let ((row, row_tail), (grad, grad_tail)) = (row.as_chunks::<16>(), grad.as_chunks::<16>());
            let mut dot = 0.0;
            if !row.is_empty() {
                let mut acc = s.splat(0.0);
                for (i, (row, grad)) in row.iter().zip(grad).enumerate() {
                    let grad = flip_lanes(s, s.load(grad), signs, at + i * 16);
                    acc = s.add(acc, s.mul(T::lanes(s, row, shift), grad));
                }
                dot = s.reduce_add(acc);
            }
            let tail = at + block_dim - grad_tail.len();
            for (i, (row, &grad)) in row_tail.iter().zip(grad_tail).enumerate() {
                dot += row.float(shift) * flip(grad, signs, tail + i);
            }
            *out = dot * self.factor;
        }
    }
}
