//! Results on disk, from which an interrupted run resumes.
//!
//! The journal is a JSON Lines file. The first line has the inputs of the results, each further line an answer. A last
//! line without a line break comes from an interrupted run and is dropped.

use scrimp_llm::{Error, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

#[derive(Serialize, Deserialize)]
struct Header {
    scrimp_results: u32,
    of: serde_json::Value,
}

/// Version of the file.
const VERSION: u32 = 2;

/// The entries of type `E` so far, in memory and optionally in a file.
#[derive(Debug)]
pub struct Journal<E> {
    file: Option<(PathBuf, File)>,
    entries: Vec<E>,
}

impl<E: Serialize + DeserializeOwned> Journal<E> {
    /// A journal that ends with the process.
    pub fn in_memory() -> Self {
        Self { file: None, entries: Vec::new() }
    }

    /// The journal in `path`, which is created if it does not exist. `of` has all inputs that the entries of one file
    /// share.
    ///
    /// # Errors
    /// When the file cannot be read or written, is of other results, or a line of it is damaged.
    pub fn open(path: &Path, of: &serde_json::Value) -> Result<Self> {
        let text = match fs::read(path) {
            Ok(bytes) => String::from_utf8(bytes)
                .map_err(|_| Error::bad_input(format!("{} is not UTF-8 text", path.display())))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(path, e)),
        };
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let mut lines = text[..whole].lines().enumerate();
        let mut entries = Vec::new();
        if let Some((_, first)) = lines.next() {
            let header: Header = serde_json::from_str(first).map_err(|e| damaged(path, 1, &e))?;
            if header.scrimp_results != VERSION || header.of != *of {
                return Err(Error::bad_input(format!(
                    "{} holds other results: {}, not {of}",
                    path.display(),
                    header.of
                ))
                .with_hint("give this run a file of its own, or delete that one"));
            }
            for (i, line) in lines {
                entries.push(serde_json::from_str(line).map_err(|e| damaged(path, i + 1, &e))?);
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(|e| Error::io(path, e))?;
        file.set_len(whole as u64).map_err(|e| Error::io(path, e))?;
        let mut journal = Self { file: Some((path.to_owned(), file)), entries };
        if whole == 0 {
            journal.write(&Header { scrimp_results: VERSION, of: of.clone() })?;
        }
        Ok(journal)
    }

    /// The entries so far.
    pub fn entries(&self) -> &[E] {
        &self.entries
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn push(&mut self, entry: E) -> Result<()> {
        self.write(&entry)?;
        self.entries.push(entry);
        Ok(())
    }

    fn write(&mut self, value: &impl Serialize) -> Result<()> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let mut line = serde_json::to_string(value)
            .map_err(|e| Error::bad_input(format!("a result cannot be written as JSON: {e}")))?;
        line.push('\n');
        file.write_all(line.as_bytes()).and_then(|()| file.flush()).map_err(|e| Error::io(path, e))
    }
}

/// The identity of a file for a journal's header: its name, its size and, unless it is large, its SHA-256.
///
/// # Errors
/// When it cannot be read.
pub fn identity(path: &Path) -> Result<serde_json::Value> {
    const LARGE: u64 = 64 << 20;
    let size = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut identity = serde_json::json!({"file": name, "bytes": size.is_file().then_some(size.len())});
    if size.is_file() && size.len() <= LARGE {
        let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
        let sum: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        identity["sha256"] = sum.into();
    }
    Ok(identity)
}

fn damaged(path: &Path, line: usize, e: &serde_json::Error) -> Error {
    Error::bad_input(format!("{}: line {line}: {e}", path.display()))
        .with_hint("delete that line, and what it held is measured again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_killed_run_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.jsonl");
        let of = json!({"task": "x"});
        let mut journal = Journal::open(&path, &of).unwrap();
        journal.push((1, "a".to_owned())).unwrap();
        journal.push((2, "b\nc".to_owned())).unwrap();
        drop(journal);
        // Killed in the middle of a line.
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(b"[3, \"d");
        fs::write(&path, &bytes).unwrap();
        let mut journal: Journal<(i32, String)> = Journal::open(&path, &of).unwrap();
        assert_eq!(journal.entries(), [(1, "a".to_owned()), (2, "b\nc".to_owned())]);
        journal.push((4, "e".to_owned())).unwrap();
        drop(journal);
        let journal: Journal<(i32, String)> = Journal::open(&path, &of).unwrap();
        assert_eq!(journal.entries().len(), 3);
    }

    #[test]
    fn other_results_and_damage_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.jsonl");
        drop(Journal::<i32>::open(&path, &json!(1)).unwrap());
        let error = Journal::<i32>::open(&path, &json!(2)).unwrap_err().to_string();
        assert!(error.contains("other results: 1, not 2"), "{error}");
        fs::write(&path, "{\"scrimp_results\":2,\"of\":1}\n5\nbroken\n6\n").unwrap();
        let error = Journal::<i32>::open(&path, &json!(1)).unwrap_err().to_string();
        assert!(error.contains("line 3"), "{error}");
        fs::write(&path, "hello\n").unwrap();
        assert!(Journal::<i32>::open(&path, &json!(1)).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "hello\n");
    }
}
