//! The cache on disk: where things are, whole or in progress, and how they are made whole.
//!
//! ```text
//! CACHE/smollm2/NAME.gguf                 appears by one rename, complete and checked
//! CACHE/smollm2/.NAME.gguf.sum.json       its SHA-256, size and modification time: no hashing at each run
//! CACHE/smollm2/.NAME.gguf.partial/S/     what source S has delivered so far
//! CACHE/.locks/smollm2--NAME.gguf         held while downloading
//! ```

use super::Progress;
use scrimp_base::{AtomicFile, Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// How a download ended badly.
#[derive(Debug)]
pub(super) enum Fault {
    /// This machine cannot store it: another source would not help.
    Local(Error),
    /// The source does not deliver it.
    Source(Error),
}

impl Fault {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Local(e) | Self::Source(e) => e,
        }
    }
}

/// An error while writing to the cache, with a hint.
pub(super) fn local(path: &Path, e: io::Error) -> Fault {
    let at = path.display();
    Fault::Local(match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::unavailable(
            format!("{at}: the disk is full"),
            "free some space and run the same command again (it goes on where it stopped), or set SCRIMP_CACHE to a \
             directory on another disk",
        ),
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory => Error::unavailable(
            format!("{at}: the cache cannot be written: {e}"),
            "set SCRIMP_CACHE to a directory that you can write",
        ),
        _ => Error::io(path, e),
    })
}

/// Where one file of the cache lives.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    /// The cache's root.
    root: PathBuf,
    /// The file, relative to the root.
    name: String,
    /// The file.
    pub(super) path: PathBuf,
}

/// Checksum and size of a finished file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sum {
    pub(super) sha256: String,
    pub(super) size: u64,
}

#[derive(Serialize, Deserialize)]
struct Sidecar {
    #[serde(flatten)]
    sum: Sum,
    /// Nanoseconds since 1970.
    mtime: u64,
}

impl Slot {
    /// The place of `name` (slashes allowed) below the cache's root.
    pub(super) fn new(root: &Path, name: &str) -> Self {
        Self { root: root.to_owned(), name: name.to_owned(), path: root.join(name) }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let file = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{file}{suffix}"))
    }

    /// Directory for the bytes that `source` has delivered so far.
    pub(super) fn work(&self, source: &str) -> PathBuf {
        self.beside(".partial").join(source)
    }

    /// The note of the finished file, if size and modification time of the file still match it.
    pub(super) fn noted(&self) -> Option<Sum> {
        let meta = fs::metadata(&self.path).ok().filter(fs::Metadata::is_file)?;
        let sidecar: Sidecar = serde_json::from_slice(&fs::read(self.beside(".sum.json")).ok()?).ok()?;
        (sidecar.sum.size == meta.len() && mtime(&meta) == Some(sidecar.mtime)).then_some(sidecar.sum)
    }

    /// Notes what the finished file is. Only a convenience: when it fails, the file is hashed again some day.
    pub(super) fn note(&self, sum: &Sum) {
        let Some(mtime) = fs::metadata(&self.path).ok().and_then(|m| mtime(&m)) else { return };
        if let Ok(text) = serde_json::to_vec(&Sidecar { sum: sum.clone(), mtime }) {
            let _ = fs::write(self.beside(".sum.json"), text);
        }
    }

    /// Gives a finished download its final name and removes its working files.
    pub(super) fn install(&self, data: &Path, sum: &Sum) -> Result<(), Fault> {
        fs::rename(data, &self.path).map_err(|e| local(&self.path, e))?;
        self.note(sum);
        self.discard_work();
        Ok(())
    }

    /// Removes the working files of a download.
    pub(super) fn discard_work(&self) {
        let _ = fs::remove_dir_all(self.beside(".partial"));
    }

    /// Creates the directory of the file and locks the file's name against other processes, waiting for them.
    pub(super) fn lock(&self, progress: &mut dyn Progress) -> Result<Lock, Fault> {
        let parent = self.path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent).map_err(|e| local(parent, e))?;
        let locks = self.root.join(".locks");
        fs::create_dir_all(&locks).map_err(|e| local(&locks, e))?;
        let mut name = self.name.replace('/', "--");
        if name.len() > 200 {
            name = sum_bytes(name.as_bytes());
        }
        let path = locks.join(name);
        // The lock file stays: removing it would let two processes lock two files of the same name.
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| local(&path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.note(&format!("another process is downloading {}; waiting for it", self.name));
                file.lock().map_err(|e| local(&path, e))?;
            }
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                progress.note("this file system has no locks: do not download the same model twice at once");
            }
            Err(TryLockError::Error(e)) => return Err(local(&path, e)),
        }
        Ok(Lock { _file: file })
    }
}

