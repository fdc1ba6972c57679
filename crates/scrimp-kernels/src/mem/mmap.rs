//! Read-only memory maps of model files, and giving their pages back.

use crate::system;
use std::{fs::File, io, ops::Range, path::Path};

/// A file mapped read-only into memory.
///
/// The file must not be truncated while it is mapped (the kernel would answer with SIGBUS); scrimp writes its own
/// files under a temporary name and renames them, so it never does that itself.
#[derive(Debug)]
pub struct MappedFile {
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps the whole of `path`.
    ///
    /// # Errors
    /// When the file cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if meta.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the map is read-only and private to this struct; the documented requirement that nobody truncates
        // the file while it is in use is the same that every mmap-based loader makes.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map: Some(map) })
    }

    /// Tells the kernel that `range` is not needed soon, so that it stops counting as resident memory.
    /// The bytes stay readable (they are read from the file again). Out-of-range parts are ignored.
    pub fn release(&self, range: Range<usize>) {
        let Some(map) = &self.map else { return };
        system::release(map, range);
    }
}

impl std::ops::Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}
