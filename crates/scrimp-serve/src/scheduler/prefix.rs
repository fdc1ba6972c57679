//! Prefix caching: KV caches of earlier requests, for requests that begin with the same tokens.
//!
//! An entry is a *snapshot*: a copy-on-write fork of a request's KV cache. Snapshots with a common prefix share its pages.
//! A snapshot is found by the hashes of its full blocks. Each hash covers the block and the hash before it; the first hash
//! is a key, which covers the options that determine the content of the cache:
//!
//! ```text
//! h0 = key    h1 = hash(h0, tokens 0..64)    h2 = hash(h1, tokens 64..128)    ...      index: h -> snapshot
//! ```
//! The longest chain in the index names a snapshot. Its tokens are then compared one by one, so a hash collision cannot
//! return a wrong prefix. The least recently used snapshot is evicted first.

use scrimp_llm::{generate::common_prefix, model::BLOCK_TOKENS};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Tokens per block. A pass of the model computes whole blocks apart from other steps.
pub const BLOCK_SIZE: usize = BLOCK_TOKENS;

#[derive(Debug)]
struct Entry<S> {
    snapshot: S,
    key: u64,
    tokens: Vec<u32>,
    /// Length of the shortest prefix that the snapshot can be truncated to.
    min_tokens: usize,
    last_used: u64,
}

/// Snapshots by their tokens.
#[derive(Debug)]
pub struct PrefixCache<S> {
    entries: HashMap<u64, Entry<S>>,
    index: HashMap<u64, u64>,
    next: u64,
    clock: u64,
    max_entries: usize,
}

/// A snapshot, and the length of the common prefix.
#[derive(Debug)]
pub struct Hit<'a, S> {
    /// The snapshot.
    pub snapshot: &'a S,
    /// Tokens of the snapshot that the request begins with.
    pub tokens: usize,
}

impl<S> PrefixCache<S> {
    /// A cache of at most `max_entries` snapshots.
    pub fn new(max_entries: usize) -> Self {
        Self { entries: HashMap::new(), index: HashMap::new(), next: 0, clock: 0, max_entries }
    }

    /// Adds a snapshot of a KV cache that contains `tokens` and can be truncated to `min_tokens` of them or more. Texts
    /// shorter than one block are ignored.
    pub fn insert(&mut self, key: u64, tokens: &[u32], min_tokens: usize, snapshot: S) {
        let hashes: Vec<u64> = chain(key, tokens).collect();
        if hashes.is_empty() || self.max_entries == 0 {
            return;
        }
        // The new snapshot replaces shorter ones that are a prefix of it and no easier to truncate.
        for hash in &hashes {
            let Some(&old) = self.index.get(hash) else { continue };
            let replaced = self.entries.get(&old).is_some_and(|old| {
                old.key == key && old.min_tokens >= min_tokens && tokens.starts_with(&old.tokens)
            });
            if replaced {
                self.remove(old);
            }
        }
        while self.entries.len() >= self.max_entries && self.evict() {}
        let id = self.next;
        self.next += 1;
        self.clock += 1;
        for hash in hashes {
            // A snapshot that can be truncated further keeps its blocks: longer texts find the new one by later blocks.
            let old = self.index.get(&hash).and_then(|old| self.entries.get(old));
            if old.is_none_or(|old| old.min_tokens >= min_tokens) {
                self.index.insert(hash, id);
            }
        }
        let entry = Entry { snapshot, key, tokens: tokens.to_vec(), min_tokens, last_used: self.clock };
        self.entries.insert(id, entry);
    }

