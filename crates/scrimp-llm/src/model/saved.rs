//! A session's KV cache in a file.
//!
//! ```text
//! "SCRIMPKV" | version u32 | header: bytes u32, JSON | tokens u32 ... | sequence (scrimp_kv) | XXH3-64 of all before
//! ```
//! The header names the model, the options of the cache and the conversation. A file of another model, of other
//! options or of another version, and a damaged or incomplete file, are refused. Pages are read straight into the
//! cache, at the speed of memory.

use super::{Model, Session, compression::SavedPlan};
use crate::{
    chat::Message,
    error::{Error, Result},
};
use scrimp_base::AtomicFile;
use scrimp_kv::{Input, KvCache, KvFormat, LoadError, compress::Compression};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: &[u8; 8] = b"SCRIMPKV";
/// Raised with every change of the file or of a page's layout.
const VERSION: u32 = 1;
/// Bytes of the checksum at the end.
const CHECKSUM_BYTES: u64 = 8;
/// Bytes of a tensor's beginning, middle and end that identify it.
const SAMPLE_BYTES: usize = 4096;

/// The content of a file beside the cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedText {
    /// The tokens in the cache.
    #[serde(skip)]
    pub tokens: Vec<u32>,
    /// The messages in the cache, the last answer included; empty for a text without chat template.
    pub messages: Vec<Message>,
    /// The prompt as it was written, for a text without chat template.
    pub prompt: String,
}

/// A session that was loaded, with its text.
#[derive(Debug)]
pub struct SavedSession {
    /// The session, ready to continue.
    pub session: Session,
    /// Its text.
    pub text: SavedText,
    /// Bytes of the file.
    pub file_bytes: u64,
}

/// The beginning of a file, without the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedInfo {
    /// [`Model::fingerprint`] of the model.
    pub model: u64,
    /// The options of the cache, as [`saved_options`] writes them.
    pub options: String,
    /// The tokens in the cache.
    pub tokens: Vec<u32>,
    /// [`Session::min_tokens`] of the session.
    pub min_tokens: usize,
}

impl SavedInfo {
    /// Reads the beginning of the file at `path`. The rest, with the checksum, is not read.
    ///
    /// # Errors
    /// When the file cannot be read, its beginning is damaged, or it is of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let mut input = Input::new(file, bytes);
        let header = read_header(path, &mut input)?;
        let tokens = input.words(header.tokens).map_err(|e| damaged(path, e))?;
        let tokens = tokens.into_iter().map(u32::from_le_bytes).collect();
        Ok(Self { model: header.model, options: header.options, tokens, min_tokens: header.min_tokens })
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    /// [`Model::fingerprint`].
    model: u64,
    /// Name of the model's directory or file, for messages.
    model_name: String,
    /// The options of the cache, as [`saved_options`] writes them.
    options: String,
    tokens: usize,
    rope_tokens: usize,
    min_tokens: usize,
    plan: SavedPlan,
    text: SavedText,
}

impl Session {
    /// Writes the cache to `path`, atomically. `text.tokens` are all tokens of the session. Returns the bytes of the
    /// file. [`Model::load_session`] reads it.
    ///
    /// # Errors
    /// When the session has another number of tokens, holds an incomplete prompt, or the file cannot be written.
    pub fn save(&self, path: &Path, text: &SavedText) -> Result<u64> {
        if text.tokens.len() != self.len() {
            return Err(Error::bad_input(format!(
                "a cache of {} tokens cannot be saved with a text of {} tokens",
                self.len(),
                text.tokens.len()
            )));
        }
        let plan = self
            .compression
            .saved(self.len())
            .ok_or_else(|| Error::bad_input("the cache of an incomplete prompt cannot be saved"))?;
        let header = Header {
            model: self.model.fingerprint(),
            model_name: self.model.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            options: saved_options(self.compression.how(), self.kv.format()),
            tokens: self.len(),
            rope_tokens: self.rope_tokens,
            min_tokens: self.min_tokens(),
            plan,
            text: text.clone(),
        };
        let header = serde_json::to_vec(&header).map_err(|e| Error::bad_input(e.to_string()))?;
        let mut file = Hashed::new(AtomicFile::create(path)?);
        let write = |out: &mut dyn Write| -> io::Result<()> {
            out.write_all(MAGIC)?;
            out.write_all(&VERSION.to_le_bytes())?;
            out.write_all(&(header.len() as u32).to_le_bytes())?;
            out.write_all(&header)?;
            out.write_all(bytemuck::cast_slice(&le_words(&text.tokens)))?;
            self.kv.save(out)
        };
        write(&mut file).map_err(|e| Error::write(path, e))?;
        let (mut file, checksum) = file.finish();
        file.append(&checksum.to_le_bytes())?;
        file.commit()
    }
}

impl Model {
    /// Reads a session that [`Session::save`] wrote. It continues with the compression `how` and stores tokens in
    /// `format`; both must be those that it was saved with.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged or incomplete, is of another version, belongs to another model or to
    /// other options, or memory for its pages cannot be had.
    pub fn load_session(
        &self,
        path: &Path,
        how: Option<Compression>,
        format: KvFormat,
    ) -> Result<SavedSession> {
        self.load_session_in(&self.inner.kv, path, how, format)
    }

