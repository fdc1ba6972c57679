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

use super::layer::{Dense, DenseLayer, DenseLinear};
use scrimp_kernels::{
    DType, Exec, Pool, SimdLevel,
    linear::{ActivationShape, Activations, Linear, LinearScratch, Matrix, StoredRows, linear},
    mem::Arena,
    ops::{self, Gate, RmsNorm, RopeTable},
    quant::{
        dequantize::dequantize_row,
        packed::{DenseMatrix, FormatError, PackedView, WeightFormat, pack},
    },
};
use scrimp_kv::{AttentionInputs, AttentionScratch, KvCache, KvConfig, Queries};
use scrimp_llm::{
    checkpoint::Checkpoint,
    config::{Activation, ModelConfig, RopePairs},
    error::{Error, Result},
    model::projections::{Projection, StoredMatrix},
};

/// Tokens per page of the cache of one window.
const PAGE_TOKENS: usize = 64;

/// Where the model runs and what it looks like.
#[derive(Clone, Copy)]
pub(crate) struct Machine<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) level: SimdLevel,
    pub(crate) config: &'a ModelConfig,
}

impl Machine<'_> {
    fn norm<'w>(&self, weight: &'w [f32]) -> RmsNorm<'w> {
        let offset = if self.config.norm_plus_one { 1.0 } else { 0.0 };
        RmsNorm { weight, eps: self.config.rms_norm_eps, offset }
    }

    /// `norm(row)` of every row of `rows`.
    pub(crate) fn normed(&self, rows: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        self.normed_to(&mut out, rows, weight);
        out
    }

    /// `norm(row)` of every row of `rows`, in `out`.
    fn normed_to(&self, out: &mut Vec<f32>, rows: &[f32], weight: &[f32]) {
        let (norm, width) = (self.norm(weight), weight.len());
        out.resize(rows.len(), 0.0);
        self.pool.chunks(out, width, |t, out| {
            norm.apply(self.level, &rows[t * width..(t + 1) * width], out);
        });
    }
}

/// A matrix as the kernels read it.
pub(crate) struct Packed {
    pub(crate) matrix: Matrix,
    bias: Option<Vec<f32>>,
}

impl Packed {
    /// A matrix as it is stored.
    pub(crate) fn new(machine: Machine<'_>, stored: &StoredMatrix<'_>) -> Result<Self> {
        let memory = |e: std::io::Error| Error::out_of_memory(format!("a matrix ({e})"));
        let pool = machine.pool;
        let matrix = match stored {
            StoredMatrix::Rows { dtype, rows, cols, data } => {
                let bytes = Matrix::packed_bytes(*dtype, *rows, *cols).unwrap_or(usize::MAX);
                let mut arena = Arena::new(bytes).map_err(memory)?;
                Matrix::pack(pool, &mut arena, StoredRows { dtype: *dtype, rows: *rows, cols: *cols, data })
            }
            StoredMatrix::Packed(view) => {
                let mut arena = Arena::new(Arena::size_of(view.bytes().len())).map_err(memory)?;
                Matrix::from_packed(pool, &mut arena, view)
            }
        };
        Ok(Self { matrix: matrix.map_err(memory)?, bias: None })
    }

    /// The matrix in bf16 where the CPU multiplies that faster than f32, as it is run at the end in formats of 16 bits.
    fn of(machine: Machine<'_>, projection: &DenseLinear) -> Result<Self> {
        let Dense { rows, cols, data } = &projection.weight;
        let (rows, cols, bias) = (*rows, *cols, projection.bias.clone());
        if machine.level.has_bf16_products() {
            let bad = |e: FormatError| Error::bad_input(format!("a matrix of the calibration run: {e}"));
            let bytes =
                pack(machine.pool, WeightFormat::Bf16, DenseMatrix { rows, cols, weights: data }, None)
                    .map_err(bad)?;
            let view = PackedView::new(WeightFormat::Bf16, rows, cols, &bytes).map_err(bad)?;
            return Ok(Self { bias, ..Self::new(machine, &StoredMatrix::Packed(view))? });
        }
        let data = bytemuck::cast_slice(data);
        Ok(Self { bias, ..Self::new(machine, &StoredMatrix::Rows { dtype: DType::F32, rows, cols, data })? })
    }

