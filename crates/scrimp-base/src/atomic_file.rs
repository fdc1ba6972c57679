//! Files that appear complete or not at all.

use crate::{Error, Result};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// A file under construction. It is written under a temporary name beside its path; [`AtomicFile::commit`] renames it.
/// Without `commit` the temporary file is removed and the path keeps its old content.
///
/// ```
/// # fn main() -> scrimp_base::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("report.txt");
/// let mut file = scrimp_base::AtomicFile::create(&path)?;
/// file.append(b"complete")?;
/// assert!(!path.exists());
/// file.commit()?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"complete");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AtomicFile {
    writer: Option<BufWriter<File>>,
    temporary: PathBuf,
    path: PathBuf,
    bytes: u64,
}

impl AtomicFile {
    /// Opens a temporary file for `path`. Temporary files that killed processes left for the same path are removed.
    ///
    /// # Errors
    /// `path` is a directory, or its directory is missing or not writable.
    pub fn create(path: &Path) -> Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(Error::bad_input(format!("{}: not the name of a file", path.display())));
        };
        if path.is_dir() {
            return Err(Error::bad_input(format!("{}: is a directory", path.display())));
        }
        let name = name.to_string_lossy();
        remove_abandoned(path, &name);
        let (temporary, file) = create_locked(path, &name).map_err(|e| Error::write(path, e))?;
        let writer = Some(BufWriter::with_capacity(1 << 18, file));
        Ok(Self { writer, temporary, path: path.to_owned(), bytes: 0 })
    }

    /// Appends `bytes`. Unlike [`Write::write_all`], the error names the path and carries a hint.
    ///
    /// # Errors
    /// The disk is full, or the system refuses.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        Write::write_all(self, bytes).map_err(|e| Error::write(&self.path, e))
    }

    /// The bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Flushes the file to disk and gives it its final name. Returns its size in bytes.
    ///
    /// # Errors
    /// The disk is full, or the system refuses; then the path keeps its old content.
    pub fn commit(mut self) -> Result<u64> {
        let Some(writer) = self.writer.take() else { return Ok(self.bytes) };
        // The file stays open, and so locked, until it has its name.
        let file = writer.into_inner().map_err(|e| Error::write(&self.path, e.into_error()))?;
        file.sync_all().map_err(|e| Error::write(&self.path, e))?;
        fs::rename(&self.temporary, &self.path).map_err(|e| Error::write(&self.path, e))?;
        Ok(self.bytes)
    }

    /// Replaces the content of `path` by `bytes`, atomically.
    ///
    /// # Errors
    /// As [`AtomicFile::create`], [`AtomicFile::append`] and [`AtomicFile::commit`].
    pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = Self::create(path)?;
        file.append(bytes)?;
        file.commit().map(drop)
    }
}

/// Checks that no output replaces an input or another output. Links are followed; files that do not exist are compared by
/// their directory and name. An input directory counts as a path of its own: the caller lists its files.
///
/// ```
/// # use std::path::Path;
/// let (data, model) = (Path::new("clicks.csv"), Path::new("./clicks.csv"));
/// assert!(scrimp_base::check_outputs(&[data], &[model]).is_err());
/// ```
///
/// # Errors
/// An output is an input, or two outputs are the same file.
pub fn check_outputs(inputs: &[&Path], outputs: &[&Path]) -> Result<()> {
    for (i, output) in outputs.iter().enumerate() {
        let (same, what) = (resolved(output), output.display());
        if inputs.iter().any(|input| resolved(input) == same) {
            return Err(Error::bad_input(format!("{what}: the output would replace an input"))
                .with_hint("choose another file for the output"));
        }
        if outputs[..i].iter().any(|other| resolved(other) == same) {
            return Err(Error::bad_input(format!("{what}: two outputs have the same file"))
                .with_hint("choose a file for each output"));
        }
    }
    Ok(())
}