    /// The snapshot with the longest common prefix with the first `limit` of `tokens`.
    pub fn find(&mut self, key: u64, tokens: &[u32], limit: usize) -> Option<Hit<'_, S>> {
        let limit = limit.min(tokens.len());
        let hashes: Vec<u64> = chain(key, tokens).collect();
        let found = hashes.iter().rev().find_map(|hash| {
            let id = *self.index.get(hash)?;
            let entry = self.entries.get(&id).filter(|entry| entry.key == key)?;
            let common = common_prefix(&entry.tokens, &tokens[..limit]);
            (common > 0 && common >= entry.min_tokens).then_some((id, common))
        });
        let (id, common) = found?;
        self.clock += 1;
        let entry = self.entries.get_mut(&id)?;
        entry.last_used = self.clock;
        Some(Hit { snapshot: &entry.snapshot, tokens: common })
    }

    /// Evicts the least recently used snapshot. False: there is none.
    pub fn evict(&mut self) -> bool {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_used).map(|(&id, _)| id);
        oldest.map(|id| self.remove(id)).is_some()
    }

    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.entries.remove(&id) {
            for hash in chain(entry.key, &entry.tokens) {
                if self.index.get(&hash) == Some(&id) {
                    self.index.remove(&hash);
                }
            }
        }
    }

    /// Number of snapshots.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without snapshots.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The snapshots, in any order.
    pub fn snapshots(&self) -> impl Iterator<Item = &S> {
        self.entries.values().map(|entry| &entry.snapshot)
    }
}

/// The chained hashes of full blocks.
fn chain(key: u64, tokens: &[u32]) -> impl Iterator<Item = u64> {
    tokens.as_chunks::<BLOCK_SIZE>().0.iter().scan(key, |hash, block| {
        let mut hasher = DefaultHasher::new();
        (*hash, block).hash(&mut hasher);
        *hash = hasher.finish();
        Some(*hash)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(n: usize, seed: u32) -> Vec<u32> {
        (0..n as u32).map(|i| if i < 128 { i } else { i * 7 + seed }).collect()
    }

    #[test]
    fn the_longest_beginning_is_found() {
        let mut cache = PrefixCache::new(8);
        cache.insert(0, &tokens(300, 1), 0, "one");
        cache.insert(0, &tokens(300, 2), 0, "two");
        let hit = cache.find(0, &tokens(400, 1), 399).unwrap();
        assert_eq!((*hit.snapshot, hit.tokens), ("one", 300));
        let hit = cache.find(0, &tokens(250, 2), 249).unwrap();
        assert_eq!((*hit.snapshot, hit.tokens), ("two", 249));
        assert_eq!(cache.find(0, &tokens(300, 3), 299).unwrap().tokens, 128);
        assert!(cache.find(1, &tokens(300, 1), 299).is_none(), "another key");
        assert!(cache.find(0, &tokens(63, 1), 63).is_none(), "no full block");
    }

    #[test]
    fn what_cannot_be_cut_down_serves_longer_texts_only() {
        let mut cache = PrefixCache::new(8);
        cache.insert(0, &tokens(300, 1), 300, "compressed");
        assert!(cache.find(0, &tokens(300, 1), 299).is_none());
        assert_eq!(cache.find(0, &tokens(301, 1), 300).unwrap().tokens, 300);
    }

    #[test]
    fn a_longer_snapshot_hides_no_prefix_that_it_cannot_be_cut_to() {
        let mut cache = PrefixCache::new(8);
        cache.insert(0, &tokens(128, 1), 128, "blocks");
        cache.insert(0, &tokens(200, 1), 200, "prompt");
        assert_eq!(*cache.find(0, &tokens(150, 1), 149).unwrap().snapshot, "blocks");
        assert_eq!(*cache.find(0, &tokens(300, 1), 299).unwrap().snapshot, "prompt");
        cache.insert(0, &tokens(200, 1), 0, "whole");
        assert_eq!(*cache.find(0, &tokens(150, 1), 149).unwrap().snapshot, "whole");
    }

    #[test]
    fn the_one_used_longest_ago_goes() {
        let mut cache = PrefixCache::new(2);
        cache.insert(0, &tokens(200, 1), 0, 1);
        cache.insert(0, &tokens(200, 2), 0, 2);
        cache.find(0, &tokens(200, 1), 199).unwrap();
        cache.insert(0, &tokens(200, 3), 0, 3);
        let mut kept: Vec<_> = cache.snapshots().copied().collect();
        kept.sort_unstable();
        assert_eq!(kept, [1, 3]);
        // A longer text takes the place of its beginning.
        cache.insert(0, &tokens(250, 3), 0, 4);
        assert_eq!(cache.len(), 2);
        assert!(cache.evict() && cache.evict() && !cache.evict());
        assert!(cache.is_empty() && cache.index.is_empty());
    }
}
