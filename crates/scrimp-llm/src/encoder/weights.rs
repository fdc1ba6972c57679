//! An encoder's tensors, repacked for the kernels.

use super::config::{EncoderConfig, missing, tensor_name};
use crate::{
    error::{Error, Result},
    load::{HfDir, SafetensorsFile, Source},
    model::LinearWeights,
};
use scrimp_kernels::{
    DType, Pool,
    linear::{Matrix, StoredRows},
    mem::Arena,
    ops,
    quant::dequantize::dequantize_row,
};
use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A LayerNorm's weights and biases.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) q: LinearWeights,
    pub(super) k: LinearWeights,
    pub(super) v: LinearWeights,
    pub(super) o: LinearWeights,
    pub(super) attn_norm: Norm,
    pub(super) gate: Option<LinearWeights>,
    pub(super) up: LinearWeights,
    pub(super) down: LinearWeights,
    pub(super) ffn_norm: Norm,
}

/// The part that turns the first token's state into scores.
#[derive(Debug)]
pub(super) struct Classifier {
    /// Followed by tanh; absent in models whose classifier reads the state itself.
    pub(super) pooler: Option<LinearWeights>,
    pub(super) output: LinearWeights,
}

/// All weights.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) tokens: Table,
    pub(super) positions: Option<Table>,
    /// The embedding of the first and the second text of a pair.
    pub(super) types: Option<Table>,
    pub(super) embedding_norm: Norm,
    pub(super) layers: Vec<Layer>,
    pub(super) classifier: Option<Classifier>,
    pub(super) stored: StoredSize,
}

/// The size of the tensors in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredSize {
    pub(super) parameters: u64,
    pub(super) bytes: u64,
    /// Type of the token embedding.
    pub(super) dtype: &'static str,
}

/// An embedding in the mapped file.
#[derive(Debug)]
pub(super) struct Table {
    source: Arc<Source>,
    dtype: DType,
    range: Range<usize>,
    cols: usize,
    pub(super) rows: usize,
}

impl Table {
    /// Adds row `row` to `out`, with `scratch` of the same length.
    pub(super) fn add_row(&self, row: usize, scratch: &mut [f32], out: &mut [f32]) {
        let bytes = self.range.len() / self.rows;
        let start = self.range.start + row * bytes;
        dequantize_row(self.dtype, &self.source[start..start + bytes], scratch);
        ops::add_scaled(out, 1.0, scratch);
    }
}

/// The tensors of a directory by our names.
struct Tensors<'a> {
    path: &'a Path,
    pool: &'a Pool,
    by_name: HashMap<String, Stored>,
}

