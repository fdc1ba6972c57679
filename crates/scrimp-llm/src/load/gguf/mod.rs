//! GGUF, versions 2 and 3, little endian: the single-file format of llama.cpp.
//!
//! ```text
//! "GGUF" | version u32 | tensor count u64 | pair count u64
//! pairs:   key string | type u32 | value           (string: length u64, bytes; array: item type u32, count u64, items)
//! tensors: name string | dims u32 | dim u64 x dims, innermost first | type u32 | offset u64
//! zeros up to a multiple of general.alignment (default 32), then the tensors' bytes at their offsets from here
//! ```

mod cursor;
mod metadata;
mod shards;
mod types;

use std::{collections::HashMap, ops::Range, path::Path, sync::Arc};

use scrimp_kernels::DType;

use self::{cursor::Cursor, metadata::Value};
pub use self::{
    metadata::{GgufMetadata, StringItems},
    types::ValueType,
};
use crate::{error::Result, load::Source};

/// Maximum number of pairs and of tensors. Real files have tens and hundreds.
const MAX_ENTRIES: usize = 65_536;
/// Maximum length of a key, as the format defines it.
const MAX_KEY: usize = 65_535;
/// Maximum length of a tensor name (64 in llama.cpp).
const MAX_TENSOR_NAME: usize = 256;
const MAX_DIMS: u32 = 4;
const MAX_ALIGNMENT: u32 = 1 << 20;
const DEFAULT_ALIGNMENT: u32 = 32;
/// Key length, type and one byte of value; name length, dimension count, one dimension, type and offset.
const MIN_PAIR: usize = 8 + 4 + 1;
const MIN_TENSOR: usize = 8 + 4 + 8 + 4 + 8;

/// One tensor of a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Encoding of its elements.
    pub dtype: DType,
    /// Dimensions, outermost first (the file has the reverse order). All are positive.
    pub shape: Vec<usize>,
    /// The range of its bytes in the file.
    pub range: Range<usize>,
}

/// A GGUF file: metadata and tensors.
#[derive(Debug)]
pub struct GgufFile {
    source: Arc<Source>,
    metadata: GgufMetadata,
    tensors: Vec<GgufTensor>,
    by_name: HashMap<String, usize>,
    data_start: usize,
}

impl GgufFile {
    /// Maps the file at `path` and reads its header.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or uses an unsupported feature.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_source(Source::open(path)?)
    }

    /// Reads a header from bytes in memory.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::from_source(Source::from_bytes(Path::new("(bytes)"), bytes.to_vec()))
    }

    /// Reads the header of `source`.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn from_source(source: Source) -> Result<Self> {
        let source = Arc::new(source);
        let mut cursor = Cursor::new(&source, 0);
        let (tensor_count, pair_count) = read_counts(&source, &mut cursor)?;
        let metadata = read_pairs(&source, &mut cursor, pair_count)?;
        let mut infos = Vec::with_capacity(tensor_count);
        for _ in 0..tensor_count {
            infos.push(read_tensor(&source, &mut cursor)?);
        }
        let alignment = read_alignment(&metadata)?;
        let data_start = cursor.position().next_multiple_of(alignment);
        place_tensors(&source, &mut infos, data_start, alignment)?;
        let mut by_name = HashMap::with_capacity(infos.len());
        for (i, tensor) in infos.iter().enumerate() {
            if by_name.insert(tensor.name.clone(), i).is_some() {
                return Err(source.bad(format!("tensor {} is there twice", tensor.name)));
            }
        }
        Ok(Self { metadata, tensors: infos, by_name, data_start, source })
    }

    /// Keys and values.
    pub fn metadata(&self) -> &GgufMetadata {
        &self.metadata
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The bytes of `tensor`, which must be one of this file's.
    pub fn bytes(&self, tensor: &GgufTensor) -> &[u8] {
        &self.source[tensor.range.clone()]
    }

    /// The file itself.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The file itself, which may outlive this header.
    pub fn shared_source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Bytes before the tensors: header, metadata and padding.
    pub fn header_bytes(&self) -> usize {
        self.data_start.min(self.source.len())
    }
}

fn read_counts(source: &Source, cursor: &mut Cursor<'_>) -> Result<(usize, usize)> {
    if !source.starts_with(b"GGUF") {
        return Err(source.bad("not a GGUF file (it does not begin with \"GGUF\")"));
    }
    cursor.skip(4, "the magic number")?;
    match cursor.u32("the version")? {
        2 | 3 => {}
        1 => {
            return Err(source.unsupported(
                "GGUF version 1 is not supported",
                "convert the model again with a current llama.cpp (versions 2 and 3 are read)",
            ));
        }
        version if version != 0 && version.swap_bytes() <= 0xffff => {
            return Err(source.unsupported(
                "this GGUF file is big endian",
                "use the little-endian file of the same model",
            ));
        }
        version => {
            return Err(source.unsupported(
                format_args!("GGUF version {version} is not known"),
                "versions 2 and 3 are read; a newer scrimp may know more",
            ));
        }
    }
    let tensors = cursor.count(MIN_TENSOR, "the number of tensors")?;
    let pairs = cursor.count(MIN_PAIR, "the number of metadata pairs")?;
    if tensors > MAX_ENTRIES || pairs > MAX_ENTRIES {
        return Err(source.bad(format!(
            "the header claims {tensors} tensors and {pairs} metadata pairs; {MAX_ENTRIES} of each are allowed"
        )));
    }
    Ok((tensors, pairs))
}

