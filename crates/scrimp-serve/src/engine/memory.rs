//! The memory that an engine holds.

use super::Engine;

/// Holders of an engine's memory, and its requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryReport {
    /// Running requests.
    pub(crate) running: usize,
    /// Waiting requests.
    pub(crate) waiting: usize,
    /// Bytes of KV pages in use.
    pub(crate) kv_bytes: usize,
    /// Maximum bytes of KV pages.
    pub(crate) kv_limit: usize,
    /// Bytes of the pages of running requests. A page that several share counts for each.
    pub(crate) request_bytes: usize,
    /// Bytes of whole caches in bf16 of running requests.
    pub(crate) whole_bytes: usize,
    /// Bytes of the recurrent states of running requests, which are pages as well.
    pub(crate) state_bytes: usize,
    /// Number of cached prefixes.
    pub(crate) prefixes: usize,
    /// Bytes of stored prefixes.
    pub(crate) store_bytes: u64,
}

impl Engine<'_> {
    /// The memory between two steps.
    pub(super) fn memory_report(&self) -> MemoryReport {
        let config = self.model.config();
        let (mut request_bytes, mut tokens, mut sessions) = (0, 0, 0);
        for (bytes, len) in self.kv_caches.request_sizes() {
            request_bytes += bytes;
            tokens += len;
            sessions += 1;
        }
        let state_bytes = sessions * config.state_bytes();
        MemoryReport {
            running: self.scheduler.running().len(),
            waiting: self.scheduler.num_waiting(),
            kv_bytes: self.kv_caches.bytes_in_use(),
            kv_limit: self.kv_caches.limit(),
            request_bytes,
            whole_bytes: tokens * config.kv_bytes_per_token() + state_bytes,
            state_bytes,
            prefixes: self.kv_caches.prefixes(),
            store_bytes: self.kv_caches.store_bytes(),
        }
    }
}
