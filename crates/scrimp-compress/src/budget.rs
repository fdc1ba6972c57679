//! Formats and sparsities per matrix, chosen by the measured increase of the loss.
//!
//! ```text
//! for each layer l:     KL_l     divergence of the predictions with all matrices of layer l in the anchor format, measured
//! for each matrix m:    e_m      squared error of the layer's output with m alone in the anchor format, measured
//!                       d_m(c)   sum of (weight - stored weight)^2 * norm(input)^2 in each candidate format c
//! choose c_m:           least    sum over m of KL_l e_m / (sum of e of the layer) * d_m(c_m) / d_m(anchor)
//!                                with  sum over m of size_m(c_m) <= budget
//! ```
//! The divergence grows with the square of a small change of the residual stream. One measured divergence per layer, the
//! error of each matrix and the differences of the candidates therefore suffice. An error costs a run of one layer instead
//! of a run of the model. The changed streams of all layers run through the model together, in one pass.
//!
//! A matrix may keep the encoding of the file, which costs nothing: that of a checkpoint of 4 bits is also small.

use crate::{
    Calibration, Dense, Format, Inputs, MatrixConfig, MatrixConfigs, Output, Pruner, Rounding,
    layer::{DenseLayer, original},
    layer_pass::{Unchanged, Visitor, run_layer},
    matrix::{MatrixOptions, dense_bytes, round_matrix, stored_bytes},
    quantizing::output::{Measured, divergence, output_matrix},
};
use scrimp_kernels::{DType, Exec};
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    model::{
        LayerRunner,
        projections::{Projection, vector},
        rms_norm_rows,
    },
};
use std::collections::BTreeMap;

/// Number of tokens for the measurement.
const TOKENS: usize = 1024;
/// The limit on all matrices of the layers together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// At most this many bytes; formats are chosen for the least loss increase.
    Bytes(f64),
    /// One format, with this sparsity on average.
    Sparsity(MatrixConfig),
}

/// What a candidate is.
#[derive(Debug, Clone, Copy)]
enum Choice {
    /// A configuration of a matrix of a layer.
    Matrix((usize, Projection), MatrixConfig),
    /// How the output matrix is stored.
    Output(Output),
}

impl Choice {
    fn sparsity(self) -> f64 {
        if let Self::Matrix(_, config) = self { config.sparsity } else { 0.0 }
    }
}

/// A format of one matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    choice: Choice,
    /// Bytes, or the number of nonzero weights, depending on the goal.
    pub(crate) size: f64,
    /// Predicted divergence, nats per token.
    pub(crate) loss_increase: f64,
}

impl From<&Measured> for Candidate {
    fn from(measured: &Measured) -> Self {
        let Measured { output, bytes, kl } = *measured;
        Self { choice: Choice::Output(output), size: bytes as f64, loss_increase: kl }
    }
}

/// The candidates of a matrix.
fn candidates(goal: Goal, weight: &Dense) -> Vec<MatrixConfig> {
    match goal {
        Goal::Bytes(_) => {
            let formats = [Format::Keep, Format::INT8].into_iter();
            let codebooks = DType::CODEBOOKS.map(Format::Codebook).into_iter();
            let formats = formats.chain(codebooks).filter(|format| format.fits(weight));
            let dense = |format| MatrixConfig { format, sparsity: 0.0 };
            // The anchor of matrices that no codebook fits.
            let int4 = (!Format::Codebook(DType::CB3).fits(weight)).then_some(Format::INT4);
            formats.chain(int4).map(dense).collect()
        }
        Goal::Sparsity(MatrixConfig { format, sparsity }) => {
            [-0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2]
                .map(|delta| MatrixConfig { format, sparsity: (sparsity + delta).clamp(0.0, 0.98) })
                .to_vec()
        }
    }
}

