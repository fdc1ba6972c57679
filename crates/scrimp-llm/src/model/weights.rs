//! A checkpoint's tensors, repacked for the kernels.

use super::{
    altup::{AltUpWeights, LaurelWeights, StreamWeights},
    mamba2::Mamba2Layer,
    per_layer::{LayerInputWeights, PerLayerWeights},
    projections::{
        Projection, StoredMatrix, TensorSlice, attn_gate_slice, block_slice, expert_slice, has_projection,
        laurel_slices, layer_input_slices, layer_slices, optional_vector, router, slice_shape, stored_slice,
        stream_slices, tensor_slice, vector,
    },
    recurrence::DeltaLayer,
    short_conv::ShortConvLayer,
};
use crate::{
    checkpoint::Checkpoint,
    config::{Experts, ModelConfig, RecurrenceKind},
    error::{Error, Result},
    load::Encoding,
};
use scrimp_kernels::{
    DType, Exec, Pool,
    linear::{ActivationShape, Activations, Linear, LinearScratch, Matrix, Needs, StoredRows, linear},
    mem::Arena,
};

/// A linear layer: its matrix as the kernels read it, and its bias.
#[derive(Debug)]
pub struct LinearWeights {
    /// `[out features][in features]`.
    pub weight: Matrix,
    /// `[out features]`, if the layer has a bias.
    pub bias: Option<Vec<f32>>,
}

/// The norms of a decoder layer, `[hidden_size]` or `[head_dim]`, and its attention sinks.
#[derive(Debug, Clone, Default)]
pub struct LayerNorms {
    /// Before attention.
    pub attn_norm: Option<Vec<f32>>,
    /// Of each head of queries, or of all heads together (`[n_heads * head_dim]`).
    pub q_norm: Option<Vec<f32>>,
    /// Of each head of keys, or of all heads together (`[n_kv_heads * head_dim]`).
    pub k_norm: Option<Vec<f32>>,
    /// After attention.
    pub post_attn_norm: Option<Vec<f32>>,
    /// Before the feed-forward block.
    pub ffn_norm: Option<Vec<f32>>,
    /// After the feed-forward block.
    pub post_ffn_norm: Option<Vec<f32>>,
    /// Of each head of values, all ones.
    pub v_norm: Option<Vec<f32>>,
    /// A score for each query head that takes a share of the softmax (`[n_heads]`).
    pub sinks: Option<Vec<f32>>,
}

impl LayerNorms {
    /// Reads the norms of layer `index`.
    ///
    /// # Errors
    /// When a tensor is missing or damaged.
    pub fn read(checkpoint: &Checkpoint, index: usize) -> Result<Self> {
        let config = checkpoint.config();
        let name = |stem: &str| format!("blk.{index}.{stem}.weight");
        let optional = |stem: &str| optional_vector(checkpoint, &name(stem));
        Ok(Self {
            attn_norm: optional("attn_norm")?,
            q_norm: optional("attn_q_norm")?,
            k_norm: optional("attn_k_norm")?,
            post_attn_norm: optional("post_attention_norm")?,
            ffn_norm: optional("ffn_norm")?,
            post_ffn_norm: optional("post_ffw_norm")?,
            v_norm: config.value_norm.then(|| vec![1.0; config.heads(index).head_dim]),
            sinks: optional("attn_sinks")?,
        })
    }
}

/// One decoder layer. Fused tensors of the file (Phi-3) are cut into slices.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) norms: LayerNorms,
    pub(super) mixer: Mixer,
    pub(super) feed_forward: FeedForward,
    /// Its input beside the residual stream.
    pub(super) per_layer: Option<Box<LayerInputWeights>>,
    /// A factor on the residual stream after the layer.
    pub(super) scale: Option<f32>,
    /// The prediction and correction of the other residual streams.
    pub(super) altup: Option<Box<AltUpWeights>>,
    /// A learned residual.
    pub(super) laurel: Option<Box<LaurelWeights>>,
}

