//! Values that are solved for: what the kept keys of a cache must hold so that attention over them gives what attention
//! over all keys gave.
//!
//! ```text
//! X[i][j] = softmax over kept keys of (scale q_i . k_j + bias_j)            X: [queries][keys]
//! V'      = argmin of  || O - X V' ||^2  +  ridge || V' - V ||^2
//!         = V + (X^T X + ridge I)^-1 X^T (O - X V)
//!         = V + X^T / ridge (X X^T / ridge + I)^-1 (O - X V)      with fewer queries than keys
//! ```
//! `O` holds the outputs of the queries over all keys. The ridge is a share of the mean diagonal element of `X^T X`.
//!
//! One thread solves the system of one KV head. With `r` queries and `n` keys, `p = min(r, n)` and `q = max(r, n)`, it
//! takes `p^2 q / 2 + p^3 / 6 + 3 r n dim` multiply-adds, so arithmetic is the limit.
//!
//! Source: scrimp; compare Attention Matching (arXiv 2602.16284) and GRKV (arXiv 2605.31105). Ridge regression: Hoerl
//! and Kennard 1970; its dual form: Saunders, Gammerman and Vovk 1998.

mod cholesky;
mod multiply;
mod softmax;
#[cfg(test)]
mod tests;

use super::gemm_f32::View;
use crate::arch::SimdLevel;
use multiply::{Multiply, Panels, Update, multiply};
use softmax::{Layout, softmax};

/// The largest magnitude of a fitted value. It is below the largest number of f16.
const LARGEST: f32 = 32768.0;

/// The kept keys of a KV head, and the queries whose outputs they should reproduce.
#[derive(Debug, Clone, Copy)]
pub struct ValueFit<'a> {
    /// `[queries][dim]`, after RoPE.
    pub q: &'a [f32],
    /// The outputs of the queries over all keys, `[queries][dim]`.
    pub outputs: &'a [f32],
    /// The kept keys, `[keys][dim]`.
    pub k: &'a [f32],
    /// Added to the scores of the keys (`[keys]`).
    pub bias: Option<&'a [f32]>,
    /// Elements of a query, key or value.
    pub dim: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// Soft cap on scores.
    pub softcap: Option<f32>,
    /// The sink of each query (`[queries]`): a score without a key that takes a share of the softmax.
    pub sinks: Option<&'a [f32]>,
    /// The ridge, as a share of the mean diagonal element of `X^T X`.
    pub ridge: f32,
}

/// Working memory of [`fit_values`], kept from call to call.
#[derive(Debug, Default)]
pub struct FitScratch {
    panels: Panels,
    /// X, or its transpose.
    x: Vec<f32>,
    /// Residuals, `[queries][dim]`.
    residual: Vec<f32>,
    /// The matrix and the right-hand sides, `[p][p + dim]`.
    system: Vec<f32>,
    solution: Vec<f32>,
    change: Vec<f32>,
}

/// Replaces the values `v` (`[keys][dim]`) of the kept keys by the solution. Returns whether it did: values are unchanged
/// if the system has no finite solution.
///
/// # Panics
/// When lengths do not fit each other.
pub fn fit_values(level: SimdLevel, scratch: &mut FitScratch, fit: &ValueFit<'_>, v: &mut [f32]) -> bool {
    let dim = fit.dim;
    assert!(dim > 0 && fit.q.len().is_multiple_of(dim) && fit.k.len().is_multiple_of(dim));
    let (m, n) = (fit.q.len() / dim, fit.k.len() / dim);
    assert!(fit.outputs.len() == m * dim && v.len() == n * dim);
    assert!(fit.bias.is_none_or(|bias| bias.len() == n));
    assert!(fit.sinks.is_none_or(|sinks| sinks.len() == m));
    if m == 0 || n == 0 {
        return false;
    }
    let FitScratch { panels, x, residual, system, solution, change } = scratch;
    let mut form = Form { level, panels, fit, m, n };
    let (rows, cols) = form.shape();
    let ld = cols.next_multiple_of(16);
    let x = sized(x, rows * ld);
    let mean = form.attention(x, ld) / n as f64;
    let ridge = (f64::from(fit.ridge) * mean) as f32;
    if !(ridge.is_finite() && ridge > 0.0) {
        return false;
    }
    let residual = sized(residual, m * dim);
    form.residual(View::rows(x, ld), v, residual);
    if form.dual() {
        divide_by_root(x, ridge);
    }
    let x = View::rows(x, ld);
    let width = (cols + dim).next_multiple_of(16);
    let system = sized(system, cols * width);
    form.system(x, residual, ridge, system, width);
    let solution = sized(solution, cols * dim);
    if !cholesky::solve(level, form.panels, system, width, solution) {
        return false;
    }
    let change: &[f32] = if form.dual() {
        let change = sized(change, n * dim);
        form.multiply([n, dim, m], x, View::rows(solution, dim), (change, dim), Update::Set);
        divide_by_root(change, ridge);
        change
    } else {
        solution
    };
    // A comparison with NaN is false.
    if !v.iter().zip(change).all(|(v, change)| (v + change).abs() <= LARGEST) {
        return false;
    }
    v.iter_mut().zip(change).for_each(|(v, change)| *v += change);
    true
}

