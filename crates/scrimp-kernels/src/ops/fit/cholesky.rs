//! The solution of a symmetric positive definite system `A X = B`, by Cholesky's decomposition in blocks.
//!
//! ```text
//! A = U^T U      U^T Y = B      U X = Y
//!
//! for each block of rows K:      U[K][K]    = chol(A[K][K])
//!                                U[K][rest] = U[K][K]^-T A[K][rest]          B is part of the rest, so Y comes with U
//!                                A[rest][rest] -= U[K][rest]^T U[K][rest]    nearly all of the arithmetic
//! ```
//! Only the diagonal of A and the elements above it are read. Source: Golub and Van Loan, Matrix Computations, §4.2.

use super::multiply::{Multiply, Panels, Update, multiply};
use crate::{
    arch::{Kernel, Level, SimdLevel},
    ops::gemm_f32::View,
};

/// Rows of a block.
const BLOCK: usize = 64;
/// Vectors of a strip of columns.
const STRIP: usize = 4;

/// A block on the diagonal of U, by rows of its transpose, the elements on the diagonal inverted.
type Diagonal = [[f32; BLOCK]; BLOCK];
/// Rows of a strip of columns.
type Strip = [[[f32; 16]; STRIP]; BLOCK];

/// Solves the system `[n][ld]`, A in the first `n` columns and B in those behind, where `x` has room for `[n][dim]`. The
/// system is overwritten. Returns whether A is positive definite (in f32); `x` is unspecified otherwise.
pub(super) fn solve(
    level: SimdLevel,
    panels: &mut Panels,
    system: &mut [f32],
    ld: usize,
    x: &mut [f32],
) -> bool {
    let n = system.len() / ld;
    let dim = x.len() / n;
    let mut diagonals: Vec<Box<Diagonal>> = Vec::with_capacity(n.div_ceil(BLOCK));
    for start in (0..n).step_by(BLOCK) {
        let (len, end) = (BLOCK.min(n - start), n.min(start + BLOCK));
        let (block, rest) = system[start * ld..].split_at_mut(len * ld);
        let Some(diagonal) = factor(block, start, len, ld) else { return false };
        level.run(Substitute { diagonal: &diagonal, rows: block, ld, columns: end..n + dim, forward: true });
        diagonals.push(diagonal);
        let u = View { data: &block[end..], row: ld, col: 1 };
        multiply(
            level,
            panels,
            Multiply {
                shape: [n - end, n + dim - end, len],
                a: u.t(),
                b: u,
                c: if end < n { &mut rest[end..] } else { &mut [] },
                ld,
                update: Update::Subtract,
                upper: true,
            },
        );
    }
    for (x, row) in x.chunks_exact_mut(dim).zip(system.chunks_exact(ld)) {
        x.copy_from_slice(&row[n..n + dim]);
    }
    for (index, diagonal) in diagonals.iter().enumerate().rev() {
        let start = index * BLOCK;
        let end = n.min(start + BLOCK);
        let (block, later) = x[start * dim..].split_at_mut((end - start) * dim);
        if end < n {
            let a = View { data: &system[start * ld + end..], row: ld, col: 1 };
            let b = View::rows(later, dim);
            let (shape, update) = ([end - start, dim, n - end], Update::Subtract);
            multiply(level, panels, Multiply { shape, a, b, c: block, ld: dim, update, upper: false });
        }
        level.run(Substitute { diagonal, rows: block, ld: dim, columns: 0..dim, forward: false });
    }
    true
}

/// The decomposition of the block at the diagonal; `rows` are its `len` rows, from column `start` on. `None` if a pivot is
/// not positive.
fn factor(rows: &[f32], start: usize, len: usize, ld: usize) -> Option<Box<Diagonal>> {
    let mut u: Box<Diagonal> = Box::new([[0.0; BLOCK]; BLOCK]);
    for i in 0..len {
        for j in i..len {
            u[j][i] = rows[i * ld + start + j];
        }
    }
    // Row j of `u` is column j of U. Sums in f64: their terms cancel.
    for i in 0..len {
        for j in i..len {
            let dot: f64 = (0..i).map(|k| f64::from(u[i][k]) * f64::from(u[j][k])).sum();
            let rest = f64::from(u[j][i]) - dot;
            if j == i {
                // A comparison with NaN is false.
                if !(rest > 0.0 && rest.is_finite()) {
                    return None;
                }
                u[i][i] = rest.sqrt().recip() as f32;
            } else {
                u[j][i] = (rest * f64::from(u[i][i])) as f32;
            }
        }
    }
    // The diagonal is inverted above, which products of later rows do not read.
    u.iter().take(len).flatten().all(|x| x.is_finite()).then_some(u)
}

/// Substitution in some columns of a block of rows: `U^-T` forwards, `U^-1` backwards.
struct Substitute<'a> {
    diagonal: &'a Diagonal,
    rows: &'a mut [f32],
    ld: usize,
    columns: std::ops::Range<usize>,
    forward: bool,
}

impl Kernel for Substitute<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Self { diagonal, rows, ld, columns, forward } = self;
        let len = rows.len() / ld;
        let mut strip: Strip = [[[0.0; 16]; STRIP]; BLOCK];
        for start in columns.clone().step_by(16 * STRIP) {
            let width = (16 * STRIP).min(columns.end - start);
            for (strip, row) in strip.iter_mut().zip(rows.chunks_exact(ld)) {
                strip.as_flattened_mut()[..width].copy_from_slice(&row[start..start + width]);
            }
            for step in 0..len {
                let i = if forward { step } else { len - 1 - step };
                let others = if forward { 0..i } else { i + 1..len };
                let mut acc = [s.splat(0.0); STRIP];
                for v in 0..STRIP {
                    acc[v] = s.load(&strip[i][v]);
                }
                for k in others {
                    let u = s.splat(if forward { -diagonal[i][k] } else { -diagonal[k][i] });
                    for v in 0..STRIP {
                        acc[v] = s.fma(u, s.load(&strip[k][v]), acc[v]);
                    }
                }
                let pivot = s.splat(diagonal[i][i]);
                for v in 0..STRIP {
                    s.store(s.mul(acc[v], pivot), &mut strip[i][v]);
                }
            }
            for (strip, row) in strip.iter().zip(rows.chunks_exact_mut(ld)) {
                row[start..start + width].copy_from_slice(&strip.as_flattened()[..width]);
            }
        }
    }
}