/// The first block of a decoder layer, which combines tokens.
#[derive(Debug)]
pub(super) enum Mixer {
    /// Attention to keys and values.
    Attention(Box<AttentionWeights>),
    /// Linear attention with a recurrent state.
    Delta(Box<DeltaLayer>),
    /// A gated short convolution.
    ShortConv(Box<ShortConvLayer>),
    /// Mamba-2.
    Mamba2(Box<Mamba2Layer>),
}

/// The projections of attention.
#[derive(Debug)]
pub(super) struct AttentionWeights {
    pub(super) q: LinearWeights,
    /// `None`: the layer reads keys and values of an earlier layer.
    pub(super) k: Option<LinearWeights>,
    /// `None`: also where the keys are the values.
    pub(super) v: Option<LinearWeights>,
    /// The gate of the output.
    pub(super) gate: Option<LinearWeights>,
    pub(super) o: LinearWeights,
}

impl AttentionWeights {
    /// The projections before attention: queries, keys, values and gates.
    pub(super) fn projections(&self) -> [Option<&LinearWeights>; 4] {
        [Some(&self.q), self.k.as_ref(), self.v.as_ref(), self.gate.as_ref()]
    }
}

/// The second block of a decoder layer.
#[derive(Debug)]
pub(super) enum FeedForward {
    /// One gated block.
    Dense(Box<GatedWeights>),
    /// A mixture of experts.
    Experts(Box<ExpertWeights>),
}

/// A gated feed-forward block.
#[derive(Debug)]
pub(super) struct GatedWeights {
    pub(super) gate: LinearWeights,
    pub(super) up: LinearWeights,
    pub(super) down: LinearWeights,
}

/// A mixture of experts.
#[derive(Debug)]
pub(super) struct ExpertWeights {
    /// `[experts][hidden_size]`, floats.
    pub(super) router: LinearWeights,
    /// Biases of the choice of experts, `[experts]`.
    pub(super) bias: Option<Vec<f32>>,
    pub(super) experts: Vec<GatedWeights>,
    pub(super) shared: Option<SharedExpert>,
    /// The feed-forward block of the layer, if it has both.
    pub(super) beside: Option<Box<BesideBlock>>,
}

/// The feed-forward block of a layer that also has experts, and the norms and factors of such experts (Gemma 4).
#[derive(Debug)]
pub(super) struct BesideBlock {
    pub(super) block: GatedWeights,
    /// Before the experts.
    pub(super) input_norm: Vec<f32>,
    /// Before the router.
    pub(super) router_norm: Vec<f32>,
    /// After the block.
    pub(super) block_norm: Vec<f32>,
    /// After the experts.
    pub(super) experts_norm: Vec<f32>,
    /// Factors on the weights of chosen experts, `[experts]`.
    pub(super) scales: Vec<f32>,
}

/// The expert that all tokens pass.
#[derive(Debug)]
pub(super) struct SharedExpert {
    /// `[1][hidden_size]`, f32. `None`: its output is not gated.
    pub(super) gate: Option<LinearWeights>,
    pub(super) block: GatedWeights,
}

/// All weights of a model.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: Vec<f32>,
    /// The output matrix. If it is tied to the embedding, lookups read it, too.
    pub(super) output: Matrix,
    pub(super) tied: bool,
    /// The inputs of all layers beside the residual stream.
    pub(super) per_layer: Option<PerLayerWeights>,
    /// The projections between the residual streams.
    pub(super) streams: Option<StreamWeights>,
    /// Bytes of packed matrices.
    pub(super) packed_bytes: usize,
}