/// The steps of a fit, in the primal or the dual form.
struct Form<'a> {
    level: SimdLevel,
    panels: &'a mut Panels,
    fit: &'a ValueFit<'a>,
    /// Queries.
    m: usize,
    /// Keys.
    n: usize,
}

impl Form<'_> {
    /// Whether the system has a row for each query, and X is stored transposed.
    fn dual(&self) -> bool {
        self.m < self.n
    }

    /// Rows and columns of X as it is stored.
    fn shape(&self) -> (usize, usize) {
        if self.dual() { (self.n, self.m) } else { (self.m, self.n) }
    }

    fn multiply(
        &mut self,
        shape: [usize; 3],
        a: View<'_>,
        b: View<'_>,
        (c, ld): (&mut [f32], usize),
        update: Update,
    ) {
        multiply(self.level, self.panels, Multiply { shape, a, b, c, ld, update, upper: false });
    }

    /// Computes X. Returns the sum of its squares.
    fn attention(&mut self, x: &mut [f32], ld: usize) -> f64 {
        let (rows, cols) = self.shape();
        let (q, k) = (View::rows(self.fit.q, self.fit.dim), View::rows(self.fit.k, self.fit.dim));
        let (a, b, layout) = if self.dual() { (k, q, Layout::Keys) } else { (q, k, Layout::Queries) };
        self.multiply([rows, cols, self.fit.dim], a, b.t(), (x, ld), Update::Set);
        softmax(self.level, self.fit, x, layout, [self.m, self.n])
    }

    /// Computes `O - X V`.
    fn residual(&mut self, x: View<'_>, v: &[f32], residual: &mut [f32]) {
        residual.copy_from_slice(self.fit.outputs);
        let (shape, x) = ([self.m, self.fit.dim, self.n], if self.dual() { x.t() } else { x });
        let v = View::rows(v, self.fit.dim);
        self.multiply(shape, x, v, (residual, self.fit.dim), Update::Subtract);
    }

    /// Computes the matrix and the right-hand sides, `[p][width]`. In the dual form, `x` has been divided by the root of
    /// the ridge.
    fn system(&mut self, x: View<'_>, residual: &[f32], ridge: f32, system: &mut [f32], width: usize) {
        let dim = self.fit.dim;
        let (rows, p) = self.shape();
        let update = Update::Set;
        let gram =
            Multiply { shape: [p, p, rows], a: x.t(), b: x, c: system, ld: width, update, upper: true };
        multiply(self.level, self.panels, gram);
        if self.dual() {
            for (row, from) in system.chunks_exact_mut(width).zip(residual.chunks_exact(dim)) {
                row[p..p + dim].copy_from_slice(from);
            }
        } else {
            let residual = View::rows(residual, dim);
            self.multiply([p, dim, rows], x.t(), residual, (&mut system[p..], width), update);
        }
        for i in 0..p {
            system[i * width + i] += if self.dual() { 1.0 } else { ridge };
        }
    }
}

/// Divides by the root of the ridge.
fn divide_by_root(x: &mut [f32], ridge: f32) {
    let factor = ridge.sqrt().recip();
    x.iter_mut().for_each(|x| *x *= factor);
}

/// Makes `buffer` at least `n` long; its content is overwritten by the caller.
fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}