/// The configuration in which the divergence of a layer is measured.
fn anchor(goal: Goal, weight: &Dense) -> MatrixConfig {
    match goal {
        Goal::Sparsity(config) => config,
        Goal::Bytes(_) => {
            let three = Format::Codebook(DType::CB3);
            let format = if three.fits(weight) { three } else { Format::INT4 };
            MatrixConfig { format, sparsity: 0.0 }
        }
    }
}

/// A model to measure, and the method and text to measure with.
#[derive(Clone, Copy)]
pub(crate) struct Search<'a> {
    pub(crate) exec: Exec<'a>,
    pub(crate) checkpoint: &'a Checkpoint,
    /// The candidates of the output matrix, if it takes part in the choice.
    pub(crate) output: Option<&'a [Measured]>,
    pub(crate) method: &'a dyn Pruner,
    pub(crate) calibration: &'a Calibration,
}

/// The configurations of one candidate per matrix.
pub(crate) fn matrix_configs(chosen: &[Candidate]) -> MatrixConfigs {
    let mut configs = MatrixConfigs::uniform(Format::Keep, 0.0);
    for candidate in chosen {
        match candidate.choice {
            Choice::Matrix(place, config) => drop(configs.matrices.insert(place, config)),
            Choice::Output(output) => configs.output = Some(output),
        }
    }
    configs
}

/// The size of all matrices, each in its smallest format.
pub(crate) fn smallest(matrices: &[Vec<Candidate>]) -> f64 {
    matrices.iter().map(|c| c.iter().map(|c| c.size).fold(f64::INFINITY, f64::min)).sum()
}

impl Search<'_> {
    /// The configurations with the least predicted loss increase that meet `goal`.
    ///
    /// # Errors
    /// No format is small enough, or the checkpoint is damaged.
    pub(crate) fn choose(&self, goal: Goal, progress: &mut dyn FnMut(usize)) -> Result<MatrixConfigs> {
        let matrices = self.measure(goal, progress)?;
        let budget = match goal {
            Goal::Bytes(bytes) => bytes.max(0.0),
            Goal::Sparsity(config) => {
                // All candidates of a matrix are shares of the same number of weights.
                let weights = |c: &[Candidate]| c[0].size / (1.0 - c[0].choice.sparsity());
                (1.0 - config.sparsity) * matrices.iter().map(|c| weights(c)).sum::<f64>()
            }
        };
        let chosen = allocate(&matrices, budget).ok_or_else(|| {
            Error::bad_input(format!(
                "the matrices take {:.1} MB at least, {:.1} MB are left for them",
                smallest(&matrices) / 1e6,
                budget / 1e6
            ))
            .with_hint("ask for more bits or a larger size")
        })?;
        Ok(matrix_configs(&chosen))
    }

    /// The candidates of each matrix, with their sizes and predicted loss increases.
    ///
    /// # Errors
    /// When the checkpoint is damaged.
    pub(crate) fn measure(&self, goal: Goal, progress: &mut dyn FnMut(usize)) -> Result<Vec<Vec<Candidate>>> {
        let Self { exec, checkpoint, calibration, .. } = *self;
        let text = calibration.first(TOKENS);
        let config = checkpoint.config();
        let width = text.tokens.len() * config.hidden_size;
        // The stream of the original, then one stream for each changed layer so far.
        let mut streams =
            LayerRunner::embed(exec, checkpoint, None, &text.tokens, text.window)?.into_hidden();
        let mut matrices: Vec<Vec<Candidate>> = Vec::new();
        for index in 0..config.n_layers {
            progress(index);
            let mut layer = DenseLayer::read(checkpoint, exec.pool, index)?;
            let measured = LayerMeasurement {
                search: self,
                index,
                before: &streams[..width],
                window: text.window,
                goal,
            };
            let (measured, changed) = measured.run(&mut layer)?;
            let mut runner = LayerRunner::from_hidden(exec, config, streams, text.window);
            run_layer(exec, &mut runner, index, &mut layer, &mut Unchanged)?;
            streams = runner.into_hidden();
            streams.extend(changed);
            matrices.extend(measured);
        }
        let norm = vector(checkpoint, "output_norm.weight")?;
        let output = output_matrix(exec, checkpoint)?;
        let x = rms_norm_rows(exec, config, &norm, &streams);
        let divergences: Vec<f64> = x[width..]
            .chunks_exact(width)
            .map(|changed| divergence(exec, config, (&output, &x[..width]), (&output, changed)).max(0.0))
            .collect();
        for candidate in matrices.iter_mut().flatten() {
            if let Choice::Matrix((index, _), _) = candidate.choice {
                candidate.loss_increase *= divergences[index];
            }
        }
        matrices.extend(self.output.map(|measured| measured.iter().map(Candidate::from).collect()));
        Ok(matrices)
    }
}

