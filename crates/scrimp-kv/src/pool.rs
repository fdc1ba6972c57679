//! Where pages come from.

use crate::error::KvError;
use scrimp_kernels::page_memory::{Page, PageMemory};
use std::sync::Arc;

/// The pages of one cache, all of one size. A page's reference count is that of its `Arc`: whoever holds the only
/// reference may write (`Arc::get_mut`), and when the last one goes, the page returns to the free list by itself.
#[derive(Debug, Clone)]
pub struct BlockPool {
    memory: PageMemory,
}

impl BlockPool {
    /// Pages of `page_bytes` bytes; at most `limit` bytes of them at a time.
    pub fn new(page_bytes: usize, limit: Option<usize>) -> Self {
        Self { memory: PageMemory::new(page_bytes, limit) }
    }

    /// A page with one owner; its bytes are those of an earlier page or zero.
    ///
    /// # Errors
    /// When the limit is reached or the system has no memory; `tokens` is for the message.
    pub fn alloc(&self, tokens: usize) -> Result<Arc<Page>, KvError> {
        self.memory.alloc().map(Arc::new).map_err(|source| KvError::NoMemory { tokens, source })
    }

    /// Bytes of one page.
    pub fn page_bytes(&self) -> usize {
        self.memory.page_bytes()
    }

    /// Bytes of all pages that have an owner; a shared page counts once.
    pub fn bytes_in_use(&self) -> usize {
        self.memory.bytes_in_use()
    }

    /// Bytes that are taken from the system for pages.
    pub fn bytes_mapped(&self) -> usize {
        self.memory.bytes_mapped()
    }
}
