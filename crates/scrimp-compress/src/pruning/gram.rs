//! `X^T X` of a linear layer's inputs, and the factor of its inverse for second-order pruning.
//!
//! If the CPU multiplies bf16 faster than f32, the inputs are rounded to bf16 and their products are summed in f32. The
//! result is the `X^T X` of the rounded inputs, so it stays positive semi-definite. The relative error of an entry is
//! at most 2^-8, and typically a hundredth of the damping of the diagonal.

use crate::pruning::linalg::{BLOCK, cholesky, columns, columns_mut, invert_lower, view, view_mut};
use ndarray::linalg::general_mat_mul;
use scrimp_kernels::{
    Exec, Pool,
    linear::{ActivationShape, Activations, Linear, LinearScratch, Matrix, linear},
    mem::Arena,
    quant::packed::{DenseMatrix, PackedView, WeightFormat, pack},
};
use scrimp_llm::error::{Error, Result};

/// Columns of the result that are computed together from bf16.
const PANEL: usize = 1024;
/// Features that are transposed together: one cache line.
const LINE: usize = 16;

/// The damping: a term added to the diagonal of `X^T X` before the inversion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Damping {
    /// Share of the entry itself. It acts like less correlation between features.
    pub own: f32,
    /// Share of the mean. It acts like noise in all features.
    pub all: f32,
}

/// `X^T X` of the inputs of a linear layer, summed over tokens.
#[derive(Debug, Clone)]
pub struct Gram {
    n: usize,
    tokens: usize,
    /// `[n][n]`; only `j <= i` is meaningful.
    lower: Vec<f32>,
    /// Scratch memory of [`Gram::add`], kept between calls.
    transposed: Vec<f32>,
}

impl Gram {
    /// An empty sum for inputs of `n` features.
    pub fn new(n: usize) -> Self {
        Self { n, tokens: 0, lower: vec![0.0; n * n], transposed: Vec::new() }
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
    /// # Errors
    /// When memory cannot be had.
    ///
    /// # Panics
    /// The length of `x` is not a multiple of `n`.
    pub fn add(&mut self, exec: Exec<'_>, x: &[f32]) -> Result<()> {
        self.tokens += x.len() / self.n;
        if exec.level.has_bf16_products() { self.add_rounded(exec, x) } else { self.add_exact(exec.pool, x) }
    }

    fn add_exact(&mut self, pool: &Pool, x: &[f32]) -> Result<()> {
        let n = self.n;
        let x = view(x, x.len() / n, n);
        // The longest bands are first, so that threads finish together.
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
        Ok(())
    }

    /// The product with `X^T` as a bf16 weight matrix (some rows at a time) and `X^T` as the batch.
    fn add_rounded(&mut self, exec: Exec<'_>, x: &[f32]) -> Result<()> {
        let pool = exec.pool;
        let (n, tokens) = (self.n, x.len() / self.n);
        if tokens == 0 {
            return Ok(());
        }
        let transposed = &mut self.transposed;
        transposed.resize(x.len(), 0.0);
        pool.chunks(transposed, tokens * LINE, |band, features| {
            for (t, x) in x.chunks_exact(n).enumerate() {
                for (feature, &x) in features.chunks_exact_mut(tokens).zip(&x[band * LINE..]) {
                    feature[t] = x;
                }
            }
        });
        let (mut batch, mut scratch) = (Activations::new(), LinearScratch::default());
        for first in (0..n).step_by(PANEL) {
            let width = PANEL.min(n - first);
            let panel = &transposed[first * tokens..(first + width) * tokens];
            let packed = pack(
                pool,
                WeightFormat::Bf16,
                DenseMatrix { rows: width, cols: tokens, weights: panel },
                None,
            );
            let packed = packed.map_err(|e| Error::bad_input(format!("inputs of a layer: {e}")))?;
            let view = PackedView::new(WeightFormat::Bf16, width, tokens, &packed).expect("just packed");
            let memory = |e| Error::out_of_memory(format!("inputs of a layer ({e})"));
            let mut arena = Arena::new(Arena::size_of(packed.len())).map_err(memory)?;
            let weight = Matrix::from_packed(pool, &mut arena, &view).map_err(memory)?;
            let shape = ActivationShape { n_tokens: n - first, cols: tokens, needs: weight.needs() };
            batch.fill(exec, shape, |t, row| {
                row.copy_from_slice(&transposed[(first + t) * tokens..(first + t + 1) * tokens]);
            });
            let out = &mut self.lower[first * n + first..];
            let product = Linear { weight: &weight, bias: None, out, stride: n, accumulate: true };
            linear(exec, &mut scratch, &batch, &mut [product]);
        }
        Ok(())
    }

    /// The sums of squares of each feature.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.n).map(|i| self.lower[i * self.n + i]).collect()
    }

    fn at(&self, i: usize, j: usize) -> f32 {
        self.lower[i.max(j) * self.n + i.min(j)]
    }

