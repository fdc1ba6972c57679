//! Pairwise dot products of a sample's vectors (DLRM, arXiv 1906.00091, section 2.1.3), and their gradients.
//!
//! ```text
//! out[pair(i, j)] = <x_i, x_j>  for j < i, pair(i, j) = i (i - 1) / 2 + j
//! dx_i = sum over j != i of  d[pair] x_j
//! ```
//!
//! The vectors are transposed first, so that the lanes of a register are 16 values of j and there are no horizontal sums.

use crate::{Tier, dispatch::Kernel, isa::Simd, threads::Pool};

/// Vectors of a sample, at most.
pub const MAX_VECTORS: usize = 512;

/// Samples of a unit of parallel work.
const UNIT: usize = 16;

/// For each sample, `x` has `vectors` vectors of `dim` values; `out` has a place for each pair, every `stride` values,
/// from `offset` on.
///
/// # Panics
/// When sizes do not fit each other.
pub fn pairs(
    pool: &Pool,
    tier: Tier,
    x: &[f32],
    [vectors, dim]: [usize; 2],
    out: &mut [f32],
    stride: usize,
    offset: usize,
) {
    assert!(vectors <= MAX_VECTORS && offset + vectors * vectors.saturating_sub(1) / 2 <= stride);
    let samples = x.len() / (vectors * dim).max(1);
    assert_eq!(out.len(), samples * stride);
    pool.chunks(out, UNIT * stride, |unit, out| {
        let n = out.len() / stride;
        let x = &x[unit * UNIT * vectors * dim..][..n * vectors * dim];
        tier.run(Pairs { x, vectors, dim, out, stride, offset });
    });
}

struct Pairs<'a> {
    x: &'a [f32],
    vectors: usize,
    dim: usize,
    out: &'a mut [f32],
    stride: usize,
    offset: usize,
}

impl Kernel for Pairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Pairs { x, vectors, dim, out, stride, offset } = self;
        let chunks = vectors.div_ceil(16);
        // transposed[c][d]: value d of vectors 16 c .. 16 c + 16
        let mut transposed = vec![[0.0_f32; 16]; chunks * dim];
        for n in 0..out.len() / stride {
            let x = &x[n * vectors * dim..(n + 1) * vectors * dim];
            let out = &mut out[n * stride + offset..(n + 1) * stride];
            for i in 0..vectors {
                let column = &mut transposed[i / 16 * dim..(i / 16 + 1) * dim];
                for d in 0..dim {
                    column[d][i % 16] = x[i * dim + d];
                }
            }
            for c in 0..chunks {
                let column = &transposed[c * dim..(c + 1) * dim];
                let mut i = (c * 16 + 1).max(1);
                while i < vectors {
                    let rows = 4.min(vectors - i);
                    let mut acc = [s.splat(0.0); 4];
                    if rows == 4 {
                        let four = &x[i * dim..(i + 4) * dim];
                        for d in 0..dim {
                            let v = s.load(&column[d]);
                            for r in 0..4 {
                                acc[r] = s.fma(s.splat(four[r * dim + d]), v, acc[r]);
                            }
                        }
                    } else {
                        for d in 0..dim {
                            let v = s.load(&column[d]);
                            for r in 0..rows {
                                acc[r] = s.fma(s.splat(x[(i + r) * dim + d]), v, acc[r]);
                            }
                        }
                    }
                    for r in 0..rows {
                        let mut dots = [0.0; 16];
                        s.store(acc[r], &mut dots);
                        let (i, first) = (i + r, c * 16);
                        let count = (i - first).min(16);
                        out[i * (i - 1) / 2 + first..][..count].copy_from_slice(&dots[..count]);
                    }
                    i += rows;
                }
            }
        }
    }
}

/// Adds the gradients of the vectors to `dx`, given those of the pairs at the places where [`pairs`] writes them.
///
/// # Panics
/// As [`pairs`].
pub fn pairs_backward(
    pool: &Pool,
    tier: Tier,
    x: &[f32],
    [vectors, dim]: [usize; 2],
    grad: &[f32],
    stride: usize,
    offset: usize,
    dx: &mut [f32],
) {
    assert!(vectors <= MAX_VECTORS && offset + vectors * vectors.saturating_sub(1) / 2 <= stride);
    assert_eq!(x.len(), dx.len());
    let per = vectors * dim;
    assert_eq!(grad.len(), x.len() / per.max(1) * stride);
    pool.chunks(dx, UNIT * per, |unit, dx| {
        let n = dx.len() / per;
        let x = &x[unit * UNIT * per..][..n * per];
        let grad = &grad[unit * UNIT * stride..][..n * stride];
        tier.run(Gradients { x, vectors, dim, grad, stride, offset, dx });
    });
}

