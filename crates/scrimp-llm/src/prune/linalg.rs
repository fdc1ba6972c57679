//! The dense linear algebra of second-order pruning, cut into bands of rows that the pool's threads share.
//!
//! Matrices are row-major. Symmetric ones are kept as their lower triangle, so that a band of rows is a contiguous
//! piece of memory that one thread owns; products inside a band are single-threaded (`ndarray`).

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice, linalg::general_mat_mul};
use scrimp_kernels::threads::Pool;
use std::ops::Range;

/// Rows and columns of a block.
const BLOCK: usize = 128;

/// `X^T X` of the inputs of a linear layer, summed over tokens.
#[derive(Debug, Clone)]
pub struct Gram {
    n: usize,
    tokens: usize,
    /// `[n][n]`; only `j <= i` is meaningful.
    lower: Vec<f32>,
}

impl Gram {
    /// No tokens yet, for inputs of `n` features.
    pub fn new(n: usize) -> Self {
        Self { n, tokens: 0, lower: vec![0.0; n * n] }
    }

    /// Features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Tokens that were added.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Adds the tokens `x`, `[tokens][n]`.
    ///
    /// # Panics
    /// When `x` is no whole number of rows.
    pub fn add(&mut self, pool: &Pool, x: &[f32]) {
        let n = self.n;
        let x = view(x, x.len() / n, n);
        self.tokens += x.nrows();
        // The longest bands first, so that threads end together.
        let mut bands: Vec<_> = self.lower.chunks_mut(BLOCK * n).enumerate().rev().collect();
        pool.chunks(&mut bands, 1, |_, band| {
            let (index, band) = &mut band[0];
            let first = *index * BLOCK;
            let n_rows = band.len() / n;
            let end = first + n_rows;
            let mut out = columns_mut(view_mut(band, n_rows, n), 0..end);
            let (left, right) = (columns(x, first..end), columns(x, 0..end));
            general_mat_mul(1.0, &left.t(), &right, 1.0, &mut out);
        });
    }

    /// The sums of squares of each feature.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.n).map(|i| self.lower[i * self.n + i]).collect()
    }

    fn at(&self, i: usize, j: usize) -> f32 {
        self.lower[i.max(j) * self.n + i.min(j)]
    }

    /// The upper factor `U` of the inverse of the damped matrix with its rows and columns in `order`:
    /// `(P (G + damping mean(diag G) I) P^T)^-1 = U^T U`, `[n][n]`. Features that are always zero get the damping alone.
    ///
    /// Row `j` of `U`, from `j` on, divided by `U[j][j]` says how the weights of features `j + 1 ..` make up for a change
    /// of feature `j`'s.
    ///
    /// Found with one Cholesky decomposition: of the matrix with its order turned round, so that the factor is upper
    /// triangular, `R R^T`; then `U = R^-1`. Where rounding makes a pivot vanish, the damping grows.
    pub fn inverse_factor(&self, pool: &Pool, order: &[usize], damping: f32) -> Vec<f32> {
        let n = self.n;
        let mean = self.diagonal().iter().map(|&d| f64::from(d)).sum::<f64>() / n as f64;
        let mean = if mean > 0.0 { mean as f32 } else { 1.0 };
        let mut damping = damping;
        let mut a = vec![0.0; n * n];
        loop {
            pool.chunks(&mut a, n, |i, row| {
                let from = order[n - 1 - i];
                for (j, to) in row[..=i].iter_mut().enumerate() {
                    *to = self.at(from, order[n - 1 - j]);
                }
                row[i] += damping * mean;
                row[i + 1..].fill(0.0);
            });
            if cholesky(pool, &mut a, n) {
                break;
            }
            damping = (damping * 10.0).max(1e-4);
        }
        invert_lower(pool, &mut a, n);
        a.reverse();
        a
    }
}

pub(super) fn view(data: &[f32], rows: usize, cols: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, cols), data).expect("whole rows")
}

pub(super) fn view_mut(data: &mut [f32], rows: usize, cols: usize) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, cols), data).expect("whole rows")
}

// ndarray's `s!` expands to unsafe code, which this crate forbids.

