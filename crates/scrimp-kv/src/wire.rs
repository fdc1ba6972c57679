//! Numbers in the files of saved caches: little-endian, without padding.
//!
//! An [`Input`] knows how many bytes its file still has. It refuses a count before memory is allocated for it.

use crate::error::KvError;
use std::io::{self, Read, Write};

/// Why a saved sequence cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The system cannot read the file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes are not a saved sequence of this cache.
    #[error("{0}")]
    Damaged(String),
    /// The pages could not be allocated.
    #[error(transparent)]
    Cache(#[from] KvError),
}

/// The error for bytes that contradict each other.
pub(crate) fn damaged(what: impl Into<String>) -> LoadError {
    LoadError::Damaged(what.into())
}

pub(crate) fn put_u8(out: &mut dyn Write, x: u8) -> io::Result<()> {
    out.write_all(&[x])
}

pub(crate) fn put_u32(out: &mut dyn Write, x: u32) -> io::Result<()> {
    out.write_all(&x.to_le_bytes())
}

/// A count and the numbers.
pub(crate) fn put_u32s(out: &mut dyn Write, xs: &[u32]) -> io::Result<()> {
    put_u32(out, xs.len() as u32)?;
    put_words(out, xs.iter().map(|x| x.to_le_bytes()))
}

/// A count and the numbers.
pub(crate) fn put_f32s(out: &mut dyn Write, xs: &[f32]) -> io::Result<()> {
    put_u32(out, xs.len() as u32)?;
    put_words(out, xs.iter().map(|x| x.to_le_bytes()))
}

fn put_words(out: &mut dyn Write, words: impl Iterator<Item = [u8; 4]>) -> io::Result<()> {
    let bytes: Vec<u8> = words.flatten().collect();
    out.write_all(&bytes)
}

/// The rest of a file.
#[derive(Debug)]
pub struct Input<R> {
    reader: R,
    remaining: u64,
}

impl<R: Read> Input<R> {
    /// `reader` yields at least `remaining` bytes.
    pub fn new(reader: R, remaining: u64) -> Self {
        Self { reader, remaining }
    }

    /// Bytes that were not read yet.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The reader.
    pub fn into_inner(self) -> R {
        self.reader
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// When the file has fewer bytes, or cannot be read.
    pub fn fill(&mut self, bytes: &mut [u8]) -> Result<(), LoadError> {
        self.claim(bytes.len() as u64)?;
        self.reader.read_exact(bytes)?;
        Ok(())
    }

    /// The next `n` numbers of 32 bits, as bytes.
    ///
    /// # Errors
    /// As [`Input::fill`].
    pub fn words(&mut self, n: usize) -> Result<Vec<[u8; 4]>, LoadError> {
        if n as u64 > self.remaining / 4 {
            return Err(ends_early());
        }
        let mut words = vec![[0; 4]; n];
        self.fill(words.as_flattened_mut())?;
        Ok(words)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, LoadError> {
        let mut byte = [0];
        self.fill(&mut byte)?;
        Ok(byte[0])
    }

    /// The next number.
    ///
    /// # Errors
    /// As [`Input::fill`].
    pub fn u32(&mut self) -> Result<u32, LoadError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub(crate) fn u32s(&mut self) -> Result<Vec<u32>, LoadError> {
        let n = self.u32()? as usize;
        Ok(self.words(n)?.into_iter().map(u32::from_le_bytes).collect())
    }

    /// Finite numbers.
    pub(crate) fn f32s(&mut self) -> Result<Vec<f32>, LoadError> {
        let n = self.u32()? as usize;
        let xs: Vec<f32> = self.words(n)?.into_iter().map(f32::from_le_bytes).collect();
        if xs.iter().all(|x| x.is_finite()) { Ok(xs) } else { Err(damaged("a number is not finite")) }
    }

    fn claim(&mut self, bytes: u64) -> Result<(), LoadError> {
        self.remaining = self.remaining.checked_sub(bytes).ok_or_else(ends_early)?;
        Ok(())
    }
}

fn ends_early() -> LoadError {
    damaged("the file ends early")
}