/// Held while a file is downloaded; released on drop.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

fn mtime(meta: &fs::Metadata) -> Option<u64> {
    let since = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

/// A file that grows and is hashed while it grows.
#[derive(Debug)]
pub(super) struct Sink {
    path: PathBuf,
    file: File,
    hash: Sha256,
    len: u64,
}

impl Sink {
    /// Opens or creates `path` and continues after its first `keep` bytes, or after all where there are fewer.
    pub(super) fn open(path: &Path, keep: u64) -> Result<Self, Fault> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(|e| local(dir, e))?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| local(path, e))?;
        let mut hash = Sha256::new();
        let len = hash_reader(&mut (&file).take(keep), &mut hash).map_err(|e| local(path, e))?;
        file.set_len(len).and_then(|()| file.seek(io::SeekFrom::Start(len))).map_err(|e| local(path, e))?;
        Ok(Self { path: path.to_owned(), file, hash, len })
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.file.write_all(bytes).map_err(|e| local(&self.path, e))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Starts again from nothing.
    pub(super) fn restart(&mut self) -> Result<(), Fault> {
        *self = Self::open(&self.path, 0)?;
        Ok(())
    }

    /// Waits until the bytes are on the disk. Some file systems say only now that they are full.
    pub(super) fn sync(&mut self) -> Result<(), Fault> {
        self.file.sync_all().map_err(|e| local(&self.path, e))
    }

    /// The finished file's sum.
    pub(super) fn finish(mut self) -> Result<Sum, Fault> {
        self.sync()?;
        Ok(Sum { sha256: hex(self.hash), size: self.len })
    }
}

/// SHA-256 and size of a file.
pub(super) fn sum_file(path: &Path) -> Result<Sum> {
    let mut hash = Sha256::new();
    let size =
        File::open(path).and_then(|mut f| hash_reader(&mut f, &mut hash)).map_err(|e| Error::io(path, e))?;
    Ok(Sum { sha256: hex(hash), size })
}

/// SHA-256 of some bytes, hexadecimal.
pub(super) fn sum_bytes(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

fn hash_reader(from: &mut impl io::Read, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0u8; 256 * 1024];
    let mut total = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => {
                hash.update(&buffer[..n]);
                total += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn hex(hash: Sha256) -> String {
    format!("{:x}", hash.finalize())
}

/// Writes a small file atomically.
pub(super) fn write_small(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    AtomicFile::write(path, bytes).map_err(|e| match e.source_as::<io::Error>() {
        Some(cause) => {
            local(path, cause.raw_os_error().map_or(cause.kind().into(), io::Error::from_raw_os_error))
        }
        None => Fault::Local(e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_resumes_with_the_same_sum() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let mut sink = Sink::open(&path, u64::MAX).unwrap();
        sink.write(b"hello wor").unwrap();
        drop(sink);
        let mut sink = Sink::open(&path, 6).unwrap();
        assert_eq!(sink.len(), 6);
        sink.write(b"world").unwrap();
        let sum = sink.finish().unwrap();
        assert_eq!(sum, Sum { sha256: sum_bytes(b"hello world"), size: 11 });
        assert_eq!(sum_file(&path).unwrap(), sum);
        let known = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
        assert_eq!(sum.sha256, known);
    }

    #[test]
    fn a_note_holds_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::new(dir.path(), "m/x.gguf");
        fs::create_dir_all(dir.path().join("m")).unwrap();
        fs::write(&slot.path, b"abc").unwrap();
        assert_eq!(slot.noted(), None);
        let sum = sum_file(&slot.path).unwrap();
        slot.note(&sum);
        assert_eq!(slot.noted(), Some(sum));
        fs::write(&slot.path, b"abcd").unwrap();
        assert_eq!(slot.noted(), None);
    }
}
