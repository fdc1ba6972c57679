//! Layers that carry a recurrent state instead of keys and values.
//!
//! ```text
//! q, k, v, z, beta, alpha = projections of x          x = norm(h)
//! h += out · gated_delta(q, k, v, beta, alpha, state) * norm and gate z          (scrimp_kernels::ops::gated_delta)
//! ```
//! The state of a sequence is part of its cache ([`scrimp_kv::Sequence::advance_state`]). All sequences of a pass share the
//! projections; each updates its own state. The result does not depend on the division of a text into chunks, bit for bit.
//!
//! A state cannot drop tokens. When a draft is verified, the inputs of these layers are kept, and the states before it are
//! updated again by the accepted tokens ([`Session::update_states`]).

use super::{
    Session,
    chunk::{SequenceChunk, advance_states},
    forward::{Buffers, Pass, product, sized},
    projections::{DeltaProjection, TensorSlice, delta_slice, vector},
    short_conv::taps,
    weights::{LayerNorms, LinearWeights, Mixer},
};
use crate::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::{Error, Result},
};
use scrimp_kernels::{
    linear::linear,
    ops::{DeltaInputs, DeltaShape, DeltaWeights, StateChunk, gated_delta},
};
use std::ops::Range;

/// The weights of a layer with the gated delta rule.
#[derive(Debug)]
pub(super) struct DeltaLayer {
    shape: DeltaShape,
    q: LinearWeights,
    k: LinearWeights,
    v: LinearWeights,
    z: LinearWeights,
    beta: LinearWeights,
    alpha: LinearWeights,
    pub(super) out: LinearWeights,
    rest: DeltaWeights,
}

impl DeltaLayer {
    /// Reads layer `index`; `matrix` packs a slice.
    ///
    /// # Errors
    /// Those of `matrix`, and when a tensor is missing or damaged.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        shape: DeltaShape,
        index: usize,
        mut matrix: impl FnMut(TensorSlice) -> Result<LinearWeights>,
    ) -> Result<Self> {
        use DeltaProjection::{Alpha, Beta, K, Out, Q, V, Z};
        let mut of = |projection| matrix(delta_slice(checkpoint, config, shape, index, projection));
        Ok(Self {
            shape,
            q: of(Q)?,
            k: of(K)?,
            v: of(V)?,
            z: of(Z)?,
            beta: of(Beta)?,
            alpha: of(Alpha)?,
            out: of(Out)?,
            rest: delta_weights(checkpoint, config, shape, index)?,
        })
    }

    /// Elements of the output of a token.
    pub(super) fn width(&self) -> usize {
        self.shape.values()
    }
}

/// The vectors of layer `index`.
fn delta_weights(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    shape: DeltaShape,
    index: usize,
) -> Result<DeltaWeights> {
    let name = |stem: &str| format!("blk.{index}.{stem}.weight");
    let conv = vector(checkpoint, &name("ssm_conv1d"))?;
    let (kernel, keys) = (shape.kernel, shape.keys());
    let taps = |channels: Range<usize>| taps(&conv[channels.start * kernel..channels.end * kernel], kernel);
    Ok(DeltaWeights {
        conv_q: taps(0..keys),
        conv_k: taps(keys..2 * keys),
        conv_v: taps(2 * keys..2 * keys + shape.values()),
        decay: decay(checkpoint, index)?,
        dt_bias: vector(checkpoint, &name("ssm_dt_bias"))?,
        norm: vector(checkpoint, &name("ssm_norm"))?,
        eps: config.rms_norm_eps,
    })
}

/// The decays of the heads of layer `index`. GGUF has `-exp(A_log)`, Hugging Face files `A_log`.
pub(super) fn decay(checkpoint: &Checkpoint, index: usize) -> Result<Vec<f32>> {
    let name = |stem: &str| format!("blk.{index}.{stem}.weight");
    let decay: Vec<f32> = match checkpoint.try_tensor(&name("ssm_a")) {
        Some(_) => vector(checkpoint, &name("ssm_a"))?,
        None => vector(checkpoint, &name("ssm_a_log"))?.iter().map(|x| -x.exp()).collect(),
    };
    if decay.iter().any(|x| !x.is_finite()) {
        let what = format!("tensor {} is out of range", name("ssm_a_log"));
        return Err(Error::damaged_file(checkpoint.path(), what));
    }
    Ok(decay)
}