impl LinearWeights {
    /// Packs a stored matrix without a bias.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn pack(pool: &Pool, stored: &StoredMatrix<'_>) -> Result<Self> {
        let memory = |e: std::io::Error| Error::out_of_memory(format!("a matrix ({e})"));
        let weight = match stored {
            StoredMatrix::Rows { dtype, rows, cols, data } => {
                let bytes = Matrix::packed_bytes(*dtype, *rows, *cols).unwrap_or(usize::MAX);
                let mut arena = Arena::new(bytes).map_err(memory)?;
                Matrix::pack(pool, &mut arena, StoredRows { dtype: *dtype, rows: *rows, cols: *cols, data })
            }
            StoredMatrix::Converted { dtype, cols, data } => {
                let rows = data.len() / dtype.row_bytes(*cols).unwrap_or(1).max(1);
                return Self::pack(pool, &StoredMatrix::Rows { dtype: *dtype, rows, cols: *cols, data });
            }
            StoredMatrix::Packed(view) => {
                let mut arena = Arena::new(Arena::size_of(view.bytes().len())).map_err(memory)?;
                Matrix::from_packed(pool, &mut arena, view)
            }
        };
        Ok(Self { weight: weight.map_err(memory)?, bias: None })
    }

    /// `W x + b` of all rows of `x`, `[n][in features]`, as `[n][out features]`.
    pub fn apply(&self, exec: Exec<'_>, x: &[f32]) -> Vec<f32> {
        let (rows, cols) = (self.weight.rows(), self.weight.cols());
        let n = x.len() / cols;
        let mut activations = Activations::default();
        activations.fill(exec, ActivationShape { n_tokens: n, cols, needs: self.needs() }, |t, row| {
            row.copy_from_slice(&x[t * cols..(t + 1) * cols]);
        });
        let mut out = vec![0.0; n * rows];
        let product = Linear {
            weight: &self.weight,
            bias: self.bias.as_deref(),
            out: &mut out,
            stride: rows,
            accumulate: false,
        };
        linear(exec, &mut LinearScratch::default(), &activations, &mut [product]);
        out
    }

    pub(crate) fn needs(&self) -> Needs {
        self.weight.needs()
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    pool: &'a Pool,
    arena: Arena,
    progress: &'a mut dyn FnMut(u64),
}

/// Repacks all tensors. `progress` is called with the stored bytes of each finished tensor.
///
/// # Errors
/// When a tensor is missing or has an unusable shape, or memory cannot be had.
pub(super) fn load(checkpoint: &Checkpoint, pool: &Pool, progress: &mut dyn FnMut(u64)) -> Result<Weights> {
    let config = checkpoint.config();
    let tied = checkpoint.try_tensor("output.weight").is_none();
    let output = if tied { "token_embd" } else { "output" };
    let rows = config.vocab_size;
    let mut packed_bytes = matrix_bytes(checkpoint, &TensorSlice::rows(output.to_owned(), 0..rows))?;
    let inputs = config.per_layer_input.map(|inputs| {
        TensorSlice::rows("per_layer_model_proj".to_owned(), 0..config.n_layers * inputs.width)
    });
    let streams = config.altup.map(|altup| stream_slices(checkpoint, config, altup.streams));
    for slice in inputs.iter().chain(streams.iter().flatten().flatten()) {
        packed_bytes += matrix_bytes(checkpoint, slice)?;
    }
    for index in 0..config.n_layers {
        for slice in layer_slices(checkpoint, config, index) {
            packed_bytes += matrix_bytes(checkpoint, &slice)?;
        }
    }
    let arena = Arena::new(packed_bytes)
        .map_err(|e| Error::out_of_memory(format!("{} MiB of weights ({e})", packed_bytes >> 20)))?;
    let mut loader = Loader { checkpoint, pool, arena, progress };
    let layers = (0..config.n_layers).map(|i| loader.layer(config, i)).collect::<Result<_>>()?;
    let output = loader.matrix(&TensorSlice::rows(output.to_owned(), 0..rows))?;
    let output_norm = vector(checkpoint, "output_norm.weight")?;
    let per_layer = inputs.map(|slice| -> Result<_> {
        let norm = vector(checkpoint, "per_layer_proj_norm.weight")?;
        Ok(PerLayerWeights { projection: loader.projection(slice)?, norm })
    });
    let per_layer = per_layer.transpose()?;
    let streams = streams.map(|[projections, unembeddings]| -> Result<_> {
        let mut all = |slices: Vec<TensorSlice>| -> Result<Vec<LinearWeights>> {
            slices.into_iter().map(|slice| loader.projection(slice)).collect()
        };
        Ok(StreamWeights { projections: all(projections)?, unembeddings: all(unembeddings)? })
    });
    let streams = streams.transpose()?;
    checkpoint.release_all();
    Ok(Weights { layers, output_norm, output, tied, per_layer, streams, packed_bytes })
}

