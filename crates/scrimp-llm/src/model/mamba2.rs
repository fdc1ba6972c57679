//! Layers of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section 7).
//!
//! ```text
//! z, u, dt = projections of norm(h)                   u: x, B and C of all heads
//! x, B, C  = silu(causal convolution of u + bias)
//! y        = selective scan of x, B, C and dt         (scrimp_kernels::ops::selective_scan)
//! h       += out · norm(y * silu(z))                  each group of heads has a norm of its own
//!
//! state:  states of the scan | the last kernel - 1 rows of u, [kernel - 1][inputs]
//! ```

use super::{
    chunk::{SequenceChunk, advance_states},
    forward::{Buffers, Pass, each_row, product, sized},
    projections::{TensorSlice, mamba2_slices, optional_vector, vector},
    recurrence::{StateInputs, decay},
    short_conv::{History, of_row, taps},
    weights::{LayerNorms, LinearWeights},
};
use crate::{checkpoint::Checkpoint, config::ModelConfig, error::Result};
use scrimp_kernels::{
    Exec,
    linear::linear,
    ops::{self, Gate, ScanShape, ScanWeights, StateChunk, selective_scan},
};

/// The weights of a layer.
#[derive(Debug)]
pub(super) struct Mamba2Layer {
    shape: ScanShape,
    z: LinearWeights,
    u: LinearWeights,
    dt: LinearWeights,
    pub(super) out: LinearWeights,
    /// `[kernel][inputs]`; the last row belongs to the newest token.
    taps: Vec<f32>,
    /// `[inputs]`
    bias: Vec<f32>,
    scan: ScanWeights,
    /// `[width]`
    norm: Vec<f32>,
}

/// The rows of a pass and their sequences.
struct Rows<'a, 'b> {
    histories: Vec<History<'a>>,
    scans: Vec<StateChunk<'a>>,
    u: &'b [f32],
    dt: &'b [f32],
}

impl Mamba2Layer {
    /// Reads layer `index`, with convolutions over `kernel` tokens; `matrix` packs a slice.
    ///
    /// # Errors
    /// Those of `matrix`, and when a tensor is missing or damaged.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        (shape, kernel): (ScanShape, usize),
        index: usize,
        mut matrix: impl FnMut(TensorSlice) -> Result<LinearWeights>,
    ) -> Result<Self> {
        let [z, u, dt, out] = mamba2_slices(config, shape, index);
        let name = |stem: &str| format!("blk.{index}.{stem}");
        let weights = vector(checkpoint, &name("ssm_conv1d.weight"))?;
        let bias = optional_vector(checkpoint, &name("ssm_conv1d.bias"))?;
        Ok(Self {
            shape,
            z: matrix(z)?,
            u: matrix(u)?,
            dt: matrix(dt)?,
            out: matrix(out)?,
            taps: taps(&weights, kernel),
            bias: bias.unwrap_or_else(|| vec![0.0; shape.inputs()]),
            scan: ScanWeights {
                decay: decay(checkpoint, index)?,
                dt_bias: vector(checkpoint, &name("ssm_dt_bias.weight"))?,
                skip: vector(checkpoint, &name("ssm_d.weight"))?,
            },
            norm: vector(checkpoint, &name("ssm_norm.weight"))?,
        })
    }

    /// Elements of the output of a token.
    pub(super) fn width(&self) -> usize {
        self.shape.width()
    }

    /// The convolution and the scan of all rows: `x` has the inputs of the scan afterwards, `y` its outputs.
    fn run(&self, exec: Exec<'_>, rows: Rows<'_, '_>, x: &mut [f32], y: &mut [f32]) {
        let Rows { mut histories, mut scans, u, dt } = rows;
        let inputs = self.shape.inputs();
        let ones = vec![1.0; inputs];
        each_row(exec.pool, x, inputs, |t, x| {
            let mut sum = self.bias.clone();
            if let Some(history) = of_row(&histories, t) {
                history.convolve(u, &self.taps, t, &mut sum);
            }
            ops::gated(exec.level, Gate::Silu, &sum, &ones, x);
        });
        let kernel = self.taps.len() / inputs;
        histories.iter_mut().for_each(|history| history.remember(u, inputs, kernel));
        selective_scan(exec, self.shape, &self.scan, [x, dt], &mut scans, y);
    }

    /// Splits the state of a sequence into those of the scan and of the convolution.
    fn split<'a>(&self, state: &'a mut [f32]) -> (&'a mut [f32], &'a mut [f32]) {
        state.split_at_mut(self.shape.state_len())
    }

    /// Updates a state by the first `n` rows of `u` and `dt`.
    pub(super) fn update(
        &self,
        exec: Exec<'_>,
        state: &mut [f32],
        (u, dt): (&[f32], &[f32]),
        n: usize,
        buffers: &mut Buffers,
    ) {
        let (scan, state) = self.split(state);
        let histories = vec![History(StateChunk { rows: 0..n, state })];
        let scans = vec![StateChunk { rows: 0..n, state: scan }];
        let (x, y) =
            (sized(&mut buffers.v, n * self.shape.inputs()), sized(&mut buffers.q, n * self.width()));
        self.run(exec, Rows { histories, scans, u, dt }, x, y);
    }
}

impl Pass<'_> {
    /// Passes `n` rows through a layer, except its output projection. `state` is the index of the layer among the
    /// recurrent ones.
    pub(super) fn mamba2(
        &mut self,
        norms: &LayerNorms,
        layer: &Mamba2Layer,
        state: usize,
        n: usize,
        chunks: &mut [SequenceChunk<'_>],
    ) {
        self.normed_input(norms, layer.z.needs().and(layer.u.needs()).and(layer.dt.needs()), n);
        let Self { exec, config, buffers, .. } = self;
        let (width, inputs, heads) = (layer.width(), layer.shape.inputs(), layer.shape.heads);
        let mut products = [
            product(&layer.z, sized(&mut buffers.attn_gate, n * width), false),
            product(&layer.u, sized(&mut buffers.k, n * inputs), false),
            product(&layer.dt, sized(&mut buffers.alpha, n * heads), false),
        ];
        linear(*exec, &mut buffers.linear, &buffers.x, &mut products);
        let (mut histories, mut scans) = (Vec::with_capacity(chunks.len()), Vec::with_capacity(chunks.len()));
        for StateChunk { rows, state } in advance_states(chunks, state) {
            let (scan, state) = layer.split(state);
            histories.push(History(StateChunk { rows: rows.clone(), state }));
            scans.push(StateChunk { rows, state: scan });
        }
        let (u, dt) = (&buffers.k[..n * inputs], &buffers.alpha[..n * heads]);
        let (x, y) = (sized(&mut buffers.v, n * inputs), sized(&mut buffers.q, n * width));
        layer.run(*exec, Rows { histories, scans, u, dt }, x, y);
        if let Some(kept) = &mut buffers.state_inputs {
            kept.push(StateInputs::Mamba2([u.to_vec(), dt.to_vec()]));
        }
        let (z, y, group) = (&buffers.attn_gate, &buffers.q, width / layer.shape.groups);
        each_row(exec.pool, sized(&mut buffers.attn, n * width), width, |t, out| {
            let row = t * width..(t + 1) * width;
            ops::gated(exec.level, Gate::Silu, &z[row.clone()], &y[row], out);
            for (out, weight) in out.chunks_exact_mut(group).zip(layer.norm.chunks_exact(group)) {
                config.rms_norm(weight).apply_in_place(exec.level, out);
            }
        });
    }
}