struct Gradients<'a> {
    x: &'a [f32],
    vectors: usize,
    dim: usize,
    grad: &'a [f32],
    stride: usize,
    offset: usize,
    dx: &'a mut [f32],
}

impl Gradients<'_> {
    /// `N` times 16 values of sample `n`'s gradients, from `at` on.
    #[inline(always)]
    fn lanes<S: Simd, const N: usize>(&mut self, s: S, n: usize, at: usize, weights: &[f32]) {
        let (vectors, dim) = (self.vectors, self.dim);
        let x = &self.x[n * vectors * dim..(n + 1) * vectors * dim];
        for i in 0..vectors {
            let to = &mut self.dx[(n * vectors + i) * dim + at..][..N * 16];
            let (to, _) = to.as_chunks_mut::<16>();
            let mut acc = [s.splat(0.0); N];
            for v in 0..N {
                acc[v] = s.load(&to[v]);
            }
            for j in 0..vectors {
                let w = s.splat(weights[i * vectors + j]);
                let (row, _) = x[j * dim + at..][..N * 16].as_chunks::<16>();
                for v in 0..N {
                    acc[v] = s.fma(w, s.load(&row[v]), acc[v]);
                }
            }
            for v in 0..N {
                s.store(acc[v], &mut to[v]);
            }
        }
    }
}

impl Kernel for Gradients<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (vectors, dim) = (self.vectors, self.dim);
        let mut weights = vec![0.0; vectors * vectors];
        for n in 0..self.dx.len() / (vectors * dim) {
            let grad = &self.grad[n * self.stride + self.offset..];
            let mut pair = 0;
            for i in 1..vectors {
                for j in 0..i {
                    weights[i * vectors + j] = grad[pair];
                    weights[j * vectors + i] = grad[pair];
                    pair += 1;
                }
            }
            let mut at = 0;
            while dim - at >= 64 {
                self.lanes::<S, 4>(s, n, at, &weights);
                at += 64;
            }
            while dim - at >= 16 {
                self.lanes::<S, 1>(s, n, at, &weights);
                at += 16;
            }
            for d in at..dim {
                for i in 0..vectors {
                    let mut sum = self.dx[(n * vectors + i) * dim + d];
                    for j in 0..vectors {
                        sum += weights[i * vectors + j] * self.x[(n * vectors + j) * dim + d];
                    }
                    self.dx[(n * vectors + i) * dim + d] = sum;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedding::IdHash;

    fn numbers(seed: u64, n: usize) -> Vec<f32> {
        let hash = IdHash::new(seed, 0);
        (0..n).map(|i| (hash.hash(i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn pairs_and_their_gradients() {
        let pool = Pool::new(2).unwrap();
        for [samples, vectors, dim] in
            [[1, 1, 4], [3, 2, 1], [5, 5, 16], [40, 18, 8], [2, 27, 64], [3, 40, 20]]
        {
            let (offset, count) = (3, vectors * (vectors - 1) / 2);
            let stride = offset + count + 2;
            let x = numbers(1, samples * vectors * dim);
            let grad = numbers(2, samples * stride);
            for tier in Tier::supported() {
                let mut out = vec![7.0; samples * stride];
                pairs(&pool, tier, &x, [vectors, dim], &mut out, stride, offset);
                let mut dx = vec![1.0; x.len()];
                pairs_backward(&pool, tier, &x, [vectors, dim], &grad, stride, offset, &mut dx);
                for n in 0..samples {
                    let x = |i: usize| &x[(n * vectors + i) * dim..][..dim];
                    let mut expected = vec![1.0_f32; vectors * dim];
                    let mut pair = n * stride + offset;
                    assert_eq!(out[n * stride..pair], [7.0; 3]);
                    for i in 0..vectors {
                        for j in 0..i {
                            let dot: f32 = x(i).iter().zip(x(j)).map(|(a, b)| a * b).sum();
                            assert!((out[pair] - dot).abs() < 1e-4, "{tier} {i} {j}");
                            for d in 0..dim {
                                expected[i * dim + d] += grad[pair] * x(j)[d];
                                expected[j * dim + d] += grad[pair] * x(i)[d];
                            }
                            pair += 1;
                        }
                    }
                    for (a, b) in dx[n * vectors * dim..].iter().zip(&expected) {
                        assert!((a - b).abs() < 1e-3, "{tier}");
                    }
                }
            }
        }
    }
}
