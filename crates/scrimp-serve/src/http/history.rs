//! Conversations that later requests continue by an identifier. They are in memory, within a limit: the least recently used
//! ones are dropped.

use super::state::unique;
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// Maximum size of all conversations, bytes of JSON.
const MAX_BYTES: usize = 64 << 20;

/// A stored conversation.
#[derive(Debug, Clone)]
struct Entry {
    /// The client that may read it.
    owner: u64,
    /// The messages, and the response that the conversation ends with, as JSON.
    text: String,
    /// The time of its last use.
    used: u64,
}

/// The stored conversations.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<String, Entry>,
    bytes: usize,
    clock: u64,
}

impl History {
    /// An identifier that other clients cannot guess.
    pub(crate) fn id(prefix: &str) -> String {
        format!("{prefix}_{:016x}{:016x}", unique(), unique())
    }

    /// Stores the messages of a conversation and its last response.
    pub(crate) fn store(&self, id: &str, owner: u64, messages: &[Value], response: &Value) {
        let text = serde_json::json!([messages, response]).to_string();
        if text.len() > MAX_BYTES {
            return;
        }
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        inner.bytes += text.len();
        let entry = Entry { owner, text, used: inner.clock };
        if let Some(old) = inner.entries.insert(id.to_owned(), entry) {
            inner.bytes -= old.text.len();
        }
        while inner.bytes > MAX_BYTES {
            let oldest = inner.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(id, _)| id.clone());
            let Some(old) = oldest.and_then(|id| inner.entries.remove(&id)) else { break };
            inner.bytes -= old.text.len();
        }
    }

    /// The messages and the last response of a conversation.
    pub(crate) fn read(&self, id: &str, owner: u64) -> Option<(Vec<Value>, Value)> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let now = inner.clock;
        let entry = inner.entries.get_mut(id).filter(|entry| entry.owner == owner)?;
        entry.used = now;
        let text = entry.text.clone();
        drop(inner);
        serde_json::from_str(&text).ok()
    }

    /// Size of all conversations, bytes of JSON.
    pub(crate) fn bytes(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// Deletes a conversation. False: there is none.
    pub(crate) fn delete(&self, id: &str, owner: u64) -> bool {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.entries.get(id).is_none_or(|entry| entry.owner != owner) {
            return false;
        }
        let old = inner.entries.remove(id).map_or(0, |entry| entry.text.len());
        inner.bytes -= old;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_owner_reads_a_conversation() {
        let history = History::default();
        let (id, other) = (History::id("resp"), History::id("resp"));
        assert_ne!(id, other);
        history.store(&id, 1, &[json!({"role": "user"})], &json!({"id": 5}));
        assert_eq!(history.read(&id, 1), Some((vec![json!({"role": "user"})], json!({"id": 5}))));
        assert!(history.read(&id, 2).is_none() && !history.delete(&id, 2));
        assert!(history.read(&other, 1).is_none());
        assert!(history.delete(&id, 1) && !history.delete(&id, 1));
        assert_eq!(history.0.lock().unwrap().bytes, 0);
    }

    #[test]
    fn the_least_recently_used_conversations_are_dropped() {
        let history = History::default();
        let large = json!("x".repeat(MAX_BYTES / 3));
        for id in ["a", "b"] {
            history.store(id, 0, &[], &large);
        }
        assert!(history.read("a", 0).is_some());
        history.store("c", 0, &[], &large);
        let is_there = |id: &str| history.read(id, 0).is_some();
        assert!(is_there("a") && !is_there("b") && is_there("c"));
        history.store("d", 0, &[], &json!("x".repeat(MAX_BYTES)));
        assert!(!is_there("d") && is_there("c"));
    }
}
