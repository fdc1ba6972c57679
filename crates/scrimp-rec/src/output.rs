//! Files that appear whole or not at all: written under a temporary name beside the final one, then renamed.

use crate::error::{Error, Result};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// A file being written. Unless [`Output::finish`] is called, nothing of it remains.
#[derive(Debug)]
pub struct Output {
    writer: Option<BufWriter<File>>,
    temporary: PathBuf,
    path: PathBuf,
    bytes: u64,
}

impl Output {
    /// Starts writing what will be `path`.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(Error::bad_input(format!("{}: not the name of a file", path.display())));
        };
        if path.is_dir() {
            return Err(Error::bad_input(format!("{}: is a directory", path.display())));
        }
        let name = name.to_string_lossy();
        remove_abandoned(path, &name);
        let temporary = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        let file = File::create(&temporary).map_err(|e| write_error(path, e))?;
        let writer = Some(BufWriter::with_capacity(1 << 18, file));
        Ok(Self { writer, temporary, path: path.to_owned(), bytes: 0 })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// The disk is full, or the system refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.write_all(bytes).map_err(|e| write_error(&self.path, e))
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// As [`Output::write`]. The file does not exist then, or is the one that it was before.
    pub fn finish(mut self) -> Result<u64> {
        if let Some(writer) = self.writer.take() {
            let file = writer.into_inner().map_err(|e| write_error(&self.path, e.into_error()))?;
            file.sync_all().map_err(|e| write_error(&self.path, e))?;
        }
        fs::rename(&self.temporary, &self.path).map_err(|e| write_error(&self.path, e))?;
        Ok(self.bytes)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Removes what processes left that were killed while they wrote `path`, where the system can tell that they are gone.
fn remove_abandoned(path: &Path, name: &str) {
    let Some(dir) = path.parent() else { return };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    if !Path::new("/proc/self").exists() {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let found = entry.file_name();
        let pid = found.to_str().and_then(|f| {
            f.strip_prefix('.')?.strip_prefix(name)?.strip_prefix('.')?.strip_suffix(".partial")?.parse().ok()
        });
        if pid.is_some_and(|pid: u32| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// An error while writing `path`, with what to do about it.
pub fn write_error(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::unavailable(
            format!("{}: the disk is full; nothing was written", path.display()),
            "free some space, or write to another disk",
        ),
        io::ErrorKind::FileTooLarge => Error::unavailable(
            format!("{}: larger than this process may write; nothing was written", path.display()),
            "raise the limit on file sizes (ulimit -f)",
        ),
        io::ErrorKind::NotFound => Error::unavailable(
            format!("{}: its directory does not exist", path.display()),
            "create the directory first",
        ),
        _ => Error::io(path, e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, "old").unwrap();
        let mut output = Output::create(&path).unwrap();
        output.write(b"new").unwrap();
        drop(output);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let mut output = Output::create(&path).unwrap();
        output.write(b"new").unwrap();
        assert_eq!(output.finish().unwrap(), 3);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // What a killed process left goes away; what a living one writes stays.
        let (dead, living) =
            (dir.path().join(".a.txt.4294967295.partial"), dir.path().join(".a.txt.1.partial"));
        fs::write(&dead, "").unwrap();
        fs::write(&living, "").unwrap();
        drop(Output::create(&path).unwrap());
        if Path::new("/proc/self").exists() {
            assert!(!dead.exists() && living.exists());
        }
        let nowhere = Output::create(&dir.path().join("no/a.txt")).unwrap_err();
        assert!(nowhere.to_string().contains("directory does not exist"), "{nowhere}");
        assert!(Output::create(dir.path()).unwrap_err().to_string().contains("is a directory"));
    }
}
