//! Pairwise dot products of a sample's vectors, and their gradients (DLRM, arXiv 1906.00091, section 2.1.3).
//!
//! ```text
//! out[pair(i, j)] = <x_i, x_j>  for j < i, pair(i, j) = i (i - 1) / 2 + j
//! dx_i = sum over j != i of  d[pair] x_j
//!
//! transposed: [vectors / 16][dim][16 vectors]         a register has 16 values of j
//! ```
//!
//! A sample has its first vector (DLRM: of the numbers) and the others (of the ids) in two arrays. They are copied
//! together and transposed, one sample at a time, so that they fit the first-level cache and no sum crosses lanes.
//!
//! Equality: each sum has a fixed order, so every level and number of threads gives the same bits.

use crate::{
    arch::{Kernel, Level, Simd, array},
    exec::{DisjointSliceMut, Exec},
};

/// Vectors of a sample, at most.
pub const MAX_VECTORS: usize = 512;

/// Samples of a task.
const TASK: usize = 16;
/// Vectors whose products with 16 others are added up at once.
const ROWS: usize = 8;

/// The vectors of samples.
#[derive(Debug, Clone, Copy)]
pub struct Vectors<'a> {
    /// The first vector of each sample, or nothing where they have no such.
    pub head: &'a [f32],
    /// The others: `others` for each sample.
    pub tail: &'a [f32],
    /// Vectors of a sample that are in `tail`.
    pub others: usize,
    /// Values of a vector.
    pub dim: usize,
}

impl Vectors<'_> {
    /// Vectors of a sample.
    fn count(&self) -> usize {
        self.others + usize::from(!self.head.is_empty())
    }

    /// Checks the sizes; returns the number of samples.
    fn check(&self, PairPlaces { stride, offset }: PairPlaces) -> usize {
        let vectors = self.count();
        assert!(vectors <= MAX_VECTORS && offset + vectors * vectors.saturating_sub(1) / 2 <= stride);
        let samples = match self.head.len() {
            0 => self.tail.len() / (self.others * self.dim).max(1),
            head => head / self.dim.max(1),
        };
        assert_eq!(self.tail.len(), samples * self.others * self.dim);
        assert!(self.head.is_empty() || self.head.len() == samples * self.dim);
        samples
    }

    /// Copies the vectors of sample `n` to `to`.
    #[inline(always)]
    fn gather(&self, n: usize, to: &mut [f32]) {
        let tail = self.others * self.dim;
        let (a, b) = to.split_at_mut(to.len() - tail);
        a.copy_from_slice(&self.head[n * a.len()..(n + 1) * a.len()]);
        b.copy_from_slice(&self.tail[n * tail..(n + 1) * tail]);
    }
}

/// Where the pairs of samples are: sample `n` from `n * stride + offset` on.
#[derive(Debug, Clone, Copy)]
pub struct PairPlaces {
    /// Values from sample to sample.
    pub stride: usize,
    /// Values before the first pair of a sample.
    pub offset: usize,
}

/// Writes the products of all pairs of each sample to their places in `out`.
///
/// # Panics
/// When sizes do not fit each other.
pub fn pairs(exec: Exec<'_>, x: &Vectors<'_>, out: &mut [f32], places: PairPlaces) {
    let (Exec { pool, level }, PairPlaces { stride, offset }) = (exec, places);
    let samples = x.check(places);
    assert_eq!(out.len(), samples * stride);
    pool.chunks(out, TASK * stride, |task, out| {
        level.run(Pairs { x, first: task * TASK, out, stride, offset });
    });
}

struct Pairs<'a> {
    x: &'a Vectors<'a>,
    first: usize,
    out: &'a mut [f32],
    stride: usize,
    offset: usize,
}

