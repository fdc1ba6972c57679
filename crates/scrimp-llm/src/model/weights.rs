//! A checkpoint's tensors, repacked for the kernels.

use crate::{
    checkpoint::{Checkpoint, TensorView},
    config::ModelConfig,
    error::{Error, Result},
};
use scrimp_kernels::{
    arena::Arena,
    formats::dequantize::dequantize_row,
    linear::{Matrix, Needs},
    threads::Pool,
};
use std::ops::Range;

/// A linear layer with its bias.
#[derive(Debug)]
pub(super) struct Projection {
    pub(super) weight: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

/// One decoder layer. Fused tensors of the file (Phi-3) are cut into their parts.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attn_norm: Vec<f32>,
    pub(super) q: Projection,
    pub(super) k: Projection,
    pub(super) v: Projection,
    pub(super) q_norm: Option<Vec<f32>>,
    pub(super) k_norm: Option<Vec<f32>>,
    pub(super) o: Projection,
    pub(super) post_attn_norm: Option<Vec<f32>>,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) gate: Projection,
    pub(super) up: Projection,
    pub(super) down: Projection,
    pub(super) post_ffn_norm: Option<Vec<f32>>,
}

/// All weights of a model.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: Vec<f32>,
    /// The output matrix; where it is tied to the embedding, embeddings are looked up in it too.
    pub(super) output: Matrix,
    pub(super) tied: bool,
    /// Bytes of packed matrices.
    pub(super) packed_bytes: usize,
}

impl Projection {
    pub(super) fn needs(&self) -> Needs {
        self.weight.needs()
    }
}

/// Rows of a stored tensor that become one matrix.
struct Part {
    tensor: String,
    rows: Range<usize>,
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    pool: &'a Pool,
    arena: Arena,
    progress: &'a mut dyn FnMut(u64),
}

/// Repacks everything. `progress` is called with the stored bytes of each tensor that is done.
///
/// # Errors
/// When a tensor is missing or has an unusable shape, or memory cannot be had.
pub(super) fn load(checkpoint: &Checkpoint, pool: &Pool, progress: &mut dyn FnMut(u64)) -> Result<Weights> {
    let config = checkpoint.config();
    let tied = checkpoint.try_tensor("output.weight").is_none();
    let output = if tied { "token_embd.weight" } else { "output.weight" };
    let mut packed_bytes = matrix_bytes(checkpoint, output)?;
    for name in
        checkpoint.tensor_names().filter(|name| name.starts_with("blk.") && is_matrix(checkpoint, name))
    {
        packed_bytes += matrix_bytes(checkpoint, name)?;
    }
    // Cutting a fused tensor may leave a partly filled tile per part.
    let slack = config.n_layers * 4 * 16 * config.hidden_size * 4;
    let slack = if checkpoint.try_tensor("blk.0.attn_qkv.weight").is_some() { slack } else { 0 };
    let arena = Arena::new(packed_bytes + slack).map_err(|e| Error::OutOfMemory {
        what: format!("{} MiB of weights ({e})", (packed_bytes + slack) >> 20),
    })?;
    let mut loader = Loader { checkpoint, pool, arena, progress };
    let layers = (0..config.n_layers).map(|i| loader.layer(config, i)).collect::<Result<_>>()?;
    let rows = config.vocab_size;
    let output = loader.matrix(Part { tensor: output.to_owned(), rows: 0..rows })?;
    let output_norm = loader.vector("output_norm.weight")?;
    Ok(Weights { layers, output_norm, output, tied, packed_bytes })
}

fn is_matrix(checkpoint: &Checkpoint, name: &str) -> bool {
    checkpoint.try_tensor(name).is_some_and(|t| t.shape.len() == 2)
}

fn matrix_bytes(checkpoint: &Checkpoint, name: &str) -> Result<usize> {
    let tensor = checkpoint.tensor(name)?;
    shape(checkpoint, name, &tensor).and_then(|[rows, cols]| {
        Matrix::packed_bytes(tensor.dtype, rows, cols)
            .ok_or_else(|| Error::bad_file(checkpoint.path(), format!("tensor {name} is too large")))
    })
}

fn shape(checkpoint: &Checkpoint, name: &str, tensor: &TensorView<'_>) -> Result<[usize; 2]> {
    match tensor.shape[..] {
        [rows, cols] => Ok([rows, cols]),
        _ => {
            Err(Error::bad_file(checkpoint.path(), format!("tensor {name} is no matrix: {:?}", tensor.shape)))
        }
    }
}

