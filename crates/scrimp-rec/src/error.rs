//! The one error type of this crate: what happened, and a hint of what to do.

use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. [`Error::hint`] says what the user can do about it, where we know.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write `path`.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file is damaged or is not what it claims to be.
    #[error("{}: {what}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A row of a data file cannot be used.
    #[error("{}:{line}: {what}", path.display())]
    BadRow {
        /// The file.
        path: PathBuf,
        /// Line in the file, or row where the format has no lines; the first is 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The caller's input cannot be used.
    #[error("{what}")]
    BadInput {
        /// What is wrong with it.
        what: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// Something cannot be had here: a download, a disk with room.
    #[error("{what}")]
    Unavailable {
        /// What was tried and how it failed.
        what: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// Memory for `what` could not be had.
    #[error("out of memory: {what}")]
    OutOfMemory {
        /// What the memory was for, with its size.
        what: String,
    },
}

impl Error {
    /// An I/O error at `path`.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
    /// A damaged file.
    pub fn bad_file(path: &Path, what: impl Into<String>) -> Self {
        Self::BadFile { path: path.to_owned(), what: what.into(), hint: None }
    }
    /// A damaged file, and what to do.
    pub fn bad_file_hint(path: &Path, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::BadFile { path: path.to_owned(), what: what.into(), hint: Some(hint.into()) }
    }
    /// A row that cannot be used.
    pub fn bad_row(path: &Path, line: u64, what: impl Into<String>) -> Self {
        Self::BadRow { path: path.to_owned(), line, what: what.into() }
    }
    /// Unusable input.
    pub fn bad_input(what: impl Into<String>) -> Self {
        Self::BadInput { what: what.into(), hint: None }
    }
    /// Unusable input, and what to do instead.
    pub fn bad_input_hint(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::BadInput { what: what.into(), hint: Some(hint.into()) }
    }
    /// Something that cannot be had, and what to do instead.
    pub fn unavailable(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unavailable { what: what.into(), hint: Some(hint.into()) }
    }
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::BadFile { hint, .. } | Self::BadInput { hint, .. } | Self::Unavailable { hint, .. } => {
                hint.as_deref()
            }
            Self::BadRow { .. } => {
                Some("--skip-bad-rows N leaves out up to N such rows and says how many there were")
            }
            Self::Io { .. } | Self::OutOfMemory { .. } => None,
        }
    }
}