impl Kernel for Pairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Pairs { x: all, first, out, stride, offset } = self;
        let (vectors, dim) = (all.count(), all.dim);
        let mut x = vec![0.0; vectors * dim];
        let chunks = vectors.div_ceil(16);
        // transposed[c][d]: value d of vectors 16 c .. 16 c + 16
        let mut transposed = vec![[0.0_f32; 16]; chunks * dim];
        for n in 0..out.len() / stride {
            all.gather(first + n, &mut x);
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
                    let rows = ROWS.min(vectors - i);
                    let mut acc = [s.splat(0.0); ROWS];
                    if rows == ROWS {
                        let x = &x[i * dim..(i + ROWS) * dim];
                        for d in 0..dim {
                            let v = s.load(&column[d]);
                            for r in 0..ROWS {
                                acc[r] = s.fma(s.splat(x[r * dim + d]), v, acc[r]);
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

/// Gradients of vectors.
#[derive(Debug)]
pub struct VectorGradients<'a> {
    /// Those of the first vectors, which are added to.
    pub head: &'a mut [f32],
    /// Those of the others, which are overwritten.
    pub tail: &'a mut [f32],
}

/// Given the gradients `grad` of the pairs, at the places where [`pairs`] writes them, computes those of the vectors.
///
/// # Panics
/// As [`pairs`].
pub fn pairs_backward(
    exec: Exec<'_>,
    x: &Vectors<'_>,
    grad: &[f32],
    places: PairPlaces,
    VectorGradients { head, tail }: VectorGradients<'_>,
) {
    let (Exec { pool, level }, PairPlaces { stride, offset }) = (exec, places);
    let samples = x.check(places);
    assert_eq!((x.head.len(), x.tail.len()), (head.len(), tail.len()));
    assert_eq!(grad.len(), samples * stride);
    let (head, tail) = (DisjointSliceMut::new(head), DisjointSliceMut::new(tail));
    let (vectors, others, dim) = (x.count(), x.others, x.dim);
    let heads = vectors - others;
    pool.run(samples.div_ceil(TASK), |task, _| {
        let range = task * TASK..((task + 1) * TASK).min(samples);
        // SAFETY: tasks have samples of their own, and samples places of their own.
        let (head, tail) = unsafe {
            (
                head.slice(range.start * heads * dim..range.end * heads * dim),
                tail.slice(range.start * others * dim..range.end * others * dim),
            )
        };
        let (first, samples) = (range.start, range.len());
        level.run(Gradients { all: x, grad, stride, offset, first, samples, head, tail });
    });
}

struct Gradients<'a> {
    all: &'a Vectors<'a>,
    grad: &'a [f32],
    stride: usize,
    offset: usize,
    first: usize,
    samples: usize,
    head: &'a mut [f32],
    tail: &'a mut [f32],
}

/// One sample's vectors and their gradients.
struct Sample {
    vectors: usize,
    dim: usize,
    x: Vec<f32>,
    dx: Vec<f32>,
}

impl Sample {
    /// `N` times 16 values of the gradients, from `at` on.
    #[inline(always)]
    fn lanes<S: Simd, const N: usize>(&mut self, s: S, at: usize, weights: &[f32]) {
        let mut i = 0;
        // As many rows at once as there are registers for: each then reads the vectors for all of them.
        while const { S::TOKEN_TILE >= 8 } && i + 4 <= self.vectors {
            self.rows::<S, N, 4>(s, i, at, weights);
            i += 4;
        }
        while i < self.vectors {
            self.rows::<S, N, 1>(s, i, at, weights);
            i += 1;
        }
    }

    /// [`Sample::lanes`] of rows `i..i + R`.
    #[inline(always)]
    fn rows<S: Simd, const N: usize, const R: usize>(&mut self, s: S, i: usize, at: usize, weights: &[f32]) {
        let (vectors, dim) = (self.vectors, self.dim);
        let of_rows: [&[f32]; R] = array(|r| &weights[(i + r) * vectors..][..vectors]);
        let mut acc = [[s.splat(0.0); N]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            let (dx, _) = self.dx[(i + r) * dim + at..][..N * 16].as_chunks::<16>();
            for v in 0..N {
                acc[v] = s.load(&dx[v]);
            }
        }
        for j in 0..vectors {
            let (x, _) = self.x[j * dim + at..][..N * 16].as_chunks::<16>();
            let mut lanes = [s.splat(0.0); N];
            for v in 0..N {
                lanes[v] = s.load(&x[v]);
            }
            for r in 0..R {
                let w = s.splat(of_rows[r][j]);
                for v in 0..N {
                    acc[r][v] = s.fma(w, lanes[v], acc[r][v]);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            let (dx, _) = self.dx[(i + r) * dim + at..][..N * 16].as_chunks_mut::<16>();
            for v in 0..N {
                s.store(acc[v], &mut dx[v]);
            }
        }
    }
}

impl Kernel for Gradients<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let (vectors, dim) = (self.all.count(), self.all.dim);
        let tail = self.all.others * dim;
        let head = vectors * dim - tail;
        let mut sample = Sample { vectors, dim, x: vec![0.0; vectors * dim], dx: vec![0.0; vectors * dim] };
        let mut weights = vec![0.0; vectors * vectors];
        for n in 0..self.samples {
            self.all.gather(self.first + n, &mut sample.x);
            let (first, others) = sample.dx.split_at_mut(head);
            first.copy_from_slice(&self.head[n * head..(n + 1) * head]);
            others.fill(0.0);
            let grad = &self.grad[(self.first + n) * self.stride + self.offset..];
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
                sample.lanes::<S, 4>(s, at, &weights);
                at += 64;
            }
            while dim - at >= 16 {
                sample.lanes::<S, 1>(s, at, &weights);
                at += 16;
            }
            for d in at..dim {
                for i in 0..vectors {
                    let mut sum = sample.dx[i * dim + d];
                    for j in 0..vectors {
                        sum += weights[i * vectors + j] * sample.x[j * dim + d];
                    }
                    sample.dx[i * dim + d] = sum;
                }
            }
            let (first, others) = sample.dx.split_at(head);
            self.head[n * head..(n + 1) * head].copy_from_slice(first);
            self.tail[n * tail..(n + 1) * tail].copy_from_slice(others);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        arch::{SimdLevel, testing::numbers},
        exec::Pool,
    };

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
            let split = |all: &[f32], heads: usize| -> (Vec<f32>, Vec<f32>) {
                let samples = || all.chunks(vectors * dim).map(|sample| sample.split_at(heads * dim));
                (
                    samples().flat_map(|s| s.0.to_vec()).collect(),
                    samples().flat_map(|s| s.1.to_vec()).collect(),
                )
            };
            for (level, heads) in
                SimdLevel::supported().into_iter().flat_map(|level| [(level, 0), (level, 1)])
            {
                let (head, tail) = split(&x, heads);
                let x_in_two = Vectors { head: &head, tail: &tail, others: vectors - heads, dim };
                let mut out = vec![7.0; samples * stride];
                let (exec, places) = (Exec { pool: &pool, level }, PairPlaces { stride, offset });
                pairs(exec, &x_in_two, &mut out, places);
                let (mut head, mut tail) = (vec![1.0; head.len()], vec![9.0; tail.len()]);
                let gradients = VectorGradients { head: &mut head, tail: &mut tail };
                pairs_backward(exec, &x_in_two, &grad, places, gradients);
                let dx: Vec<f32> = (0..samples)
                    .flat_map(|n| {
                        let (h, t) = (heads * dim, (vectors - heads) * dim);
                        [&head[n * h..(n + 1) * h], &tail[n * t..(n + 1) * t]].concat()
                    })
                    .collect();
                for n in 0..samples {
                    let x = |i: usize| &x[(n * vectors + i) * dim..][..dim];
                    let mut expected = vec![0.0_f32; vectors * dim];
                    expected[..heads * dim].fill(1.0);
                    let mut pair = n * stride + offset;
                    assert_eq!(out[n * stride..pair], [7.0; 3]);
                    for i in 0..vectors {
                        for j in 0..i {
                            let dot: f32 = x(i).iter().zip(x(j)).map(|(a, b)| a * b).sum();
                            assert!((out[pair] - dot).abs() < 1e-4, "{level} {i} {j}");
                            for d in 0..dim {
                                expected[i * dim + d] += grad[pair] * x(j)[d];
                                expected[j * dim + d] += grad[pair] * x(i)[d];
                            }
                            pair += 1;
                        }
                    }
                    for (a, b) in dx[n * vectors * dim..].iter().zip(&expected) {
                        assert!((a - b).abs() < 1e-3, "{level}");
                    }
                }
            }
        }
    }
}
