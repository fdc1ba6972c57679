//! A forward pass of one layer at a time over many windows of text, with matrices from the caller.
//!
//! Only the residual stream of all windows and the matrices of one layer are in memory. Each stage of a layer ends with
//! the inputs of the next matrices, so the caller can choose these matrices for their inputs. The inputs include the
//! effect of all earlier changed matrices, in earlier layers and in this one.
//!
//! ```text
//! x = norm(h)            -> Q, K, V     attention(rope(Q x), rope(K x), V x)  -> O      h += O ·
//! x = norm(h)            -> gate, up    f(gate x) * up x                      -> down   h += down ·
//! ```
//! The steps are those of [`super::forward`].

use super::{
    PAGE_TOKENS,
    chunk::{LayerPlace, SequenceChunk},
    embed::{Embedding, bad_embedding},
    forward::{Buffers, Pass, rms_norm_rows, sized},
    projections::{Projection, seven_matrices},
    weights::{LayerNorms, LinearWeights},
};
use crate::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::{Error, Result},
};
use scrimp_kernels::{Exec, linear::Matrix};
use scrimp_kv::{KvCache, KvConfig, Sequence};

/// Receives the inputs of a layer's matrices and supplies the matrices.
pub trait LayerHook {
    /// The residual stream before the block that `projections` begin, `[tokens][hidden_size]`: attention, or the
    /// feed-forward block. Called before their [`LayerHook::inputs`].
    fn stream(&mut self, _projections: &[Projection], _stream: &[f32]) {}

    /// The inputs of `projections` for some tokens, `[tokens][in features]`. Called once for each window.
    ///
    /// # Errors
    /// An error ends the run.
    fn inputs(&mut self, projections: &[Projection], rows: &[f32]) -> Result<()>;

    /// All inputs of `projections` were passed to [`LayerHook::inputs`].
    ///
    /// # Errors
    /// An error ends the run.
    fn complete(&mut self, projections: &[Projection]) -> Result<()>;

    /// The matrix for a projection. Called once for each projection, after [`LayerHook::complete`]. The matrix is
    /// dropped after the last window.
    ///
    /// # Errors
    /// An error ends the run.
    fn matrix(&mut self, projection: Projection) -> Result<LinearWeights>;
}

/// The residual stream of a text in windows, between two layers.
#[derive(Debug)]
pub struct LayerRunner<'a> {
    exec: Exec<'a>,
    config: &'a ModelConfig,
    /// Tokens per window.
    window: usize,
    /// `[tokens][hidden_size]`
    h: Vec<f32>,
    buffers: Buffers,
}

