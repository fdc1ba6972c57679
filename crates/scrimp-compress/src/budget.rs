//! Formats and sparsities per layer, chosen by the measured increase of the loss.
//!
//! ```text
//! for each layer l:   KL_l    divergence of the predictions with layer l alone in the anchor format, measured
//!                     e_l(c)  squared error of the layer's output in each candidate format c, measured
//! choose c_l:         least  sum over l of KL_l e_l(c_l) / e_l(anchor)   with  sum over l of size_l(c_l) <= budget
//! ```
//! The divergence grows with the square of a small change of the residual stream. One measured divergence per layer and
//! the errors of the candidates therefore suffice. An error costs a run of one layer instead of a run of the model. The
//! changed streams of all layers run through the model together, in one pass.

use crate::{
    Calibration, Inputs, LayerConfig, LayerConfigs, Pruner,
    layer::DenseLayer,
    layer_pass::{Unchanged, Visitor, run_layer},
    matrix::{MatrixOptions, packed_bytes, round_matrix},
    quantizing::output::{divergence, output_matrix},
};
use scrimp_kernels::{Exec, quant::packed::WeightFormat};
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    model::{
        LayerRunner, LinearWeights,
        projections::{Projection, vector},
        rms_norm_rows,
    },
};
use std::collections::BTreeMap;

/// Number of tokens for the measurement.
const TOKENS: usize = 1024;
/// The configuration in which divergences are measured.
const ANCHOR: LayerConfig = LayerConfig { format: WeightFormat::Int4, sparsity: 0.5 };

/// The limit on the matrices of all layers together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// At most this many bytes; formats are chosen for the least loss increase.
    Bytes(u64),
    /// One format, with this sparsity on average.
    Sparsity(LayerConfig),
}

/// A format of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    config: LayerConfig,
    /// Bytes, or the number of nonzero weights, depending on the goal.
    pub(crate) size: f64,
    /// Predicted divergence, nats per token.
    pub(crate) loss_increase: f64,
}

/// The candidates of each layer.
fn candidates(goal: Goal) -> Vec<LayerConfig> {
    let config = |format| move |sparsity: f64| LayerConfig { format, sparsity };
    match goal {
        Goal::Bytes(_) => {
            let int8 = [0.0, 0.3].map(config(WeightFormat::Int8));
            let int4 = [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8].map(config(WeightFormat::Int4));
            int8.into_iter().chain(int4).collect()
        }
        Goal::Sparsity(LayerConfig { format, sparsity }) => {
            [-0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2]
                .map(|delta| config(format)((sparsity + delta).clamp(0.0, 0.98)))
                .to_vec()
        }
    }
}

/// A model to measure, and the method and text to measure with.
#[derive(Clone, Copy)]
pub(crate) struct Search<'a> {
    pub(crate) exec: Exec<'a>,
    pub(crate) checkpoint: &'a Checkpoint,
    /// The packed embedding, if it replaces that of the checkpoint.
    pub(crate) embedding: Option<&'a LinearWeights>,
    pub(crate) method: &'a dyn Pruner,
    pub(crate) calibration: &'a Calibration,
}

/// The configurations of one candidate per layer.
pub(crate) fn layer_configs(chosen: &[Candidate]) -> LayerConfigs {
    LayerConfigs { all: ANCHOR, layers: chosen.iter().map(|c| c.config).enumerate().collect() }
}

/// The size of all layers, each in its smallest format.
pub(crate) fn smallest(layers: &[Vec<Candidate>]) -> f64 {
    layers.iter().map(|c| c.iter().map(|c| c.size).fold(f64::INFINITY, f64::min)).sum()
}

