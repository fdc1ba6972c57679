//! The model file: one safetensors file with the configuration (schema included) in its metadata.
//!
//! ```text
//! u64 header length | header: JSON, names to type, shape and byte range; __metadata__ | values
//! ```
//!
//! | tensor | content |
//! |---|---|
//! | `encoder.NAME` | a table: F32, BF16, I8 or U8 (int4, [`Int4`]); the quantization step is `encoder.NAME.scale` |
//! | `encoder.keys` | U64: the keys of the ids with a row each |
//! | `encoder.memory` | U16: further state of the encoder (the pointers of `cce`) |
//! | `bottom.I.weight`, `bottom.I.bias` | the layers of the DenseArch, `[out, in]` and `[out]` |
//! | `top.I.weight`, `top.I.bias` | the layers of the OverArch |
//! | `encoder.NAME.rounding` | F32: step and age of the quantization in training ([`Param::rounding`]) |
//! | `*.state`, `*.m`, `*.v` | the state of the optimizers, in checkpoints only |
//!
//! [`Param::rounding`]: crate::encoders::Param::rounding
//! [`Int4`]: scrimp_kernels::embedding::Int4
//!
//! The reader checks each size in the header against the size of the file before it allocates.

use super::{Model, ModelConfig};
use crate::{
    Error, Result,
    encoders::{Stored, is_weight},
};
use scrimp_base::AtomicFile;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, io::Read, path::Path};

/// The value of `format` in the metadata.
const FORMAT: &str = "scrimp-rec-1";
/// Longest header that is read.
const MAX_HEADER: u64 = 64 << 20;

/// The header and the tensors of a file, in order.
struct Writer<'a> {
    header: Map<String, Value>,
    parts: Vec<&'a [u8]>,
    offset: usize,
}

impl<'a> Writer<'a> {
    fn add(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &'a [u8]) {
        let end = self.offset + bytes.len();
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [self.offset, end]});
        self.header.insert(name.to_owned(), entry);
        self.parts.push(bytes);
        self.offset = end;
    }

    fn floats(&mut self, name: &str, values: &'a [f32]) {
        self.add(name, "F32", &[values.len()], bytemuck::cast_slice(values));
    }
}

/// The tensors of a file by name, each with its dtype.
struct Reader {
    tensors: BTreeMap<String, (String, Vec<u8>)>,
}

impl Reader {
    fn take(&mut self, name: &str, dtype: &str) -> std::result::Result<Vec<u8>, String> {
        match self.tensors.remove(name) {
            Some((found, bytes)) if found == dtype => Ok(bytes),
            Some((found, _)) => Err(format!("tensor {name} is {found}, not {dtype}")),
            None => Err(format!("tensor {name} is missing")),
        }
    }