/// The absolute path without links; of a file that does not exist, the absolute path of its directory, and its name.
fn resolved(path: &Path) -> PathBuf {
    let absolute = |path: &Path| path.canonicalize().ok();
    let missing = || {
        let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(absolute(directory)?.join(path.file_name()?))
    };
    absolute(path).or_else(missing).unwrap_or_else(|| path.to_owned())
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(writer) = &mut self.writer else { return Ok(bytes.len()) };
        let n = writer.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // Some systems do not remove open files.
        self.writer = None;
        // After `commit` there is no such file.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Creates a temporary file for `path`, and locks it: a locked file belongs to a running process. On a file system
/// without locks, the file is not locked.
fn create_locked(path: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    let process = std::process::id();
    for number in 0_u64.. {
        let temporary = path.with_file_name(format!(".{name}.{process}-{number}.partial"));
        let file = match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        };
        // `remove_abandoned` of another process can lock the file first; then it removes the file.
        if file.lock().is_err() || temporary.exists() {
            return Ok((temporary, file));
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Removes the temporary files of `path` that no process holds a lock on. Without locks nothing is removed.
fn remove_abandoned(path: &Path, name: &str) {
    let Some(dir) = path.parent() else { return };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let found = entry.file_name();
        let process = found.to_str().and_then(|f| {
            f.strip_prefix('.')?.strip_prefix(name)?.strip_prefix('.')?.strip_suffix(".partial")
        });
        let ours =
            process.is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit() || b == b'-'));
        if ours && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, "old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.append(b"new").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let mut file = AtomicFile::create(&path).unwrap();
        file.append(b"new").unwrap();
        assert_eq!(file.commit().unwrap(), 3);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        AtomicFile::write(&path, b"newer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
    }

    #[test]
    fn an_output_replaces_no_input_and_no_other_output() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a"), "").unwrap();
        fs::create_dir(path("b")).unwrap();
        let check = |inputs: &[PathBuf], outputs: &[PathBuf]| {
            fn all(paths: &[PathBuf]) -> Vec<&Path> {
                paths.iter().map(PathBuf::as_path).collect()
            }
            check_outputs(&all(inputs), &all(outputs)).map_err(|e| e.to_string())
        };
        for same in ["a", "b/../a", "./a"] {
            assert!(
                check(&[path("a")], &[path(same)]).unwrap_err().ends_with("would replace an input"),
                "{same}"
            );
        }
        assert!(check(&[], &[path("new"), path("b/../new")]).unwrap_err().ends_with("the same file"));
        assert!(check(&[path("a")], &[path("new"), path("b/a"), path("missing/a")]).is_ok());
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
            assert!(check(&[path("a")], &[path("link")]).is_err());
            assert!(check(&[path("link")], &[path("a")]).is_err());
        }
    }

    #[test]
    fn leftovers_of_killed_processes_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let (path, dead) = (file("a.txt"), file(".a.txt.1-0.partial"));
        let others = [file(".a.txt.old.partial"), file(".b.txt.1.partial"), file(".a.txt..partial")];
        others.iter().chain([&dead]).for_each(|path| fs::write(path, "").unwrap());
        let (living, lock) = create_locked(&path, "a.txt").unwrap();
        drop(AtomicFile::create(&path).unwrap());
        assert!(!dead.exists() && living.exists());
        assert!(others.iter().all(|path| path.exists()));
        drop(lock);
        drop(AtomicFile::create(&path).unwrap());
        assert!(!living.exists());
    }

    #[test]
    fn two_files_for_one_path_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        let mut files = [AtomicFile::create(&path).unwrap(), AtomicFile::create(&path).unwrap()];
        for (file, bytes) in files.iter_mut().zip([b"one", b"two"]) {
            file.append(bytes).unwrap();
        }
        for (file, bytes) in files.into_iter().zip([b"one", b"two"]) {
            assert_eq!(file.commit().unwrap(), 3);
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_path_that_cannot_be_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = AtomicFile::create(&dir.path().join("no/a.txt")).unwrap_err();
        assert!(nowhere.to_string().contains("directory does not exist"), "{nowhere}");
        assert!(AtomicFile::create(dir.path()).unwrap_err().to_string().contains("is a directory"));
    }
}