/// The measurement of one layer.
struct LayerMeasurement<'a> {
    search: &'a Search<'a>,
    index: usize,
    /// The original's stream before the layer.
    before: &'a [f32],
    window: usize,
    goal: Goal,
}

impl LayerMeasurement<'_> {
    /// The stream after the layer.
    fn stream(&self, layer: &mut DenseLayer, visitor: &mut dyn Visitor) -> Result<Vec<f32>> {
        let Search { exec, checkpoint, .. } = *self.search;
        let mut runner =
            LayerRunner::from_hidden(exec, checkpoint.config(), self.before.to_vec(), self.window);
        run_layer(exec, &mut runner, self.index, layer, visitor)?;
        Ok(runner.into_hidden())
    }

    /// The candidates of each matrix with their shares of the layer's divergence, and the stream after the layer with all
    /// matrices in the anchor format.
    fn run(&self, layer: &mut DenseLayer) -> Result<(Vec<Vec<Candidate>>, Vec<f32>)> {
        let Search { exec, method, .. } = *self.search;
        let mut collected = Collector { exec, method, inputs: BTreeMap::new(), done: Vec::new() };
        let after = self.stream(layer, &mut collected)?;
        let (mut all, mut matrices, mut errors) = (layer.clone(), Vec::new(), Vec::new());
        for (projections, inputs) in &collected.done {
            for &projection in projections {
                let matrix = MatrixMeasurement { layer: self, inputs, projection };
                let (candidates, anchored) = matrix.candidates(layer);
                let stored = std::mem::replace(&mut layer.weight_mut(projection).data, anchored.clone());
                let changed = self.stream(layer, &mut Unchanged)?;
                layer.weight_mut(projection).data = stored;
                all.weight_mut(projection).data = anchored;
                let squares = changed.iter().zip(&after).map(|(a, b)| f64::from(a - b).powi(2));
                errors.push(squares.sum::<f64>());
                matrices.push(candidates);
            }
        }
        let sum = errors.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        for (candidates, error) in matrices.iter_mut().zip(errors) {
            candidates.iter_mut().for_each(|c| c.loss_increase *= error / sum);
        }
        Ok((matrices, self.stream(&mut all, &mut Unchanged)?))
    }
}

/// The measurement of one matrix.
struct MatrixMeasurement<'a> {
    layer: &'a LayerMeasurement<'a>,
    inputs: &'a Inputs,
    projection: Projection,
}

