//! Cholesky's decomposition and the inverse of a triangular matrix, cut into bands of rows for the threads of a pool.
//!
//! Matrices are row-major. Symmetric matrices have only their lower triangle, so a band of rows is one piece of memory,
//! and one thread owns it. Products inside a band are single-threaded (`ndarray`).

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice, linalg::general_mat_mul};
use scrimp_kernels::{Pool, ops::dot};
use std::ops::Range;

/// Rows and columns of a block.
pub(super) const BLOCK: usize = 128;

pub(crate) fn view(data: &[f32], rows: usize, cols: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, cols), data).expect("whole rows")
}

pub(crate) fn view_mut(data: &mut [f32], rows: usize, cols: usize) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, cols), data).expect("whole rows")
}

// ndarray's `s!` expands to unsafe code, which this crate forbids.

pub(crate) fn rows(mut view: ArrayView2<'_, f32>, range: Range<usize>) -> ArrayView2<'_, f32> {
    view.slice_axis_inplace(Axis(0), Slice::from(range));
    view
}

pub(crate) fn columns(mut view: ArrayView2<'_, f32>, range: Range<usize>) -> ArrayView2<'_, f32> {
    view.slice_axis_inplace(Axis(1), Slice::from(range));
    view
}

pub(crate) fn columns_mut(mut view: ArrayViewMut2<'_, f32>, range: Range<usize>) -> ArrayViewMut2<'_, f32> {
    view.slice_axis_inplace(Axis(1), Slice::from(range));
    view
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

/// Replaces the lower triangle of `a` by its Cholesky factor. Returns false if a pivot is not positive.
pub(crate) fn cholesky(pool: &Pool, a: &mut [f32], n: usize) -> bool {
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

/// Replaces the lower triangular `l` by its inverse.
///
/// Block row `k` of the inverse `M` is `-D T_k` with `D` on the diagonal, `D` the inverse of the diagonal block and
/// `T_k = sum over j < k of L_kj M_j`. The sums `T` replace the blocks of `L` that are no longer needed.
pub(crate) fn invert_lower(pool: &Pool, l: &mut [f32], n: usize) {
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