    fn floats(&mut self, name: &str) -> std::result::Result<Vec<f32>, String> {
        let values: Vec<f32> = values(&self.take(name, "F32")?);
        if values.iter().any(|v| !v.is_finite()) {
            return Err(format!("tensor {name} has values that are not finite"));
        }
        Ok(values)
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

impl Model {
    /// Writes the model to `path`, atomically. With `training`, the state of the training, the file is a checkpoint and has the
    /// state of the optimizers as well.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&mut self, path: &Path, training: Option<&Value>) -> Result<()> {
        let config = serde_json::to_value(&self.config)
            .map_err(|e| Error::bad_input(format!("the configuration cannot be written: {e}")))?;
        let mut metadata =
            json!({"format": FORMAT, "config": config.to_string(), "steps": self.steps.to_string()});
        if let Some(training) = training {
            metadata["training"] = Value::String(training.to_string());
        }
        let mut w = Writer { header: Map::new(), parts: Vec::new(), offset: 0 };
        w.header.insert("__metadata__".to_owned(), metadata);
        // Wider types come first, so that all tensors are aligned.
        let keys = self.sparse_arch.keys();
        if !keys.is_empty() {
            w.add("encoder.keys", "U64", &[keys.len()], bytemuck::cast_slice(keys));
        }
        let memory = self.sparse_arch.memory();
        let params = self.sparse_arch.params();
        let scales: Vec<Option<f32>> = params.iter().map(|(_, p)| p.values.scale()).collect();
        let roundings: Vec<_> = params.iter().map(|(_, p)| p.rounding()).collect();
        for ((name, p), scale) in params.iter().zip(&scales) {
            if let Stored::F32(v) = &p.values {
                w.floats(&format!("encoder.{name}"), v);
            }
            if let Some(scale) = scale {
                w.floats(&format!("encoder.{name}.scale"), std::slice::from_ref(scale));
            }
            if training.is_some() {
                w.floats(&format!("encoder.{name}.state"), &p.state);
            }
        }
        for ((name, _), rounding) in params.iter().zip(&roundings) {
            if let Some(rounding) = rounding {
                w.floats(&format!("encoder.{name}.rounding"), rounding);
            }
        }
        let mlps = self.dense_arch.as_mut().map(|m| m.tensors_mut("bottom")).into_iter().flatten();
        let mlps: Vec<_> = mlps.chain(self.over_arch.tensors_mut("top")).collect();
        for (name, shape, t) in &mlps {
            w.add(name, "F32", shape, bytemuck::cast_slice(&t.values));
            if training.is_some() {
                w.add(&format!("{name}.m"), "F32", shape, bytemuck::cast_slice(&t.m));
                w.add(&format!("{name}.v"), "F32", shape, bytemuck::cast_slice(&t.v));
            }
        }
        if !memory.is_empty() {
            w.add("encoder.memory", "U16", &[memory.len()], bytemuck::cast_slice(&memory));
        }
        for (name, p) in &params {
            if let Stored::Bf16(v) = &p.values {
                w.add(&format!("encoder.{name}"), "BF16", &[v.len()], bytemuck::cast_slice(v));
            }
        }
        for (name, p) in &params {
            match &p.values {
                Stored::F32(_) | Stored::Bf16(_) => {}
                Stored::Int8 { q, .. } => {
                    w.add(&format!("encoder.{name}"), "I8", &[q.len()], bytemuck::cast_slice(q));
                }
                Stored::Int4 { q, .. } => w.add(&format!("encoder.{name}"), "U8", &[q.len()], q),
            }
        }
        let mut header = Value::Object(w.header).to_string();
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let mut out = AtomicFile::create(path)?;
        out.append(&(header.len() as u64).to_le_bytes())?;
        out.append(header.as_bytes())?;
        for part in w.parts {
            out.append(part)?;
        }
        out.commit().map(drop)
    }

    /// Reads a model, and from a checkpoint the state of the training.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or has another format.
    pub fn load(path: &Path) -> Result<(Self, Option<Value>)> {
        let (metadata, mut reader) = read(path)?;
        let damaged = |what: String| {
            Error::bad_file(path, what).with_hint("the file is damaged or not a model of `scrimp rec train`")
        };
        let text = |key: &str| metadata.get(key).and_then(Value::as_str);
        if text("format") != Some(FORMAT) {
            return Err(damaged(format!("not a {FORMAT} file")));
        }
        let config: ModelConfig = serde_json::from_str(text("config").unwrap_or_default())
            .map_err(|e| damaged(format!("its configuration cannot be read: {e}")))?;
        config.schema.check()?;
        // The file must be large enough for the model before its memory is allocated. An int4 byte may begin two rows.
        let promised: u64 = config.encoder.rows.iter().map(|&r| u64::from(r)).sum();
        let there: usize = reader.tensors.values().map(|(_, bytes)| bytes.len()).sum();
        if promised / 2 > there as u64 {
            return Err(damaged(format!("{promised} rows in a file of {there} bytes")));
        }
        let dense: usize = config.dense_layer_sizes.iter().chain(&config.over_layer_sizes).sum();
        if dense > there {
            return Err(damaged("layers larger than the file".to_owned()));
        }
        let keys = if reader.has("encoder.keys") {
            reader.take("encoder.keys", "U64").map_err(&damaged)?
        } else {
            Vec::new()
        };
        let keys: Vec<u64> = values(&keys);
        let mut model = Self::new(config, &keys).map_err(|e| damaged(e.to_string()))?;
        model.fill(&mut reader).map_err(&damaged)?;
        model.steps = text("steps").and_then(|s| s.parse().ok()).unwrap_or(0);
        let training = match text("training") {
            None => None,
            Some(t) => Some(serde_json::from_str(t).map_err(|e| damaged(e.to_string()))?),
        };
        Ok((model, training))
    }

    fn fill(&mut self, reader: &mut Reader) -> std::result::Result<(), String> {
        for (name, p) in self.sparse_arch.params_mut() {
            let full = format!("encoder.{name}");
            let len = p.len();
            let dtype = reader.tensors.get(&full).map_or("F32", |(dtype, _)| dtype).to_owned();
            let step = |reader: &mut Reader| -> std::result::Result<f32, String> {
                Ok(reader.floats(&format!("{full}.scale"))?.first().copied().unwrap_or(1.0))
            };
            let stored = match dtype.as_str() {
                "BF16" => Stored::Bf16(values(&reader.take(&full, "BF16")?)),
                "I8" => {
                    let q = values(&reader.take(&full, "I8")?);
                    Stored::Int8 { q, scale: step(reader)? }
                }
                "U8" => {
                    let q = reader.take(&full, "U8")?;
                    if q.len() != p.shape().bytes() {
                        return Err(format!(
                            "tensor {full} has {} bytes, not {}",
                            q.len(),
                            p.shape().bytes()
                        ));
                    }
                    Stored::Int4 { q, len, scale: step(reader)? }
                }
                _ => Stored::F32(reader.floats(&full)?),
            };
            if is_weight(name) && !matches!(stored, Stored::F32(_)) {
                return Err(format!("tensor {full} must be F32"));
            }
            let rounding = format!("{full}.rounding");
            let rounding = if reader.has(&rounding) { reader.floats(&rounding)? } else { Vec::new() };
            p.replace(stored, rounding.first_chunk().copied());
            if p.len() != len {
                return Err(format!("tensor {full} has {} values, not {len}", p.len()));
            }
            if reader.has(&format!("{full}.state")) {
                p.state = reader.floats(&format!("{full}.state"))?;
            }
        }
        if reader.has("encoder.memory") {
            let memory: Vec<u16> = values(&reader.take("encoder.memory", "U16")?);
            self.sparse_arch.restore(&memory).map_err(|e| e.to_string())?;
        }
        let bottom = self.dense_arch.as_mut().map(|m| m.tensors_mut("bottom")).into_iter().flatten();
        for (name, _, t) in bottom.chain(self.over_arch.tensors_mut("top")) {
            let len = t.values.len();
            t.values = reader.floats(&name)?;
            if reader.has(&format!("{name}.m")) {
                t.m = reader.floats(&format!("{name}.m"))?;
                t.v = reader.floats(&format!("{name}.v"))?;
            }
            if [&t.values, &t.m, &t.v].iter().any(|v| v.len() != len) {
                return Err(format!("tensor {name} has not {len} values"));
            }
        }
        Ok(())
    }
}

/// Converts bytes to values.
fn values<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let mut values = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    let whole = size_of_val(&values[..]);
    bytemuck::cast_slice_mut::<T, u8>(&mut values).copy_from_slice(&bytes[..whole]);
    values
}