impl MatrixMeasurement<'_> {
    /// The candidates with their differences relative to the anchor's, and the weights in the anchor format.
    fn candidates(&self, layer: &DenseLayer) -> (Vec<Candidate>, Vec<f32>) {
        let LayerMeasurement { search, index, goal, .. } = *self.layer;
        let (weight, projection) = (layer.weight(self.projection), self.projection);
        let norms = self.inputs.norms();
        let keep_zeros = layer.pruned_already(projection);
        let kept = original(search.checkpoint, index, projection).map(|(.., bytes)| bytes.len());
        let changed = |config: MatrixConfig| {
            let mut copy = weight.clone();
            let options = MatrixOptions { method: search.method, inputs: self.inputs, config, keep_zeros };
            round_matrix(search.exec.pool, &mut copy, &options);
            let difference = difference(&copy, weight, &norms);
            (copy, difference)
        };
        let anchor = anchor(goal, weight);
        let (anchored, of_anchor) = changed(anchor);
        // Rounding without zeros is compared by some rows, without compensation.
        let sampled = matches!(goal, Goal::Bytes(_)) && !keep_zeros;
        let sample = every_nth_row(weight);
        let rounded = |format: Format| {
            let (mut copy, mut rounding) = (sample.clone(), Rounding::new(format, sample.cols));
            let importance: Vec<f32> = norms.iter().map(|norm| norm * norm).collect();
            rounding.fix(search.exec.pool, &copy, &importance);
            rounding.apply(search.exec.pool, &mut copy);
            difference(&copy, &sample, &norms)
        };
        let of_sample = if sampled { rounded(anchor.format) } else { 0.0 };
        let mut measured = Vec::new();
        for config in candidates(goal, weight) {
            let original = match (config.format, kept) {
                (Format::Keep, None) => continue,
                (_, bytes) => bytes.unwrap_or_default(),
            };
            let (size, loss_increase) = if config.format == Format::Keep {
                (original as f64, 0.0)
            } else if sampled {
                let size = dense_bytes(config.format, weight.rows, weight.cols) as f64;
                (size, rounded(config.format) / of_sample.max(f64::MIN_POSITIVE))
            } else {
                let (copy, difference) = changed(config);
                let size = match goal {
                    Goal::Bytes(_) => stored_bytes(config.format, &copy) as f64,
                    Goal::Sparsity(_) => (1.0 - config.sparsity) * weight.data.len() as f64,
                };
                (size, difference / of_anchor.max(f64::MIN_POSITIVE))
            };
            let choice = Choice::Matrix((index, projection), config);
            measured.push(Candidate { choice, size, loss_increase });
        }
        (measured, anchored.data)
    }
}

/// Every how many rows are compared.
const COMPARED: usize = 8;

/// Some rows of a matrix.
fn every_nth_row(weight: &Dense) -> Dense {
    let rows = weight.data.chunks_exact(weight.cols).step_by(COMPARED);
    Dense { rows: rows.len(), cols: weight.cols, data: rows.flatten().copied().collect() }
}

/// The sum of `(a - b)^2 * norm^2` over all weights.
fn difference(a: &Dense, b: &Dense, norms: &[f32]) -> f64 {
    let row = |(a, b): (&[f32], &[f32])| -> f64 {
        let terms = a.iter().zip(b).zip(norms);
        f64::from(terms.map(|((a, b), norm)| ((a - b) * norm).powi(2)).sum::<f32>())
    };
    a.data.chunks_exact(a.cols).zip(b.data.chunks_exact(a.cols)).map(row).sum()
}

/// One candidate per matrix, of at most `budget` together. The search starts with the least loss increase and always
/// takes the step with the least additional loss per saved size; then it spends what the last step saved too much
/// ([`spend`]). `None` if even the smallest candidates are too large.
pub(crate) fn allocate(matrices: &[Vec<Candidate>], budget: f64) -> Option<Vec<Candidate>> {
    let least_loss = |a: &&Candidate, b: &&Candidate| {
        a.loss_increase.total_cmp(&b.loss_increase).then(a.size.total_cmp(&b.size))
    };
    let mut chosen: Vec<Candidate> =
        matrices.iter().map(|c| c.iter().min_by(least_loss).copied()).collect::<Option<_>>()?;
    loop {
        let size: f64 = chosen.iter().map(|c| c.size).sum();
        // A tolerance of 10^-9 for rounding.
        let rest = budget * (1.0 + 1e-9) - size;
        if rest >= 0.0 {
            spend(matrices, &mut chosen, rest);
            return Some(chosen);
        }
        let price =
            |now: &Candidate, to: &Candidate| (to.loss_increase - now.loss_increase) / (now.size - to.size);
        let steps = matrices.iter().enumerate().flat_map(|(m, candidates)| {
            let now = chosen[m];
            candidates.iter().filter(move |to| to.size < now.size).map(move |to| (price(&now, to), m, *to))
        });
        let (_, m, to) = steps.min_by(|a, b| a.0.total_cmp(&b.0))?;
        chosen[m] = to;
    }
}