/// Bytes of a packed matrix in memory. A router that is not stored as floats is converted to f32.
fn matrix_bytes(checkpoint: &Checkpoint, slice: &TensorSlice) -> Result<usize> {
    let (encoding, [rows, cols]) = slice_shape(checkpoint, slice)?;
    let bytes = match encoding {
        Encoding::Rows(dtype) => {
            let router = slice.stem.ends_with("ffn_gate_inp") && dtype.block_len() > 1;
            Matrix::packed_bytes(if router { DType::F32 } else { dtype }, rows, cols)
        }
        Encoding::Packed(_) | Encoding::Bytes | Encoding::Fp8 => {
            Some(Arena::size_of(checkpoint.tensor(&slice.weight())?.data.len()))
        }
    };
    let name = slice.weight();
    bytes.ok_or_else(|| Error::damaged_file(checkpoint.path(), format!("tensor {name} is too large")))
}

/// The weights of the streams of layer `index`.
fn altup_weights(checkpoint: &Checkpoint, config: &ModelConfig, index: usize) -> Result<AltUpWeights> {
    let vector = |stem: &str| vector(checkpoint, &format!("blk.{index}.{stem}.weight"));
    let factor = 1.0 / config.hidden_size as f32;
    Ok(AltUpWeights {
        router: vector("altup_router")?,
        router_norm: vector("altup_router_norm")?.iter().map(|weight| weight * factor).collect(),
        predict: vector("altup_predict_coef")?,
        correct: vector("altup_correct_coef")?,
        scale: vector("altup_correct_scale")?,
    })
}

