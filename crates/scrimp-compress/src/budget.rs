//! Which layers may be small: formats and sparsities per layer, by what they do to the model's predictions.
//!
//! ```text
//! for each layer l:   KL_l    divergence of the predictions with layer l alone in the anchor format, measured
//!                     e_l(c)  squared error of the layer's output in each candidate format c, measured
//! choose c_l:         least  sum over l of KL_l e_l(c_l) / e_l(anchor)   with  sum over l of size_l(c_l) <= budget
//! ```
//! A small change of the residual stream changes the divergence by its square, so that one measured divergence per layer
//! and the errors of the candidates, which cost a layer each instead of a model, are enough. All layers' changed streams go
//! through the model together, in one sweep.

use crate::{
    Calibration, Inputs, LayerConfig, LayerConfigs, Pruner,
    layer::DenseLayer,
    matrix::{packed_bytes, round_matrix},
    quantizing::output::{divergence, output_matrix},
    runner::{self, Machine, Runner, Unchanged, Visitor},
};
use scrimp_kernels::{Exec, quant::packed::WeightFormat};
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    model::projections::{Projection, vector},
};
use std::collections::BTreeMap;

/// Tokens that are measured on.
const TOKENS: usize = 1024;
/// What divergences are measured with.
const ANCHOR: LayerConfig = LayerConfig { format: WeightFormat::Int4, sparsity: 0.5 };

/// What the layers' matrices are to meet together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// At most so many bytes, in whatever formats do least harm.
    Bytes(u64),
    /// One format, and so many zeros on the average.
    Sparsity(LayerConfig),
}

/// A format of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    choice: LayerConfig,
    /// Bytes, or weights that are not zero.
    pub(crate) size: f64,
    /// Predicted divergence, nats per token.
    pub(crate) harm: f64,
}

/// What may be chosen from.
fn candidates(goal: Goal) -> Vec<LayerConfig> {
    let choice = |format| move |sparsity: f64| LayerConfig { format, sparsity };
    match goal {
        Goal::Bytes(_) => {
            let int8 = [0.0, 0.3].map(choice(WeightFormat::Int8));
            let int4 = [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8].map(choice(WeightFormat::Int4));
            int8.into_iter().chain(int4).collect()
        }
        Goal::Sparsity(LayerConfig { format, sparsity }) => {
            [-0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2]
                .map(|delta| choice(format)((sparsity + delta).clamp(0.0, 0.98)))
                .to_vec()
        }
    }
}