/// The inputs of a layer's state for all rows of a pass.
#[derive(Debug)]
pub(super) enum StateInputs {
    /// Q, K, V, beta and alpha.
    Delta([Vec<f32>; 5]),
    /// The inputs of a convolution.
    ShortConv(Vec<f32>),
    /// The inputs of a convolution, and dt.
    Mamba2([Vec<f32>; 2]),
}

impl Session {
    /// Updates the recurrent states by the first `n` rows of `inputs`, those of all recurrent layers in their order.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub(super) fn update_states(
        &mut self,
        inputs: &[StateInputs],
        n: usize,
        buffers: &mut Buffers,
    ) -> Result<()> {
        if n == 0 {
            return Ok(());
        }
        let model = self.model.clone();
        let exec = model.exec();
        let recurrent =
            model.weights().layers.iter().filter(|layer| !matches!(layer.mixer, Mixer::Attention(_)));
        for (index, (layer, inputs)) in recurrent.zip(inputs).enumerate() {
            let state = self.kv.advance_state(index, n)?;
            match (&layer.mixer, inputs) {
                (Mixer::Delta(layer), StateInputs::Delta([q, k, v, beta, alpha])) => {
                    let mut chunks = [StateChunk { rows: 0..n, state }];
                    let out = sized(&mut buffers.attn, v.len());
                    // The outputs, and their gate, have no effect.
                    let inputs = DeltaInputs { q, k, v, z: v, beta, alpha };
                    gated_delta(exec, layer.shape, &layer.rest, inputs, &mut chunks, out);
                }
                (Mixer::ShortConv(layer), StateInputs::ShortConv(u)) => layer.remember(state, u, n),
                (Mixer::Mamba2(layer), StateInputs::Mamba2([u, dt])) => {
                    layer.update(exec, state, (u, dt), n, buffers);
                }
                _ => unreachable!("the pass kept the inputs of these layers"),
            }
        }
        Ok(())
    }
}

impl Pass<'_> {
    /// Passes `n` rows through a layer, except its output projection. `state` is the index of the layer among the
    /// recurrent ones.
    pub(super) fn delta(
        &mut self,
        norms: &LayerNorms,
        layer: &DeltaLayer,
        state: usize,
        n: usize,
        chunks: &mut [SequenceChunk<'_>],
    ) {
        let projections = [&layer.q, &layer.k, &layer.v, &layer.z, &layer.beta, &layer.alpha];
        let needs = projections.iter().fold(layer.q.needs(), |needs, p| needs.and(p.needs()));
        self.normed_input(norms, needs, n);
        let Self { exec, buffers, .. } = self;
        let shape = layer.shape;
        let (keys, values, heads) = (n * shape.keys(), n * shape.values(), n * shape.value_heads);
        let mut products = [
            product(&layer.q, sized(&mut buffers.q, keys), false),
            product(&layer.k, sized(&mut buffers.k, keys), false),
            product(&layer.v, sized(&mut buffers.v, values), false),
            product(&layer.z, sized(&mut buffers.attn_gate, values), false),
            product(&layer.beta, sized(&mut buffers.beta, heads), false),
            product(&layer.alpha, sized(&mut buffers.alpha, heads), false),
        ];
        linear(*exec, &mut buffers.linear, &buffers.x, &mut products);
        let mut states: Vec<_> = advance_states(chunks, state).collect();
        let inputs = DeltaInputs {
            q: &buffers.q,
            k: &buffers.k,
            v: &buffers.v,
            z: &buffers.attn_gate,
            beta: &buffers.beta,
            alpha: &buffers.alpha,
        };
        if let Some(kept) = &mut buffers.state_inputs {
            let rows = [&inputs.q[..keys], &inputs.k[..keys], &inputs.v[..values]];
            let [q, k, v] = rows.map(<[f32]>::to_vec);
            let [beta, alpha] = [&inputs.beta[..heads], &inputs.alpha[..heads]].map(<[f32]>::to_vec);
            kept.push(StateInputs::Delta([q, k, v, beta, alpha]));
        }
        let out = sized(&mut buffers.attn, values);
        gated_delta(*exec, shape, &layer.rest, inputs, &mut states, out);
    }
}
