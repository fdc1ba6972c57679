//! Drift: the difference between the streams of the compressed and of the original model, and weights that undo it.
//!
//! Earlier compressed matrices change the inputs of a matrix. Rounding compensates for its own errors only, so the
//! matrix is first fitted to the outputs of the original, given the inputs of the compressed model ("asymmetric
//! calibration": Li et al. 2025, GPTAQ, arXiv 2504.02692, section 3):
//!
//! ```text
//! Q K V, gate up    W' = W + (W S) (X^T X + L)^-1       S = sum (x - x~) x~^T      x~: inputs of the compressed model
//! O, down           W' = (S + W L) (X^T X + L)^-1       S = sum (r - r~) x~^T      r:  stream after the original's block
//!                                                                                  r~: stream before this block
//! ```
//! `L` is the damping of the diagonal, which keeps `W'` near `W`. A block whose output is added to the stream so also
//! undoes the drift of all earlier layers, as far as its inputs predict it. If a block ends with a norm, its matrix is
//! not fitted.

use crate::{
    Inputs,
    layer::DenseLayer,
    layer_pass::{Visitor, run_layer},
    pruning::{Factor, linalg, sparsegpt},
};
use ndarray::linalg::general_mat_mul;
use scrimp_kernels::{Exec, Pool};
use scrimp_llm::{
    config::ModelConfig,
    error::Result,
    model::{LayerRunner, projections::Projection},
};

/// Rows of a band of a matrix, for one thread.
const BAND: usize = 32;

/// A layer of the original: the normed inputs of its two blocks, and the streams after them, `[tokens][hidden_size]`.
#[derive(Default)]
pub(crate) struct Reference {
    inputs: [Vec<f32>; 2],
    streams: [Vec<f32>; 2],
}

impl Reference {
    /// Runs layer `index` of the original.
    ///
    /// # Errors
    /// When the checkpoint is damaged, or memory cannot be had.
    pub(crate) fn run(
        exec: Exec<'_>,
        runner: &mut LayerRunner<'_>,
        index: usize,
        layer: &mut DenseLayer,
    ) -> Result<Self> {
        let mut seen = Seen(Self::default());
        run_layer(exec, runner, index, layer, &mut seen)?;
        let mut reference = seen.0;
        reference.streams[1] = runner.hidden().to_vec();
        Ok(reference)
    }
}

/// Stores what a [`Reference`] needs.
struct Seen(Reference);

/// 0 for the matrices of attention, 1 for the others.
fn block(projection: Projection) -> usize {
    usize::from(matches!(projection, Projection::Gate | Projection::Up | Projection::Down))
}

/// Whether the matrix adds its output to the stream.
fn ends_block(projection: Projection) -> bool {
    matches!(projection, Projection::O | Projection::Down)
}

impl Visitor for Seen {
    fn stream(&mut self, projections: &[Projection], stream: &[f32]) {
        if block(projections[0]) == 1 {
            self.0.streams[0] = stream.to_vec();
        }
    }

    fn inputs(&mut self, projections: &[Projection], _: usize, x: &[f32]) -> Result<()> {
        if !ends_block(projections[0]) {
            self.0.inputs[block(projections[0])].extend_from_slice(x);
        }
        Ok(())
    }

    fn ready(&mut self, _: &mut DenseLayer, _: &[Projection]) -> Result<()> {
        Ok(())
    }
}

/// The sums `S` of the matrices with the same inputs.
pub(crate) struct Drift<'a> {
    config: &'a ModelConfig,
    reference: Reference,
    /// The stream before the block of the compressed model.
    stream: Vec<f32>,
    /// Tokens that were added.
    tokens: usize,
    /// `[hidden_size][cols]`
    sum: Vec<f32>,
}

impl<'a> Drift<'a> {
    /// Without sums.
    pub(crate) fn new(config: &'a ModelConfig, reference: Reference) -> Self {
        Self { config, reference, stream: Vec::new(), tokens: 0, sum: Vec::new() }
    }

