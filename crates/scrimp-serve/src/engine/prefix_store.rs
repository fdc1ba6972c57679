//! Cached prefixes on disk. They survive a restart of the server.
//!
//! A finished request with a long text is written to the directory, in the format of `Session::save`, by a thread of
//! the store. A request that begins with the tokens of a file continues it. The files together are limited in size;
//! the least recently used file is deleted first. The time of the last use is the file's modification time.

use scrimp_llm::{
    Result,
    generate::common_prefix,
    model::{Model, SavedInfo, SavedText, Session},
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::SystemTime,
};

/// Shorter texts are not stored: a prefill takes less than a second.
const MIN_TOKENS: usize = 256;
/// Extension of the files.
const EXTENSION: &str = "kv";

/// A file of the store.
#[derive(Debug, Clone)]
struct StoredPrefix {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
    /// `None`: a file of another model or version. It counts for the limit.
    content: Option<SavedInfo>,
}

/// A session to write.
struct Job {
    session: Session,
    text: SavedText,
    options: String,
}

/// A stored prefix that a request begins with.
#[derive(Debug)]
pub(super) struct StoreHit {
    pub(super) path: PathBuf,
    /// Tokens of the file that the request begins with.
    pub(super) tokens: usize,
    pub(super) bytes: u64,
}

/// The stored prefixes of a model.
#[derive(Debug)]
pub(super) struct PrefixStore {
    index: Arc<Mutex<Index>>,
    jobs: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Index {
    dir: PathBuf,
    limit: u64,
    files: Vec<StoredPrefix>,
    /// Number in the name of the next file.
    next: u64,
}

impl PrefixStore {
    /// Opens the store in `dir`, which is created if it is missing, with files of at most `limit` bytes together.
    ///
    /// # Errors
    /// When the directory cannot be created or read.
    pub(super) fn open(model: &Model, dir: &Path, limit: u64) -> Result<Self> {
        let io = |e| scrimp_llm::Error::io(dir, e);
        fs::create_dir_all(dir).map_err(io)?;
        let mut index = Index { dir: dir.to_owned(), limit, files: Vec::new(), next: 0 };
        for entry in fs::read_dir(dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_none_or(|e| e != EXTENSION) {
                continue;
            }
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let content = SavedInfo::read(&path).ok().filter(|info| info.model == model.fingerprint());
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            index.files.push(StoredPrefix { path, bytes: metadata.len(), used, content });
        }
        index.evict();
        let index = Arc::new(Mutex::new(index));
        // One file is written at a time, and one more may wait.
        let (jobs, received) = sync_channel(1);
        let for_writer = Arc::clone(&index);
        let writer = std::thread::Builder::new()
            .name("prefix store".into())
            .spawn(move || write_all(&for_writer, &received))
            .map_err(io)?;
        Ok(Self { index, jobs: Some(jobs), writer: Some(writer) })
    }

    /// Stores the session of a finished request, unless the text is short, a file has it already, or the writer is
    /// busy.
    pub(super) fn store(&self, session: &Session, tokens: &[u32], options: &str) {
        let worthwhile = tokens.len() >= MIN_TOKENS
            && session.len() == tokens.len()
            && !lock(&self.index).has(options, tokens)
            && session.kv_bytes() as u64 <= lock(&self.index).limit;
        if let (true, Some(jobs)) = (worthwhile, &self.jobs) {
            let text = SavedText { tokens: tokens.to_vec(), ..SavedText::default() };
            // A busy writer skips this text.
            let _ = jobs.try_send(Job { session: session.fork(), text, options: options.to_owned() });
        }
    }

    /// The file with the longest common prefix with the first `limit` of `tokens`.
    pub(super) fn find(&self, options: &str, tokens: &[u32], limit: usize) -> Option<StoreHit> {
        let index = lock(&self.index);
        let hits = index.files.iter().filter_map(|file| {
            let info = file.content.as_ref().filter(|info| info.options == options)?;
            let common = common_prefix(&info.tokens, &tokens[..limit]);
            (common >= info.min_tokens.max(1)).then(|| StoreHit {
                path: file.path.clone(),
                tokens: common,
                bytes: file.bytes,
            })
        });
        hits.max_by_key(|hit| hit.tokens)
    }

    /// Records the use of a file.
    pub(super) fn used(&self, path: &Path) {
        let now = SystemTime::now();
        // Without the time, the file is deleted earlier.
        let _ = File::open(path).and_then(|file| file.set_modified(now));
        let mut index = lock(&self.index);
        index.files.iter_mut().filter(|file| file.path == path).for_each(|file| file.used = now);
    }

    /// Deletes a file that cannot be loaded.
    pub(super) fn remove(&self, path: &Path) {
        lock(&self.index).remove(|file| file.path == path);
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        lock(&self.index).bytes()
    }
}

impl Drop for PrefixStore {
    /// Waits for the files that are being written.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Index {
    /// Whether a file contains `tokens` at its beginning.
    fn has(&self, options: &str, tokens: &[u32]) -> bool {
        let contents = self.files.iter().filter_map(|file| file.content.as_ref());
        contents
            .filter(|info| info.options == options)
            .any(|info| info.tokens.starts_with(tokens) && info.min_tokens <= tokens.len())
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Deletes the files that `select` returns true for.
    fn remove(&mut self, select: impl Fn(&StoredPrefix) -> bool) {
        self.files.retain(|file| {
            let selected = select(file);
            if selected {
                let _ = fs::remove_file(&file.path);
            }
            !selected
        });
    }

    /// Deletes the least recently used files until the others fit the limit.
    fn evict(&mut self) {
        while self.bytes() > self.limit {
            let Some(oldest) = self.files.iter().min_by_key(|file| file.used).map(|file| file.path.clone())
            else {
                return;
            };
            self.remove(|file| file.path == oldest);
        }
    }

    /// An unused path.
    fn new_path(&mut self) -> PathBuf {
        loop {
            let path = self.dir.join(format!("{}-{}.{EXTENSION}", std::process::id(), self.next));
            self.next += 1;
            if !path.exists() {
                return path;
            }
        }
    }

    /// Adds a file; shorter ones with a prefix of its text are deleted.
    fn add(&mut self, file: StoredPrefix) {
        if let Some(new) = &file.content {
            self.remove(|old| {
                old.content.as_ref().is_some_and(|old| {
                    old.options == new.options
                        && old.min_tokens >= new.min_tokens
                        && new.tokens.starts_with(&old.tokens)
                })
            });
        }
        self.files.push(file);
        self.evict();
    }
}

fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes sessions until the store is dropped.
fn write_all(index: &Mutex<Index>, jobs: &Receiver<Job>) {
    for Job { session, text, options } in jobs {
        let path = lock(index).new_path();
        match session.save(&path, &text) {
            Ok(bytes) => {
                let min_tokens = session.min_tokens();
                let model = session.model().fingerprint();
                let content = SavedInfo { model, options, tokens: text.tokens, min_tokens };
                let used = SystemTime::now();
                lock(index).add(StoredPrefix { path, bytes, used, content: Some(content) });
            }
            Err(e) => tracing::warn!("a prompt is not kept on disk: {e}"),
        }
    }
}