fn read_pairs(source: &Arc<Source>, cursor: &mut Cursor<'_>, count: usize) -> Result<GgufMetadata> {
    let mut metadata = GgufMetadata::new(Arc::clone(source));
    for _ in 0..count {
        let key = cursor.name(MAX_KEY, "a metadata key")?;
        let value = read_value(source, cursor, key)?;
        if !metadata.insert(key, value) {
            return Err(source.bad(format!("metadata {key} is there twice")));
        }
    }
    Ok(metadata)
}

fn read_value(source: &Source, cursor: &mut Cursor<'_>, key: &str) -> Result<Value> {
    let kind = read_kind(source, cursor, key)?;
    let mut items = None;
    let range = match kind {
        ValueType::Str => cursor.string(key)?,
        ValueType::Array => {
            let item = read_kind(source, cursor, key)?;
            if item == ValueType::Array {
                return Err(source.unsupported(
                    format_args!("metadata {key} is an array of arrays"),
                    "no known model needs one; the file may be damaged",
                ));
            }
            let count = cursor.count(item.min_bytes(), key)?;
            items = Some((item, count));
            if item == ValueType::Str {
                let start = cursor.position();
                for _ in 0..count {
                    cursor.string(key)?;
                }
                start..cursor.position()
            } else {
                // `count` has checked that this many items fit the file, so the product does not overflow.
                cursor.skip((count * item.min_bytes()) as u64, key)?
            }
        }
        _ => cursor.skip(kind.min_bytes() as u64, key)?,
    };
    let truth = kind == ValueType::Bool || matches!(items, Some((ValueType::Bool, _)));
    if truth && source[range.clone()].iter().any(|&b| b > 1) {
        return Err(source.bad(format!("metadata {key} holds a truth value that is neither 0 nor 1")));
    }
    Ok(Value { kind, items, range })
}

fn read_kind(source: &Source, cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType> {
    let number = cursor.u32(key)?;
    ValueType::from_number(number)
        .ok_or_else(|| source.bad(format!("metadata {key} has the unknown type {number}")))
}

fn read_alignment(metadata: &GgufMetadata) -> Result<usize> {
    let alignment = metadata.u32("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(metadata.source().bad(format!(
            "general.alignment is {alignment}; a power of two up to {MAX_ALIGNMENT} is allowed"
        )));
    }
    Ok(alignment as usize)
}

/// Reads one tensor's description. Its range is `offset..offset + size` from the start of the data, for now.
fn read_tensor(source: &Source, cursor: &mut Cursor<'_>) -> Result<GgufTensor> {
    let name = cursor.name(MAX_TENSOR_NAME, "a tensor's name")?;
    let dims = cursor.u32(name)?;
    if !(1..=MAX_DIMS).contains(&dims) {
        return Err(source.bad(format!("tensor {name} has {dims} dimensions; 1 to {MAX_DIMS} are allowed")));
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        let dim = cursor.u64(name)?;
        match usize::try_from(dim) {
            Ok(dim) if dim > 0 => shape.push(dim),
            _ => return Err(source.bad(format!("tensor {name} has a dimension of {dim}"))),
        }
    }
    shape.reverse();
    let number = cursor.u32(name)?;
    let dtype = types::tensor_type(number).map_err(|known| {
        let known = known.unwrap_or("unknown to this version");
        let in_gguf = |d: &&DType| !DType::CODEBOOKS.contains(d);
        let all: Vec<_> = DType::ALL.iter().filter(in_gguf).map(|d| d.name()).collect();
        source.unsupported(
            format_args!("tensor {name} is of type {number} ({known}), which is not supported"),
            format!("use a file whose tensors are of these types: {}", all.join(", ")),
        )
    })?;
    let offset = cursor.u64(name)?;
    let bytes = tensor_bytes(dtype, &shape).ok_or_else(|| {
        source.bad(format!(
            "tensor {name} of shape {shape:?} cannot be {dtype}: its rows are no whole number of blocks of {}, or it is too large",
            dtype.block_len()
        ))
    })?;
    let range = usize::try_from(offset).ok().and_then(|o| Some(o..o.checked_add(bytes)?));
    let range =
        range.ok_or_else(|| source.bad(format!("tensor {name} lies at the impossible offset {offset}")))?;
    Ok(GgufTensor { name: name.to_owned(), dtype, shape, range })
}

/// Bytes of a tensor of `shape` (outermost first), or `None` if a row is not a whole number of blocks or the size
/// overflows.
pub(crate) fn tensor_bytes(dtype: DType, shape: &[usize]) -> Option<usize> {
    let (&cols, outer) = shape.split_last()?;
    let row = dtype.row_bytes(cols)?;
    outer.iter().try_fold(row, |bytes, &dim| bytes.checked_mul(dim))
}

/// Moves ranges to the start of the data. Checks that each is aligned and inside the file and overlaps no other.
fn place_tensors(
    source: &Source,
    tensors: &mut [GgufTensor],
    data_start: usize,
    alignment: usize,
) -> Result<()> {
    for tensor in &mut *tensors {
        let name = &tensor.name;
        if !tensor.range.start.is_multiple_of(alignment) {
            return Err(source.bad(format!(
                "tensor {name} lies at offset {}, which is no multiple of the alignment {alignment}",
                tensor.range.start
            )));
        }
        let end = tensor.range.end.checked_add(data_start).filter(|&end| end <= source.len());
        let Some(end) = end else {
            return Err(source.bad(format!(
                "tensor {name} needs {} bytes at offset {} of the data, but the file ends before (it is {} bytes long; a cut-off download?)",
                tensor.range.len(),
                tensor.range.start,
                source.len()
            )));
        };
        tensor.range = tensor.range.start + data_start..end;
    }
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|t| t.range.start);
    for pair in order.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            return Err(source.bad(format!("tensors {} and {} overlap", pair[0].name, pair[1].name)));
        }
    }
    Ok(())
}
