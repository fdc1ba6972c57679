//! Progress reports of downloads. This crate never writes to a terminal.

/// Receives the progress of one transfer after another.
pub trait Progress {
    /// A transfer starts: `what` is a short name, `total` its size in bytes where known, `done` the bytes that
    /// are present.
    fn begin(&mut self, what: &str, total: Option<u64>, done: u64);
    /// Another `bytes` bytes were received.
    fn advance(&mut self, bytes: u64);
    /// The transfer has ended, complete or not.
    fn end(&mut self);
    /// A notice for the user, one line: a source was skipped, or another process holds the lock.
    fn note(&mut self, message: &str);
}

/// Reports nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _what: &str, _total: Option<u64>, _done: u64) {}
    fn advance(&mut self, _bytes: u64) {}
    fn end(&mut self) {}
    fn note(&mut self, _message: &str) {}
}