    /// Stores the stream before a block.
    pub(crate) fn stream(&mut self, stream: &[f32]) {
        stream.clone_into(&mut self.stream);
    }

    /// Adds the inputs `x` of `projections`, `[tokens][cols]`, of the next tokens.
    pub(crate) fn add(&mut self, pool: &Pool, projections: &[Projection], cols: usize, x: &[f32]) {
        let (hidden, n) = (self.config.hidden_size, x.len() / cols);
        let at = self.tokens * hidden..(self.tokens + n) * hidden;
        let block = block(projections[0]);
        let subtract = |(a, b): (&f32, &f32)| a - b;
        let left: Vec<f32> = if ends_block(projections[0]) {
            self.reference.streams[block][at.clone()].iter().zip(&self.stream[at]).map(subtract).collect()
        } else {
            self.reference.inputs[block][at].iter().zip(x).map(subtract).collect()
        };
        if self.tokens == 0 {
            self.sum.clear();
            self.sum.resize(hidden * cols, 0.0);
        }
        self.tokens += n;
        let (left, right) = (linalg::view(&left, n, hidden), linalg::view(x, n, cols));
        pool.chunks(&mut self.sum, BAND * cols, |band, out| {
            let rows = out.len() / cols;
            let left = linalg::columns(left, band * BAND..band * BAND + rows);
            general_mat_mul(1.0, &left.t(), &right, 1.0, &mut linalg::view_mut(out, rows, cols));
        });
    }

    /// Ends the sums of the matrices that were passed last.
    pub(crate) fn finish(&mut self) {
        self.tokens = 0;
    }

    /// Whether a matrix of `layer` can be fitted.
    fn fits(&self, layer: &DenseLayer, projection: Projection) -> bool {
        let norm = match projection {
            Projection::O => &layer.norms.post_attn_norm,
            Projection::Down => &layer.norms.post_ffn_norm,
            _ => return true,
        };
        norm.is_none() && layer.get(projection).bias.is_none() && self.config.residual_scale == 1.0
    }

    /// Fits a matrix to the outputs of the original. `inputs` are those that were added.
    pub(crate) fn fit(&self, pool: &Pool, layer: &mut DenseLayer, projection: Projection, inputs: &Inputs) {
        if self.tokens == 0 || inputs.gram().is_none() || !self.fits(layer, projection) {
            return;
        }
        let factor = sparsegpt::factor(pool, inputs);
        let weight = layer.weight_mut(projection);
        let (rows, cols) = (weight.rows, weight.cols);
        if ends_block(projection) {
            // S + W L
            let sum = &self.sum;
            pool.chunks(&mut weight.data, cols, |r, w| {
                let sum = &sum[r * cols..(r + 1) * cols];
                for ((w, s), damping) in w.iter_mut().zip(sum).zip(&factor.damping) {
                    *w = s + *w * damping;
                }
            });
            times_inverse(pool, &mut weight.data, factor);
        } else {
            let mut change = vec![0.0; rows * cols];
            let (w, sum) = (linalg::view(&weight.data, rows, cols), linalg::view(&self.sum, cols, cols));
            pool.chunks(&mut change, BAND * cols, |band, out| {
                let n = out.len() / cols;
                let w = linalg::rows(w, band * BAND..band * BAND + n);
                general_mat_mul(1.0, &w, &sum, 0.0, &mut linalg::view_mut(out, n, cols));
            });
            times_inverse(pool, &mut change, factor);
            weight.data.iter_mut().zip(&change).for_each(|(w, change)| *w += change);
        }
    }
}