/// Takes the steps back that save the most loss per size, as long as they fit in `rest`.
fn spend(matrices: &[Vec<Candidate>], chosen: &mut [Candidate], mut rest: f64) {
    loop {
        let gain =
            |now: &Candidate, to: &Candidate| (now.loss_increase - to.loss_increase) / (to.size - now.size);
        let steps = matrices.iter().enumerate().flat_map(|(m, candidates)| {
            let now = chosen[m];
            let fits = move |to: &&Candidate| {
                to.loss_increase < now.loss_increase && to.size > now.size && to.size - now.size <= rest
            };
            candidates.iter().filter(fits).map(move |to| (gain(&now, to), m, *to))
        });
        let Some((_, m, to)) = steps.max_by(|a, b| a.0.total_cmp(&b.0)) else { return };
        rest -= to.size - chosen[m].size;
        chosen[m] = to;
    }
}

/// Gathers statistics of the inputs of all matrices of a layer.
struct Collector<'a> {
    exec: Exec<'a>,
    method: &'a dyn Pruner,
    inputs: BTreeMap<usize, Inputs>,
    done: Vec<(Vec<Projection>, Inputs)>,
}

impl Visitor for Collector<'_> {
    fn inputs(&mut self, projections: &[Projection], cols: usize, x: &[f32]) -> Result<()> {
        let wanted = self.method.needs();
        let inputs = self.inputs.entry(projections[0] as usize).or_insert_with(|| Inputs::new(cols, wanted));
        inputs.add(self.exec, x)
    }

    fn ready(&mut self, _: &mut DenseLayer, projections: &[Projection]) -> Result<()> {
        if let Some(inputs) = self.inputs.remove(&(projections[0] as usize)) {
            self.done.push((projections.to_vec(), inputs));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(points: &[(f64, f64)]) -> Vec<Candidate> {
        let config = MatrixConfig { format: Format::INT4, sparsity: 0.0 };
        let choice = Choice::Matrix((0, Projection::Q), config);
        points.iter().map(|&(size, loss_increase)| Candidate { choice, size, loss_increase }).collect()
    }

    #[test]
    fn the_least_loss_within_the_budget() {
        // A layer without loss, and one with loss.
        let layers =
            [layer(&[(8.0, 0.0), (4.0, 0.01), (2.0, 0.02)]), layer(&[(8.0, 0.0), (4.0, 1.0), (2.0, 5.0)])];
        let sizes = |budget| allocate(&layers, budget).map(|c| c.iter().map(|c| c.size).collect::<Vec<_>>());
        assert_eq!(sizes(16.0), Some(vec![8.0, 8.0]));
        assert_eq!(sizes(12.0), Some(vec![4.0, 8.0]));
        assert_eq!(sizes(10.0), Some(vec![2.0, 8.0]));
        // A step that saves too much leaves room for another matrix.
        assert_eq!(sizes(9.0), Some(vec![4.0, 4.0]));
        assert_eq!(sizes(6.0), Some(vec![2.0, 4.0]));
        assert_eq!(sizes(4.0), Some(vec![2.0, 2.0]));
        assert_eq!(sizes(3.9), None);
        // Of two formats with the same loss increase, the first step takes the smaller one.
        assert_eq!(allocate(&[layer(&[(8.0, 0.5), (4.0, 0.5)])], 100.0).unwrap()[0].size, 4.0);
    }
}
