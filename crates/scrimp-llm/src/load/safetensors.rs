//! safetensors: the header reader.
//!
//! ```text
//! header length u64, little endian | header: JSON object, name -> {"dtype", "shape", "data_offsets"} | tensors
//! ```
//! Offsets count from the end of the header; tensors follow each other without gaps and fill the file.

use std::{collections::BTreeMap, fmt, ops::Range, sync::Arc};

use scrimp_kernels::DType;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use crate::{error::Result, load::Source};

/// Maximum size of the header, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;
const MAX_DIMS: usize = 8;

/// Element types of the format. Only some of them can be weights, see [`SafeDType::dtype`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(non_camel_case_types, missing_docs)]
pub enum SafeDType {
    BOOL,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

impl SafeDType {
    /// Bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            Self::BOOL | Self::U8 | Self::I8 | Self::F8_E5M2 | Self::F8_E4M3 | Self::F8_E8M0 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::C64 | Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// The type of weights with this encoding, if scrimp computes with them.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            _ => None,
        }
    }
}

/// One tensor of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafeTensor {
    /// Its name.
    pub name: String,
    /// Encoding of its elements.
    pub dtype: SafeDType,
    /// Dimensions, outermost first; empty for a single number.
    pub shape: Vec<usize>,
    /// The range of its bytes in the file.
    pub range: Range<usize>,
}

/// A safetensors file: its tensors and the strings stored beside them.
#[derive(Debug)]
pub struct SafetensorsFile {
    source: Arc<Source>,
    tensors: Vec<SafeTensor>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Reads the header of `source`.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn from_source(source: Source) -> Result<Self> {
        let Some((length, rest)) = source.split_first_chunk::<8>() else {
            return Err(source.bad("not a safetensors file: shorter than 8 bytes"));
        };
        let length = u64::from_le_bytes(*length);
        let header = usize::try_from(length).ok().filter(|_| length <= MAX_HEADER);
        let Some((header, data)) = header.and_then(|len| rest.split_at_checked(len)) else {
            return Err(source.bad(format!(
                "not a safetensors file, or a cut-off one: it claims a header of {length} bytes, and {} bytes follow (at most {MAX_HEADER} are allowed)",
                rest.len()
            )));
        };
        let (data_start, data_len) = (8 + header.len(), data.len());
        let parsed: Header = serde_json::from_slice(header)
            .map_err(|e| source.bad(format!("the safetensors header is damaged: {e}")))?;
        let tensors = place(parsed.tensors, data_start, data_len).map_err(|what| source.bad(what))?;
        Ok(Self { tensors, metadata: parsed.metadata, source: Arc::new(source) })
    }

    /// All tensors, in the order of their bytes.
    pub fn tensors(&self) -> &[SafeTensor] {
        &self.tensors
    }

    /// Strings stored beside the tensors (`__metadata__`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The file itself.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }
}

/// Checks sizes and places, and returns the tensors sorted by place.
fn place(infos: Vec<(String, Info)>, data_start: usize, data_len: usize) -> Result<Vec<SafeTensor>, String> {
    let mut tensors = Vec::with_capacity(infos.len());
    for (name, Info { dtype, shape, data_offsets: [start, end] }) in infos {
        if shape.len() > MAX_DIMS || shape.contains(&0) {
            return Err(format!("tensor {name} has the shape {shape:?}"));
        }
        let bytes = shape.iter().try_fold(dtype.bytes(), |bytes, &dim| bytes.checked_mul(dim));
        if bytes.is_none() || end.checked_sub(start) != bytes || end > data_len {
            return Err(format!(
                "tensor {name} ({dtype:?} of shape {shape:?}) does not fit its place, {start}..{end} of {data_len} bytes"
            ));
        }
        tensors.push(SafeTensor { name, dtype, shape, range: data_start + start..data_start + end });
    }
    tensors.sort_by_key(|t| t.range.start);
    let mut end = data_start;
    for tensor in &tensors {
        if tensor.range.start != end {
            return Err(format!("tensor {} does not begin where the one before ends", tensor.name));
        }
        end = tensor.range.end;
    }
    if end != data_start + data_len {
        return Err(format!("{} bytes after the last tensor", data_start + data_len - end));
    }
    let mut names: Vec<_> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("tensor {} is there twice", pair[0]));
    }
    Ok(tensors)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: SafeDType,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The header's object, read in one pass: its memory is a small multiple of its length.
#[derive(Default)]
struct Header {
    tensors: Vec<(String, Info)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                let mut seen = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if std::mem::replace(&mut seen, true) {
                            return Err(A::Error::custom("__metadata__ is there twice"));
                        }
                        header.metadata = map.next_value()?;
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}