impl Search<'_> {
    /// The configurations with the least predicted loss increase that meet `goal`.
    ///
    /// # Errors
    /// No format is small enough, or the checkpoint is damaged.
    pub(crate) fn choose(&self, goal: Goal, progress: &mut dyn FnMut(usize)) -> Result<LayerConfigs> {
        let layers = self.measure(goal, progress)?;
        let budget = match goal {
            Goal::Bytes(bytes) => bytes as f64,
            Goal::Sparsity(config) => {
                // All candidates of a layer are shares of the same number of weights.
                let weights = |c: &[Candidate]| c[0].size / (1.0 - c[0].config.sparsity);
                (1.0 - config.sparsity) * layers.iter().map(|c| weights(c)).sum::<f64>()
            }
        };
        let chosen = allocate(&layers, budget).ok_or_else(|| {
            Error::bad_input(format!(
                "the layers take {:.1} MB at least, {:.1} MB are left for them",
                smallest(&layers) / 1e6,
                budget / 1e6
            ))
            .with_hint("ask for more bits or a larger size")
        })?;
        Ok(layer_configs(&chosen))
    }

    /// The candidates of each layer, with their sizes and predicted loss increases.
    ///
    /// # Errors
    /// When the checkpoint is damaged.
    pub(crate) fn measure(&self, goal: Goal, progress: &mut dyn FnMut(usize)) -> Result<Vec<Vec<Candidate>>> {
        let Self { exec, checkpoint, embedding, calibration, .. } = *self;
        let text = calibration.first(TOKENS);
        let config = checkpoint.config();
        let width = text.tokens.len() * config.hidden_size;
        let matrix = embedding.map(|e| &e.weight);
        // The stream of the original, then one stream for each changed layer so far.
        let mut streams =
            LayerRunner::embed(exec, checkpoint, matrix, &text.tokens, text.window)?.into_hidden();
        let mut layers: Vec<Vec<Candidate>> = Vec::new();
        for index in 0..config.n_layers {
            progress(index);
            let mut layer = DenseLayer::read(checkpoint, exec.pool, index)?;
            let before = &streams[..width];
            let (measured, anchor) = self.measure_layer(&mut layer, index, before, text.window, goal)?;
            let mut runner = LayerRunner::from_hidden(exec, config, streams, text.window);
            run_layer(exec, &mut runner, index, &mut layer, &mut Unchanged)?;
            streams = runner.into_hidden();
            streams.extend(anchor);
            layers.push(measured);
        }
        let norm = vector(checkpoint, "output_norm.weight")?;
        let output = output_matrix(exec, checkpoint)?;
        let x = rms_norm_rows(exec, config, &norm, &streams);
        for (candidates, changed) in layers.iter_mut().zip(x[width..].chunks_exact(width)) {
            let kl = divergence(exec, config, (&output, &x[..width]), (&output, changed)).max(0.0);
            candidates.iter_mut().for_each(|c| c.loss_increase *= kl);
        }
        Ok(layers)
    }

    /// The candidates of one layer with their squared errors relative to the anchor's, and the stream after the layer
    /// in the anchor configuration. `before` is the original's stream before the layer.
    fn measure_layer(
        &self,
        layer: &mut DenseLayer,
        index: usize,
        before: &[f32],
        window: usize,
        goal: Goal,
    ) -> Result<(Vec<Candidate>, Vec<f32>)> {
        let Self { exec, checkpoint, method, .. } = *self;
        let config = checkpoint.config();
        let mut collected = Collector { exec, method, inputs: BTreeMap::new(), done: Vec::new() };
        let run = |layer: &mut DenseLayer, visitor: &mut dyn Visitor| -> Result<Vec<f32>> {
            let mut runner = LayerRunner::from_hidden(exec, config, before.to_vec(), window);
            run_layer(exec, &mut runner, index, layer, visitor)?;
            Ok(runner.into_hidden())
        };
        let after = run(layer, &mut collected)?;
        let changed = |config: LayerConfig| -> Result<(Vec<f32>, f64)> {
            let mut copy = layer.clone();
            let mut size = 0.0;
            for (projections, inputs) in &collected.done {
                for &projection in projections {
                    let keep_zeros = layer.pruned_already(projection);
                    let weight = copy.weight_mut(projection);
                    round_matrix(exec.pool, weight, &MatrixOptions { method, inputs, config, keep_zeros });
                    size += match goal {
                        Goal::Bytes(_) => packed_bytes(config.format, weight),
                        Goal::Sparsity(_) => (1.0 - config.sparsity) * weight.data.len() as f64,
                    };
                }
            }
            Ok((run(&mut copy, &mut Unchanged)?, size))
        };
        let error =
            |h: &[f32]| -> f64 { h.iter().zip(&after).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() };
        let (anchor, _) = changed(ANCHOR)?;
        let of_anchor = error(&anchor).max(f64::MIN_POSITIVE);
        let mut measured = Vec::new();
        for config in candidates(goal) {
            let (h, size) = changed(config)?;
            measured.push(Candidate { config, size, loss_increase: error(&h) / of_anchor });
        }
        Ok((measured, anchor))
    }
}

/// One candidate per layer, of at most `budget` together. The search starts with the least loss increase and always
/// takes the step with the least additional loss per saved size. `None` if even the smallest candidates are too large.
pub(crate) fn allocate(layers: &[Vec<Candidate>], budget: f64) -> Option<Vec<Candidate>> {
    let least_loss = |a: &&Candidate, b: &&Candidate| {
        a.loss_increase.total_cmp(&b.loss_increase).then(a.size.total_cmp(&b.size))
    };
    let mut chosen: Vec<Candidate> =
        layers.iter().map(|c| c.iter().min_by(least_loss).copied()).collect::<Option<_>>()?;
    loop {
        let size: f64 = chosen.iter().map(|c| c.size).sum();
        // A tolerance of 10^-9 for rounding.
        if size <= budget * (1.0 + 1e-9) {
            return Some(chosen);
        }
        let price =
            |now: &Candidate, to: &Candidate| (to.loss_increase - now.loss_increase) / (now.size - to.size);
        let steps = layers.iter().enumerate().flat_map(|(l, candidates)| {
            let now = chosen[l];
            candidates.iter().filter(move |to| to.size < now.size).map(move |to| (price(&now, to), l, *to))
        });
        let (_, l, to) = steps.min_by(|a, b| a.0.total_cmp(&b.0))?;
        chosen[l] = to;
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
        points
            .iter()
            .map(|&(size, loss_increase)| Candidate { config: ANCHOR, size, loss_increase })
            .collect()
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
        assert_eq!(sizes(9.0), Some(vec![2.0, 4.0]));
        assert_eq!(sizes(4.0), Some(vec![2.0, 2.0]));
        assert_eq!(sizes(3.9), None);
        // Of two formats with the same loss increase, the first step takes the smaller one.
        assert_eq!(allocate(&[layer(&[(8.0, 0.5), (4.0, 0.5)])], 100.0).unwrap()[0].size, 4.0);
    }
}
