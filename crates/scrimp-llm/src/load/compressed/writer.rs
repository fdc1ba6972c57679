//! Writing scrimp's own files.

use super::{Described, Encoding, FILE_PREFIX, FORMAT, VERSION};
use crate::error::Result;
use scrimp_base::AtomicFile;
use scrimp_kernels::DType;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path};

/// An entry of the file: a tensor, or an embedded file.
#[derive(Debug, Clone)]
pub enum Item<'a> {
    /// A tensor.
    Tensor {
        /// GGUF's name.
        name: String,
        /// How `data` is stored.
        encoding: Encoding,
        /// Dimensions, outermost first.
        shape: Vec<usize>,
        /// The bytes.
        data: &'a [u8],
    },
    /// A file.
    File {
        /// Its name.
        name: String,
        /// Its bytes.
        data: &'a [u8],
    },
}

impl<'a> Item<'a> {
    fn data(&self) -> &'a [u8] {
        match self {
            Self::Tensor { data, .. } | Self::File { data, .. } => data,
        }
    }
}

/// Writes `path` atomically. `metadata` has `scrimp.config` and further strings; format, version and the description
/// of tensors are added. `progress` is called with the bytes of items written so far.
///
/// # Errors
/// The file cannot be written. Then `path` has its old content.
pub fn write(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    items: &[Item<'_>],
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    let header = header(metadata, items);
    file.append(&(header.len() as u64).to_le_bytes())?;
    file.append(&header)?;
    let mut done = 0;
    for item in items {
        file.append(item.data())?;
        done += item.data().len() as u64;
        progress(done);
    }
    file.commit().map(drop)
}

/// The JSON header, padded with spaces so that the tensors begin at a multiple of 64.
fn header(metadata: &BTreeMap<String, String>, items: &[Item<'_>]) -> Vec<u8> {
    let mut described = BTreeMap::new();
    let mut tensors = Map::new();
    let mut end = 0;
    for item in items {
        let start = end;
        end += item.data().len();
        let bytes = ("U8", vec![item.data().len()]);
        let (name, (dtype, shape)) = match item {
            Item::File { name, .. } => (format!("{FILE_PREFIX}{name}"), bytes),
            Item::Tensor { name, encoding, shape, .. } => {
                let native = match encoding {
                    Encoding::Rows(DType::F32) => Some("F32"),
                    Encoding::Rows(DType::F16) => Some("F16"),
                    Encoding::Rows(DType::BF16) => Some("BF16"),
                    _ => None,
                };
                if let Some(dtype) = native {
                    (name.clone(), (dtype, shape.clone()))
                } else {
                    let kind = encoding.name().to_owned();
                    described.insert(name.clone(), Described { kind, shape: shape.clone() });
                    (name.clone(), bytes)
                }
            }
        };
        tensors.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let mut all: Map<String, Value> = Map::new();
    let described = serde_json::to_string(&described).unwrap_or_default();
    let own = [("format", FORMAT), ("scrimp.version", VERSION), ("scrimp.tensors", &described)];
    let own = own.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
    let meta: BTreeMap<String, String> =
        metadata.iter().map(|(k, v)| (k.clone(), v.clone())).chain(own).collect();
    all.insert("__metadata__".to_owned(), json!(meta));
    all.extend(tensors);
    let mut header = Value::Object(all).to_string().into_bytes();
    header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
    header
}
