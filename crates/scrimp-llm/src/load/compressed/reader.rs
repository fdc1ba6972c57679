//! Reading scrimp's own files.

use super::{Described, Encoding, FILE_PREFIX, FORMAT, VERSION};
use crate::{
    error::Result,
    load::{
        SafetensorsFile, Source,
        gguf::tensor_bytes,
        safetensors::{SafeDType, SafeTensor},
    },
};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

const MAX_DIMS: usize = 2;

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// GGUF's name.
    pub name: String,
    /// How it is stored.
    pub encoding: Encoding,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The range of its bytes in the file.
    pub range: Range<usize>,
}

/// A file in scrimp's own format.
#[derive(Debug)]
pub struct CompressedFile {
    file: SafetensorsFile,
    entries: Vec<Entry>,
    files: BTreeMap<String, Range<usize>>,
}

impl CompressedFile {
    /// Whether the metadata of a safetensors file names this format.
    pub fn is_one(file: &SafetensorsFile) -> bool {
        file.metadata().get("format").is_some_and(|format| format == FORMAT)
    }

    /// Reads the descriptions of the tensors of `file`. The content of packed matrices is checked when they are loaded.
    ///
    /// # Errors
    /// When the file is of another version, or damaged.
    pub fn new(file: SafetensorsFile) -> Result<Self> {
        let source = Arc::clone(file.source());
        let metadata = file.metadata();
        match metadata.get("scrimp.version").map(String::as_str) {
            Some(VERSION) => {}
            Some(other) => {
                return Err(source.unsupported(
                    format!("version {other:?} of scrimp's files is not known"),
                    format!("version {VERSION} is read; a newer scrimp may know more"),
                ));
            }
            None => return Err(source.bad("scrimp.version is missing")),
        }
        let mut described: BTreeMap<String, Described> = match metadata.get("scrimp.tensors") {
            Some(json) => serde_json::from_str(json)
                .map_err(|e| source.bad(format!("scrimp.tensors is damaged: {e}")))?,
            None => BTreeMap::new(),
        };
        let (mut entries, mut files) = (Vec::new(), BTreeMap::new());
        for tensor in file.tensors() {
            if let Some(name) = tensor.name.strip_prefix(FILE_PREFIX) {
                if tensor.dtype != SafeDType::U8 {
                    return Err(source.bad(format!("{} is no sequence of bytes", tensor.name)));
                }
                files.insert(name.to_owned(), tensor.range.clone());
                continue;
            }
            let entry = match described.remove(&tensor.name) {
                Some(described) => describe(tensor, described),
                None => plain(tensor),
            };
            entries.push(entry.map_err(|what| source.bad(format!("tensor {} {what}", tensor.name)))?);
        }
        if let Some(name) = described.keys().next() {
            return Err(source.bad(format!("tensor {name} is described, but missing")));
        }
        Ok(Self { file, entries, files })
    }

    /// All tensors, in the order of their bytes.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Names of the embedded files.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The bytes of the embedded file `name`, if there is one.
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(|range| &self.file.source()[range.clone()])
    }

    /// A string of the metadata (`scrimp.config`, ...).
    ///
    /// # Errors
    /// When it is missing.
    pub fn text(&self, key: &str) -> Result<&str> {
        let text = self.file.metadata().get(key);
        text.map(String::as_str).ok_or_else(|| self.source().bad(format!("{key} is missing")))
    }

    /// The file itself.
    pub fn source(&self) -> &Arc<Source> {
        self.file.source()
    }
}

fn plain(tensor: &SafeTensor) -> Result<Entry, String> {
    let dtype = tensor.dtype.dtype().ok_or_else(|| format!("is of type {:?}", tensor.dtype))?;
    Ok(Entry {
        name: tensor.name.clone(),
        encoding: Encoding::Rows(dtype),
        shape: tensor.shape.clone(),
        range: tensor.range.clone(),
    })
}

fn describe(tensor: &SafeTensor, described: Described) -> Result<Entry, String> {
    let Described { kind, shape } = described;
    let encoding = Encoding::from_name(&kind).ok_or_else(|| format!("is of the unknown type {kind:?}"))?;
    if shape.is_empty() || shape.len() > MAX_DIMS || shape.contains(&0) {
        return Err(format!("has the shape {shape:?}"));
    }
    if tensor.dtype != SafeDType::U8 {
        return Err(format!("is {kind}, but stored as {:?} instead of bytes", tensor.dtype));
    }
    let bytes = tensor.range.len();
    match encoding {
        Encoding::Rows(dtype) if tensor_bytes(dtype, &shape) != Some(bytes) => {
            return Err(format!("of shape {shape:?} cannot be {kind} in {bytes} bytes"));
        }
        Encoding::Packed(_) if shape.len() != 2 => {
            return Err(format!("is {kind}, but no matrix: {shape:?}"));
        }
        _ => {}
    }
    Ok(Entry { name: tensor.name.clone(), encoding, shape, range: tensor.range.clone() })
}
