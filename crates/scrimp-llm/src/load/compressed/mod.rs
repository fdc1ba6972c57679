//! scrimp's own format: one safetensors file with all parts of a model.
//!
//! ```text
//! __metadata__   "format": "scrimp", "scrimp.version": "1"
//!                "scrimp.config":  JSON, the configuration of the decoder    "scrimp.history": JSON, how it was made
//!                "scrimp.tensors": JSON, name -> {"type", "shape"} of tensors that safetensors has no type for
//! tensors        GGUF's names. Vectors: F32. Matrices in the layout of the kernels, or as another file stored them: U8
//! file:NAME      U8: a file that came with the original (tokenizer.json, ...), or tokenizer.gguf
//! ```
//! `docs/src/reference/compressed_file.md` specifies every byte.

mod reader;
mod writer;

pub use self::{
    reader::{CompressedFile, Entry},
    writer::{Item, write},
};

use scrimp_kernels::{DType, quant::packed::WeightFormat};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Value of `format` in the metadata.
pub const FORMAT: &str = "scrimp";
/// The version.
pub const VERSION: &str = "1";
/// Prefix of the names of files that are stored as tensors.
pub const FILE_PREFIX: &str = "file:";
/// The tokenizer's part of a GGUF file's metadata, as a GGUF file without tensors.
pub const GGUF_HEADER: &str = "tokenizer.gguf";

/// The encoding of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Rows one after another, in a type of GGUF.
    Rows(DType),
    /// A matrix in the layout of the kernels.
    Packed(WeightFormat),
    /// Bytes of a Hugging Face file that are numbers together with another tensor (MXFP4's blocks and scales).
    Bytes,
    /// E4M3 numbers of a Hugging Face file, with factors in the tensor of the same name plus `_scale`.
    Fp8,
}

impl Encoding {
    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rows(dtype) => dtype.name(),
            Self::Packed(format) => format.name(),
            Self::Bytes => "U8",
            Self::Fp8 => "F8_E4M3",
        }
    }

    /// The type of a tensor that is stored as rows.
    pub fn rows(self) -> Option<DType> {
        match self {
            Self::Rows(dtype) => Some(dtype),
            Self::Packed(_) | Self::Bytes | Self::Fp8 => None,
        }
    }

    /// The name in `scrimp.tensors`: a packed format or a block type of GGUF.
    fn from_name(name: &str) -> Option<Self> {
        let block = |d: &DType| d.block_len() > 1 && d.name() == name;
        let packed = || name.parse().ok().map(Self::Packed);
        DType::ALL.into_iter().find(block).map(Self::Rows).or_else(packed)
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An entry of `scrimp.tensors`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    #[serde(rename = "type")]
    kind: String,
    shape: Vec<usize>,
}
