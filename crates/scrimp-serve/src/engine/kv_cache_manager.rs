//! The KV caches of all requests: the memory that the scheduler plans with.

use super::{EngineOptions, prefix_store::PrefixStore, request::KvOptions};
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
    model::{Model, Session, saved_options},
};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
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
    /// A cached prefix may replace the beginning of the tokens.
    reuses: bool,
}

impl Owner {
    /// The options that a stored prefix must have.
    fn saved_options(&self) -> String {
        saved_options(self.kv.compression.as_ref().filter(|how| !how.keeps_everything()), self.format)
    }
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
    store: Option<PrefixStore>,
    /// Prompt tokens that stored prefixes contained.
    pub(super) store_hits: u64,
    /// Number of compressions under memory pressure.
    pub(super) compressions: u64,
}

impl<'m> KvCacheManager<'m> {
    pub(super) fn new(model: &'m Model, options: &EngineOptions) -> Self {
        let open = |(dir, bytes): &(PathBuf, u64)| {
            let store = PrefixStore::open(model, dir, *bytes);
            store.inspect_err(|e| tracing::error!("prompts are not kept on disk: {e}")).ok()
        };
        Self {
            model,
            limit: options.kv_bytes,
            may_compress: options.compress_under_pressure,
            caches: HashMap::new(),
            owners: HashMap::new(),
            sessions: HashMap::new(),
            prefixes: options.prefix_caching.then(|| PrefixCache::new(MAX_PREFIXES)),
            store: options.prefix_store.as_ref().and_then(open),
            store_hits: 0,
            compressions: 0,
        }
    }

    /// Writes the KV cache of a finished request to the store.
    pub(super) fn store_prefix(&self, id: RequestId) {
        if let (Some(store), Some(owner), Some(session)) =
            (&self.store, self.owners.get(&id), self.sessions.get(&id))
            && let Some(tokens) = owner.tokens.get(..session.len())
        {
            store.store(session, tokens, &owner.saved_options());
        }
    }

    /// Bytes of all stored prefixes.
    pub(super) fn store_bytes(&self) -> u64 {
        self.store.as_ref().map_or(0, PrefixStore::bytes)
    }

    /// A session with a stored prefix of the request's tokens, if one is longer than `than` tokens and fits the free
    /// memory.
    fn load_stored(&self, owner: &Owner, than: usize) -> Option<Session> {
        let store = self.store.as_ref().filter(|_| owner.reuses)?;
        let limit = owner.tokens.len().saturating_sub(1);
        let hit = store.find(&owner.saved_options(), &owner.tokens, limit)?;
        if hit.tokens < than + BLOCK_SIZE || hit.bytes > self.available() as u64 {
            return None;
        }
        let cache = self.caches.get(owner.format.storage().name())?;
        let how = owner.kv.compression.clone();
        match self.model.load_session_in(cache, &hit.path, how, owner.format) {
            Ok(saved) => {
                store.used(&hit.path);
                let mut session = saved.session;
                let is_recurrent = self.model.config().recurrence.is_some();
                if session.compressed() == 0 && !is_recurrent {
                    session.truncate(hit.tokens / BLOCK_SIZE * BLOCK_SIZE);
                } else {
                    session.truncate(hit.tokens);
                }
                Some(session).filter(|session| !session.is_empty())
            }
            Err(e) => {
                tracing::warn!("a stored prompt is deleted: {e}");
                store.remove(&hit.path);
                None
            }
        }
    }

