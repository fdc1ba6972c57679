//! The sums of one lookup: the forward pass of every encoder.
//!
//! ```text
//! out[b * block_dim ..][..block_dim] = signs * scale(b) * sum over i < num_hashes of w(p) * row(p)
//!                                      p = indices[b * num_hashes + i]
//! ```
//!
//! Equality: rows are added in the order of the indices, and each product and sum is rounded, so every level gives the
//! same bits. Sums of int8 and int4 rows without weights are exact integers.
//!
//! Limit: cache misses. A lookup reads `blocks * num_hashes` rows of `block_dim` values, prefetched ahead of their use.

use super::{
    signs::{SIGN_WIDTH, flip, flip_lanes},
    table::{Bytes, Stored},
};
use crate::arch::{EmbeddingSimd, L1, prefetch};
use std::ops::Range;

/// A table, as its lookups read it.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) block_dim: usize,
    pub(crate) stride: usize,
    /// Values in the low halves, for types that have halves.
    pub(crate) half: usize,
    /// Rows added up per block.
    pub(crate) num_hashes: usize,
}

/// The rows of a lookup.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) indices: &'a [u32],
    /// One per index, or none: then all are 1.
    pub(crate) weights: &'a [f32],
}

impl Terms<'_> {
    /// The terms `range`.
    #[inline(always)]
    fn slice(self, range: Range<usize>) -> Self {
        let weights = if self.weights.is_empty() { self.weights } else { &self.weights[range.clone()] };
        Self { indices: &self.indices[range], weights }
    }
}

/// How sums become output values.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue {
    /// The factor of all values.
    pub(crate) scale: f32,
    /// Signs of the lookup, as in `signs.rs`.
    pub(crate) signs: u64,
    /// Position of the first output value in the lookup, which determines its sign.
    pub(crate) first: usize,
    /// Adds to the output instead of overwriting it.
    pub(crate) add: bool,
    /// Stores past the caches. Only whole registers of 16 values are affected.
    pub(crate) stream: bool,
}

impl Epilogue {
    /// The same for output values that begin `n` values later.
    #[inline(always)]
    fn after(self, n: usize) -> Self {
        Self { first: self.first + n, ..self }
    }
}

impl<T: Stored> Rows<'_, T> {
    /// See [`place`].
    #[inline(always)]
    fn place(&self, index: u32) -> (usize, u32) {
        place::<T>(index, self.stride, self.half)
    }

    /// Prefetches the rows of `indices`.
    #[inline(always)]
    pub(crate) fn prefetch(&self, indices: &[u32]) {
        let bytes = self.block_dim * size_of::<T>();
        let lines = bytes.div_ceil(64);
        // Rows that overlap begin anywhere in a line, and end in one more.
        let anywhere = self.stride < self.block_dim;
        for &index in indices {
            let at = self.values.as_ptr().wrapping_add(self.place(index).0).cast::<u8>();
            prefetch::<L1>(at);
            for line in 1..lines {
                prefetch::<L1>(at.wrapping_add(line * 64));
            }
            if anywhere {
                prefetch::<L1>(at.wrapping_add(bytes - 1));
            }
        }
    }

    /// One lookup: all blocks of `out`. `scales` has one scale for each group of neighboring blocks; it replaces the
    /// scale of `epilogue`. `K` is `num_hashes`, or 0 for any number.
    #[inline(always)]
    pub(crate) fn lookup<S: EmbeddingSimd, const K: usize>(
        &self,
        s: S,
        terms: Terms<'_>,
        scales: &[f32],
        epilogue: Epilogue,
        out: &mut [f32],
    ) {
        let num_hashes = if K == 0 { self.num_hashes } else { K };
        let block_dim = self.block_dim;
        if scales.len() == 1 {
            let epilogue = Epilogue { scale: scales[0], ..epilogue };
            return match block_dim {
                2 => self.narrow::<2, K>(terms, epilogue, out),
                4 => self.narrow::<4, K>(terms, epilogue, out),
                8 => self.narrow::<8, K>(terms, epilogue, out),
                _ => self.blocks::<S, K>(s, terms, epilogue, out),
            };
        }
        // Several groups are rare: they have no specialized code for each `block_dim`.
        let blocks_per_group = terms.indices.len() / num_hashes / scales.len();
        for (g, &scale) in scales.iter().enumerate() {
            let range = g * blocks_per_group * num_hashes..(g + 1) * blocks_per_group * num_hashes;
            let first = g * blocks_per_group * block_dim;
            let out = &mut out[first..first + blocks_per_group * block_dim];
            self.blocks::<S, K>(s, terms.slice(range), Epilogue { scale, ..epilogue.after(first) }, out);
        }
    }

    /// Blocks of any `block_dim`. The loops use indices: iterator adaptors divide, and the compiler does not inline
    /// them reliably.
    #[inline(always)]
    fn blocks<S: EmbeddingSimd, const K: usize>(
        &self,
        s: S,
        terms: Terms<'_>,
        epilogue: Epilogue,
        out: &mut [f32],
    ) {
        let num_hashes = if K == 0 { self.num_hashes } else { K };
        let (mut p, mut at) = (0, 0);
        while p < terms.indices.len() {
            let out = &mut out[at..at + self.block_dim];
            self.block::<S, K>(s, terms.slice(p..p + num_hashes), epilogue.after(at), out);
            p += num_hashes;
            at += self.block_dim;
        }
    }

    /// All blocks of `W` values, each summed in registers.
    #[inline(always)]
    fn narrow<const W: usize, const K: usize>(&self, terms: Terms<'_>, epilogue: Epilogue, out: &mut [f32]) {
        let (Terms { indices, weights }, Epilogue { scale, signs, add, .. }) = (terms, epilogue);
        let num_hashes = if K == 0 { self.num_hashes } else { K };
        const { assert!(SIGN_WIDTH.is_multiple_of(W)) };
        let (blocks, _) = out.as_chunks_mut::<W>();
        for b in 0..blocks.len() {
            let mut acc = [0.0_f32; W];
            for p in b * num_hashes..(b + 1) * num_hashes {
                let (start, shift) = self.place(indices[p]);
                let (row, _) = self.values[start..start + W].as_chunks::<W>();
                let w = weights.get(p).copied().unwrap_or(1.0);
                for i in 0..W {
                    acc[i] += w * row[0][i].float(shift);
                }
            }
            let scale = flip(scale, signs, b * W);
            for i in 0..W {
                let value = scale * acc[i];
                blocks[b][i] = if add { blocks[b][i] + value } else { value };
            }
        }
    }

    /// One block: 64 values at a time, then 16, then one.
    #[inline(always)]
    fn block<S: EmbeddingSimd, const K: usize>(
        &self,
        s: S,
        terms: Terms<'_>,
        epilogue: Epilogue,
        out: &mut [f32],
    ) {
        let (Terms { indices, weights }, Epilogue { scale, signs, first, add, .. }) = (terms, epilogue);
        let mut at = 0;
        while out.len() - at >= 64 {
            let acc = T::sum::<S, K>(s, self, indices, weights, at);
            store(s, acc, epilogue.after(at), &mut out[at..at + 64]);
            at += 64;
        }
        while out.len() - at >= 16 {
            let acc = self.lanes::<S, 1, K>(s, indices, weights, at);
            store(s, acc, epilogue.after(at), &mut out[at..at + 16]);
            at += 16;
        }
        for i in at..out.len() {
            let mut acc = 0.0_f32;
            for p in 0..indices.len() {
                let (start, shift) = self.place(indices[p]);
                acc += weights.get(p).copied().unwrap_or(1.0) * self.values[start + i].float(shift);
            }
            let value = flip(scale * acc, signs, first + i);
            out[i] = if add { out[i] + value } else { value };
        }
    }

    /// The sums of `N` times 16 values from `at` on.
    #[inline(always)]
    pub(crate) fn lanes<S: EmbeddingSimd, const N: usize, const K: usize>(
        &self,
        s: S,
        indices: &[u32],
        weights: &[f32],
        at: usize,
    ) -> [S::F; N] {
        let mut acc = [s.splat(0.0); N];
        for p in 0..if K == 0 { indices.len() } else { K } {
            let (start, shift) = self.place(indices[p]);
            let start = start + at;
            let (row, _) = self.values[start..start + N * 16].as_chunks::<16>();
            if weights.is_empty() {
                for n in 0..N {
                    acc[n] = s.add(acc[n], T::lanes(s, &row[n], shift));
                }
            } else {
                let w = s.splat(weights[p]);
                for n in 0..N {
                    // Two roundings, as in the narrow blocks.
                    acc[n] = s.add(acc[n], s.mul(w, T::lanes(s, &row[n], shift)));
                }
            }
        }
        acc
    }
}

