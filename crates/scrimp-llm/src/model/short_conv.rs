//! Layers with a gated short convolution (LFM2 Technical Report, arXiv 2511.23404, section 2.1).
//!
//! ```text
//! b, c, x = projections of norm(h)             u[t] = b[t] * x[t]                      element by element
//! h[t] += out · (c[t] * sum over j < kernel of w[j] * u[t - kernel + 1 + j])
//!
//! state:  the last kernel - 1 rows of u, [kernel - 1][width]
//! ```

use super::{
    chunk::{SequenceChunk, advance_states},
    forward::{Pass, each_row, product, sized},
    projections::{TensorSlice, short_conv_slices, vector},
    recurrence::StateInputs,
    weights::{LayerNorms, LinearWeights},
};
use crate::{checkpoint::Checkpoint, config::ModelConfig, error::Result};
use scrimp_kernels::{
    linear::linear,
    ops::{self, StateChunk},
};

/// The weights of a layer.
#[derive(Debug)]
pub(super) struct ShortConvLayer {
    b: LinearWeights,
    c: LinearWeights,
    x: LinearWeights,
    pub(super) out: LinearWeights,
    /// `[kernel][width]`; the last row belongs to the newest token.
    taps: Vec<f32>,
}

impl ShortConvLayer {
    /// Reads layer `index`, with convolutions over `kernel` tokens; `matrix` packs a slice.
    ///
    /// # Errors
    /// Those of `matrix`, and when a tensor is missing or damaged.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        kernel: usize,
        index: usize,
        mut matrix: impl FnMut(TensorSlice) -> Result<LinearWeights>,
    ) -> Result<Self> {
        let [b, c, x, out] = short_conv_slices(config, index);
        let weights = vector(checkpoint, &format!("blk.{index}.shortconv.conv.weight"))?;
        let taps = taps(&weights, kernel);
        Ok(Self { b: matrix(b)?, c: matrix(c)?, x: matrix(x)?, out: matrix(out)?, taps })
    }

    /// Elements of the output of a token.
    pub(super) fn width(&self) -> usize {
        self.out.weight.cols()
    }

    /// Tokens that the convolution sees.
    fn kernel(&self) -> usize {
        self.taps.len() / self.width()
    }

    /// Updates a state by the first `n` rows of `u`.
    pub(super) fn remember(&self, state: &mut [f32], u: &[f32], n: usize) {
        History(StateChunk { rows: 0..n, state }).remember(u, self.width(), self.kernel());
    }
}

/// The taps of convolutions over `kernel` tokens, `[kernel][channels]`, from those of a file, `[channels][kernel]`.
pub(super) fn taps(weights: &[f32], kernel: usize) -> Vec<f32> {
    (0..kernel).flat_map(|tap| weights.iter().skip(tap).step_by(kernel).copied()).collect()
}

/// The tokens of a sequence. Its state has the rows of `u` before them.
pub(super) struct History<'a>(pub(super) StateChunk<'a>);

/// The sequence of row `row` among `histories`, which are in the order of their rows. Rows of failed chunks belong to none.
pub(super) fn of_row<'a, 'b>(histories: &'b [History<'a>], row: usize) -> Option<&'b History<'a>> {
    let after = histories.partition_point(|history| history.0.rows.start <= row);
    histories[..after].last().filter(|history| row < history.0.rows.end)
}

impl Pass<'_> {
    /// Passes `n` rows through a layer, except its output projection. `state` is the index of the layer among the
    /// recurrent ones.
    pub(super) fn short_conv(
        &mut self,
        norms: &LayerNorms,
        layer: &ShortConvLayer,
        state: usize,
        n: usize,
        chunks: &mut [SequenceChunk<'_>],
    ) {
        self.normed_input(norms, layer.b.needs().and(layer.c.needs()).and(layer.x.needs()), n);
        let Self { exec, buffers, .. } = self;
        let (width, taps) = (layer.width(), layer.kernel());
        let mut products = [
            product(&layer.b, sized(&mut buffers.q, n * width), false),
            product(&layer.c, sized(&mut buffers.attn_gate, n * width), false),
            product(&layer.x, sized(&mut buffers.k, n * width), false),
        ];
        linear(*exec, &mut buffers.linear, &buffers.x, &mut products);
        let (b, u) = (&buffers.q, &mut buffers.k[..n * width]);
        each_row(exec.pool, u, width, |t, u| {
            ops::multiply(u, &b[t * width..(t + 1) * width]);
        });
        let mut histories: Vec<_> = advance_states(chunks, state).map(History).collect();
        let (u, c, out) = (&buffers.k[..], &buffers.attn_gate, sized(&mut buffers.attn, n * width));
        each_row(exec.pool, out, width, |t, out| {
            out.fill(0.0);
            let Some(history) = of_row(&histories, t) else { return };
            history.convolve(u, &layer.taps, t, out);
            ops::multiply(out, &c[t * width..(t + 1) * width]);
        });
        histories.iter_mut().for_each(|history| history.remember(u, width, taps));
        if let Some(kept) = &mut buffers.state_inputs {
            kept.push(StateInputs::ShortConv(u[..n * width].to_vec()));
        }
    }
}

impl History<'_> {
    /// Adds the convolution of `u` with `taps`, `[kernel][width]`, at row `row` of the pass to `out`.
    pub(super) fn convolve(&self, u: &[f32], taps: &[f32], row: usize, out: &mut [f32]) {
        let width = out.len();
        let kernel = taps.len() / width;
        for (tap, weights) in taps.chunks_exact(width).enumerate() {
            let row = self.row(u, width, (row - self.0.rows.start) + tap + 1, kernel);
            ops::add_products(out, row, weights);
        }
    }

    /// Row `i - taps` of `u`, counted from the first token of the chunk.
    fn row<'b>(&'b self, u: &'b [f32], width: usize, i: usize, taps: usize) -> &'b [f32] {
        match i.checked_sub(taps) {
            Some(token) => &u[(self.0.rows.start + token) * width..][..width],
            None => &self.0.state[(i - 1) * width..][..width],
        }
    }

    /// Replaces the state by the last rows.
    pub(super) fn remember(&mut self, u: &[f32], width: usize, taps: usize) {
        let StateChunk { rows, state } = &mut self.0;
        let kept = taps - 1;
        if rows.len() < kept {
            state.copy_within(rows.len() * width.., 0);
        }
        let new = rows.len().min(kept);
        let last = (rows.end - new) * width;
        state[(kept - new) * width..].copy_from_slice(&u[last..last + new * width]);
    }
}
