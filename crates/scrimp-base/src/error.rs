//! The error type of all crates: a category, a message, a hint and a source.
//!
//! Libraries do not know how a user reached them. So messages and hints name a setting by its Rust name in backticks
//! (`` `max_tokens` ``), and each front end translates the name to its own form with [`translate_settings`]: the
//! command to
//! `--max-tokens`, the server to a JSON field, Python to a keyword argument.

use std::{borrow::Cow, error::Error as StdError, fmt, io, path::Path};

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds of failure that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Category {
    /// The operating system refused to read or write a file.
    Io,
    /// A file is damaged, or its content is not of the expected format.
    BadFile,
    /// A valid file or request needs a feature that scrimp lacks.
    Unsupported,
    /// An argument of the caller is invalid.
    BadInput,
    /// A resource cannot be obtained: a download, disk space, a peer.
    Unavailable,
    /// An allocation failed or would exceed a limit.
    OutOfMemory,
}

/// The cause of a failed operation, and a hint for the user.
///
/// [`Display`](fmt::Display) writes the message without the hint.
pub struct Error(Box<Inner>);

struct Inner {
    category: Category,
    message: String,
    hint: Option<Hint>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of any category.
    pub fn new(category: Category, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { category, message: message.into(), hint: None, source: None }))
    }

    /// The operating system's error for `path`.
    pub fn io(path: &Path, source: io::Error) -> Self {
        let message = format!("{}: {source}", path.display());
        Self::new(Category::Io, message).with_source(source)
    }

    /// The operating system's error while it wrote `path`, with a hint for full disks, file size limits and missing
    /// directories.
    pub fn write(path: &Path, source: io::Error) -> Self {
        let (what, hint) = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                ("the disk is full; nothing was written", "free some space, or write to another disk")
            }
            io::ErrorKind::FileTooLarge => (
                "larger than this process may write; nothing was written",
                "raise the limit on file sizes (ulimit -f)",
            ),
            io::ErrorKind::NotFound => ("its directory does not exist", "create the directory first"),
            _ => return Self::io(path, source),
        };
        Self::unavailable(format!("{}: {what}", path.display()), hint).with_source(source)
    }

    /// A damaged file.
    pub fn bad_file(path: &Path, what: impl fmt::Display) -> Self {
        Self::new(Category::BadFile, format!("{}: {what}", path.display()))
    }

    /// A damaged file of a model or data set that can be obtained again, with the hint to do so.
    pub fn damaged_file(path: &Path, what: impl fmt::Display) -> Self {
        let hint = "the file may be damaged or incomplete: fetch it again and compare its SHA-256";
        Self::bad_file(path, what).with_hint(hint)
    }

    /// A row of a data file that cannot be used. `line` counts from 1: the line in the file, or the row where the
    /// format has no lines.
    pub fn bad_row(path: &Path, line: u64, what: impl fmt::Display) -> Self {
        Self::new(Category::BadFile, format!("{}:{line}: {what}", path.display()))
    }

    /// A feature that scrimp lacks, and the alternative.
    pub fn unsupported(what: impl Into<String>, hint: impl Into<Hint>) -> Self {
        Self::new(Category::Unsupported, what).with_hint(hint)
    }

    /// A resource that cannot be obtained, and the alternative.
    pub fn unavailable(what: impl Into<String>, hint: impl Into<Hint>) -> Self {
        Self::new(Category::Unavailable, what).with_hint(hint)
    }

    /// An invalid argument.
    pub fn bad_input(what: impl Into<String>) -> Self {
        Self::new(Category::BadInput, what)
    }

    /// A failed allocation. `what` names the purpose of the memory and its size.
    pub fn out_of_memory(what: impl fmt::Display) -> Self {
        Self::new(Category::OutOfMemory, format!("out of memory: {what}"))
    }

    /// Adds or replaces the hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<Hint>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds or replaces the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The kind of failure.
    pub fn category(&self) -> Category {
        self.0.category
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&Hint> {
        self.0.hint.as_ref()
    }

    /// The cause, where it has type `E`.
    pub fn source_as<E: StdError + 'static>(&self) -> Option<&E> {
        self.0.source.as_deref()?.downcast_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { category, message, hint, source } = &*self.0;
        let mut debug = f.debug_struct("Error");
        debug.field("category", category).field("message", message);
        if let Some(hint) = hint {
            debug.field("hint", hint);
        }
        if let Some(source) = source {
            debug.field("source", source);
        }
        debug.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // The messages of `io` and `write` contain their source already: printing the chain must not repeat it.
        match self.0.category {
            Category::Io => None,
            _ => self.0.source.as_deref().map(|e| e as _),
        }
    }
}

/// What a user can do about an error: one sentence without a full stop. It names settings in backticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint(Cow<'static, str>);

impl Hint {
    /// The sentence with settings by their Rust names.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The sentence with settings in a front end's own form; see [`translate_settings`].
    pub fn translate(&self, name: impl Fn(&str) -> Option<String>) -> String {
        translate_settings(&self.0, name)
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&'static str> for Hint {
    fn from(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl From<String> for Hint {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text))
    }
}

/// `text` with each setting in backticks replaced by `name(setting)`. A setting without a name stays unchanged.
///
/// A setting is a word of lower-case letters, digits and underscores: file names and code in backticks are left alone.
pub fn translate_settings(text: &str, name: impl Fn(&str) -> Option<String>) -> String {
    let mut parts = text.split('`');
    let mut out = String::from(parts.next().unwrap_or_default());
    // Odd parts are between two backticks, unless the last one was never closed.
    while let Some(inside) = parts.next() {
        let Some(after) = parts.next() else {
            out.push('`');
            out.push_str(inside);
            break;
        };
        let is_setting =
            !inside.is_empty() && inside.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        match is_setting.then(|| name(inside)).flatten() {
            Some(translated) => out.push_str(&translated),
            None => {
                out.push('`');
                out.push_str(inside);
                out.push('`');
            }
        }
        out.push_str(after);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_get_the_name_that_the_front_end_knows() {
        let flag = |s: &str| (s != "other").then(|| format!("--{}", s.replace('_', "-")));
        for (text, want) in [
            ("use fewer `prompt_tokens` or `score_tokens`", "use fewer --prompt-tokens or --score-tokens"),
            ("`top_k`", "--top-k"),
            ("`other` and `a.gguf` and `` stay", "`other` and `a.gguf` and `` stay"),
            ("an open ` stays", "an open ` stays"),
            ("`a` then an open `b", "--a then an open `b"),
            ("", ""),
        ] {
            assert_eq!(translate_settings(text, flag), want);
        }
    }

    #[test]
    fn a_source_can_be_found_again() {
        let path = Path::new("a.bin");
        let full = Error::write(path, io::ErrorKind::StorageFull.into());
        assert_eq!(
            (full.category(), full.source_as::<io::Error>().unwrap().kind()),
            (Category::Unavailable, io::ErrorKind::StorageFull)
        );
        let refused = Error::write(path, io::ErrorKind::PermissionDenied.into());
        assert_eq!(refused.category(), Category::Io);
        assert_eq!(refused.to_string(), "a.bin: permission denied");
        assert!(StdError::source(&refused).is_none() && refused.source_as::<io::Error>().is_some());
    }
}