impl Loader<'_> {
    fn layer(&mut self, config: &ModelConfig, index: usize) -> Result<Layer> {
        let checkpoint = self.checkpoint;
        let per_layer = config.per_layer_input.map(|inputs| self.layer_input(config, index, inputs.width));
        let laurel = config.laurel_rank.map(|rank| self.laurel(config, index, rank));
        let scale = optional_vector(checkpoint, &format!("blk.{index}.layer_output_scale.weight"))?;
        let layer = Layer {
            mixer: self.mixer(config, index)?,
            feed_forward: match config.experts_of(index) {
                Some(experts) => FeedForward::Experts(Box::new(self.experts(config, experts, index)?)),
                None => FeedForward::Dense(Box::new(self.block(config, index)?)),
            },
            norms: LayerNorms::read(checkpoint, index)?,
            per_layer: per_layer.transpose()?.map(Box::new),
            scale: scale.and_then(|scale| scale.first().copied()),
            altup: config.altup.map(|_| altup_weights(checkpoint, config, index)).transpose()?.map(Box::new),
            laurel: laurel.transpose()?.map(Box::new),
        };
        // Reading a page also maps neighboring pages of released tensors.
        checkpoint.release_all();
        Ok(layer)
    }

    /// The feed-forward block of layer `index`.
    fn block(&mut self, config: &ModelConfig, index: usize) -> Result<GatedWeights> {
        let checkpoint = self.checkpoint;
        self.gated(|p| tensor_slice(checkpoint, config, index, p))
    }

    /// The three projections of a block.
    fn gated(&mut self, slice: impl Fn(Projection) -> TensorSlice) -> Result<GatedWeights> {
        let mut projection = |p| self.projection(slice(p));
        Ok(GatedWeights {
            gate: projection(Projection::Gate)?,
            up: projection(Projection::Up)?,
            down: projection(Projection::Down)?,
        })
    }

    fn layer_input(&mut self, config: &ModelConfig, index: usize, width: usize) -> Result<LayerInputWeights> {
        let [gate, out] = layer_input_slices(config, index, width);
        let norm = vector(self.checkpoint, &format!("blk.{index}.post_norm.weight"))?;
        Ok(LayerInputWeights { gate: self.projection(gate)?, out: self.projection(out)?, norm })
    }

    fn laurel(&mut self, config: &ModelConfig, index: usize, rank: usize) -> Result<LaurelWeights> {
        let [left, right] = laurel_slices(config, index, rank);
        let norm = vector(self.checkpoint, &format!("blk.{index}.laurel_post_norm.weight"))?;
        Ok(LaurelWeights { left: self.projection(left)?, right: self.projection(right)?, norm })
    }

    fn mixer(&mut self, config: &ModelConfig, index: usize) -> Result<Mixer> {
        let checkpoint = self.checkpoint;
        if let Some(recurrence) = config.recurrence.as_ref().filter(|_| config.is_recurrent(index)) {
            let matrix = |slice| self.projection(slice);
            return Ok(match recurrence.kind {
                RecurrenceKind::GatedDelta(shape) => {
                    Mixer::Delta(Box::new(DeltaLayer::load(checkpoint, config, shape, index, matrix)?))
                }
                RecurrenceKind::Mamba2 { scan, kernel } => Mixer::Mamba2(Box::new(Mamba2Layer::load(
                    checkpoint,
                    config,
                    (scan, kernel),
                    index,
                    matrix,
                )?)),
                RecurrenceKind::ShortConv { kernel, .. } => Mixer::ShortConv(Box::new(ShortConvLayer::load(
                    checkpoint, config, kernel, index, matrix,
                )?)),
            });
        }
        let gate = config.attn_gate.then(|| self.projection(attn_gate_slice(config, index))).transpose()?;
        let mut projection = |p| self.projection(tensor_slice(checkpoint, config, index, p));
        let mut optional = |p| has_projection(config, index, p).then(|| projection(p)).transpose();
        let (k, v) = (optional(Projection::K)?, optional(Projection::V)?);
        let (q, o) = (projection(Projection::Q)?, projection(Projection::O)?);
        Ok(Mixer::Attention(Box::new(AttentionWeights { q, k, v, gate, o })))
    }

    fn experts(&mut self, config: &ModelConfig, experts: Experts, index: usize) -> Result<ExpertWeights> {
        let checkpoint = self.checkpoint;
        let router = self.router(&router(index), experts.count)?;
        let beside = experts.beside_block.then(|| self.beside(config, index)).transpose()?;
        let shared = experts.shared.map(|width| self.shared_expert(config, width, index)).transpose()?;
        let experts = (0..experts.count)
            .map(|expert| self.gated(|p| expert_slice(checkpoint, config, index, expert, p)));
        let experts = experts.collect::<Result<_>>()?;
        let bias = optional_vector(checkpoint, &format!("blk.{index}.exp_probs_b.weight"))?;
        Ok(ExpertWeights { router, bias, experts, shared, beside })
    }

    /// The block beside the experts of layer `index`, and the norms and factors of such experts.
    fn beside(&mut self, config: &ModelConfig, index: usize) -> Result<Box<BesideBlock>> {
        let vector = |stem: &str| vector(self.checkpoint, &format!("blk.{index}.{stem}.weight"));
        let scale = (config.hidden_size as f32).sqrt().recip();
        let (input_norm, mut router_norm) = (vector("pre_ffw_norm_2")?, vector("router_scale")?);
        router_norm.iter_mut().for_each(|weight| *weight *= scale);
        let (block_norm, experts_norm) = (vector("post_ffw_norm_1")?, vector("post_ffw_norm_2")?);
        let scales = vector("expert_scales")?;
        let block = self.block(config, index)?;
        Ok(Box::new(BesideBlock { block, input_norm, router_norm, block_norm, experts_norm, scales }))
    }

    fn shared_expert(&mut self, config: &ModelConfig, width: usize, index: usize) -> Result<SharedExpert> {
        let name = format!("blk.{index}.ffn_gate_inp_shexp.weight");
        let gate = optional_vector(self.checkpoint, &name)?.map(|gate| {
            let data = bytemuck::cast_slice(&gate).to_vec();
            let stored = StoredMatrix::Converted { dtype: DType::F32, cols: config.hidden_size, data };
            LinearWeights::pack(self.pool, &stored)
        });
        let checkpoint = self.checkpoint;
        let block = self.gated(|p| block_slice(checkpoint, config, (index, width), p))?;
        Ok(SharedExpert { gate: gate.transpose()?, block })
    }

    /// The router's matrix, in f32 unless it is stored in other floats.
    fn router(&mut self, stem: &str, count: usize) -> Result<LinearWeights> {
        let slice = TensorSlice::rows(stem.to_owned(), 0..count);
        let tensor = self.checkpoint.tensor(&slice.weight())?;
        if tensor.encoding.rows().is_some_and(|dtype| dtype.block_len() == 1) {
            return self.projection(slice);
        }
        let values = vector(self.checkpoint, &slice.weight())?;
        let cols = values.len() / count;
        let stored = StoredRows { dtype: DType::F32, rows: count, cols, data: bytemuck::cast_slice(&values) };
        let weight = Matrix::pack(self.pool, &mut self.arena, stored)
            .map_err(|e| Error::out_of_memory(format!("a router ({e})")))?;
        let bias = optional_vector(self.checkpoint, &slice.bias())?;
        (self.progress)(tensor.data.len() as u64);
        Ok(LinearWeights { weight, bias })
    }

    fn projection(&mut self, slice: TensorSlice) -> Result<LinearWeights> {
        let bias = optional_vector(self.checkpoint, &slice.bias())?;
        let bias = bias.map(|bias| slice.indices().map(|row| bias[row]).collect());
        let weight = self.matrix(&slice)?;
        Ok(LinearWeights { weight, bias })
    }

    fn matrix(&mut self, slice: &TensorSlice) -> Result<Matrix> {
        let name = &slice.weight();
        let (pool, arena, checkpoint) = (self.pool, &mut self.arena, self.checkpoint);
        // The mapped original is released piece by piece, so that the largest matrix is not in memory twice.
        let mut done = |slice: &[u8]| checkpoint.release_part(name, slice);
        let (matrix, bytes) = match stored_slice(checkpoint, slice)? {
            StoredMatrix::Rows { dtype, rows, cols, data } => (
                Matrix::pack_in_pieces(pool, arena, StoredRows { dtype, rows, cols, data }, &mut done),
                data.len(),
            ),
            StoredMatrix::Converted { dtype, cols, data } => {
                let stored = StoredRows { dtype, rows: slice.indices().len(), cols, data: &data };
                (Matrix::pack(pool, arena, stored), data.len())
            }
            StoredMatrix::Packed(view) => {
                // The check has read all of it.
                checkpoint.release(name);
                (Matrix::from_packed_in_pieces(pool, arena, &view, &mut done), view.bytes().len())
            }
        };
        let matrix = matrix.map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData => {
                Error::damaged_file(self.checkpoint.path(), format!("tensor {name}: {e}"))
            }
            _ => Error::out_of_memory(format!("tensor {name} ({e})")),
        })?;
        self.checkpoint.release(name);
        (self.progress)(bytes as u64);
        Ok(matrix)
    }
}
