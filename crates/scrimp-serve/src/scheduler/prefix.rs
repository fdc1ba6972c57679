//! Caches kept for requests that begin with the same tokens.
//!
//! What is kept is a *snapshot*: a copy-on-write fork of a request's cache, so that two snapshots with the same beginning
//! share its pages. It is found by the hash of full blocks, each chained to the one before it and all to a key (the
//! options that decide what the cache holds):
//!
//! ```text
//! h0 = key    h1 = hash(h0, tokens 0..64)    h2 = hash(h1, tokens 64..128)    ...      index: h -> snapshot
//! ```
//! The longest chain that is in the index names a snapshot, whose tokens are then compared one by one: a hash that two
//! texts share costs nothing but time. The one used longest ago goes first.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Tokens of a block.
pub const BLOCK: usize = 64;

#[derive(Debug)]
struct Entry<S> {
    snapshot: S,
    key: u64,
    tokens: Vec<u32>,
    /// A shorter beginning cannot be had of it.
    at_least: usize,
    used: u64,
}

/// Snapshots by the tokens that they hold.
#[derive(Debug)]
pub struct PrefixCache<S> {
    entries: HashMap<u64, Entry<S>>,
    index: HashMap<u64, u64>,
    next: u64,
    clock: u64,
    max_entries: usize,
}

/// A snapshot and how many tokens of it can be used.
#[derive(Debug)]
pub struct Hit<'a, S> {
    /// What was kept.
    pub snapshot: &'a S,
    /// The first so many tokens are those asked for.
    pub tokens: usize,
}

impl<S> PrefixCache<S> {
    /// Keeps at most `max_entries` snapshots.
    pub fn new(max_entries: usize) -> Self {
        Self { entries: HashMap::new(), index: HashMap::new(), next: 0, clock: 0, max_entries }
    }

    /// Keeps a snapshot of a cache that holds `tokens`; it can be cut down to `at_least` of them. Nothing is kept where
    /// no block is full.
    pub fn insert(&mut self, key: u64, tokens: &[u32], at_least: usize, snapshot: S) {
        let hashes: Vec<u64> = chain(key, tokens).collect();
        if hashes.is_empty() || self.max_entries == 0 {
            return;
        }
        // Those that this one replaces for every length are of no use any more.
        for hash in &hashes {
            let Some(&old) = self.index.get(hash) else { continue };
            let replaced = self.entries.get(&old).is_some_and(|old| {
                old.key == key && old.at_least >= at_least && tokens.starts_with(&old.tokens)
            });
            if replaced {
                self.remove(old);
            }
        }
        while self.entries.len() >= self.max_entries && self.evict() {}
        let id = self.next;
        self.next += 1;
        self.clock += 1;
        self.index.extend(hashes.into_iter().map(|hash| (hash, id)));
        let entry = Entry { snapshot, key, tokens: tokens.to_vec(), at_least, used: self.clock };
        self.entries.insert(id, entry);
    }

    /// The snapshot with the longest beginning of `tokens`, of which at most `most` tokens are wanted.
    pub fn find(&mut self, key: u64, tokens: &[u32], most: usize) -> Option<Hit<'_, S>> {
        let most = most.min(tokens.len());
        let hashes: Vec<u64> = chain(key, tokens).collect();
        let found = hashes.iter().rev().find_map(|hash| {
            let id = *self.index.get(hash)?;
            let entry = self.entries.get(&id).filter(|entry| entry.key == key)?;
            let common = entry.tokens.iter().zip(&tokens[..most]).take_while(|(a, b)| a == b).count();
            (common > 0 && common >= entry.at_least).then_some((id, common))
        });
        let (id, common) = found?;
        self.clock += 1;
        let entry = self.entries.get_mut(&id)?;
        entry.used = self.clock;
        Some(Hit { snapshot: &entry.snapshot, tokens: common })
    }

    /// Forgets the snapshot that was used longest ago; false if there is none.
    pub fn evict(&mut self) -> bool {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(&id, _)| id);
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

    /// Snapshots.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is kept.
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
    tokens.as_chunks::<BLOCK>().0.iter().scan(key, |hash, block| {
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
