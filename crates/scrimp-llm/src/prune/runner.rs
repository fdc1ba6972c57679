//! The calibration text's way through the model, one decoder layer at a time, all windows before the next layer.
//!
//! The residual stream of all tokens stays in memory. A layer is run in stages, each of which ends at the input of the
//! next matrices, so that these can be pruned with the inputs that they will really get: those that come out of all
//! that was pruned before them, in earlier layers and in this one ("true sequential" in the GPTQ authors' words). Every
//! product is computed once, with the pruned weights.
//!
//! ```text
//! x = norm(h)                 -> Q, K, V     attention(rope(Q x), rope(K x), V x)  -> O      h += O ·
//! x = norm(h)                 -> gate, up    f(gate x) * up x                      -> down   h += down ·
//! ```

use super::layer::{Dense, DenseLayer, Projection};
use crate::{
    checkpoint::Checkpoint,
    config::{Activation, ModelConfig, RopePairs},
    error::{Error, Result},
    model::parts::Role,
};
use scrimp_kernels::{
    DType, Tier,
    arena::Arena,
    formats::dequantize::dequantize_row,
    linear::{Activations, Linear, LinearScratch, Matrix, linear},
    ops::{self, Gate, RmsNorm, RopeTable},
    threads::Pool,
};
use scrimp_kv::{AttentionInputs, AttentionScratch, KvCache, KvConfig, storage};

/// Tokens per page of the cache of one window.
const PAGE_TOKENS: usize = 64;

/// Where the model runs and what it looks like.
#[derive(Clone, Copy)]
pub(super) struct Machine<'a> {
    pub(super) pool: &'a Pool,
    pub(super) tier: Tier,
    pub(super) config: &'a ModelConfig,
}

impl Machine<'_> {
    fn norm<'w>(&self, weight: &'w [f32]) -> RmsNorm<'w> {
        let offset = if self.config.norm_plus_one { 1.0 } else { 0.0 };
        RmsNorm { weight, eps: self.config.rms_norm_eps, offset }
    }

    /// `norm(row)` of every row of `rows`.
    pub(super) fn normed(&self, rows: &[f32], weight: &[f32]) -> Vec<f32> {
        let (norm, width) = (self.norm(weight), weight.len());
        let mut out = vec![0.0; rows.len()];
        self.pool.chunks(&mut out, width, |t, out| {
            norm.apply(self.tier, &rows[t * width..(t + 1) * width], out);
        });
        out
    }
}

/// A matrix packed for the kernels, in f32.
pub(super) struct Packed {
    matrix: Matrix,
    bias: Option<Vec<f32>>,
}

impl Packed {
    pub(super) fn new(machine: Machine<'_>, weight: &Dense, bias: Option<Vec<f32>>) -> Result<Self> {
        let memory = |e: std::io::Error| Error::OutOfMemory { what: format!("a layer's weights ({e})") };
        let bytes = Matrix::packed_bytes(DType::F32, weight.rows, weight.cols).unwrap_or(usize::MAX);
        let mut arena = Arena::new(bytes).map_err(memory)?;
        let stored = bytemuck::cast_slice(&weight.data);
        let matrix = Matrix::pack(machine.pool, &mut arena, DType::F32, weight.rows, weight.cols, stored)
            .map_err(memory)?;
        Ok(Self { matrix, bias })
    }

    fn of(machine: Machine<'_>, projection: &Projection) -> Result<Self> {
        Self::new(machine, &projection.weight, projection.bias.clone())
    }

    /// `W x + b` of all rows of `x`.
    pub(super) fn apply(&self, machine: Machine<'_>, scratch: &mut Scratch, x: &[f32]) -> Vec<f32> {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let n = x.len() / cols;
        scratch.x.fill(machine.pool, machine.tier, n, cols, self.matrix.needs(), |t, row| {
            row.copy_from_slice(&x[t * cols..(t + 1) * cols]);
        });
        let mut out = vec![0.0; n * rows];
        let product = Linear {
            weight: &self.matrix,
            bias: self.bias.as_deref(),
            out: &mut out,
            stride: rows,
            accumulate: false,
        };
        linear(machine.pool, machine.tier, &mut scratch.linear, &scratch.x, &mut [product]);
        out
    }
}