pub(super) fn rows(mut view: ArrayView2<'_, f32>, range: Range<usize>) -> ArrayView2<'_, f32> {
    view.slice_axis_inplace(Axis(0), Slice::from(range));
    view
}

pub(super) fn columns(mut view: ArrayView2<'_, f32>, range: Range<usize>) -> ArrayView2<'_, f32> {
    view.slice_axis_inplace(Axis(1), Slice::from(range));
    view
}

pub(super) fn columns_mut(mut view: ArrayViewMut2<'_, f32>, range: Range<usize>) -> ArrayViewMut2<'_, f32> {
    view.slice_axis_inplace(Axis(1), Slice::from(range));
    view
}

/// `sum a[i] b[i]`, in sixteen sums that the compiler can keep in vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0_f32; 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// Columns `first .. first + width` of all rows of `from` (rows of `n`).
fn copy_columns(from: &[f32], n: usize, first: usize, width: usize) -> Vec<f32> {
    from.chunks_exact(n).flat_map(|row| &row[first..first + width]).copied().collect()
}

/// Row `i` of a triangular solve: `row[j] = (row[j] - sum over l < j of row[l] L[j][l]) / L[j][j]` for `j < width`.
fn solve_row(row: &mut [f32], l: &[f32], stride: usize, width: usize) {
    for j in 0..width {
        let lj = &l[j * stride..j * stride + j + 1];
        row[j] = (row[j] - dot(&row[..j], &lj[..j])) / lj[j];
    }
}

/// The lower Cholesky factor of `a`, in place of its lower triangle. False where a pivot is not positive.
fn cholesky(pool: &Pool, a: &mut [f32], n: usize) -> bool {
    for first in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - first);
        let (above, below) = a.split_at_mut((first + width) * n);
        let diagonal = &mut above[first * n..];
        for i in 0..width {
            let (done, row) = diagonal.split_at_mut(i * n);
            let row = &mut row[first..first + i + 1];
            solve_row(row, &done[first.min(done.len())..], n, i);
            let (left, pivot) = row.split_at_mut(i);
            let rest = pivot[0] - dot(left, left);
            if rest.is_nan() || rest <= f32::MIN_POSITIVE {
                return false;
            }
            pivot[0] = rest.sqrt();
        }
        if below.is_empty() {
            break;
        }
        let block = copy_columns(diagonal, n, first, width);
        pool.chunks(below, n * 16, |_, rows| {
            for row in rows.chunks_exact_mut(n) {
                solve_row(&mut row[first..first + width], &block, width, width);
            }
        });
        let panel = copy_columns(below, n, first, width);
        let panel = view(&panel, below.len() / n, width);
        let start = first + width;
        pool.chunks(below, n * BLOCK, |index, band| {
            let at = index * BLOCK;
            let end = at + band.len() / n;
            let mut out = columns_mut(view_mut(band, end - at, n), start..start + end);
            general_mat_mul(-1.0, &rows(panel, at..end), &rows(panel, 0..end).t(), 1.0, &mut out);
        });
    }
    true
}

/// The inverse of the lower triangular `l`, in its place.
///
/// Block row `k` of the inverse `M` is `-D T_k` with `D` on the diagonal, `D` the inverse of the diagonal block and
/// `T_k = sum over j < k of L_kj M_j`. The sums `T` grow in place of the blocks of `L` that are used up.
fn invert_lower(pool: &Pool, l: &mut [f32], n: usize) {
    for first in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - first);
        let (above, below) = l.split_at_mut((first + width) * n);
        let own = &mut above[first * n..];
        let inverse = invert_block(&copy_columns(own, n, first, width), width);
        let inverse = view(&inverse, width, width);
        let sums = copy_columns(own, n, 0, first);
        if first > 0 {
            let sums = view(&sums, width, first);
            let mut out = columns_mut(view_mut(own, width, n), 0..first);
            general_mat_mul(-1.0, &inverse, &sums, 0.0, &mut out);
        }
        columns_mut(view_mut(own, width, n), first..first + width).assign(&inverse);
        let done = columns(view(own, width, n), 0..first + width);
        pool.chunks(below, n * BLOCK, |_, band| {
            let block = copy_columns(band, n, first, width);
            let n_rows = band.len() / n;
            columns_mut(view_mut(band, n_rows, n), first..first + width).fill(0.0);
            let mut out = columns_mut(view_mut(band, n_rows, n), 0..first + width);
            general_mat_mul(1.0, &view(&block, n_rows, width), &done, 1.0, &mut out);
        });
    }
}

