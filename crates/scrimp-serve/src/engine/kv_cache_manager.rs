//! The KV caches of all requests: the memory that the scheduler plans with.

use super::request::KvOptions;
use crate::scheduler::{
    KvMemory, RequestId,
    prefix::{BLOCK_SIZE, PrefixCache},
};
use scrimp_kv::{
    KvCache, KvFormat,
    compress::{Budget, Compression},
    policy::policy,
};
use scrimp_llm::{
    Result,
    model::{Model, Session},
};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Maximum number of cached prefixes.
const MAX_PREFIXES: usize = 128;
/// Budget of the compression under memory pressure: a fraction of the cache's tokens, and a minimum number of tokens.
const PRESSURE_BUDGET: (f64, usize) = (0.5, 128);

/// The tokens and KV options of a request.
#[derive(Debug)]
struct Owner {
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    /// Number of prompt tokens.
    prompt: usize,
    kv: KvOptions,
    format: KvFormat,
    /// Hash of the KV options: the key of the prefix cache.
    key: u64,
    /// Prompt tokens that a cached prefix contained.
    cached: usize,
}

/// Sessions of running requests, and cached prefixes of earlier ones.
#[derive(Debug)]
pub(super) struct KvCacheManager<'m> {
    model: &'m Model,
    /// Maximum size of all pages in bytes.
    limit: usize,
    may_compress: bool,
    /// By storage of new tokens; formats that pack old pages share one.
    caches: HashMap<&'static str, KvCache>,
    owners: HashMap<RequestId, Owner>,
    sessions: HashMap<RequestId, Session>,
    prefixes: Option<PrefixCache<Session>>,
    /// Number of compressions under memory pressure.
    pub(super) compressions: u64,
}

impl<'m> KvCacheManager<'m> {
    pub(super) fn new(model: &'m Model, limit: usize, may_compress: bool, prefix_caching: bool) -> Self {
        Self {
            model,
            limit,
            may_compress,
            caches: HashMap::new(),
            owners: HashMap::new(),
            sessions: HashMap::new(),
            prefixes: prefix_caching.then(|| PrefixCache::new(MAX_PREFIXES)),
            compressions: 0,
        }
    }

    /// Adds a request.
    pub(super) fn add(&mut self, id: RequestId, tokens: Vec<u32>, kv: KvOptions) -> Result<()> {
        let format: KvFormat = kv.format.parse()?;
        let storage = format.storage().name();
        if !self.caches.contains_key(storage) {
            // Without a limit of its own: the scheduler limits all caches together.
            self.caches.insert(storage, self.model.kv_cache(storage.parse()?, None)?);
        }
        let mut hasher = DefaultHasher::new();
        format!("{kv:?}").hash(&mut hasher);
        let prompt = tokens.len();
        self.owners.insert(id, Owner { tokens, prompt, kv, format, key: hasher.finish(), cached: 0 });
        Ok(())
    }

    /// Appends a generated token to a request.
    pub(super) fn push(&mut self, id: RequestId, token: u32) {
        if let Some(owner) = self.owners.get_mut(&id) {
            owner.tokens.push(token);
        }
    }

    /// Removes a request.
    pub(super) fn forget(&mut self, id: RequestId) {
        self.owners.remove(&id);
    }

    /// A request's tokens.
    pub(super) fn tokens(&self, id: RequestId) -> &[u32] {
        self.owners.get(&id).map_or(&[], |owner| &owner.tokens)
    }

    /// Prompt tokens that a cached prefix contained when the request was last admitted.
    pub(super) fn cached(&self, id: RequestId) -> usize {
        self.owners.get(&id).map_or(0, |owner| owner.cached)
    }

    /// Takes the session out of the manager for one step.
    pub(super) fn take(&mut self, id: RequestId) -> Option<Session> {
        self.sessions.remove(&id)
    }

    /// Returns the session after a step.
    pub(super) fn put(&mut self, id: RequestId, session: Session) {
        self.sessions.insert(id, session);
    }

