//! Several residual streams (AltUp, Baykal et al. 2023, arXiv 2301.13310) and a learned residual (LAuReL, Menghani et al.
//! 2024, arXiv 2411.07501), as Gemma 3n has them (transformers 5.24, `Gemma3nTextDecoderLayer`).
//!
//! ```text
//! s[0] = embed(token),  s[i] = projection[i] s[0] * |s[0]| / |projection[i] s[0]|          before the layers
//! m    = tanh(router · norm(s[active]) / hidden)                                            each layer:
//! p[i] = s[i] + sum over j of (predict m)[i][j] s[j]                                        the layer changes h = p[active]
//! l    = x + norm(right · left · x)                  x = norm(h)
//! h    = (h + attention + l) / sqrt(2)               before the feed-forward block
//! s[i] = p[i] + (1 + (correct m')[i]) (h - p[active])                                       m': as m, of h
//! s[i] += the input of the layer, of scale * s[active], for i > 0                           ([`super::per_layer`])
//! h    = mean of s[0] and of unembedding[i] s[i] * |s[0]| / |unembedding[i] s[i]|           behind the layers
//! ```
//! All streams of a token are one row of [`Buffers::streams`](super::forward::Buffers).

use super::{
    forward::{Pass, each_row, norm_or_copy, product, sized},
    per_layer::LayerInputWeights,
    weights::{LayerNorms, LinearWeights},
};
use crate::config::{AltUp, ModelConfig};
use scrimp_kernels::{
    SimdLevel,
    linear::{ActivationShape, linear},
    ops::{self, dot},
};
use std::f32::consts::FRAC_1_SQRT_2;

/// The smallest mean of squares of a projected stream.
const MIN_SQUARE: f32 = 1e-5;

/// The projections between one stream and all, `[hidden_size][hidden_size]` for each stream but the first.
#[derive(Debug)]
pub(super) struct StreamWeights {
    pub(super) projections: Vec<LinearWeights>,
    pub(super) unembeddings: Vec<LinearWeights>,
}

/// The weights of a layer.
#[derive(Debug)]
pub(super) struct AltUpWeights {
    /// `[streams][hidden_size]`
    pub(super) router: Vec<f32>,
    /// Before the router, with its factor.
    pub(super) router_norm: Vec<f32>,
    /// `[streams * streams][streams]`
    pub(super) predict: Vec<f32>,
    /// `[streams][streams]`
    pub(super) correct: Vec<f32>,
    /// A factor on the active stream before the input of the layer, `[hidden_size]`.
    pub(super) scale: Vec<f32>,
}

/// The learned residual of a layer.
#[derive(Debug)]
pub(super) struct LaurelWeights {
    pub(super) left: LinearWeights,
    pub(super) right: LinearWeights,
    pub(super) norm: Vec<f32>,
}

impl AltUpWeights {
    /// `tanh(router · norm(x))`.
    fn route(&self, level: SimdLevel, config: &ModelConfig, x: &[f32]) -> Vec<f32> {
        let mut normed = vec![0.0; x.len()];
        config.rms_norm(&self.router_norm).apply(level, x, &mut normed);
        self.router.chunks_exact(x.len()).map(|weights| dot(weights, &normed).tanh()).collect()
    }
}