impl<T: Bytes> Rows<'_, T> {
    /// The sums of 64 values of bytes or their halves, without weights in integers: exact either way.
    #[inline(always)]
    pub(crate) fn bytes<S: EmbeddingSimd, const K: usize>(
        &self,
        s: S,
        indices: &[u32],
        weights: &[f32],
        at: usize,
    ) -> [S::F; 4] {
        if !weights.is_empty() {
            return self.lanes::<S, 4, K>(s, indices, weights, at);
        }
        let mut acc = [s.splat_i16(0); 2];
        for p in 0..if K == 0 { indices.len() } else { K } {
            let (start, shift) = self.place(indices[p]);
            let start = start + at;
            let (row, _) = self.values[start..start + 64].as_chunks::<64>();
            let row = T::bytes(&row[0], shift);
            let (row, _) = row.as_chunks::<32>();
            acc = [s.add_i8(acc[0], &row[0]), s.add_i8(acc[1], &row[1])];
        }
        let [a, b] = [s.floats(acc[0]), s.floats(acc[1])];
        [a[0], a[1], b[0], b[1]]
    }
}

/// Where the row of `index` begins, and the shift that brings its halves of bytes down (see [`Int4`](super::Int4)).
#[inline(always)]
pub(crate) fn place<T: Stored>(index: u32, stride: usize, half: usize) -> (usize, u32) {
    let at = index as usize * stride;
    let high = usize::from(T::HALVES && at >= half);
    (at - high * half, high as u32 * 4)
}

/// Writes `signs * scale * acc`, `N` times 16 values.
#[inline(always)]
pub(crate) fn store<S: EmbeddingSimd, const N: usize>(
    s: S,
    acc: [S::F; N],
    epilogue: Epilogue,
    out: &mut [f32],
) {
    let Epilogue { scale, signs, first: at, add, stream } = epilogue;
    let scale = s.splat(scale);
    let (out, _) = out.as_chunks_mut::<16>();
    for n in 0..N {
        let mut value = flip_lanes(s, s.mul(scale, acc[n]), signs, at + n * 16);
        if add {
            value = s.add(s.load(&out[n]), value);
            s.store(value, &mut out[n]);
        } else if stream {
            s.stream(value, &mut out[n]);
        } else {
            s.store(value, &mut out[n]);
        }
    }
}