impl Loader<'_> {
    fn layer(&mut self, config: &ModelConfig, index: usize) -> Result<Layer> {
        let (q, kv, ffn) = (config.q_dim(), config.kv_dim(), config.intermediate_size);
        let name = |stem: &str| format!("blk.{index}.{stem}");
        let whole = |stem: &str, rows: usize| (name(stem), 0..rows);
        // Phi-3 stores Q, K and V, and gate and up, on top of each other.
        let fused_qkv = self.has(&format!("{}.weight", name("attn_qkv")));
        let fused_ffn = !self.has(&format!("{}.weight", name("ffn_gate")));
        let qkv = if fused_qkv {
            let part = |rows| (name("attn_qkv"), rows);
            [part(0..q), part(q..q + kv), part(q + kv..q + 2 * kv)]
        } else {
            [whole("attn_q", q), whole("attn_k", kv), whole("attn_v", kv)]
        };
        let gate_up = if fused_ffn {
            [(name("ffn_up"), 0..ffn), (name("ffn_up"), ffn..2 * ffn)]
        } else {
            [whole("ffn_gate", ffn), whole("ffn_up", ffn)]
        };
        let [q, k, v] = qkv;
        let [gate, up] = gate_up;
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm.weight"))?,
            q: self.projection(q)?,
            k: self.projection(k)?,
            v: self.projection(v)?,
            q_norm: self.optional_vector(&name("attn_q_norm.weight"))?,
            k_norm: self.optional_vector(&name("attn_k_norm.weight"))?,
            o: self.projection(whole("attn_output", config.hidden_size))?,
            post_attn_norm: self.optional_vector(&name("post_attention_norm.weight"))?,
            ffn_norm: self.vector(&name("ffn_norm.weight"))?,
            gate: self.projection(gate)?,
            up: self.projection(up)?,
            down: self.projection(whole("ffn_down", config.hidden_size))?,
            post_ffn_norm: self.optional_vector(&name("post_ffw_norm.weight"))?,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.checkpoint.try_tensor(name).is_some()
    }

    fn projection(&mut self, (stem, rows): (String, Range<usize>)) -> Result<Projection> {
        let bias = self.optional_vector(&format!("{stem}.bias"))?.map(|b| b[rows.clone()].to_vec());
        let weight = self.matrix(Part { tensor: format!("{stem}.weight"), rows })?;
        Ok(Projection { weight, bias })
    }

    fn matrix(&mut self, part: Part) -> Result<Matrix> {
        let name = &part.tensor;
        let tensor = self.checkpoint.tensor(name)?;
        let [rows, cols] = shape(self.checkpoint, name, &tensor)?;
        let row_bytes = tensor.data.len() / rows.max(1);
        if part.rows.end > rows {
            let what = format!("tensor {name} has {rows} rows, {} are needed", part.rows.end);
            return Err(Error::bad_file(self.checkpoint.path(), what));
        }
        let data = &tensor.data[part.rows.start * row_bytes..part.rows.end * row_bytes];
        let matrix = Matrix::pack(self.pool, &mut self.arena, tensor.dtype, part.rows.len(), cols, data)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::InvalidData => {
                    Error::bad_file(self.checkpoint.path(), format!("tensor {name}: {e}"))
                }
                _ => Error::OutOfMemory { what: format!("tensor {name} ({e})") },
            })?;
        self.checkpoint.release(name);
        (self.progress)(data.len() as u64);
        Ok(matrix)
    }

    fn optional_vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        if self.has(name) { self.vector(name).map(Some) } else { Ok(None) }
    }

    /// A norm's weights or a bias, as f32; a NaN or an infinity is refused.
    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.checkpoint.tensor(name)?;
        let len = tensor.shape.iter().product();
        let mut values = vec![0.0; len];
        if tensor.dtype.row_bytes(len) != Some(tensor.data.len()) {
            return Err(Error::bad_file(
                self.checkpoint.path(),
                format!("tensor {name} has a damaged shape"),
            ));
        }
        dequantize_row(tensor.dtype, tensor.data, &mut values);
        if values.iter().any(|x| !x.is_finite()) {
            return Err(Error::bad_file(
                self.checkpoint.path(),
                format!("tensor {name} holds a NaN or an infinity"),
            ));
        }
        Ok(values)
    }
}