    /// Adds a request. `reuses`: a cached prefix may replace the beginning of its tokens.
    pub(super) fn add(&mut self, id: RequestId, tokens: Vec<u32>, kv: KvOptions, reuses: bool) -> Result<()> {
        let format: KvFormat = kv.format.parse()?;
        let storage = format.storage().name();
        if !self.caches.contains_key(storage) {
            // Without a limit of its own: the scheduler limits all caches together.
            self.caches.insert(storage, self.model.kv_cache(storage.parse()?, None)?);
        }
        let mut hasher = DefaultHasher::new();
        format!("{kv:?}").hash(&mut hasher);
        let prompt = tokens.len();
        self.owners.insert(id, Owner { tokens, prompt, kv, format, key: hasher.finish(), cached: 0, reuses });
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

    /// Adds the KV cache of a request to the prefix cache, if it ends at the last block of the prompt and cannot be truncated
    /// to that later: layers with a sliding window drop tokens, recurrent layers have the last state only.
    pub(super) fn cache_last_block(&mut self, id: RequestId) {
        let (Some(owner), Some(session)) = (self.owners.get(&id), self.sessions.get(&id)) else { return };
        if !self.model.rewinds() && session.len() == owner.prompt / BLOCK_SIZE * BLOCK_SIZE {
            self.cache_prefix(id);
        }
    }

    /// Adds a request's KV cache to the prefix cache.
    pub(super) fn cache_prefix(&mut self, id: RequestId) {
        let (Some(prefixes), Some(owner), Some(session)) =
            (&mut self.prefixes, self.owners.get(&id), self.sessions.get(&id))
        else {
            return;
        };
        let min_tokens = session.min_tokens();
        let mut snapshot = session.fork();
        if min_tokens <= session.len() / BLOCK_SIZE * BLOCK_SIZE {
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

    /// Bytes and tokens of the caches of running requests. A page that several share counts for each.
    pub(super) fn request_sizes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.sessions.values().map(|session| (session.kv_bytes(), session.len()))
    }

    /// Number of cached prefixes.
    pub(super) fn prefixes(&self) -> usize {
        self.prefixes.as_ref().map_or(0, PrefixCache::len)
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
        let rewinds = self.model.rewinds();
        let prefixes = self.prefixes.as_mut().filter(|_| owner.reuses);
        let hit = prefixes.and_then(|cache| cache.find(key, &owner.tokens, limit)).map(|hit| {
            let mut session = hit.snapshot.fork();
            // Chunks end at blocks. The session becomes empty if it cannot be truncated that far.
            let whole = hit.tokens / BLOCK_SIZE * BLOCK_SIZE;
            let tokens = if session.compressed() > whole || !rewinds { hit.tokens } else { whole };
            if session.len() > tokens {
                session.truncate(tokens);
            }
            session
        });
        let in_memory = hit.filter(|s| !s.is_empty());
        let stored = self.load_stored(owner, in_memory.as_ref().map_or(0, Session::len));
        let stored_tokens = stored.as_ref().map_or(0, Session::len);
        let mut session = stored.or(in_memory).unwrap_or_else(|| {
            let mut session = self.new_session(owner);
            session.set_compression(owner.kv.compression.clone());
            // Checked when the request was added.
            let _ = session.set_kv_format(owner.format);
            session
        });
        session.begin_prompt(owner.tokens.len());
        session.set_prompt(owner.prompt);
        let cached = session.len();
        self.store_hits += stored_tokens as u64;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Limits;
    use scrimp_llm::{checkpoint::Checkpoint, model::RunOptions};

    fn options() -> EngineOptions {
        EngineOptions {
            limits: Limits::default(),
            kv_bytes: 64 << 20,
            compress_under_pressure: false,
            prefix_caching: true,
            prefix_store: None,
        }
    }

    /// Computes the tokens of a request up to `end`.
    fn compute(caches: &mut KvCacheManager<'_>, id: RequestId, end: usize) -> Vec<f32> {
        let mut session = caches.take(id).unwrap();
        let tokens = caches.tokens(id)[session.len()..end].to_vec();
        let logits = session.forward(&tokens).unwrap().to_vec();
        caches.put(id, session);
        logits
    }

    #[test]
    fn a_request_continues_the_last_block_that_it_shares() {
        for name in ["llama", "gemma3", "qwen35", "qwen3next", "lfm2"] {
            let checkpoint = Checkpoint::open(&scrimp_testkit::tiny_model(name)).unwrap();
            let model = Model::load(checkpoint, &RunOptions::default()).unwrap();
            let mut caches = KvCacheManager::new(&model, &options());
            let kv = || KvOptions { compression: None, format: "f32".into() };
            let first: Vec<u32> = (0..100).map(|i| (i * 7 + 3) % 200).collect();
            caches.add(0, first.clone(), kv(), true).unwrap();
            assert_eq!(caches.allocate(0), 0, "{name}");
            compute(&mut caches, 0, BLOCK_SIZE);
            caches.cache_last_block(0);
            compute(&mut caches, 0, first.len());
            caches.cache_prefix(0);
            caches.free(0);
            caches.forget(0);

            // Another end from token 80 on.
            let second = [&first[..80], &[5, 6, 7]].concat();
            caches.add(1, second.clone(), kv(), true).unwrap();
            assert_eq!(caches.allocate(1), BLOCK_SIZE, "{name}");
            let logits = compute(&mut caches, 1, second.len());
            let mut alone = model.session_in("f32".parse().unwrap()).unwrap();
            alone.forward(&second[..BLOCK_SIZE]).unwrap();
            assert_eq!(logits, alone.forward(&second[BLOCK_SIZE..]).unwrap(), "{name}");
            caches.free(1);
            while caches.evict_cached() {}
            assert_eq!(caches.bytes_in_use(), 0, "{name}");
        }
    }
}
