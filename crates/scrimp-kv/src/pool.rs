//! Where pages come from.

use crate::error::KvError;
use scrimp_kernels::page_memory::{Page, PageError, PageMemory};
use std::sync::{Arc, Mutex, PoisonError};

/// The pages of one cache, of a few sizes. A page's reference count is that of its `Arc`: whoever holds the only
/// reference may write (`Arc::get_mut`), and when the last one goes, the page returns to the free list by itself.
#[derive(Debug)]
pub struct BlockPool {
    /// By size.
    memories: Vec<PageMemory>,
    limit: Option<usize>,
    /// Held while the limit is looked at and a page taken.
    counting: Mutex<()>,
}

impl BlockPool {
    /// Pages of these sizes; at most `limit` bytes of them at a time.
    pub fn new(sizes: &[usize], limit: Option<usize>) -> Self {
        let mut memories: Vec<PageMemory> = sizes.iter().map(|&bytes| PageMemory::new(bytes, None)).collect();
        memories.sort_by_key(PageMemory::page_bytes);
        memories.dedup_by_key(|memory| memory.page_bytes());
        Self { memories, limit, counting: Mutex::new(()) }
    }

    /// A page of at least `bytes` bytes with one owner; its bytes are those of an earlier page or zero.
    ///
    /// # Errors
    /// When the limit is reached, the system has no memory, or the pool has no pages of that size; `tokens` is for the
    /// message.
    pub fn alloc(&self, bytes: usize, tokens: usize) -> Result<Arc<Page>, KvError> {
        let no_memory = |source| KvError::NoMemory { tokens, source };
        let Some(memory) = self.memories.iter().find(|memory| memory.page_bytes() >= bytes) else {
            return Err(no_memory(PageError::OutOfMemory { bytes }));
        };
        let _counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limit) = self.limit {
            let in_use = self.bytes_in_use();
            if in_use + memory.page_bytes() > limit {
                return Err(no_memory(PageError::Limit { limit, in_use }));
            }
        }
        memory.alloc().map(Arc::new).map_err(no_memory)
    }

    /// Bytes of all pages that have an owner; a shared page counts once.
    pub fn bytes_in_use(&self) -> usize {
        self.memories.iter().map(PageMemory::bytes_in_use).sum()
    }

    /// Bytes that are taken from the system for pages.
    pub fn bytes_mapped(&self) -> usize {
        self.memories.iter().map(PageMemory::bytes_mapped).sum()
    }
}