/// The inverse of a small lower triangular matrix.
fn invert_block(l: &[f32], n: usize) -> Vec<f32> {
    let mut m = vec![0.0; n * n];
    for i in 0..n {
        let (done, row) = m.split_at_mut(i * n);
        let pivot = l[i * n + i];
        for (k, done) in done.chunks_exact(n).enumerate() {
            let factor = -l[i * n + k] / pivot;
            for j in 0..=k {
                row[j] += factor * done[j];
            }
        }
        row[i] = 1.0 / pivot;
    }
    m
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Correlated inputs: every feature is a mixture of a few sources and noise of its own.
    fn inputs(tokens: usize, n: usize) -> Vec<f32> {
        let mut state = 7_u64;
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        };
        let mixing: Vec<f32> = (0..n * 8).map(|_| uniform()).collect();
        let mut x = Vec::with_capacity(tokens * n);
        for _ in 0..tokens {
            let sources: Vec<f32> = (0..8).map(|_| uniform()).collect();
            for mix in mixing.chunks_exact(8) {
                x.push(mix.iter().zip(&sources).map(|(a, b)| a * b).sum::<f32>() + 0.3 * uniform());
            }
        }
        x
    }

    #[test]
    fn sums_do_not_depend_on_threads_or_pieces() {
        let (tokens, n) = (50, 300);
        let x = inputs(tokens, n);
        let mut gram = Gram::new(n);
        gram.add(&Pool::new(3).unwrap(), &x[..20 * n]);
        gram.add(&Pool::new(1).unwrap(), &x[20 * n..]);
        assert_eq!(gram.tokens(), tokens);
        for (i, j) in [(0, 0), (299, 0), (130, 129), (128, 127), (7, 255), (299, 299)] {
            let want: f64 = (0..tokens).map(|t| f64::from(x[t * n + i]) * f64::from(x[t * n + j])).sum();
            assert!((f64::from(gram.at(i, j)) - want).abs() < 1e-3, "{i} {j}: {} {want}", gram.at(i, j));
        }
        assert_eq!(gram.diagonal()[130], gram.at(130, 130));
    }

    #[test]
    fn the_factor_inverts_the_damped_matrix() {
        for n in [1, 5, 128, 129, 300] {
            let x = inputs(2 * n + 3, n);
            let pool = Pool::new(2).unwrap();
            let mut gram = Gram::new(n);
            gram.add(&pool, &x);
            let order: Vec<usize> = (0..n).map(|i| (i * 7 + 3) % n).collect();
            let order = if n % 7 == 0 { (0..n).rev().collect() } else { order };
            let u = gram.inverse_factor(&pool, &order, 0.01);
            let mean = gram.diagonal().iter().sum::<f32>() / n as f32;
            // U (P H P^T) U^T = I
            let h = |i: usize, j: usize| {
                f64::from(gram.at(order[i], order[j])) + if i == j { f64::from(0.01 * mean) } else { 0.0 }
            };
            let mut hut = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..n {
                    assert!(j >= i || u[i * n + j] == 0.0, "upper triangular");
                    hut[i * n + j] = (j..n).map(|k| h(i, k) * f64::from(u[j * n + k])).sum::<f64>();
                }
            }
            for i in 0..n {
                for j in 0..n {
                    let got: f64 = (i..n).map(|k| f64::from(u[i * n + k]) * hut[k * n + j]).sum();
                    let want = if i == j { 1.0 } else { 0.0 };
                    assert!((got - want).abs() < 2e-3, "n {n}: {i} {j}: {got}");
                }
            }
        }
    }

    #[test]
    fn singular_matrices_are_damped_more() {
        let pool = Pool::new(1).unwrap();
        let mut gram = Gram::new(40);
        // One token, the same in every feature, and features 3 and 4 silent.
        let mut x = vec![1e4; 40];
        x[3..5].fill(0.0);
        gram.add(&pool, &x);
        let order: Vec<usize> = (0..40).collect();
        assert!(gram.inverse_factor(&pool, &order, 0.0).iter().all(|u| u.is_finite()));
        let silent = Gram::new(4).inverse_factor(&pool, &[0, 1, 2, 3], 0.01);
        assert!(silent.iter().all(|u| u.is_finite()));
    }
}