/// Finds formats that meet `goal`.
///
/// # Errors
/// When no format is small enough, or the checkpoint is damaged.
pub(crate) fn choose(
    machine: Machine<'_>,
    checkpoint: &Checkpoint,
    embedding: Option<&runner::Packed>,
    method: &dyn Pruner,
    calibration: &Calibration,
    goal: Goal,
    progress: &mut dyn FnMut(usize),
) -> Result<LayerConfigs> {
    let layers = measure(machine, checkpoint, embedding, method, calibration, goal, progress)?;
    let budget = match goal {
        Goal::Bytes(bytes) => bytes as f64,
        Goal::Sparsity(choice) => {
            // All candidates of a layer are shares of the same number of weights.
            let weights = |c: &[Candidate]| c[0].size / (1.0 - c[0].choice.sparsity);
            (1.0 - choice.sparsity) * layers.iter().map(|c| weights(c)).sum::<f64>()
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
    Ok(choices(&chosen))
}

/// A candidate of each layer as choices.
pub(crate) fn choices(chosen: &[Candidate]) -> LayerConfigs {
    LayerConfigs { all: ANCHOR, layers: chosen.iter().map(|c| c.choice).enumerate().collect() }
}

/// The size of all layers, each in its smallest format.
pub(crate) fn smallest(layers: &[Vec<Candidate>]) -> f64 {
    layers.iter().map(|c| c.iter().map(|c| c.size).fold(f64::INFINITY, f64::min)).sum()
}

/// What each layer may become, how large that is and what harm it does.
///
/// # Errors
/// When the checkpoint is damaged.
pub(crate) fn measure(
    machine: Machine<'_>,
    checkpoint: &Checkpoint,
    embedding: Option<&runner::Packed>,
    method: &dyn Pruner,
    calibration: &Calibration,
    goal: Goal,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<Candidate>>> {
    let text = calibration.first(TOKENS);
    let all = candidates(goal);
    let width = text.tokens.len() * machine.config.hidden_size;
    let matrix = embedding.map(|e| &e.matrix);
    // The original's stream, then that of each layer so far that was changed.
    let mut streams = Runner::embed(machine, checkpoint, matrix, &text.tokens, text.window)?.into_hidden();
    let mut layers: Vec<(Vec<Candidate>, f64)> = Vec::new();
    for index in 0..machine.config.n_layers {
        progress(index);
        let mut layer = DenseLayer::read(checkpoint, machine.pool, index)?;
        let before = streams[..width].to_vec();
        let mut collected = Collector { machine, method, inputs: BTreeMap::new(), done: Vec::new() };
        let mut runner = Runner::from_hidden(machine, before.clone(), text.window);
        runner.layer(&mut layer, index, &mut collected)?;
        let after = runner.into_hidden();
        let changed = |choice: LayerConfig| -> Result<(Vec<f32>, f64)> {
            let mut copy = layer.clone();
            let mut size = 0.0;
            for (roles, inputs) in &collected.done {
                for &role in roles {
                    let keep_zeros = layer.pruned_already(role);
                    let weight = copy.weight_mut(role);
                    round_matrix(machine.pool, weight, inputs, method, choice, keep_zeros);
                    size += match goal {
                        Goal::Bytes(_) => packed_bytes(choice.format, weight),
                        Goal::Sparsity(_) => (1.0 - choice.sparsity) * weight.data.len() as f64,
                    };
                }
            }
            let mut runner = Runner::from_hidden(machine, before.clone(), text.window);
            runner.layer(&mut copy, index, &mut Unchanged)?;
            Ok((runner.into_hidden(), size))
        };
        let error =
            |h: &[f32]| -> f64 { h.iter().zip(&after).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() };
        let (anchor, _) = changed(ANCHOR)?;
        let of_anchor = error(&anchor).max(f64::MIN_POSITIVE);
        let mut measured = Vec::with_capacity(all.len());
        for &choice in &all {
            let (h, size) = changed(choice)?;
            measured.push(Candidate { choice, size, harm: error(&h) / of_anchor });
        }
        let mut runner = Runner::from_hidden(machine, streams, text.window);
        runner.layer(&mut layer, index, &mut Unchanged)?;
        streams = runner.into_hidden();
        streams.extend(anchor);
        layers.push((measured, 0.0));
    }
    let norm = vector(checkpoint, "output_norm.weight")?;
    let output = output_matrix(machine, checkpoint)?;
    let x = machine.normed(&streams, &norm);
    for ((candidates, kl), changed) in layers.iter_mut().zip(x[width..].chunks_exact(width)) {
        *kl = divergence(machine, (&output, &x[..width]), (&output, changed)).max(0.0);
        candidates.iter_mut().for_each(|c| c.harm *= *kl);
    }
    Ok(layers.into_iter().map(|(candidates, _)| candidates).collect())
}

/// One candidate per layer, of at most `budget` together: from the least harm on, always the step that costs least harm per
/// size that it saves. `None` where even the smallest are too large.
pub(crate) fn allocate(layers: &[Vec<Candidate>], budget: f64) -> Option<Vec<Candidate>> {
    let least_harm =
        |a: &&Candidate, b: &&Candidate| a.harm.total_cmp(&b.harm).then(a.size.total_cmp(&b.size));
    let mut chosen: Vec<Candidate> =
        layers.iter().map(|c| c.iter().min_by(least_harm).copied()).collect::<Option<_>>()?;
    loop {
        let size: f64 = chosen.iter().map(|c| c.size).sum();
        // A part in 10^9 for rounding.
        if size <= budget * (1.0 + 1e-9) {
            return Some(chosen);
        }
        let price = |now: &Candidate, to: &Candidate| (to.harm - now.harm) / (now.size - to.size);
        let steps = layers.iter().enumerate().flat_map(|(l, candidates)| {
            let now = chosen[l];
            candidates.iter().filter(move |to| to.size < now.size).map(move |to| (price(&now, to), l, *to))
        });
        let (_, l, to) = steps.min_by(|a, b| a.0.total_cmp(&b.0))?;
        chosen[l] = to;
    }
}

/// Keeps what the matrices of a layer get.
struct Collector<'a> {
    machine: Machine<'a>,
    method: &'a dyn Pruner,
    inputs: BTreeMap<usize, Inputs>,
    done: Vec<(Vec<Projection>, Inputs)>,
}

impl Visitor for Collector<'_> {
    fn inputs(&mut self, roles: &[Projection], cols: usize, x: &[f32]) -> Result<()> {
        let wanted = self.method.needs();
        let inputs = self.inputs.entry(roles[0] as usize).or_insert_with(|| Inputs::new(cols, wanted));
        inputs.add(Exec { pool: self.machine.pool, level: self.machine.level }, x)
    }

    fn ready(&mut self, _: &mut DenseLayer, roles: &[Projection]) -> Result<()> {
        if let Some(inputs) = self.inputs.remove(&(roles[0] as usize)) {
            self.done.push((roles.to_vec(), inputs));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(points: &[(f64, f64)]) -> Vec<Candidate> {
        points.iter().map(|&(size, harm)| Candidate { choice: ANCHOR, size, harm }).collect()
    }

    #[test]
    fn the_least_harm_within_the_budget() {
        // A layer that does not care, and one that does.
        let layers =
            [layer(&[(8.0, 0.0), (4.0, 0.01), (2.0, 0.02)]), layer(&[(8.0, 0.0), (4.0, 1.0), (2.0, 5.0)])];
        let sizes = |budget| allocate(&layers, budget).map(|c| c.iter().map(|c| c.size).collect::<Vec<_>>());
        assert_eq!(sizes(16.0), Some(vec![8.0, 8.0]));
        assert_eq!(sizes(12.0), Some(vec![4.0, 8.0]));
        assert_eq!(sizes(10.0), Some(vec![2.0, 8.0]));
        assert_eq!(sizes(9.0), Some(vec![2.0, 4.0]));
        assert_eq!(sizes(4.0), Some(vec![2.0, 2.0]));
        assert_eq!(sizes(3.9), None);
        // Of two formats of the same harm the smaller is taken at once.
        assert_eq!(allocate(&[layer(&[(8.0, 0.5), (4.0, 0.5)])], 100.0).unwrap()[0].size, 4.0);
    }
}
