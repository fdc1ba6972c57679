//! Input files, decompressed. The first bytes of a file, not its name, select gzip or Zstandard.

use crate::{Error, Result};
use flate2::bufread::MultiGzDecoder;
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use zstd::stream::read::Decoder as ZstdDecoder;

const BUFFER: usize = 1 << 17;

/// Counts the bytes read from the disk, for progress.
pub(crate) struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

type Raw = BufReader<Counted>;

enum Decoder {
    Plain(Raw),
    Gzip(Box<MultiGzDecoder<Raw>>),
    Zstd(ZstdDecoder<'static, Raw>),
}

/// An open file.
pub(crate) struct Input {
    path: PathBuf,
    decoder: Decoder,
}

impl Input {
    /// Opens `path`. `read` counts the bytes read from the disk.
    pub(crate) fn open(path: &Path, read: &Arc<AtomicU64>) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        if file.metadata().is_ok_and(|m| m.is_dir()) {
            return Err(Error::bad_input(format!("{}: is a directory", path.display())));
        }
        let mut raw = BufReader::with_capacity(BUFFER, Counted { file, read: read.clone() });
        let start = raw.fill_buf().map_err(|e| Error::io(path, e))?;
        if start.is_empty() {
            return Err(Error::bad_file(path, "the file is empty"));
        }
        let decoder = if start.starts_with(&[0x1f, 0x8b]) {
            Decoder::Gzip(Box::new(MultiGzDecoder::new(raw)))
        } else if is_zstd(start) {
            Decoder::Zstd(ZstdDecoder::with_buffer(raw).map_err(|e| Error::io(path, e))?)
        } else {
            Decoder::Plain(raw)
        };
        Ok(Self { path: path.to_owned(), decoder })
    }

    /// Fills `buffer` up to the end of the file. Returns the number of bytes.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read(&mut buffer[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.damaged(e)),
            }
        }
        Ok(done)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.decoder {
            Decoder::Plain(raw) => raw.read(buffer),
            Decoder::Gzip(gzip) => gzip.read(buffer),
            Decoder::Zstd(zstd) => zstd.read(buffer),
        }
    }

    fn damaged(&self, e: io::Error) -> Error {
        let what = match self.decoder {
            Decoder::Plain(_) => return Error::io(&self.path, e),
            Decoder::Gzip(_) => "gzip",
            Decoder::Zstd(_) => "Zstandard",
        };
        // Errors of the system have a number; errors of decoders have none.
        if e.raw_os_error().is_some() {
            return Error::io(&self.path, e);
        }
        let why = match e.kind() {
            io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
            _ => e.to_string(),
        };
        Error::bad_file(&self.path, format!("the {what} data is damaged or cut off: {why}"))
            .with_hint("fetch the file again, or compare its size and sum with the original")
    }
}

fn is_zstd(start: &[u8]) -> bool {
    // A frame or a skippable frame.
    start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || (start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18])
}