    /// The session of a running request.
    pub(super) fn session(&self, id: RequestId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    /// Adds a request's KV cache to the prefix cache.
    pub(super) fn cache_prefix(&mut self, id: RequestId) {
        let (Some(prefixes), Some(owner), Some(session)) =
            (&mut self.prefixes, self.owners.get(&id), self.sessions.get(&id))
        else {
            return;
        };
        let mut min_tokens = session.compressed();
        let mut snapshot = session.fork();
        if self.model.config().sliding_window.iter().any(Option::is_some) {
            min_tokens = session.len();
        } else if min_tokens <= session.len() / BLOCK_SIZE * BLOCK_SIZE {
            // With whole pages only, no request has to copy a page on write.
            snapshot.truncate(session.len() / BLOCK_SIZE * BLOCK_SIZE);
        }
        if let Some(tokens) = owner.tokens.get(..snapshot.len()) {
            prefixes.insert(owner.key, tokens, min_tokens, snapshot);
        }
    }

    /// Size of all pages in bytes.
    pub(super) fn bytes_in_use(&self) -> usize {
        self.caches.values().map(KvCache::bytes_in_use).sum()
    }

    /// Maximum size of all pages in bytes.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    fn new_session(&self, owner: &Owner) -> Session {
        match self.caches.get(owner.format.storage().name()) {
            Some(cache) => self.model.session_in_cache(cache),
            None => self.model.session(),
        }
    }

    /// The compression under memory pressure, and its budget in tokens. Its policy needs no attention scores, because the
    /// session collected none.
    fn pressure_compression(session: &Session) -> Option<(Compression, usize)> {
        let held = session.kv_tokens();
        let budget = ((held as f64 * PRESSURE_BUDGET.0) as usize).max(PRESSURE_BUDGET.1);
        let how = Compression::new(policy("knorm").ok()?, Budget::Tokens(budget));
        (budget < held && how.check().is_ok()).then_some((how, budget))
    }
}

impl KvMemory for KvCacheManager<'_> {
    fn available(&self) -> usize {
        self.limit.saturating_sub(self.bytes_in_use())
    }

    fn growth(&self, id: RequestId, tokens: usize) -> usize {
        self.sessions.get(&id).map_or(0, |session| session.kv().growth_bytes(tokens))
    }

    fn allocate(&mut self, id: RequestId) -> usize {
        let Some(owner) = self.owners.get(&id) else { return 0 };
        let (key, limit) = (owner.key, owner.tokens.len().saturating_sub(1));
        let hit = self.prefixes.as_mut().and_then(|cache| cache.find(key, &owner.tokens, limit)).map(|hit| {
            let mut session = hit.snapshot.fork();
            if session.len() > hit.tokens {
                // The session becomes empty if it cannot be truncated that far.
                session.truncate(hit.tokens);
            }
            session
        });
        let mut session = hit.filter(|s| !s.is_empty()).unwrap_or_else(|| {
            let mut session = self.new_session(owner);
            session.set_compression(owner.kv.compression.clone());
            // Checked when the request was added.
            let _ = session.set_kv_format(owner.format);
            session
        });
        session.begin_prompt(owner.tokens.len());
        let cached = session.len();
        self.sessions.insert(id, session);
        if let Some(owner) = self.owners.get_mut(&id) {
            owner.cached = cached.min(owner.prompt);
        }
        cached
    }

    fn free(&mut self, id: RequestId) {
        self.sessions.remove(&id);
    }

    fn evict_cached(&mut self) -> bool {
        self.prefixes.as_mut().is_some_and(PrefixCache::evict)
    }

    fn compress(&mut self, id: RequestId) -> bool {
        // An incomplete prompt still collects the scores for its own compression.
        let Some(owner) = self.owners.get(&id).filter(|_| self.may_compress) else { return false };
        let Some(session) = self.sessions.get_mut(&id).filter(|s| s.len() >= owner.prompt) else {
            return false;
        };
        let Some((how, budget)) = Self::pressure_compression(session) else { return false };
        let before = session.kv_bytes();
        if session.compress(&how, budget).is_err() {
            return false;
        }
        self.compressions += 1;
        session.kv_bytes() < before
    }

    fn num_tokens(&self, id: RequestId) -> usize {
        self.sessions.get(&id).map_or(0, Session::kv_tokens)
    }
}