impl<'a> LayerRunner<'a> {
    /// The embeddings of `tokens`, in windows of `window` tokens, from the rows of `matrix` or of the checkpoint.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or the embedding is damaged.
    pub fn embed(
        exec: Exec<'a>,
        checkpoint: &'a Checkpoint,
        matrix: Option<&Matrix>,
        tokens: &[u32],
        window: usize,
    ) -> Result<Self> {
        let config = checkpoint.config();
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= config.vocab_size) {
            return Err(Error::bad_input(format!("token {token} is outside the vocabulary")));
        }
        let embedding = match matrix {
            Some(matrix) => Embedding::Packed(matrix),
            None => Embedding::stored(checkpoint)?,
        };
        let mut h = vec![0.0; tokens.len() * config.hidden_size];
        if !embedding.embed(exec, config, tokens, &mut h) {
            return Err(bad_embedding(checkpoint));
        }
        Ok(Self::from_hidden(exec, config, h, window))
    }

    /// Continues from the residual stream `h`, `[tokens][hidden_size]`.
    pub fn from_hidden(exec: Exec<'a>, config: &'a ModelConfig, h: Vec<f32>, window: usize) -> Self {
        Self { exec, config, window, h, buffers: Buffers::default() }
    }

    /// The residual stream, `[tokens][hidden_size]`.
    pub fn hidden(&self) -> &[f32] {
        &self.h
    }

    /// The residual stream, `[tokens][hidden_size]`.
    pub fn into_hidden(self) -> Vec<f32> {
        self.h
    }

    /// Runs layer `index` over all windows. Without tokens, only [`LayerHook::complete`] is called.
    ///
    /// # Errors
    /// Those of `hook`, and when memory cannot be had.
    pub fn layer(&mut self, norms: &LayerNorms, index: usize, hook: &mut dyn LayerHook) -> Result<()> {
        use Projection::{Down, Gate, K, O, Q, Up, V};
        seven_matrices(self.config)?;
        if self.h.is_empty() {
            return hook.complete(&Projection::ALL);
        }
        self.normed(&[Q, K, V], norms.attn_norm.as_deref(), hook)?;
        hook.complete(&[Q, K, V])?;
        let attended = self.attention(norms, index, hook)?;
        hook.complete(&[O])?;
        self.add(&hook.matrix(O)?, norms.post_attn_norm.as_deref(), &attended);
        drop(attended);

        self.normed(&[Gate, Up], norms.ffn_norm.as_deref(), hook)?;
        hook.complete(&[Gate, Up])?;
        let gated = self.gated(norms, hook)?;
        hook.complete(&[Down])?;
        self.add(&hook.matrix(Down)?, norms.post_ffn_norm.as_deref(), &gated);
        Ok(())
    }

    /// Passes the residual stream to `hook`, normed where there is a norm.
    fn normed(
        &self,
        projections: &[Projection],
        weight: Option<&[f32]>,
        hook: &mut dyn LayerHook,
    ) -> Result<()> {
        hook.stream(projections, &self.h);
        self.h.chunks(self.window * self.config.hidden_size).try_for_each(|h| match weight {
            Some(weight) => hook.inputs(projections, &rms_norm_rows(self.exec, self.config, weight, h)),
            None => hook.inputs(projections, h),
        })
    }

    /// The inputs of O, `[tokens][n_heads * head_dim]`.
    fn attention(&mut self, norms: &LayerNorms, index: usize, hook: &mut dyn LayerHook) -> Result<Vec<f32>> {
        let Self { exec, config, window, h, buffers } = self;
        let mut kv = one_layer(config, index)?;
        let (hidden, place) = (config.hidden_size, LayerPlace::new(config, index, 0));
        let q_dim = place.heads.q_dim();
        let (wq, wk, wv) =
            (hook.matrix(Projection::Q)?, hook.matrix(Projection::K)?, hook.matrix(Projection::V)?);
        let mut pass = Pass { exec: *exec, end_level: exec.level, config, buffers };
        // All windows start at position 0, so the angles of one whole window serve all.
        pass.fill_rope(&[SequenceChunk::window(&mut kv, *window)]);
        let mut all = vec![0.0; h.len() / hidden * q_dim];
        for (h, out) in h.chunks(*window * hidden).zip(all.chunks_mut(*window * q_dim)) {
            let n = h.len() / hidden;
            sized(&mut pass.buffers.h, h.len()).copy_from_slice(h);
            pass.qkv(norms, [Some(&wq), Some(&wk), Some(&wv), None], place.heads, n);
            kv.reset();
            let mut chunks = [SequenceChunk::window(&mut kv, n)];
            pass.rope_and_append(norms, place, &mut chunks);
            pass.attend(place, n, &mut chunks, norms.sinks.as_deref(), false);
            let [chunk] = chunks;
            chunk.error.map_or(Ok(()), Err)?;
            out.copy_from_slice(&pass.buffers.attn[..n * q_dim]);
            hook.inputs(&[Projection::O], out)?;
        }
        Ok(all)
    }

    /// The inputs of the down projection, `[tokens][intermediate_size]`.
    fn gated(&mut self, norms: &LayerNorms, hook: &mut dyn LayerHook) -> Result<Vec<f32>> {
        let Self { exec, config, window, h, buffers } = self;
        let (hidden, width) = (config.hidden_size, config.intermediate_size);
        let (gate, up) = (hook.matrix(Projection::Gate)?, hook.matrix(Projection::Up)?);
        let mut pass = Pass { exec: *exec, end_level: exec.level, config, buffers };
        let mut all = vec![0.0; h.len() / hidden * width];
        for (h, out) in h.chunks(*window * hidden).zip(all.chunks_mut(*window * width)) {
            sized(&mut pass.buffers.h, h.len()).copy_from_slice(h);
            pass.gate_and_up(norms, [&gate, &up], h.len() / hidden);
            pass.gated_rows(out);
            hook.inputs(&[Projection::Down], out)?;
        }
        Ok(all)
    }

    /// `h += norm(W x + b)`; without a norm, `h += W x + b`.
    fn add(&mut self, projection: &LinearWeights, norm: Option<&[f32]>, x: &[f32]) {
        let Self { exec, config, window, h, buffers } = self;
        let mut pass = Pass { exec: *exec, end_level: exec.level, config, buffers };
        let inputs = x.chunks(*window * projection.weight.cols());
        for (h, x) in h.chunks_mut(*window * config.hidden_size).zip(inputs) {
            sized(&mut pass.buffers.h, h.len()).copy_from_slice(h);
            pass.add_projection(projection, norm, x);
            h.copy_from_slice(&pass.buffers.h[..h.len()]);
        }
    }
}

/// An empty sequence in an f32 cache of layer `index` alone.
fn one_layer(config: &ModelConfig, index: usize) -> Result<Sequence> {
    let cache = KvCache::new(KvConfig {
        head_dim: config.head_dim,
        n_kv_heads: config.n_kv_heads,
        window_heads: config.window_heads,
        windows: vec![config.sliding_window[index]],
        states: Vec::new(),
        format: "f32".parse()?,
        page_tokens: PAGE_TOKENS,
        limit: None,
        rewind: 0,
    })?;
    Ok(cache.sequence())
}