    /// `W x + b` of all rows of `x`.
    pub(crate) fn apply(&self, machine: Machine<'_>, scratch: &mut Scratch, x: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        self.apply_to(&mut out, machine, scratch, x);
        out
    }

    /// `W x + b` of all rows of `x`, in `out`, whose memory is used again.
    fn apply_to(&self, out: &mut Vec<f32>, machine: Machine<'_>, scratch: &mut Scratch, x: &[f32]) {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let n = x.len() / cols;
        let exec = Exec { pool: machine.pool, level: machine.level };
        let shape = ActivationShape { n_tokens: n, cols, needs: self.matrix.needs() };
        scratch.x.fill(exec, shape, |t, row| {
            row.copy_from_slice(&x[t * cols..(t + 1) * cols]);
        });
        out.resize(n * rows, 0.0);
        let product =
            Linear { weight: &self.matrix, bias: self.bias.as_deref(), out, stride: rows, accumulate: false };
        linear(exec, &mut scratch.linear, &scratch.x, &mut [product]);
    }
}

/// Memory of the kernels, kept between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    x: Activations,
    linear: LinearScratch,
    attention: AttentionScratch,
}

/// Is told of the inputs of a layer's matrices, and may then change these.
pub(crate) trait Visitor {
    /// A piece of the inputs, `[tokens][cols]`, of the matrices `roles`.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn inputs(&mut self, roles: &[Projection], cols: usize, x: &[f32]) -> Result<()>;

    /// All inputs of `roles` were shown; the matrices are used next.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn ready(&mut self, layer: &mut DenseLayer, roles: &[Projection]) -> Result<()>;
}

/// Changes nothing.
pub(crate) struct Unchanged;

impl Visitor for Unchanged {
    fn inputs(&mut self, _: &[Projection], _: usize, _: &[f32]) -> Result<()> {
        Ok(())
    }

    fn ready(&mut self, _: &mut DenseLayer, _: &[Projection]) -> Result<()> {
        Ok(())
    }
}

