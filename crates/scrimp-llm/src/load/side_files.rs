//! The small files beside a Hugging Face model's weights (`tokenizer.json`, ...): in a directory, or inside one file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// The files that are read. A compressed file contains them.
pub const SIDE_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// Maximum size of a file. Vocabularies of real models take up to 35 MB.
const MAX_BYTES: u64 = 256 << 20;

/// The place of the files.
#[derive(Debug, Clone)]
pub struct SideFiles {
    place: PathBuf,
    embedded: Option<BTreeMap<String, Vec<u8>>>,
}

impl SideFiles {
    /// The files in directory `dir`.
    pub fn in_dir(dir: &Path) -> Self {
        Self { place: dir.to_owned(), embedded: None }
    }

    /// Files by name inside `file`.
    pub fn embedded(file: &Path, files: BTreeMap<String, Vec<u8>>) -> Self {
        Self { place: file.to_owned(), embedded: Some(files) }
    }

    /// The directory or file that they are in.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The name of the file `name` in messages.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// Whether there is a file `name`.
    pub fn has(&self, name: &str) -> bool {
        match &self.embedded {
            Some(files) => files.contains_key(name),
            None => self.path(name).is_file(),
        }
    }

    /// The bytes of the file `name`, if it exists.
    ///
    /// # Errors
    /// It cannot be read, or is too large.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if let Some(files) = &self.embedded {
            return Ok(files.get(name).cloned());
        }
        let path = self.path(name);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                Err(Error::damaged_file(&path, format!("larger than {MAX_BYTES} bytes")))
            }
            Ok(_) => std::fs::read(&path).map(Some).map_err(|e| Error::io(&path, e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&path, e)),
        }
    }
}
