//! The language models of a server. A model is loaded when a request names it. If the memory does not suffice, idle models are
//! unloaded first, the least recently used one before the others.
//!
//! A loaded model accounts for its file, for the limit of its KV caches, and for its vocabulary and buffers, and for the same
//! of its draft model, which is loaded and unloaded with it. Embedding models and rerankers account for their weights and stay
//! loaded.

use super::{
    ModelFacts,
    error::ApiError,
    models::{Kind, Served as _},
    state::Language,
};
use crate::{
    engine::{Command, MemoryReport},
    metrics::{Metrics, ModelMetrics},
    models::{LanguageModel, LanguageSource, Loader, Named, Profile},
    options::ServeOptions,
    server::start_engine,
};
use axum::http::StatusCode;
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Bytes of the tokenizer and of the tables for grammars per token of the vocabulary. Measured: 0.5 to 1.1 KiB with the
/// vocabularies of SmolLM2, Qwen2.5 and Gemma 3 (49,152 to 262,144 tokens).
const TOKEN_BYTES: u64 = 1280;
/// Bytes of the buffers of a model.
const BUFFER_BYTES: u64 = 32 << 20;
/// Maximum time that a request waits for a model to become idle.
const PATIENCE: Duration = Duration::from_millis(500);
/// Interval at which it checks that.
const INTERVAL: Duration = Duration::from_millis(10);

/// A language model that may be loaded.
struct Slot {
    names: Vec<String>,
    profile: Profile,
    metrics: Arc<ModelMetrics>,
    /// `None`: the model is loaded from the start and stays loaded.
    load: Option<Loader>,
}

impl Slot {
    /// The bytes for which the loaded model accounts.
    fn bytes(&self, kv_bytes: usize) -> u64 {
        let ModelFacts { file_bytes, weight_bytes, .. } = self.profile.facts;
        let tables = self.profile.vocab_size as u64 * TOKEN_BYTES + BUFFER_BYTES;
        let draft = match self.profile.draft_bytes {
            0 => 0,
            bytes => bytes.saturating_add(BUFFER_BYTES),
        };
        let own = file_bytes.max(weight_bytes).saturating_add(tables).saturating_add(kv_bytes as u64);
        own.saturating_add(draft)
    }
}

/// A loaded model.
struct Running {
    language: Arc<Language>,
    commands: Sender<Command>,
    thread: JoinHandle<()>,
    /// Time of the last use, in uses of all models.
    used: u64,
}

impl Running {
    /// Whether no request uses the model.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.language) == 1 && Arc::strong_count(&self.language.lease) == 1
    }

    /// Ends the engine and frees the memory.
    fn stop(self) {
        // The engine may have ended.
        let _ = self.commands.send(Command::Stop);
        let _ = self.thread.join();
    }
}

/// The loaded models, by slot.
#[derive(Default)]
struct Loaded {
    running: Vec<Option<Running>>,
    /// Number of uses of all models.
    uses: u64,
}

struct Inner {
    slots: Vec<Slot>,
    options: ServeOptions,
    /// Bytes for loaded language models.
    limit: u64,
    loaded: Mutex<Loaded>,
}

/// The language models of a server.
pub(crate) struct Languages {
    inner: Arc<Inner>,
    /// One model is loaded at a time.
    loading: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Languages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.inner.slots.iter().map(|slot| &slot.names)).finish()
    }
}

