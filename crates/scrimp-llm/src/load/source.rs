//! The bytes of one file, mapped or in memory, with the name to use in messages.

use std::{
    ops::{Deref, Range},
    path::{Path, PathBuf},
};

use scrimp_kernels::mem::MappedFile;

use crate::error::{Error, Hint, Result};

/// A file's bytes and its path. Parsers share it by `Arc` and store ranges instead of copies.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(MappedFile),
    Memory(Vec<u8>),
}

impl Source {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened or mapped, or is not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let map = MappedFile::open(path).map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.to_owned(), bytes: Bytes::Mapped(map) })
    }

    /// Bytes in memory. `path` is used in messages only.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Self {
        Self { path: path.to_owned(), bytes: Bytes::Memory(bytes) }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Drops the resident pages of `range` (see [`MappedFile::release`]). Bytes in memory are unchanged.
    pub fn release(&self, range: Range<usize>) {
        if let Bytes::Mapped(map) = &self.bytes {
            map.release(range);
        }
    }

    /// A "damaged file" error that names this file.
    pub fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::damaged_file(&self.path, what)
    }

    /// An "unsupported" error that names this file.
    pub fn unsupported(&self, what: impl std::fmt::Display, hint: impl Into<Hint>) -> Error {
        Error::unsupported(format!("{}: {what}", self.path.display()), hint)
    }
}

impl Deref for Source {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Memory(bytes) => bytes,
        }
    }
}