/// The residual stream of the calibration text.
pub(crate) struct Runner<'a> {
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
    /// The embeddings of `tokens`, in windows of `window` tokens, from the checkpoint or its `packed` copy.
    ///
    /// # Errors
    /// When the embedding is damaged.
    pub(crate) fn embed(
        machine: Machine<'a>,
        checkpoint: &Checkpoint,
        packed: Option<&Matrix>,
        tokens: &[u32],
        window: usize,
    ) -> Result<Self> {
        let config = machine.config;
        let (dtype, stored) = checkpoint.embedding()?;
        let row_bytes = stored.len() / config.vocab_size;
        let mut h = vec![0.0; tokens.len() * config.hidden_size];
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= config.vocab_size) {
            return Err(Error::bad_input(format!("token {token} is outside the vocabulary")));
        }
        machine.pool.chunks(&mut h, config.hidden_size, |t, row| {
            let token = tokens[t] as usize;
            match packed {
                Some(packed) => packed.row(machine.level, token, row),
                None => dequantize_row(dtype, &stored[token * row_bytes..(token + 1) * row_bytes], row),
            }
            if config.embedding_scale != 1.0 {
                ops::scale(machine.level, config.embedding_scale, row);
            }
        });
        if h.iter().any(|x| !x.is_finite()) {
            let what = "tensor token_embd.weight holds a NaN or an infinity";
            return Err(Error::damaged_file(checkpoint.path(), what));
        }
        Ok(Self::from_hidden(machine, h, window))
    }

    /// Goes on from the residual stream `h`, `[tokens][hidden_size]`.
    pub(crate) fn from_hidden(machine: Machine<'a>, h: Vec<f32>, window: usize) -> Self {
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

    /// Where it runs.
    pub(crate) fn machine(&self) -> Machine<'a> {
        self.machine
    }

    /// The residual stream, `[tokens][hidden_size]`.
    pub(crate) fn hidden(&self) -> &[f32] {
        &self.h
    }

    /// The residual stream, when nothing more is run.
    pub(crate) fn into_hidden(self) -> Vec<f32> {
        self.h
    }

    /// Runs layer `index` over all windows. `visitor` sees the inputs of each matrix before it is first used. Without
    /// tokens, matrices are only declared ready.
    ///
    /// # Errors
    /// Those of `visitor`, and when memory cannot be had.
    pub(crate) fn layer(
        &mut self,
        layer: &mut DenseLayer,
        index: usize,
        visitor: &mut dyn Visitor,
    ) -> Result<()> {
        if self.h.is_empty() {
            return visitor.ready(layer, &Projection::ALL);
        }
        self.normed(&[Projection::Q, Projection::K, Projection::V], &layer.attn_norm, visitor)?;
        visitor.ready(layer, &[Projection::Q, Projection::K, Projection::V])?;
        let attended = self.attention(layer, index, visitor)?;
        visitor.ready(layer, &[Projection::O])?;
        let norm = layer.post_attn_norm.as_deref();
        self.add(layer.get(Projection::O), norm, &attended)?;
        drop(attended);

        self.normed(&[Projection::Gate, Projection::Up], &layer.ffn_norm, visitor)?;
        visitor.ready(layer, &[Projection::Gate, Projection::Up])?;
        let gated = self.gated(layer, visitor)?;
        visitor.ready(layer, &[Projection::Down])?;
        let norm = layer.post_ffn_norm.as_deref();
        self.add(layer.get(Projection::Down), norm, &gated)
    }

    /// Shows the normed residual stream.
    fn normed(&self, roles: &[Projection], weight: &[f32], visitor: &mut dyn Visitor) -> Result<()> {
        let hidden = self.machine.config.hidden_size;
        let mut x = Vec::new();
        self.h.chunks(self.window * hidden).try_for_each(|h| {
            self.machine.normed_to(&mut x, h, weight);
            visitor.inputs(roles, hidden, &x)
        })
    }

    /// What attention gives to O, `[tokens][n_heads * head_dim]`.
    fn attention(&mut self, layer: &DenseLayer, index: usize, visitor: &mut dyn Visitor) -> Result<Vec<f32>> {
        let Machine { pool, level, config } = self.machine;
        let span = config.sliding_window[index];
        let cache = KvCache::new(KvConfig {
            head_dim: config.head_dim,
            n_kv_heads: config.n_kv_heads,
            windows: vec![span],
            format: "f32".parse()?,
            page_tokens: PAGE_TOKENS,
            limit: None,
            rewind: 0,
        })?;
        let mut kv = cache.sequence();
        let rope = if span.is_some() && config.rope_local.is_some() { &self.rope_local } else { &self.rope };
        let [wq, wk, wv] = [Projection::Q, Projection::K, Projection::V]
            .map(|role| Packed::of(self.machine, layer.get(role)));
        let (wq, wk, wv) = (wq?, wk?, wv?);
        let [mut x, mut q, mut k, mut v] = [const { Vec::new() }; 4];
        let mut all = vec![0.0; self.h.len() / config.hidden_size * config.q_dim()];
        let outs = all.chunks_mut(self.window * config.q_dim());
        for (h, out) in self.h.chunks(self.window * config.hidden_size).zip(outs) {
            self.machine.normed_to(&mut x, h, &layer.attn_norm);
            wq.apply_to(&mut q, self.machine, &mut self.scratch, &x);
            wk.apply_to(&mut k, self.machine, &mut self.scratch, &x);
            wv.apply_to(&mut v, self.machine, &mut self.scratch, &x);
            for (rows, width, norm) in
                [(&mut q, config.q_dim(), &layer.q_norm), (&mut k, config.kv_dim(), &layer.k_norm)]
            {
                let norm = norm.as_deref().map(|weight| self.machine.norm(weight));
                pool.chunks(rows, width, |t, row| {
                    let (cos, sin) = rope.row(t);
                    for head in row.chunks_exact_mut(config.head_dim) {
                        if let Some(norm) = &norm {
                            norm.apply_in_place(level, head);
                        }
                        match config.rope_pairs {
                            RopePairs::Halves => ops::rotate_halves(level, head, cos, sin),
                            RopePairs::Adjacent => ops::rotate_adjacent(level, head, cos, sin),
                        }
                    }
                });
            }
            kv.reset();
            kv.append(0, &k, &v, pool)?;
            let inputs = AttentionInputs {
                q: &q,
                out,
                n_heads: config.n_heads,
                scale: config.attn_scale,
                softcap: config.attn_logit_softcap,
                wanted_from: 0,
                scores: None,
                queries: Queries::Last,
            };
            kv.attend(0, inputs, Exec { pool, level }, &mut self.scratch.attention)?;
            visitor.inputs(&[Projection::O], config.q_dim(), out)?;
        }
        Ok(all)
    }

    /// What the gated non-linearity gives to down, `[tokens][intermediate_size]`.
    fn gated(&mut self, layer: &DenseLayer, visitor: &mut dyn Visitor) -> Result<Vec<f32>> {
        let Machine { pool, level, config } = self.machine;
        let f = match config.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::GeluTanh,
        };
        let w_gate = Packed::of(self.machine, layer.get(Projection::Gate))?;
        let w_up = Packed::of(self.machine, layer.get(Projection::Up))?;
        let width = config.intermediate_size;
        let [mut x, mut gate, mut up] = [const { Vec::new() }; 3];
        let mut all = vec![0.0; self.h.len() / config.hidden_size * width];
        for (h, out) in
            self.h.chunks(self.window * config.hidden_size).zip(all.chunks_mut(self.window * width))
        {
            self.machine.normed_to(&mut x, h, &layer.ffn_norm);
            w_gate.apply_to(&mut gate, self.machine, &mut self.scratch, &x);
            w_up.apply_to(&mut up, self.machine, &mut self.scratch, &x);
            pool.chunks(out, width, |t, out| {
                let row = t * width..(t + 1) * width;
                ops::gated(level, f, &gate[row.clone()], &up[row], out);
            });
            visitor.inputs(&[Projection::Down], width, out)?;
        }
        Ok(all)
    }

    /// `h += norm(W x + b)`, the norm where there is one.
    fn add(&mut self, projection: &DenseLinear, norm: Option<&[f32]>, x: &[f32]) -> Result<()> {
        let Machine { pool, level, config } = self.machine;
        let packed = Packed::of(self.machine, projection)?;
        let hidden = config.hidden_size;
        let inputs = x.chunks(self.window * projection.weight.cols);
        let mut block = Vec::new();
        for (h, x) in self.h.chunks_mut(self.window * hidden).zip(inputs) {
            packed.apply_to(&mut block, self.machine, &mut self.scratch, x);
            let norm = norm.map(|weight| self.machine.norm(weight));
            pool.chunks(h, hidden, |t, h| {
                let block = &block[t * hidden..(t + 1) * hidden];
                match &norm {
                    Some(norm) => norm.add_to(level, block, h),
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
    use scrimp_llm::model::{Model, RunOptions};
    use scrimp_testkit::tiny_model;

    struct Seen(Vec<(Projection, Option<usize>)>);

    impl Visitor for Seen {
        fn inputs(&mut self, roles: &[Projection], cols: usize, x: &[f32]) -> Result<()> {
            assert!(x.len().is_multiple_of(cols));
            self.0.push((roles[0], Some(x.len())));
            Ok(())
        }

        fn ready(&mut self, layer: &mut DenseLayer, roles: &[Projection]) -> Result<()> {
            assert!(roles.iter().all(|&r| layer.get(r).weight.cols == layer.get(roles[0]).weight.cols));
            self.0.push((roles[0], None));
            Ok(())
        }
    }

    /// The stages, with nothing changed in between, are the forward pass: every family, every tiny model.
    #[test]
    fn unchanged_weights_give_the_forward_pass() {
        let models = ["llama", "llama3", "mistral", "qwen2", "qwen3", "gemma3", "gemma3-softcap", "phi3"];
        for name in models {
            let path = tiny_model(name);
            let options = RunOptions { kv_format: "f32".to_owned(), ..RunOptions::default() };
            let model = Model::load(Checkpoint::open(&path).unwrap(), &options).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let (config, vocab) = (checkpoint.config(), checkpoint.config().vocab_size);
            let window = config.context_length.min(40);
            let tokens: Vec<u32> = (0..2 * window).map(|i| ((i * 31 + 7) % vocab) as u32).collect();
            let pool = Pool::new(2).unwrap();
            // In f32.
            let machine =
                Machine { pool: &pool, level: SimdLevel::avx2().unwrap_or(SimdLevel::SCALAR), config };
            let mut runner = Runner::embed(machine, &checkpoint, None, &tokens, window).unwrap();
            let mut seen = Seen(Vec::new());
            for index in 0..config.n_layers {
                let mut layer = DenseLayer::read(&checkpoint, &pool, index).unwrap();
                runner.layer(&mut layer, index, &mut seen).unwrap();
            }
            // Two windows, then the moment of change, for each of four stages.
            assert_eq!(seen.0.len(), config.n_layers * 12);
            let width = Some(window * config.q_dim());
            assert_eq!(seen.0[3..6], [(Projection::O, width), (Projection::O, width), (Projection::O, None)]);

            let norm = scrimp_llm::model::projections::vector(&checkpoint, "output_norm.weight").unwrap();
            let x = machine.normed(runner.hidden(), &norm);
            let tied = checkpoint.try_tensor("output.weight").is_none();
            let output = if tied { "token_embd.weight" } else { "output.weight" };
            let output =
                scrimp_llm::model::projections::stored_matrix(&checkpoint, output, &(0..vocab)).unwrap();
            let packed = Packed::new(machine, &output).unwrap();
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

    /// The same in bf16, where the CPU has that.
    #[test]
    fn a_run_in_bf16_differs_by_its_rounding() {
        let Some(level) = SimdLevel::supported().into_iter().rfind(|level| level.has_bf16_products()) else {
            eprintln!("SKIPPED: this CPU has no bf16 products");
            return;
        };
        let path = tiny_model("llama");
        let checkpoint = Checkpoint::open(&path).unwrap();
        let (pool, config) = (Pool::new(2).unwrap(), checkpoint.config());
        let tokens: Vec<u32> = (0..80).map(|i| ((i * 31 + 7) % config.vocab_size) as u32).collect();
        let run = |level| {
            let machine = Machine { pool: &pool, level, config };
            let mut runner = Runner::embed(machine, &checkpoint, None, &tokens, 40).unwrap();
            for index in 0..config.n_layers {
                let mut layer = DenseLayer::read(&checkpoint, &pool, index).unwrap();
                runner.layer(&mut layer, index, &mut Unchanged).unwrap();
            }
            runner.into_hidden()
        };
        let (got, want) = (run(level), run(SimdLevel::SCALAR));
        let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let error = squares(&mut got.iter().zip(&want).map(|(a, b)| a - b));
        let size = squares(&mut want.iter().copied());
        assert!(error > 0.0 && error < 0.02 * size, "{error} of {size}");
    }
}