/// Multiplies the rows of `matrix` by the inverse of the damped `X^T X`, which is `U^T U` with columns in another order.
fn times_inverse(pool: &Pool, matrix: &mut [f32], factor: &Factor) {
    let n = factor.order.len();
    let u = linalg::view(&factor.u, n, n);
    pool.chunks(matrix, BAND * n, |_, band| {
        let rows = band.len() / n;
        let mut ordered = vec![0.0; band.len()];
        for (row, ordered) in band.chunks_exact(n).zip(ordered.chunks_exact_mut(n)) {
            ordered.iter_mut().zip(&factor.order).for_each(|(to, &col)| *to = row[col]);
        }
        let mut half = vec![0.0; band.len()];
        let product = &mut linalg::view_mut(&mut half, rows, n);
        general_mat_mul(1.0, &linalg::view(&ordered, rows, n), &u.t(), 0.0, product);
        let product = &mut linalg::view_mut(&mut ordered, rows, n);
        general_mat_mul(1.0, &linalg::view(&half, rows, n), &u, 0.0, product);
        for (row, ordered) in band.chunks_exact_mut(n).zip(ordered.chunks_exact(n)) {
            ordered.iter().zip(&factor.order).for_each(|(from, &col)| row[col] = *from);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dense, Statistics};
    use scrimp_kernels::SimdLevel;
    use scrimp_llm::checkpoint::Checkpoint;

    const TOKENS: usize = 400;

    /// `x w^T` for rows of inputs.
    fn product(x: &[f32], w: &Dense) -> Vec<f32> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
        x.chunks_exact(w.cols).flat_map(|x| w.data.chunks_exact(w.cols).map(move |w| dot(x, w))).collect()
    }

    fn squares(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    /// Inputs that drifted by a multiple of a few features, and the matrix before and after the fit.
    fn fitted(projection: Projection, drift: f32) -> (f64, f64) {
        let checkpoint = Checkpoint::open(&scrimp_testkit::tiny_model("llama")).unwrap();
        let pool = Pool::new(2).unwrap();
        let mut layer = DenseLayer::read(&checkpoint, &pool, 0).unwrap();
        let config = checkpoint.config();
        let (hidden, cols) = (config.hidden_size, layer.weight(projection).cols);
        let x: Vec<f32> = scrimp_testkit::numbers(3, TOKENS * cols);
        let drifted: Vec<f32> = x
            .iter()
            .enumerate()
            .map(|(i, x)| x + drift * x.mul_add(0.2, x.signum() * (i % 3) as f32))
            .collect();
        let before: Vec<f32> = scrimp_testkit::numbers(5, TOKENS * hidden);
        let weight = layer.weight(projection).clone();
        let (mut reference, mut stream) = (Reference::default(), Vec::new());
        // What the matrix adds in the original; the stream before it drifted by a tenth of that.
        let wanted = product(&x, &weight);
        if ends_block(projection) {
            reference.streams[block(projection)] = before.iter().zip(&wanted).map(|(r, y)| r + y).collect();
            stream = before.iter().zip(&wanted).map(|(r, y)| r + 0.1 * drift * y).collect();
        } else {
            reference.inputs[block(projection)] = x;
        }
        let mut fit = Drift::new(config, reference);
        fit.stream(&stream);
        let mut inputs = Inputs::new(cols, Statistics::Gram);
        for part in drifted.chunks(100 * cols) {
            fit.add(&pool, &[projection], cols, part);
            inputs.add(Exec { pool: &pool, level: SimdLevel::SCALAR }, part).unwrap();
        }
        fit.fit(&pool, &mut layer, projection, &inputs);
        let target: Vec<f32> = if ends_block(projection) {
            fit.reference.streams[block(projection)].iter().zip(&stream).map(|(a, b)| a - b).collect()
        } else {
            wanted
        };
        let error = |w: &Dense| squares(&product(&drifted, w), &target);
        (error(&weight), error(layer.weight(projection)))
    }

    #[test]
    fn the_fit_reduces_the_error_of_the_outputs() {
        for projection in [Projection::K, Projection::O, Projection::Up, Projection::Down] {
            let (before, after) = fitted(projection, 0.5);
            assert!(after < 0.7 * before, "{projection:?}: {before} {after}");
        }
    }

    #[test]
    fn nothing_changes_without_drift() {
        for projection in [Projection::Q, Projection::O, Projection::Gate, Projection::Down] {
            let (before, after) = fitted(projection, 0.0);
            assert!(before < 1e-6 && after < 1e-5, "{projection:?}: {before} {after}");
        }
    }
}
