//! Sizes and numbers of one architecture from GGUF metadata, with bounds.

use super::{
    common::limit,
    rope::{self, Scaling},
};
use crate::{
    config::Rope,
    error::Result,
    load::{GgufFile, GgufMetadata, GgufTensor},
};

/// The metadata below `ARCHITECTURE.`: `size("block_count", ..)` reads `llama.block_count`.
#[derive(Debug)]
pub struct GgufKeys<'a> {
    /// The first has the metadata.
    files: &'a [GgufFile],
    file: &'a GgufFile,
    architecture: &'a str,
}

impl<'a> GgufKeys<'a> {
    /// The keys of `architecture` in `files`: all parts of a model, of which the first has the metadata.
    ///
    /// # Panics
    /// When there is no file.
    pub fn new(files: &'a [GgufFile], architecture: &'a str) -> Self {
        Self { files, file: &files[0], architecture }
    }

    /// The tensor called `name` and the file that it is in.
    pub fn tensor(&self, name: &str) -> Option<(&'a GgufFile, &'a GgufTensor)> {
        self.files.iter().find_map(|file| file.tensor(name).map(|tensor| (file, tensor)))
    }

    /// The file with the metadata.
    pub fn file(&self) -> &'a GgufFile {
        self.file
    }

    fn metadata(&self) -> &'a GgufMetadata {
        self.file.metadata()
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A size from 1 to `max`. A list of equal sizes, one per layer, counts as that size. Zeros of KV heads are those of
    /// layers without keys and values.
    ///
    /// # Errors
    /// When it is no integer, is out of bounds, or differs between layers.
    pub fn size(&self, name: &str, max: usize) -> Result<Option<usize>> {
        let key = self.key(name);
        let value = match self.metadata().kind(&key) {
            None => return Ok(None),
            Some((_, Some(_))) => {
                let items = self.metadata().i32_array(&key)?.unwrap_or_default();
                let mut items = items;
                if name == "attention.head_count_kv" {
                    items.retain(|&item| item != 0);
                }
                let first = items.first().copied().unwrap_or(0);
                if items.iter().any(|&item| item != first) {
                    return Err(self.file.source().unsupported(
                        format_args!("metadata {key} differs between layers"),
                        "models whose layers are alike are supported",
                    ));
                }
                u64::try_from(first).unwrap_or(0)
            }
            Some(_) => self.metadata().u64(&key)?.unwrap_or(0),
        };
        match usize::try_from(value) {
            Ok(size) if (1..=max).contains(&size) => Ok(Some(size)),
            _ => {
                Err(self.file.source().bad(format!("metadata {key} is {value}, but must be from 1 to {max}")))
            }
        }
    }

    /// The sizes of each of `n_layers` layers, from 1 to `max`: those of a list, or one for all layers. Empty if there is
    /// no such key.
    ///
    /// # Errors
    /// When it is no integer or no list of integers, a size is out of bounds, or the list is shorter.
    pub fn sizes(&self, name: &str, n_layers: usize, max: usize) -> Result<Vec<usize>> {
        let key = self.key(name);
        if !matches!(self.metadata().kind(&key), Some((_, Some(_)))) {
            return Ok(self.size(name, max)?.map_or_else(Vec::new, |size| vec![size; n_layers]));
        }
        let items = self.metadata().i32_array(&key)?.unwrap_or_default();
        let sizes = items.iter().take(n_layers).map(|&item| usize::try_from(item).ok());
        let sizes: Option<Vec<usize>> =
            sizes.map(|size| size.filter(|size| (1..=max).contains(size))).collect();
        sizes.filter(|sizes| sizes.len() == n_layers).ok_or_else(|| {
            let what = format!("metadata {key} has no list of sizes from 1 to {max} for {n_layers} layers");
            self.file.source().bad(what)
        })
    }

    /// A required size.
    ///
    /// # Errors
    /// As [`GgufKeys::size`], and when it is missing.
    pub fn need_size(&self, name: &str, max: usize) -> Result<usize> {
        self.size(name, max)?.ok_or_else(|| self.metadata().missing(&self.key(name)))
    }

    /// A size that may be 0, which means "none".
    ///
    /// # Errors
    /// As [`GgufKeys::size`].
    pub fn size_or_zero(&self, name: &str, max: usize) -> Result<Option<usize>> {
        match self.metadata().u64(&self.key(name)) {
            Ok(Some(0)) => Ok(None),
            _ => self.size(name, max),
        }
    }

    /// A finite number.
    ///
    /// # Errors
    /// When it is no floating-point number or not finite.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        let key = self.key(name);
        match self.metadata().f32(&key)? {
            Some(number) if !number.is_finite() => {
                Err(self.file.source().bad(format!("metadata {key} is {number}")))
            }
            // Converted through the shortest decimal form, so that 1e-6 stays 1e-6 and 0.1 stays 0.1.
            Some(number) => Ok(Some(number.to_string().parse().unwrap_or(f64::from(number)))),
            None => Ok(None),
        }
    }

    /// A finite positive number.
    ///
    /// # Errors
    /// As [`GgufKeys::number`], and when it is not positive.
    pub fn positive(&self, name: &str) -> Result<Option<f64>> {
        match self.number(name)? {
            Some(number) if number <= 0.0 => Err(self
                .file
                .source()
                .bad(format!("metadata {} is {number}, but must be positive", self.key(name)))),
            number => Ok(number),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.metadata().bool(&self.key(name))
    }

    /// The KV heads of each of `n_layers` layers, 0 for layers without keys and values.
    ///
    /// # Errors
    /// When the list has another length, or negative numbers.
    pub fn kv_heads(&self, n_layers: usize) -> Result<Vec<usize>> {
        let key = self.key("attention.head_count_kv");
        let heads = match self.metadata().kind(&key) {
            Some((_, Some(_))) => self.metadata().i32_array(&key)?.unwrap_or_default(),
            _ => vec![1; n_layers],
        };
        let heads: Option<Vec<usize>> = heads.into_iter().map(|n| usize::try_from(n).ok()).collect();
        heads.filter(|heads| heads.len() == n_layers).ok_or_else(|| {
            self.file.source().bad(format!("metadata {key} has no list of KV heads for {n_layers} layers"))
        })
    }

    /// A list of truth values, one for each of `n_layers` layers. Further ones are ignored.
    ///
    /// # Errors
    /// When it is of another type or shorter.
    pub fn flags(&self, name: &str, n_layers: usize) -> Result<Option<Vec<bool>>> {
        let key = self.key(name);
        let Some(flags) = self.metadata().i32_array(&key)? else { return Ok(None) };
        if flags.len() < n_layers {
            let what = format!("metadata {key} has {} items for {n_layers} layers", flags.len());
            return Err(self.file.source().bad(what));
        }
        Ok(Some(flags.iter().take(n_layers).map(|&flag| flag != 0).collect()))
    }

    /// Whether there is such a key.
    pub fn has(&self, name: &str) -> bool {
        self.metadata().contains(&self.key(name))
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>> {
        self.metadata().f32_array(&self.key(name))
    }

    /// A string.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.metadata().str(&self.key(name))
    }

    /// Values of a small f32 tensor of `len` elements, if the file has it.
    ///
    /// # Errors
    /// When it has another type or length.
    pub fn f32_tensor(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>> {
        let Some((file, tensor)) = self.tensor(name) else { return Ok(None) };
        if tensor.dtype != scrimp_kernels::DType::F32 || tensor.shape != [len] {
            return Err(file.source().bad(format!(
                "tensor {name} should be {len} x f32, but is {} of shape {:?}",
                tensor.dtype, tensor.shape
            )));
        }
        let (values, _) = file.bytes(tensor).as_chunks::<4>();
        Ok(Some(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()))
    }

    /// The rotary embedding of `dim` elements with base `base`, scaled as the metadata says; `context` is the
    /// model's context, `factors` divides each frequency.
    ///
    /// # Errors
    /// When the scaling is unknown or its numbers make no sense.
    pub fn rope(&self, dim: usize, base: f64, context: usize, factors: Option<Vec<f32>>) -> Result<Rope> {
        let bad = |what: String| self.file.source().bad(what);
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?,
        };
        // 0 means "not scaled", as in llama.cpp.
        let factor = factor.filter(|&f| f != 0.0).unwrap_or(1.0);
        let attention = self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let scaling = match self.text("rope.scaling.type")? {
            Some("none" | "longrope") => Scaling::None,
            None | Some("linear") => Scaling::Linear { factor },
            Some("yarn") => Scaling::Yarn(rope::Yarn {
                factor,
                original_context: self
                    .size("rope.scaling.original_context_length", limit::CONTEXT)?
                    .unwrap_or(context) as f64,
                beta_fast: self.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: self.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                // Only gpt-oss was trained without rounding. The metadata has no key for it.
                truncate: self.architecture != "gpt-oss",
            }),
            Some(other) => {
                return Err(self.file.source().unsupported(
                    format_args!("rope scaling of type {other:?} is not known"),
                    "linear, yarn and longrope are",
                ));
            }
        };
        let yarn = if matches!(scaling, Scaling::Yarn(_)) { rope::yarn_magnitude(factor, 1.0) } else { 1.0 };
        let factors = factors.as_deref();
        rope::rope(dim, base, &scaling, factors, attention * yarn).map_err(bad)
    }
}