/// Memory of the kernels, kept between calls.
#[derive(Default)]
pub(super) struct Scratch {
    x: Activations,
    linear: LinearScratch,
    attention: AttentionScratch,
}

/// The residual stream of the calibration text.
pub(super) struct Runner<'a> {
    machine: Machine<'a>,
    /// Tokens per window.
    window: usize,
    /// `[tokens][hidden_size]`
    h: Vec<f32>,
    scratch: Scratch,
    rope: RopeTable,
    rope_local: RopeTable,
}

impl<'a> Runner<'a> {
    /// The embeddings of `tokens`, in windows of `window` tokens.
    ///
    /// # Errors
    /// When the embedding is damaged.
    pub(super) fn embed(
        machine: Machine<'a>,
        checkpoint: &Checkpoint,
        tokens: &[u32],
        window: usize,
    ) -> Result<Self> {
        let (config, name) = (machine.config, "token_embd.weight");
        let stored = checkpoint.tensor(name)?;
        let Some(dtype) = stored.encoding.rows() else {
            return Err(Error::unsupported(
                format!("{}: a model that is compressed already", checkpoint.path().display()),
                "compress the original",
            ));
        };
        let row_bytes = stored.data.len() / config.vocab_size;
        let mut h = vec![0.0; tokens.len() * config.hidden_size];
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= config.vocab_size) {
            return Err(Error::bad_input(format!("token {token} is outside the vocabulary")));
        }
        machine.pool.chunks(&mut h, config.hidden_size, |t, row| {
            let at = tokens[t] as usize * row_bytes;
            dequantize_row(dtype, &stored.data[at..at + row_bytes], row);
            if config.embedding_scale != 1.0 {
                ops::scale(machine.tier, config.embedding_scale, row);
            }
        });
        if h.iter().any(|x| !x.is_finite()) {
            let what = format!("tensor {name} holds a NaN or an infinity");
            return Err(Error::bad_file(checkpoint.path(), what));
        }
        Ok(Self::from_hidden(machine, h, window))
    }

    /// Goes on from the residual stream `h`, `[tokens][hidden_size]`.
    pub(super) fn from_hidden(machine: Machine<'a>, h: Vec<f32>, window: usize) -> Self {
        let config = machine.config;
        let positions: Vec<u32> = (0..window as u32).collect();
        let (mut rope, mut rope_local) = (RopeTable::default(), RopeTable::default());
        let global = config.rope_for(window);
        rope.fill(machine.pool, &positions, &global.inv_freq, global.magnitude);
        if let Some(local) = &config.rope_local {
            rope_local.fill(machine.pool, &positions, &local.inv_freq, local.magnitude);
        }
        Self { machine, window, h, scratch: Scratch::default(), rope, rope_local }
    }

    /// Does the work.
    pub(super) fn pool(&self) -> &'a Pool {
        self.machine.pool
    }

    /// The residual stream, `[tokens][hidden_size]`.
    pub(super) fn hidden(&self) -> &[f32] {
        &self.h
    }

    /// Runs layer `index`. Before a matrix is first used, `visit(layer, roles, inputs)` is called with the matrices that
    /// come next and share their inputs; `inputs` is `[tokens][cols]` of a piece of the text at a time: it is called
    /// once for each piece, and then with `None`, when it may change the weights.
    ///
    /// # Errors
    /// Those of `visit`, and when memory cannot be had.
    pub(super) fn layer(
        &mut self,
        layer: &mut DenseLayer,
        index: usize,
        visit: &mut dyn FnMut(&mut DenseLayer, &[Role], Option<&[f32]>) -> Result<()>,
    ) -> Result<()> {
        let machine = self.machine;
        let width = self.window * machine.config.hidden_size;

        let roles = [Role::Q, Role::K, Role::V];
        for h in self.h.chunks(width) {
            let x = machine.normed(h, &layer.attn_norm);
            visit(layer, &roles, Some(&x))?;
        }
        visit(layer, &roles, None)?;
        let attended = self.attention(layer, index, &mut |layer, x| visit(layer, &[Role::O], Some(x)))?;
        visit(layer, &[Role::O], None)?;
        let norm = layer.post_attn_norm.as_deref();
        self.add(layer.get(Role::O), norm, &attended)?;
        drop(attended);

        let roles = [Role::Gate, Role::Up];
        for h in self.h.chunks(width) {
            let x = machine.normed(h, &layer.ffn_norm);
            visit(layer, &roles, Some(&x))?;
        }
        visit(layer, &roles, None)?;
        let gated = self.gated(layer, &mut |layer, x| visit(layer, &[Role::Down], Some(x)))?;
        visit(layer, &[Role::Down], None)?;
        let norm = layer.post_ffn_norm.as_deref();
        self.add(layer.get(Role::Down), norm, &gated)
    }

    /// What attention gives to O, `[tokens][n_heads * head_dim]`.
    fn attention(
        &mut self,
        layer: &mut DenseLayer,
        index: usize,
        visit: &mut dyn FnMut(&mut DenseLayer, &[f32]) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let Machine { pool, tier, config } = self.machine;
        let span = config.sliding_window[index];
        let cache = KvCache::new(KvConfig {
            head_dim: config.head_dim,
            n_kv_heads: config.n_kv_heads,
            windows: vec![span],
            storage: storage("f32").expect("f32 is a storage"),
            page_tokens: PAGE_TOKENS,
            limit: None,
            rewind: 0,
        })?;
        let mut kv = cache.sequence();
        let rope = if span.is_some() && config.rope_local.is_some() { &self.rope_local } else { &self.rope };
        let [q, k, v] = [Role::Q, Role::K, Role::V].map(|role| Packed::of(self.machine, layer.get(role)));
        let (q, k, v) = (q?, k?, v?);
        let mut all = Vec::with_capacity(self.h.len() / config.hidden_size * config.q_dim());
        for h in self.h.chunks(self.window * config.hidden_size) {
            let x = self.machine.normed(h, &layer.attn_norm);
            let mut q = q.apply(self.machine, &mut self.scratch, &x);
            let mut k = k.apply(self.machine, &mut self.scratch, &x);
            let v = v.apply(self.machine, &mut self.scratch, &x);
            for (rows, width, norm) in
                [(&mut q, config.q_dim(), &layer.q_norm), (&mut k, config.kv_dim(), &layer.k_norm)]
            {
                let norm = norm.as_deref().map(|weight| self.machine.norm(weight));
                pool.chunks(rows, width, |t, row| {
                    let (cos, sin) = rope.row(t);
                    for head in row.chunks_exact_mut(config.head_dim) {
                        if let Some(norm) = &norm {
                            norm.apply_in_place(tier, head);
                        }
                        match config.rope_pairs {
                            RopePairs::Halves => ops::rotate_halves(tier, head, cos, sin),
                            RopePairs::Adjacent => ops::rotate_adjacent(tier, head, cos, sin),
                        }
                    }
                });
            }
            kv.reset();
            kv.append(0, &k, &v, pool)?;
            let mut out = vec![0.0; q.len()];
            let inputs = AttentionInputs {
                tier,
                q: &q,
                out: &mut out,
                n_heads: config.n_heads,
                scale: config.attn_scale,
                softcap: config.attn_logit_softcap,
                wanted_from: 0,
                stats: None,
            };
            kv.attend(0, inputs, pool, &mut self.scratch.attention)?;
            visit(layer, &out)?;
            all.extend_from_slice(&out);
        }
        Ok(all)
    }

    /// What the gated non-linearity gives to down, `[tokens][intermediate_size]`.
    fn gated(
        &mut self,
        layer: &mut DenseLayer,
        visit: &mut dyn FnMut(&mut DenseLayer, &[f32]) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let Machine { pool, tier, config } = self.machine;
        let f = match config.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::GeluTanh,
        };
        let gate = Packed::of(self.machine, layer.get(Role::Gate))?;
        let up = Packed::of(self.machine, layer.get(Role::Up))?;
        let width = config.intermediate_size;
        let mut all = Vec::with_capacity(self.h.len() / config.hidden_size * width);
        for h in self.h.chunks(self.window * config.hidden_size) {
            let x = self.machine.normed(h, &layer.ffn_norm);
            let gate = gate.apply(self.machine, &mut self.scratch, &x);
            let up = up.apply(self.machine, &mut self.scratch, &x);
            let mut out = vec![0.0; gate.len()];
            pool.chunks(&mut out, width, |t, out| {
                let row = t * width..(t + 1) * width;
                ops::gated(tier, f, &gate[row.clone()], &up[row], out);
            });
            visit(layer, &out)?;
            all.extend_from_slice(&out);
        }
        Ok(all)
    }

    /// `h += norm(W x + b)`, the norm where there is one.
    fn add(&mut self, projection: &Projection, norm: Option<&[f32]>, x: &[f32]) -> Result<()> {
        let Machine { pool, tier, config } = self.machine;
        let packed = Packed::of(self.machine, projection)?;
        let hidden = config.hidden_size;
        let inputs = x.chunks(self.window * projection.weight.cols);
        for (h, x) in self.h.chunks_mut(self.window * hidden).zip(inputs) {
            let block = packed.apply(self.machine, &mut self.scratch, x);
            let norm = norm.map(|weight| self.machine.norm(weight));
            pool.chunks(h, hidden, |t, h| {
                let block = &block[t * hidden..(t + 1) * hidden];
                match &norm {
                    Some(norm) => norm.add_to(tier, block, h),
                    None => h.iter_mut().zip(block).for_each(|(h, x)| *h += x),
                }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Model, RunOptions};
    use std::path::Path;

    /// The stages, with nothing changed in between, are the forward pass: every family, every tiny model.
    #[test]
    fn unchanged_weights_give_the_forward_pass() {
        let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tiny");
        let models = ["llama", "llama3", "mistral", "qwen2", "qwen3", "gemma3", "gemma3-softcap", "phi3"];
        for name in models {
            let path = testdata.join(name);
            let options = RunOptions { kv_format: "f32".to_owned(), ..RunOptions::default() };
            let model = Model::load(Checkpoint::open(&path).unwrap(), &options).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let (config, vocab) = (checkpoint.config(), checkpoint.config().vocab_size);
            let window = config.context_length.min(40);
            let tokens: Vec<u32> = (0..2 * window).map(|i| ((i * 31 + 7) % vocab) as u32).collect();
            let pool = Pool::new(2).unwrap();
            let machine = Machine { pool: &pool, tier: Tier::from_env().unwrap(), config };
            let mut runner = Runner::embed(machine, &checkpoint, &tokens, window).unwrap();
            let mut seen = Vec::new();
            for index in 0..config.n_layers {
                let mut layer = DenseLayer::read(&checkpoint, &pool, index).unwrap();
                let visit = &mut |_: &mut DenseLayer, roles: &[Role], x: Option<&[f32]>| {
                    seen.push((roles[0], x.map(<[f32]>::len)));
                    Ok(())
                };
                runner.layer(&mut layer, index, visit).unwrap();
            }
            // Two windows, then the moment of change, for each of four stages.
            assert_eq!(seen.len(), config.n_layers * 12);
            assert_eq!(seen[..3].iter().map(|s| s.1.is_some()).collect::<Vec<_>>(), [true, true, false]);

            let norm = crate::model::parts::vector(&checkpoint, "output_norm.weight").unwrap();
            let x = machine.normed(runner.hidden(), &norm);
            let tied = checkpoint.try_tensor("output.weight").is_none();
            let output = if tied { "token_embd.weight" } else { "output.weight" };
            let output = super::super::layer::matrix(&checkpoint, &pool, output, 0, vocab).unwrap();
            let packed = Packed::new(machine, &output, None).unwrap();
            let logits = packed.apply(machine, &mut Scratch::default(), &x);
            let mut session = model.session();
            for (w, tokens) in tokens.chunks(window).enumerate() {
                session.reset();
                session
                    .forward_each(tokens, &mut |t, want| {
                        let got = &logits[(w * window + t) * vocab..][..vocab];
                        for (i, (got, want)) in got.iter().zip(want).enumerate() {
                            let want = match config.final_logit_softcap {
                                Some(cap) => {
                                    let capped = cap * (got / cap).tanh();
                                    assert!((capped - want).abs() < 1e-3, "{name} {w} {t} {i}");
                                    continue;
                                }
                                None => want,
                            };
                            assert!((got - want).abs() < 1e-3, "{name} {w} {t} {i}: {got} {want}");
                        }
                    })
                    .unwrap();
            }
        }
    }
}