    /// As [`Model::load_session`], with pages of `cache`, which is one of [`Model::kv_cache`].
    ///
    /// # Errors
    /// As [`Model::load_session`].
    pub fn load_session_in(
        &self,
        cache: &KvCache,
        path: &Path,
        how: Option<Compression>,
        format: KvFormat,
    ) -> Result<SavedSession> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let file_bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let in_file = |e| match e {
            LoadError::Io(e) => Error::io(path, e),
            LoadError::Cache(e) => e.into(),
            e => damaged(path, e),
        };
        let mut input = Input::new(Hashed::new(file), file_bytes.saturating_sub(CHECKSUM_BYTES));
        let header = read_header(path, &mut input)?;
        self.check_header(path, &header, &saved_options(how.as_ref(), format))?;
        let tokens = input.words(header.tokens).map_err(in_file)?;
        let tokens: Vec<u32> = tokens.into_iter().map(u32::from_le_bytes).collect();
        let kv = cache.load(&mut input).map_err(in_file)?;
        if input.remaining() > 0 || kv.len() != tokens.len() {
            return Err(damaged(path, "the numbers of tokens and bytes contradict each other"));
        }
        let mut checksum = [0; CHECKSUM_BYTES as usize];
        let (mut file, computed) = input.into_inner().finish();
        file.read_exact(&mut checksum).map_err(|e| Error::io(path, e))?;
        let valid = u64::from_le_bytes(checksum) == computed
            && tokens.iter().all(|&t| (t as usize) < self.vocab_size())
            && tokens.len() <= self.context_length()
            && header.rope_tokens <= self.context_length();
        if !valid {
            return Err(damaged(path, "the checksum is wrong"));
        }
        let mut session = Session::over(self, kv);
        session.rope_tokens = header.rope_tokens.max(tokens.len());
        session.set_compression(how);
        session.compression.restore(header.plan, tokens.len());
        Ok(SavedSession { session, text: SavedText { tokens, ..header.text }, file_bytes })
    }

    fn check_header(&self, path: &Path, header: &Header, options: &str) -> Result<()> {
        let refuse = |what: String, hint: String| {
            Err(Error::bad_input(format!("{}: {what}", path.display())).with_hint(hint))
        };
        if header.model != self.fingerprint() {
            let hint = format!("load it with {}, or save a new one", header.model_name);
            return refuse("this cache was saved with another model".into(), hint);
        }
        if header.options != *options {
            let hint = format!("give the same options, or save a new one; given now: {options}");
            return refuse(format!("this cache was saved with other options: {}", header.options), hint);
        }
        Ok(())
    }

    /// Identifies the weights: a hash of the configuration and, for each tensor, of its name, shape, type, and samples
    /// of its bytes. Models that were trained or compressed differently differ in it.
    pub fn fingerprint(&self) -> u64 {
        *self.inner.fingerprint.get_or_init(|| {
            let mut hash = Xxh3::new();
            hash.update(format!("{:?}", self.config()).as_bytes());
            for (name, tensor) in
                self.inner.checkpoint.iter().flat_map(crate::checkpoint::Checkpoint::tensors)
            {
                hash.update(format!("{name} {:?} {:?}", tensor.shape, tensor.encoding).as_bytes());
                let data = tensor.data;
                for at in [0, data.len() / 2, data.len().saturating_sub(SAMPLE_BYTES)] {
                    hash.update(&data[at..(at + SAMPLE_BYTES).min(data.len())]);
                }
            }
            hash.digest()
        })
    }
}

/// The options that a cache depends on: setting names in backticks, which front ends translate. A file is loaded with
/// the options that it was saved with.
pub fn saved_options(how: Option<&Compression>, format: KvFormat) -> String {
    let mut text = format!("`kv_format` {format}");
    if let Some(how) = how {
        text += &format!(", {how}");
    }
    text
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::bad_file(path, format!("not a complete saved cache: {what}"))
        .with_hint("save the cache again; a prompt is computed anew without it")
}

fn read_header(path: &Path, input: &mut Input<impl Read>) -> Result<Header> {
    let damaged = |e| damaged(path, e);
    let mut magic = [0; 8];
    if input.fill(&mut magic).is_err() || magic != *MAGIC {
        return Err(Error::bad_file(path, "not a saved KV cache"));
    }
    let version = input.u32().map_err(|e| damaged(e.to_string()))?;
    if version != VERSION {
        return Err(Error::bad_file(
            path,
            format!("a saved KV cache of version {version}; this program reads version {VERSION}"),
        )
        .with_hint("save the cache again with this program"));
    }
    let n = input.u32().map_err(|e| damaged(e.to_string()))?;
    if u64::from(n) > input.remaining() {
        return Err(damaged("the file ends early".into()));
    }
    let mut json = vec![0; n as usize];
    input.fill(&mut json).map_err(|e| damaged(e.to_string()))?;
    serde_json::from_slice(&json).map_err(|_| damaged("its header cannot be read".into()))
}

fn le_words(tokens: &[u32]) -> Vec<u32> {
    tokens.iter().map(|t| t.to_le()).collect()
}

/// A reader or writer that hashes the bytes.
struct Hashed<T> {
    inner: T,
    hash: Xxh3,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Xxh3::new() }
    }

    fn finish(self) -> (T, u64) {
        (self.inner, self.hash.digest())
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }
}
