//! Input files, decompressed. The first bytes of a file, not its name, select gzip or Zstandard.

use crate::{Error, Result};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

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
    Zstd(Box<Zstd>),
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
            {
                let zstd = Zstd::new(raw);
                let what = |e| format!("the Zstandard data is damaged or cut off: {e}");
                Decoder::Zstd(Box::new(zstd.map_err(|e| Error::bad_file(path, what(e)))?))
            }
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

/// A sequence of Zstandard frames.
struct Zstd {
    raw: Raw,
    decoder: FrameDecoder,
}

impl Zstd {
    fn new(raw: Raw) -> Result<Self, String> {
        let mut zstd = Self { raw, decoder: FrameDecoder::new() };
        zstd.next_frame().map(|_| zstd)
    }

    /// Reads the header of the next frame and skips skippable frames. Returns false at the end of the file.
    fn next_frame(&mut self) -> Result<bool, String> {
        loop {
            let start = self.raw.fill_buf().map_err(|e| e.to_string())?;
            if start.is_empty() {
                return Ok(false);
            }
            if !is_zstd(start) {
                return Err("something else follows the compressed data".to_owned());
            }
            match self.decoder.reset(&mut self.raw) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut self.raw.by_ref().take(length), &mut io::sink());
                    if skipped.map_err(|e| e.to_string())? != length {
                        return Err("it ends too early".to_owned());
                    }
                }
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            while self.decoder.can_collect() < buffer.len() && !self.decoder.is_finished() {
                let missing = buffer.len() - self.decoder.can_collect();
                let strategy = BlockDecodingStrategy::UptoBytes(missing);
                self.decoder.decode_blocks(&mut self.raw, strategy).map_err(io::Error::other)?;
            }
            let n = self.decoder.read(buffer)?;
            if n > 0 || buffer.is_empty() || !self.next_frame().map_err(io::Error::other)? {
                return Ok(n);
            }
        }
    }
}