struct Stored {
    source: Arc<Source>,
    dtype: DType,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// Loads the weights of `dir`.
///
/// # Errors
/// When a tensor is missing, has another shape or type, or is not finite.
pub(super) fn load(dir: &HfDir, path: &Path, config: &EncoderConfig, pool: &Pool) -> Result<Weights> {
    let tensors = Tensors { path, pool, by_name: by_name(&dir.shards, path)? };
    let hidden = config.hidden_size;
    let positions = match config.rope_base {
        Some(_) => None,
        None => Some(tensors.table("position_embd", config.first_position + config.max_tokens, hidden)?),
    };
    let types = match tensors.shape("token_types.weight") {
        Some(&[rows, _]) => Some(tensors.table("token_types", rows, hidden)?),
        _ => None,
    };
    Ok(Weights {
        tokens: tensors.table("token_embd", config.vocab_size, hidden)?,
        positions,
        types,
        embedding_norm: tensors.norm("token_embd_norm", hidden)?,
        layers: (0..config.n_layers).map(|i| tensors.layer(i, config)).collect::<Result<_>>()?,
        classifier: tensors.classifier(hidden)?,
        stored: tensors.size(),
    })
}

fn by_name(shards: &[SafetensorsFile], path: &Path) -> Result<HashMap<String, Stored>> {
    let mut by_name = HashMap::new();
    for shard in shards {
        for tensor in shard.tensors() {
            let Some(name) = tensor_name(&tensor.name) else { continue };
            let Some(dtype) = tensor.dtype.dtype() else {
                return Err(Error::unsupported(
                    format!("{}: tensor {} is of type {:?}", path.display(), tensor.name, tensor.dtype),
                    "weights of type F32, F16 and BF16 are read",
                ));
            };
            let stored = Stored {
                source: Arc::clone(shard.source()),
                dtype,
                shape: tensor.shape.clone(),
                range: tensor.range.clone(),
            };
            if by_name.insert(name.clone(), stored).is_some() {
                return Err(Error::damaged_file(path, format!("two tensors mean {name}")));
            }
        }
    }
    Ok(by_name)
}

impl Tensors<'_> {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.by_name.get(name).map(|stored| stored.shape.as_slice())
    }

    fn size(&self) -> StoredSize {
        let parameters = |stored: &Stored| stored.shape.iter().map(|&n| n as u64).product::<u64>();
        StoredSize {
            parameters: self.by_name.values().map(parameters).sum(),
            bytes: self.by_name.values().map(|stored| stored.range.len() as u64).sum(),
            dtype: self.by_name.get("token_embd.weight").map_or("", |stored| stored.dtype.name()),
        }
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<&Stored> {
        let stored = self.by_name.get(name).ok_or_else(|| missing(self.path, name))?;
        if stored.shape != shape {
            return Err(Error::damaged_file(
                self.path,
                format!("tensor {name} has shape {:?}, but the configuration says {shape:?}", stored.shape),
            ));
        }
        Ok(stored)
    }

    /// An embedding. More rows than the configuration says are harmless.
    fn table(&self, stem: &str, rows: usize, cols: usize) -> Result<Table> {
        let name = format!("{stem}.weight");
        let stored_rows = self.shape(&name).and_then(|shape| shape.first().copied()).unwrap_or(rows);
        let stored = self.get(&name, &[stored_rows.max(rows), cols])?;
        let table = Table {
            source: Arc::clone(&stored.source),
            dtype: stored.dtype,
            range: stored.range.clone(),
            cols,
            rows: stored_rows,
        };
        let (mut row, mut scratch) = (vec![0.0; table.cols], vec![0.0; table.cols]);
        for i in 0..table.rows {
            row.fill(0.0);
            table.add_row(i, &mut scratch, &mut row);
            if row.iter().any(|x| !x.is_finite()) {
                return Err(self.not_finite(&name));
            }
        }
        Ok(table)
    }

    fn not_finite(&self, name: &str) -> Error {
        Error::damaged_file(self.path, format!("tensor {name} holds a NaN or an infinity"))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let stored = self.get(name, &[len])?;
        let mut values = vec![0.0; len];
        dequantize_row(stored.dtype, &stored.source[stored.range.clone()], &mut values);
        if values.iter().any(|x| !x.is_finite()) {
            return Err(self.not_finite(name));
        }
        Ok(values)
    }

    fn norm(&self, stem: &str, len: usize) -> Result<Norm> {
        let part = |kind: &str| self.vector(&format!("{stem}.{kind}"), len);
        Ok(Norm { weight: part("weight")?, bias: part("bias")? })
    }

    /// Rows `rows` of the matrix `stem`, which has `all` rows.
    fn part(&self, stem: &str, rows: Range<usize>, all: usize, cols: usize) -> Result<LinearWeights> {
        let name = format!("{stem}.weight");
        let stored = self.get(&name, &[all, cols])?;
        let bytes = stored.range.len() / all;
        let data = &stored.source[stored.range.start + rows.start * bytes..][..rows.len() * bytes];
        let memory = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::InvalidData => self.not_finite(&name),
            _ => Error::out_of_memory(format!("tensor {name} ({e})")),
        };
        let size = Matrix::packed_bytes(stored.dtype, rows.len(), cols).unwrap_or(usize::MAX);
        let mut arena = Arena::new(size).map_err(memory)?;
        let matrix = StoredRows { dtype: stored.dtype, rows: rows.len(), cols, data };
        let weight = Matrix::pack(self.pool, &mut arena, matrix).map_err(memory)?;
        let bias = format!("{stem}.bias");
        let bias = match self.by_name.contains_key(&bias) {
            true => Some(self.vector(&bias, all)?[rows].to_vec()),
            false => None,
        };
        Ok(LinearWeights { weight, bias })
    }

    fn matrix(&self, stem: &str, rows: usize, cols: usize) -> Result<LinearWeights> {
        self.part(stem, 0..rows, rows, cols)
    }

    fn layer(&self, index: usize, config: &EncoderConfig) -> Result<Layer> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let name = |stem: &str| format!("blk.{index}.{stem}");
        let qkv = |i: usize, stem: &str| match self.shape(&format!("{}.weight", name("attn_qkv"))) {
            Some(_) => self.part(&name("attn_qkv"), i * hidden..(i + 1) * hidden, 3 * hidden, hidden),
            None => self.matrix(&name(stem), hidden, hidden),
        };
        let gated = config.activation == super::config::Activation::Swiglu;
        Ok(Layer {
            q: qkv(0, "attn_q")?,
            k: qkv(1, "attn_k")?,
            v: qkv(2, "attn_v")?,
            o: self.matrix(&name("attn_output"), hidden, hidden)?,
            attn_norm: self.norm(&name("attn_output_norm"), hidden)?,
            gate: if gated { Some(self.matrix(&name("ffn_gate"), inner, hidden)?) } else { None },
            up: self.matrix(&name("ffn_up"), inner, hidden)?,
            down: self.matrix(&name("ffn_down"), hidden, inner)?,
            ffn_norm: self.norm(&name("layer_output_norm"), hidden)?,
        })
    }

    fn classifier(&self, hidden: usize) -> Result<Option<Classifier>> {
        let Some(&[labels, _]) = self.shape("classifier.weight") else { return Ok(None) };
        let pooler = match self.shape("pooler.weight") {
            Some(_) => Some(self.matrix("pooler", hidden, hidden)?),
            None => None,
        };
        Ok(Some(Classifier { pooler, output: self.matrix("classifier", labels, hidden)? }))
    }
}

/// A dense layer of a sentence-transformers pipeline: `linear.weight` and `linear.bias` of one file.
///
/// # Errors
/// When the file is missing or damaged, or the matrix does not take vectors of `cols` elements.
pub(crate) fn dense_layer(file: &PathBuf, cols: usize, pool: &Pool) -> Result<LinearWeights> {
    let shard = SafetensorsFile::from_source(Source::open(file)?)?;
    let stored = |tensor: &crate::load::safetensors::SafeTensor| {
        let dtype = tensor.dtype.dtype()?;
        let (source, shape) = (Arc::clone(shard.source()), tensor.shape.clone());
        let name = tensor.name.strip_prefix("linear.")?;
        Some((format!("dense.{name}"), Stored { source, dtype, shape, range: tensor.range.clone() }))
    };
    let by_name = shard.tensors().iter().filter_map(stored).collect();
    let tensors = Tensors { path: file, pool, by_name };
    let rows = tensors.shape("dense.weight").and_then(|shape| shape.first().copied());
    tensors.matrix("dense", rows.ok_or_else(|| missing(file, "linear.weight"))?, cols)
}