impl Pass<'_> {
    /// Makes the streams of `n` rows from the embeddings, which are the residual stream.
    pub(super) fn spread(&mut self, altup: AltUp, weights: &StreamWeights, n: usize) {
        let hidden = self.config.hidden_size;
        let row = altup.streams * hidden;
        let Self { exec, buffers, .. } = self;
        let h = &buffers.h[..n * hidden];
        each_row(exec.pool, sized(&mut buffers.streams, n * row), row, |t, streams| {
            streams[..hidden].copy_from_slice(&h[t * hidden..(t + 1) * hidden]);
        });
        for (i, projection) in (1..).zip(&weights.projections) {
            self.project_stream(projection, 0, row, n);
            let Self { exec, buffers, .. } = self;
            let block = &buffers.block;
            each_row(exec.pool, &mut buffers.streams[..n * row], row, |t, streams| {
                let (first, rest) = streams.split_at_mut(hidden);
                let to = &mut rest[(i - 1) * hidden..i * hidden];
                to.copy_from_slice(&block[t * hidden..(t + 1) * hidden]);
                to_magnitude(exec.level, first, to);
            });
        }
    }

    /// The mean of the streams of `n` rows, as the residual stream.
    pub(super) fn gather(&mut self, altup: AltUp, weights: &StreamWeights, n: usize) {
        let hidden = self.config.hidden_size;
        let row = altup.streams * hidden;
        let Self { exec, buffers, .. } = self;
        let streams = &buffers.streams[..n * row];
        each_row(exec.pool, &mut buffers.h[..n * hidden], hidden, |t, h| {
            h.copy_from_slice(&streams[t * row..t * row + hidden]);
        });
        for (i, unembedding) in (1..).zip(&weights.unembeddings) {
            self.project_stream(unembedding, i, row, n);
            let Self { exec, buffers, .. } = self;
            let streams = &buffers.streams;
            each_row(exec.pool, &mut buffers.block[..n * hidden], hidden, |t, block| {
                to_magnitude(exec.level, &streams[t * row..t * row + hidden], block);
            });
            let block = &buffers.block;
            each_row(exec.pool, &mut buffers.h[..n * hidden], hidden, |t, h| {
                ops::add_scaled(h, 1.0, &block[t * hidden..(t + 1) * hidden]);
            });
        }
        let Self { exec, buffers, .. } = self;
        let share = 1.0 / altup.streams as f32;
        each_row(exec.pool, &mut buffers.h[..n * hidden], hidden, |_, h| {
            ops::scale(exec.level, share, h);
        });
    }

    /// The product of `matrix` and stream `stream` of `n` rows of `row` elements, in `block`.
    fn project_stream(&mut self, matrix: &LinearWeights, stream: usize, row: usize, n: usize) {
        let Self { exec, config, buffers, .. } = self;
        let (hidden, streams) = (config.hidden_size, &buffers.streams);
        let shape = ActivationShape { n_tokens: n, cols: hidden, needs: matrix.needs() };
        buffers.x.fill(*exec, shape, |t, x| {
            x.copy_from_slice(&streams[t * row + stream * hidden..][..hidden]);
        });
        self.block_output(matrix, n);
    }

    /// Replaces the streams of `n` rows by their predictions; the active one becomes the residual stream.
    pub(super) fn predict(&mut self, altup: AltUp, weights: &AltUpWeights, n: usize) {
        let Self { exec, config, buffers, .. } = self;
        let (hidden, count, active) = (config.hidden_size, altup.streams, altup.active);
        let (row, level) = (count * hidden, exec.level);
        each_row(exec.pool, &mut buffers.streams[..n * row], row, |_, streams| {
            let of_active = &streams[active * hidden..(active + 1) * hidden];
            let m = weights.route(level, config, of_active);
            let before = streams.to_vec();
            for (i, to) in streams.chunks_exact_mut(hidden).enumerate() {
                for (j, from) in before.chunks_exact(hidden).enumerate() {
                    let factor = dot(&weights.predict[(i * count + j) * count..][..count], &m);
                    ops::add_scaled(to, factor, from);
                }
            }
        });
        let streams = &buffers.streams;
        each_row(exec.pool, &mut buffers.h[..n * hidden], hidden, |t, h| {
            h.copy_from_slice(&streams[t * row + active * hidden..][..hidden]);
        });
    }

    /// The learned residual of `n` rows of the residual stream, before the output of attention is added.
    pub(super) fn laurel(&mut self, norms: &LayerNorms, weights: &LaurelWeights, n: usize) {
        self.normed_input(norms, weights.left.needs(), n);
        let Self { exec, config, buffers, .. } = self;
        let (hidden, rank) = (config.hidden_size, weights.left.weight.rows());
        let gate = sized(&mut buffers.gate, n * rank);
        linear(*exec, &mut buffers.linear, &buffers.x, &mut [product(&weights.left, gate, false)]);
        let gate = &buffers.gate;
        let shape = ActivationShape { n_tokens: n, cols: rank, needs: weights.right.needs() };
        buffers.x.fill(*exec, shape, |t, x| x.copy_from_slice(&gate[t * rank..(t + 1) * rank]));
        self.block_output(&weights.right, n);
        let Self { exec, config, buffers, .. } = self;
        let (h, block, attn_norm) = (&buffers.h, &buffers.block, norms.attn_norm.as_deref());
        each_row(exec.pool, sized(&mut buffers.laurel, n * hidden), hidden, |t, out| {
            let row = t * hidden..(t + 1) * hidden;
            let norm = attn_norm.map(|weight| config.rms_norm(weight));
            norm_or_copy(exec.level, norm.as_ref(), &h[row.clone()], out);
            config.rms_norm(&weights.norm).add_to(exec.level, &block[row], out);
        });
    }

    /// Adds the learned residual to `n` rows of the residual stream.
    pub(super) fn add_laurel(&mut self, n: usize) {
        let Self { exec, config, buffers, .. } = self;
        let (hidden, laurel) = (config.hidden_size, &buffers.laurel);
        each_row(exec.pool, &mut buffers.h[..n * hidden], hidden, |t, h| {
            let row = &laurel[t * hidden..(t + 1) * hidden];
            ops::add_scaled(h, 1.0, row);
            ops::scale(exec.level, FRAC_1_SQRT_2, h);
        });
    }

    /// Corrects the predictions of `n` rows by the residual stream, and adds the input of layer `index`.
    pub(super) fn correct(
        &mut self,
        altup: AltUp,
        weights: &AltUpWeights,
        input: &LayerInputWeights,
        (index, n): (usize, usize),
    ) {
        let Self { exec, config, buffers, .. } = self;
        let (hidden, count, active) = (config.hidden_size, altup.streams, altup.active);
        let (row, level, h) = (count * hidden, exec.level, &buffers.h);
        each_row(exec.pool, &mut buffers.streams[..n * row], row, |t, streams| {
            let h = &h[t * hidden..(t + 1) * hidden];
            let m = weights.route(level, config, h);
            let predicted = &streams[active * hidden..(active + 1) * hidden];
            let innovation: Vec<f32> = h.iter().zip(predicted).map(|(h, p)| h - p).collect();
            for (i, to) in streams.chunks_exact_mut(hidden).enumerate() {
                let factor = 1.0 + dot(&weights.correct[i * count..(i + 1) * count], &m);
                ops::add_scaled(to, factor, &innovation);
            }
        });
        let streams = &buffers.streams;
        each_row(exec.pool, &mut buffers.h[..n * hidden], hidden, |t, h| {
            h.copy_from_slice(&streams[t * row + active * hidden..][..hidden]);
            ops::multiply(h, &weights.scale);
        });
        self.layer_input(input, index, n);
        self.block_output(&input.out, n);
        let Self { exec, config, buffers, .. } = self;
        let block = &buffers.block;
        each_row(exec.pool, &mut buffers.streams[..n * row], row, |t, streams| {
            for stream in streams[hidden..].chunks_exact_mut(hidden) {
                let block = &block[t * hidden..(t + 1) * hidden];
                config.rms_norm(&input.norm).add_to(exec.level, block, stream);
            }
        });
    }
}

/// Scales `to` to the root mean square of `of`.
fn to_magnitude(level: SimdLevel, of: &[f32], to: &mut [f32]) {
    let mean_square = |x: &[f32]| dot(x, x) / x.len() as f32;
    let factor = (mean_square(of) / mean_square(to).max(MIN_SQUARE)).sqrt();
    ops::scale(level, factor, to);
}
