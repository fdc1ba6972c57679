//! The caches of all requests: what the scheduler's [`Pages`] are made of.

use super::job::KvChoice;
use crate::scheduler::{
    Pages, RequestId,
    prefix::{BLOCK, PrefixCache},
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

/// Snapshots that are kept for later requests.
const KEPT: usize = 128;
/// What a cache is made smaller to when memory runs short: a share of what it holds, and never fewer tokens.
const SHRINK: (f64, usize) = (0.5, 128);

/// A request as memory knows it.
#[derive(Debug)]
struct Owner {
    /// Prompt, and what was generated.
    tokens: Vec<u32>,
    /// Tokens of the prompt; what comes later was generated.
    prompt: usize,
    kv: KvChoice,
    format: KvFormat,
    key: u64,
    cached: usize,
}

/// Sessions of running requests and what is kept for later ones.
#[derive(Debug)]
pub(super) struct Memory<'m> {
    model: &'m Model,
    limit: usize,
    may_shrink: bool,
    /// By storage of new tokens; formats that pack old pages share one.
    caches: HashMap<&'static str, KvCache>,
    owners: HashMap<RequestId, Owner>,
    sessions: HashMap<RequestId, Session<'m>>,
    kept: Option<PrefixCache<Session<'m>>>,
    pub(super) shrunk: u64,
}

impl<'m> Memory<'m> {
    pub(super) fn new(model: &'m Model, limit: usize, may_shrink: bool, prefix_caching: bool) -> Self {
        Self {
            model,
            limit,
            may_shrink,
            caches: HashMap::new(),
            owners: HashMap::new(),
            sessions: HashMap::new(),
            kept: prefix_caching.then(|| PrefixCache::new(KEPT)),
            shrunk: 0,
        }
    }

    /// Takes a request's tokens.
    pub(super) fn add(&mut self, id: RequestId, tokens: Vec<u32>, kv: KvChoice) -> Result<()> {
        let format: KvFormat = kv.format.parse()?;
        let storage = format.storage().name();
        if !self.caches.contains_key(storage) {
            // No limit of its own: the scheduler sees to all together.
            self.caches.insert(storage, self.model.kv_cache(storage, None)?);
        }
        let mut hasher = DefaultHasher::new();
        format!("{kv:?}").hash(&mut hasher);
        let prompt = tokens.len();
        self.owners.insert(id, Owner { tokens, prompt, kv, format, key: hasher.finish(), cached: 0 });
        Ok(())
    }

    /// One more token of a request.
    pub(super) fn push(&mut self, id: RequestId, token: u32) {
        if let Some(owner) = self.owners.get_mut(&id) {
            owner.tokens.push(token);
        }
    }

    pub(super) fn forget(&mut self, id: RequestId) {
        self.owners.remove(&id);
    }

    /// A request's tokens.
    pub(super) fn tokens(&self, id: RequestId) -> &[u32] {
        self.owners.get(&id).map_or(&[], |owner| &owner.tokens)
    }

    /// Tokens of the prompt that a kept cache had when the request began last.
    pub(super) fn cached(&self, id: RequestId) -> usize {
        self.owners.get(&id).map_or(0, |owner| owner.cached)
    }

    /// Takes a session out, to be put back.
    pub(super) fn take(&mut self, id: RequestId) -> Option<Session<'m>> {
        self.sessions.remove(&id)
    }

    pub(super) fn put(&mut self, id: RequestId, session: Session<'m>) {
        self.sessions.insert(id, session);
    }

    pub(super) fn session(&self, id: RequestId) -> Option<&Session<'m>> {
        self.sessions.get(&id)
    }

    /// Keeps a request's cache for later ones that begin like it.
    pub(super) fn keep(&mut self, id: RequestId) {
        let (Some(kept), Some(owner), Some(session)) =
            (&mut self.kept, self.owners.get(&id), self.sessions.get(&id))
        else {
            return;
        };
        let mut at_least = session.compressed();
        let mut snapshot = session.fork();
        if self.model.config().sliding_window.iter().any(Option::is_some) {
            at_least = session.len();
        } else if at_least <= session.len() / BLOCK * BLOCK {
            // Whole pages only: then nobody has to copy one.
            snapshot.truncate(session.len() / BLOCK * BLOCK);
        }
        if let Some(tokens) = owner.tokens.get(..snapshot.len()) {
            kept.insert(owner.key, tokens, at_least, snapshot);
        }
    }

    /// Bytes of all pages.
    pub(super) fn bytes_in_use(&self) -> usize {
        self.caches.values().map(KvCache::bytes_in_use).sum()
    }

    /// Most bytes of pages.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    fn new_session(&self, owner: &Owner) -> Session<'m> {
        match self.caches.get(owner.format.storage().name()) {
            Some(cache) => self.model.session_in_cache(cache),
            None => self.model.session(),
        }
    }

    /// The compression of a cache under memory pressure, by a policy that needs no attention scores, because none were accumulated.
    fn tightened(session: &Session<'_>) -> Option<(Compression, usize)> {
        let held = session.kv_tokens();
        let budget = ((held as f64 * SHRINK.0) as usize).max(SHRINK.1);
        let how = Compression::new(policy("knorm").ok()?, Budget::Tokens(budget));
        (budget < held && how.check().is_ok()).then_some((how, budget))
    }
}

impl Pages for Memory<'_> {
    fn free(&self) -> usize {
        self.limit.saturating_sub(self.bytes_in_use())
    }

    fn needed(&self, id: RequestId, tokens: usize) -> usize {
        self.sessions.get(&id).map_or(0, |session| session.kv().growth_bytes(tokens))
    }

    fn begin(&mut self, id: RequestId) -> usize {
        let Some(owner) = self.owners.get(&id) else { return 0 };
        let (key, most) = (owner.key, owner.tokens.len().saturating_sub(1));
        let hit = self.kept.as_mut().and_then(|kept| kept.find(key, &owner.tokens, most)).map(|hit| {
            let mut session = hit.snapshot.fork();
            if session.len() > hit.tokens {
                // Empty, where it cannot go back so far.
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

    fn release(&mut self, id: RequestId) {
        self.sessions.remove(&id);
    }

    fn evict_kept(&mut self) -> bool {
        self.kept.as_mut().is_some_and(PrefixCache::evict)
    }

    fn shrink(&mut self, id: RequestId) -> bool {
        // A prompt that is not complete still gathers what is to be kept of it.
        let Some(owner) = self.owners.get(&id).filter(|_| self.may_shrink) else { return false };
        let Some(session) = self.sessions.get_mut(&id).filter(|s| s.len() >= owner.prompt) else {
            return false;
        };
        let Some((how, budget)) = Self::tightened(session) else { return false };
        let before = session.kv_bytes();
        if session.compress(&how, budget).is_err() {
            return false;
        }
        self.shrunk += 1;
        session.kv_bytes() < before
    }

    fn held(&self, id: RequestId) -> usize {
        self.sessions.get(&id).map_or(0, Session::kv_tokens)
    }
}