/// The metadata and all tensors of a safetensors file.
fn read(path: &Path) -> Result<(Map<String, Value>, Reader)> {
    let io = |e| Error::io(path, e);
    let damaged = |what: String| {
        Error::bad_file(path, what).with_hint("the file is damaged or not a model of `scrimp rec train`")
    };
    let mut file = std::fs::File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| damaged("shorter than a header".to_owned()))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length + 8 > size {
        return Err(damaged(format!("a header of {length} bytes in a file of {size}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header: Map<String, Value> =
        serde_json::from_slice(&header).map_err(|e| damaged(format!("its header cannot be read: {e}")))?;
    let values = size - 8 - length;
    let mut metadata = Map::new();
    let mut entries = Vec::new();
    for (name, entry) in header {
        if name == "__metadata__" {
            metadata = entry.as_object().cloned().unwrap_or_default();
            continue;
        }
        let range = entry.get("data_offsets").and_then(Value::as_array);
        let range: Option<Vec<u64>> = range.map(|r| r.iter().filter_map(Value::as_u64).collect());
        let dtype = entry.get("dtype").and_then(Value::as_str);
        match (range.as_deref(), dtype) {
            (Some(&[start, end]), Some(dtype)) if start <= end && end <= values => {
                entries.push((start, end, name, dtype.to_owned()));
            }
            _ => return Err(damaged(format!("the range of tensor {name} is outside the file"))),
        }
    }
    entries.sort();
    let (mut tensors, mut at) = (BTreeMap::new(), 0);
    for (start, end, name, dtype) in entries {
        if start != at {
            return Err(damaged(format!("tensor {name} does not follow the one before it")));
        }
        let mut bytes = vec![0; (end - start) as usize];
        file.read_exact(&mut bytes).map_err(io)?;
        at = end;
        let size = match dtype.as_str() {
            "F32" => 4,
            "U64" => 8,
            "BF16" | "U16" => 2,
            _ => 1,
        };
        if !bytes.len().is_multiple_of(size) {
            return Err(damaged(format!("tensor {name} has a part of a value")));
        }
        tensors.insert(name, (dtype, bytes));
    }
    Ok((metadata, Reader { tensors }))
}
