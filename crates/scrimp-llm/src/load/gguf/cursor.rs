//! A reading position in a GGUF header. Every read is checked against the remaining bytes.

use std::ops::Range;

use crate::{error::Result, load::Source};

/// Reads little-endian values one after another.
pub(super) struct Cursor<'a> {
    source: &'a Source,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(source: &'a Source, at: usize) -> Self {
        Self { source, at }
    }

    /// Offset of the next byte.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The number of remaining bytes.
    pub(super) fn remaining(&self) -> usize {
        self.source.len() - self.at
    }

    /// Skips `len` bytes and returns their range. `what` names them in the error.
    pub(super) fn skip(&mut self, len: u64, what: &str) -> Result<Range<usize>> {
        match usize::try_from(len) {
            Ok(len) if len <= self.remaining() => {
                let start = self.at;
                self.at += len;
                Ok(start..self.at)
            }
            _ => Err(self.source.bad(format!(
                "{what} at byte {} should take {len} bytes, but the file has {} left",
                self.at,
                self.remaining()
            ))),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let range = self.skip(N as u64, what)?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.source[range]);
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of items of at least `min_bytes` each. An error if the rest of the file is too short for them.
    pub(super) fn count(&mut self, min_bytes: usize, what: &str) -> Result<usize> {
        let at = self.at;
        let count = self.u64(what)?;
        let most = self.remaining() / min_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(self.source.bad(format!(
                "{what} at byte {at} is {count}, more than the {} bytes after it can hold",
                self.remaining()
            ))),
        }
    }

    /// A string: the range of its bytes in the file.
    pub(super) fn string(&mut self, what: &str) -> Result<Range<usize>> {
        let len = self.u64(what)?;
        self.skip(len, what)
    }

    /// A string that must be UTF-8 and at most `max` bytes long: a key or a tensor's name.
    pub(super) fn name(&mut self, max: usize, what: &str) -> Result<&'a str> {
        let at = self.at;
        let range = self.string(what)?;
        if range.is_empty() || range.len() > max {
            return Err(self
                .source
                .bad(format!("{what} at byte {at} is {} bytes long; 1 to {max} are allowed", range.len())));
        }
        std::str::from_utf8(&self.source[range])
            .map_err(|_| self.source.bad(format!("{what} at byte {at} is not UTF-8")))
    }
}