impl Languages {
    /// The models of `sources`. Those that are loaded already start their engines. `others`: bytes of other models.
    ///
    /// # Errors
    /// A model does not fit the memory even alone, or a thread cannot be created.
    pub(crate) fn new(
        sources: Vec<Named<LanguageSource>>,
        options: &ServeOptions,
        metrics: &Metrics,
        others: u64,
    ) -> io::Result<Self> {
        let limit = options.memory.map_or(u64::MAX, |memory| memory.saturating_sub(others));
        let (mut slots, mut given) = (Vec::new(), Vec::new());
        for Named { names, model: LanguageSource { profile, model, load } } in sources {
            let metrics = metrics.model(&names, Kind::Language);
            let slot = Slot { names, profile, metrics, load };
            let bytes = slot.bytes(options.kv_bytes);
            if bytes > limit {
                let what = format!(
                    "{} needs {} MiB with its KV caches (`kv_memory`), but `memory` leaves {} MiB for language models",
                    slot.names.first().map_or("the model", String::as_str),
                    bytes.div_ceil(1 << 20),
                    limit >> 20,
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            slots.push(slot);
            given.push(model);
        }
        let loaded = Mutex::new(Loaded { running: slots.iter().map(|_| None).collect(), uses: 0 });
        let options = options.clone();
        let inner = Arc::new(Inner { slots, options, limit, loaded });
        for (index, model) in given.into_iter().enumerate() {
            if let Some(model) = model {
                inner.start(index, model)?;
            }
        }
        Ok(Self { inner, loading: Arc::default() })
    }

    /// Names and profiles of all models.
    pub(crate) fn profiles(&self) -> impl Iterator<Item = (&[String], &Profile)> {
        self.inner.slots.iter().map(|slot| (slot.names.as_slice(), &slot.profile))
    }

    /// Whether the model at `index` is loaded.
    pub(crate) fn is_loaded(&self, index: usize) -> bool {
        self.inner.loaded().running[index].is_some()
    }

    /// Requests the memory report of the model at `index`, which does not become used by that. `None`: it is not loaded.
    pub(crate) fn report(&self, index: usize) -> Option<oneshot::Receiver<MemoryReport>> {
        let (answer, report) = oneshot::channel();
        let loaded = self.inner.loaded();
        loaded.running[index].as_ref()?.commands.send(Command::Report(answer)).ok()?;
        Some(report)
    }

    /// The bytes for which the model at `index` accounts when it is loaded.
    pub(crate) fn accounted(&self, index: usize) -> u64 {
        self.inner.slots[index].bytes(self.inner.options.kv_bytes)
    }

    /// The index of the model with this name; without a name, the first model.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<usize> {
        let has = |slot: &Slot| name.is_none_or(|name| slot.names.iter().any(|known| known == name));
        self.inner.slots.iter().position(has)
    }

    /// The model at `index`, loaded if necessary.
    ///
    /// # Errors
    /// 429: requests use the models that would have to be unloaded. 500: the model cannot be loaded.
    pub(crate) async fn get(&self, index: usize) -> Result<Arc<Language>, ApiError> {
        if let Some(language) = self.inner.running(index) {
            return Ok(language);
        }
        let turn = Arc::clone(&self.loading).lock_owned().await;
        if let Some(language) = self.inner.running(index) {
            return Ok(language);
        }
        let inner = Arc::clone(&self.inner);
        // It continues if the client disconnects.
        let loading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            inner.load(index)
        });
        loading.await.map_err(|e| failed(&e))?
    }

    /// Ends all engines. They fail the requests that are still running.
    pub(crate) fn stop(&self) {
        let running: Vec<Running> = self.inner.loaded().running.iter_mut().filter_map(Option::take).collect();
        running.into_iter().for_each(Running::stop);
    }
}

fn failed(e: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the model cannot be loaded: {e}"))
        .code("model_not_loaded")
}

impl Inner {
    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A loaded model.
    fn running(&self, index: usize) -> Option<Arc<Language>> {
        let mut loaded = self.loaded();
        loaded.uses += 1;
        let now = loaded.uses;
        let running = loaded.running[index].as_mut()?;
        running.used = now;
        Some(Arc::clone(&running.language))
    }

    /// Unloads idle models until the model at `index` fits, and loads it.
    fn load(&self, index: usize) -> Result<Arc<Language>, ApiError> {
        let end = Instant::now() + PATIENCE;
        let unloaded = loop {
            match self.make_room(index) {
                Some(unloaded) => break unloaded,
                None if Instant::now() < end => std::thread::sleep(INTERVAL),
                None => {
                    let what =
                        "requests use the models that fill the memory of this server; try again in a moment";
                    return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, what).code("models_in_use"));
                }
            }
        };
        for running in unloaded {
            tracing::info!(model = running.language.name(), "unloading");
            running.stop();
        }
        let slot = &self.slots[index];
        let Some(load) = &slot.load else { return Err(failed(&"it has ended")) };
        tracing::info!(model = slot.names.first(), "loading");
        let model = load().map_err(|e| failed(&e))?;
        self.start(index, model).map_err(|e| failed(&e))
    }

    /// Removes idle models, the least recently used first, so that the model at `index` fits. `None`: too many are in use.
    fn make_room(&self, index: usize) -> Option<Vec<Running>> {
        let mut loaded = self.loaded();
        let bytes = |index: usize| self.slots[index].bytes(self.options.kv_bytes);
        let held = loaded.running.iter().enumerate().filter(|(_, running)| running.is_some());
        let mut held: u64 = held.map(|(index, _)| bytes(index)).sum();
        let mut idle: Vec<(u64, usize)> = Vec::new();
        for (index, running) in loaded.running.iter().enumerate() {
            if let Some(running) = running.as_ref().filter(|running| running.is_idle())
                && self.slots[index].load.is_some()
            {
                idle.push((running.used, index));
            }
        }
        idle.sort_unstable();
        let mut chosen = Vec::new();
        for (_, other) in idle {
            if held.saturating_add(bytes(index)) <= self.limit {
                break;
            }
            held -= bytes(other);
            chosen.push(other);
        }
        if held.saturating_add(bytes(index)) > self.limit {
            return None;
        }
        Some(chosen.into_iter().filter_map(|other| loaded.running[other].take()).collect())
    }

    /// Starts the engine of a model.
    fn start(&self, index: usize, model: LanguageModel) -> io::Result<Arc<Language>> {
        let slot = &self.slots[index];
        let mut options = self.options.clone();
        if let Some((dir, _)) = options.prefix_store.as_mut().filter(|_| index > 0) {
            // Files of different models have directories of their own.
            let name = slot.names.first().map_or("", String::as_str);
            *dir = dir.join(name.replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
        }
        let (language, commands, thread) = start_engine(slot.names.clone(), model, &options, &slot.metrics)?;
        let language = Arc::new(language);
        let mut loaded = self.loaded();
        loaded.uses += 1;
        let running = Running { language: Arc::clone(&language), commands, thread, used: loaded.uses };
        loaded.running[index] = Some(running);
        Ok(language)
    }
}
