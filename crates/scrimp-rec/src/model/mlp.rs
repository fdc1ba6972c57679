//! Multi-layer perceptrons, `y = relu(x W' + b)`, with Adam (Kingma and Ba, arXiv 1412.6980).

use crate::{Result, encoders::Exec};
use scrimp_kernels::{
    embedding::IdHash,
    ops::gemm_f32::{GemmScratch, Product, Start, View, gemm},
};

/// A tensor and its optimizer state.
#[derive(Debug)]
pub(super) struct Dense {
    /// The values.
    pub(super) values: Vec<f32>,
    /// Running mean of the gradients.
    pub(super) m: Vec<f32>,
    /// Running mean of the squared gradients.
    pub(super) v: Vec<f32>,
}

/// A step of Adam.
#[derive(Debug, Clone, Copy)]
pub struct AdamStep {
    /// The learning rate.
    pub lr: f32,
    /// The number of the step, from 1.
    pub number: u64,
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;

impl Dense {
    fn new(values: Vec<f32>) -> Self {
        let zeros = vec![0.0; values.len()];
        Self { m: zeros.clone(), v: zeros, values }
    }

    fn step(&mut self, exec: Exec<'_>, g: &[f32], adam: AdamStep) {
        let step = adam.number.min(1 << 20) as i32;
        let lr = adam.lr * (1.0 - BETA2.powi(step)).sqrt() / (1.0 - BETA1.powi(step));
        let mut all: Vec<_> = self
            .values
            .chunks_mut(CHUNK)
            .zip(self.m.chunks_mut(CHUNK))
            .zip(self.v.chunks_mut(CHUNK))
            .zip(g.chunks(CHUNK))
            .collect();
        exec.pool.chunks(&mut all, 1, |_, chunk| {
            let (((values, m), v), g) = &mut chunk[0];
            for i in 0..g.len() {
                m[i] = BETA1 * m[i] + (1.0 - BETA1) * g[i];
                v[i] = BETA2 * v[i] + (1.0 - BETA2) * g[i] * g[i];
                values[i] -= lr * m[i] / (v[i].sqrt() + 1e-8);
            }
        });
    }
}

/// One layer: `[out, in]` weights, one row per output.
#[derive(Debug)]
struct Linear {
    inputs: usize,
    outputs: usize,
    relu: bool,
    weight: Dense,
    bias: Dense,
}

/// Linear layers with ReLU between them.
#[derive(Debug)]
pub struct Mlp {
    layers: Vec<Linear>,
    outputs: Vec<Vec<f32>>,
    grads: [Vec<f32>; 2],
    weight_grad: Vec<f32>,
    bias_grad: Vec<f32>,
    gemm: GemmScratch,
}

/// Values of a thread's task.
const CHUNK: usize = 16384;
/// Columns whose gradients a task sums.
const COLUMNS: usize = 32;

/// The first `n` elements of `v`, which grows if it is shorter.
pub(super) fn sized(v: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if v.len() < n {
        v.resize(n, 0.0);
    }
    &mut v[..n]
}

impl Mlp {
    /// Layers with random weights: `sizes[0]` inputs, `sizes[1]` outputs, and so on. The last layer has a ReLU if `relu_last`.
    ///
    /// # Errors
    /// An allocation fails.
    pub fn new(sizes: &[usize], relu_last: bool, seed: u64) -> Result<Self> {
        let mut layers = Vec::new();
        for (i, pair) in sizes.windows(2).enumerate() {
            let (inputs, outputs) = (pair[0], pair[1]);
            let hash = IdHash::new(seed, i as u32);
            // The uniform distribution of Glorot and Bengio (2010).
            let spread = (6.0 / (inputs + outputs) as f32).sqrt();
            let mut values = crate::encoders::zeros(inputs.saturating_mul(outputs), "a layer")?;
            for (i, v) in values.iter_mut().enumerate() {
                *v = spread * ((hash.hash(i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0);
            }
            layers.push(Linear {
                inputs,
                outputs,
                relu: relu_last || i + 2 < sizes.len(),
                weight: Dense::new(values),
                bias: Dense::new(vec![0.0; outputs]),
            });
        }
        Ok(Self {
            outputs: vec![Vec::new(); layers.len()],
            layers,
            grads: Default::default(),
            weight_grad: Vec::new(),
            bias_grad: Vec::new(),
            gemm: GemmScratch::default(),
        })
    }

    /// Copies the weights of `other`, which has the same shape.
    pub(super) fn copy_weights(&mut self, other: &Self) {
        for (layer, from) in self.layers.iter_mut().zip(&other.layers) {
            layer.weight.values.copy_from_slice(&from.weight.values);
            layer.bias.values.copy_from_slice(&from.bias.values);
        }
    }

    /// The outputs, `[rows, outputs]`, of the inputs `x`, `[rows, inputs]`.
    pub fn forward(&mut self, exec: Exec<'_>, x: &[f32], rows: usize) -> &[f32] {
        for i in 0..self.layers.len() {
            let (before, after) = self.outputs.split_at_mut(i);
            let layer = &self.layers[i];
            let x = if i == 0 { x } else { &before[i - 1][..rows * layer.inputs] };
            let y = sized(&mut after[0], rows * layer.outputs);
            let start = Start::Bias { bias: &layer.bias.values, relu: layer.relu };
            let (a, b) = (View::rows(x, layer.inputs), View::rows(&layer.weight.values, layer.inputs).t());
            let shape = [rows, layer.outputs, layer.inputs];
            gemm(exec, &mut self.gemm, Product { shape, a, b, start, c: y });
        }
        self.outputs(rows)
    }

    /// The result of the last [`Mlp::forward`], which had the same number of rows.
    pub(super) fn outputs(&self, rows: usize) -> &[f32] {
        match (self.layers.last(), self.outputs.last()) {
            (Some(layer), Some(outputs)) => &outputs[..rows * layer.outputs],
            _ => &[],
        }
    }

    /// A step of Adam for `grad`, the gradients of the outputs of the last [`Mlp::forward`], whose inputs were `x`. Writes the
    /// gradients of the inputs to `dx`.
    pub fn backward(
        &mut self,
        exec: Exec<'_>,
        x: &[f32],
        grad: &[f32],
        dx: Option<&mut [f32]>,
        adam: AdamStep,
    ) {
        let rows = self.layers.last().map_or(0, |layer| grad.len() / layer.outputs);
        let [mut now, mut next] = std::mem::take(&mut self.grads);
        sized(&mut now, grad.len());
        let mut dx = dx;
        let last = self.layers.len().saturating_sub(1);
        for i in (0..self.layers.len()).rev() {
            let layer = &mut self.layers[i];
            let (inputs, outputs) = (layer.inputs, layer.outputs);
            let g = &mut now[..rows * outputs];
            if layer.relu || i == last {
                let (y, relu) = (&self.outputs[i], layer.relu);
                exec.pool.chunks(g, CHUNK, |chunk, g| {
                    let at = chunk * CHUNK..chunk * CHUNK + g.len();
                    if i == last {
                        g.copy_from_slice(&grad[at.clone()]);
                    }
                    if relu {
                        for (g, &y) in g.iter_mut().zip(&y[at]) {
                            *g = if y > 0.0 { *g } else { 0.0 };
                        }
                    }
                });
            }
            let g = &*g;
            let x = if i == 0 { x } else { &self.outputs[i - 1][..rows * inputs] };
            let dx = if i == 0 { dx.take() } else { Some(sized(&mut next, rows * inputs)) };
            if let Some(dx) = dx {
                let (a, b) = (View::rows(g, outputs), View::rows(&layer.weight.values, inputs));
                let product = Product { shape: [rows, inputs, outputs], a, b, start: Start::Zero, c: dx };
                gemm(exec, &mut self.gemm, product);
            }
            let weight_grad = sized(&mut self.weight_grad, inputs * outputs);
            let (a, b) = (View::rows(g, outputs).t(), View::rows(x, inputs));
            let shape = [outputs, inputs, rows];
            gemm(exec, &mut self.gemm, Product { shape, a, b, start: Start::Zero, c: &mut *weight_grad });
            let bias_grad = sized(&mut self.bias_grad, outputs);
            exec.pool.chunks(bias_grad, COLUMNS, |chunk, sums| {
                sums.fill(0.0);
                for g in g.chunks_exact(outputs) {
                    for (sum, g) in sums.iter_mut().zip(&g[chunk * COLUMNS..]) {
                        *sum += g;
                    }
                }
            });
            layer.weight.step(exec, weight_grad, adam);
            layer.bias.step(exec, bias_grad, adam);
            std::mem::swap(&mut now, &mut next);
        }
        self.grads = [now, next];
    }

    /// All tensors with their names and shapes.
    pub(super) fn tensors_mut(&mut self, prefix: &str) -> Vec<(String, Vec<usize>, &mut Dense)> {
        let mut all = Vec::new();
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let shape = vec![layer.outputs, layer.inputs];
            let outputs = layer.outputs;
            all.push((format!("{prefix}.{i}.weight"), shape, &mut layer.weight));
            all.push((format!("{prefix}.{i}.bias"), vec![outputs], &mut layer.bias));
        }
        all
    }
}