    /// The upper factor `U` of the inverse of the damped matrix with its rows and columns in `order`:
    /// `(P (G + own diag G + all mean(diag G) I) P^T)^-1 = U^T U`, `[n][n]`. Features that are always zero get only
    /// the share of the mean.
    ///
    /// Row `j` of `U`, from `j` on, divided by `U[j][j]`, has the factors with which the weights of features `j + 1 ..`
    /// compensate a change of the weight of feature `j`.
    ///
    /// The method is one Cholesky decomposition `R R^T` of the matrix in reverse order, which makes the factor upper
    /// triangular; then `U = R^-1`. If rounding makes a pivot vanish, the damping grows. The second result has the numbers
    /// that were added to the diagonal, by feature.
    pub fn inverse_factor(&self, pool: &Pool, order: &[usize], damping: Damping) -> (Vec<f32>, Vec<f32>) {
        let n = self.n;
        let mean = self.diagonal().iter().map(|&d| f64::from(d)).sum::<f64>() / n as f64;
        let mean = if mean > 0.0 { mean as f32 } else { 1.0 };
        let Damping { own, mut all } = damping;
        let mut a = vec![0.0; n * n];
        loop {
            pool.chunks(&mut a, n, |i, row| {
                let from = order[n - 1 - i];
                for (j, to) in row[..=i].iter_mut().enumerate() {
                    *to = self.at(from, order[n - 1 - j]);
                }
                row[i] += own * row[i] + all * mean;
                row[i + 1..].fill(0.0);
            });
            if cholesky(pool, &mut a, n) {
                break;
            }
            all = (all * 10.0).max(1e-4);
        }
        invert_lower(pool, &mut a, n);
        a.reverse();
        let added = self.diagonal().iter().map(|d| own * d + all * mean).collect();
        (a, added)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrimp_base::SplitMix64;
    use scrimp_kernels::SimdLevel;

    /// Correlated inputs: every feature is a mixture of a few sources and noise of its own.
    fn inputs(tokens: usize, n: usize) -> Vec<f32> {
        let mut random = SplitMix64::new(7);
        let mut uniform = move || 2.0 * random.next_f32() - 1.0;
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
        gram.add(Exec { pool: &Pool::new(3).unwrap(), level: SimdLevel::SCALAR }, &x[..20 * n]).unwrap();
        gram.add(Exec { pool: &Pool::new(1).unwrap(), level: SimdLevel::SCALAR }, &x[20 * n..]).unwrap();
        assert_eq!(gram.tokens(), tokens);
        for (i, j) in [(0, 0), (299, 0), (130, 129), (128, 127), (7, 255), (299, 299)] {
            let want: f64 = (0..tokens).map(|t| f64::from(x[t * n + i]) * f64::from(x[t * n + j])).sum();
            assert!((f64::from(gram.at(i, j)) - want).abs() < 1e-3, "{i} {j}: {} {want}", gram.at(i, j));
        }
        assert_eq!(gram.diagonal()[130], gram.at(130, 130));
    }

    #[test]
    fn every_level_sums_the_same_to_its_rounding() {
        let pool = Pool::new(2).unwrap();
        for (tokens, n) in [(1, 5), (3, 33), (50, 300), (70, PANEL + 20)] {
            let x = inputs(tokens, n);
            let mut exact = Gram::new(n);
            exact.add_exact(&pool, &x).unwrap();
            for level in SimdLevel::supported() {
                let mut gram = Gram::new(n);
                gram.add(Exec { pool: &pool, level }, &x[..n]).unwrap();
                gram.add(Exec { pool: &pool, level }, &x[n..]).unwrap();
                assert_eq!(gram.tokens(), tokens);
                let bound = if level.has_bf16_products() { 1.0 / 128.0 } else { 1e-5 };
                for i in 0..n {
                    for j in 0..=i {
                        let (got, want) = (gram.at(i, j), exact.at(i, j));
                        let size = (exact.at(i, i) * exact.at(j, j)).sqrt();
                        assert!(
                            (got - want).abs() <= bound * size + 1e-6,
                            "{level} {n}: {i} {j}: {got} {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_factor_inverts_the_damped_matrix() {
        for n in [1, 5, 128, 129, 300] {
            let x = inputs(2 * n + 3, n);
            let pool = Pool::new(2).unwrap();
            let mut gram = Gram::new(n);
            gram.add(Exec { pool: &pool, level: SimdLevel::SCALAR }, &x).unwrap();
            let order: Vec<usize> = (0..n).map(|i| (i * 7 + 3) % n).collect();
            let order = if n % 7 == 0 { (0..n).rev().collect() } else { order };
            let (u, _) = gram.inverse_factor(&pool, &order, Damping { own: 0.3, all: 0.01 });
            let mean = gram.diagonal().iter().sum::<f32>() / n as f32;
            // U (P H P^T) U^T = I
            let h = |i: usize, j: usize| {
                let at = f64::from(gram.at(order[i], order[j]));
                if i == j { 1.3 * at + f64::from(0.01 * mean) } else { at }
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
        gram.add(Exec { pool: &pool, level: SimdLevel::SCALAR }, &x).unwrap();
        let order: Vec<usize> = (0..40).collect();
        assert!(
            gram.inverse_factor(&pool, &order, Damping { own: 0.0, all: 0.0 })
                .0
                .iter()
                .all(|u| u.is_finite())
        );
        let (silent, _) = Gram::new(4).inverse_factor(&pool, &[0, 1, 2, 3], Damping { own: 0.3, all: 0.01 });
        assert!(silent.iter().all(|u| u.is_finite()));
    }
}
