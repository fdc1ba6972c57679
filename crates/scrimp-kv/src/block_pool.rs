//! Where pages come from.

use crate::error::KvError;
use scrimp_kernels::mem::{Page, PageError, PageMemory};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The pages of one cache, of a few sizes. A page's reference count is that of its `Arc`: whoever holds the only
/// reference may write (`Arc::get_mut`), and when the last one goes, the page returns to the free list by itself.
#[derive(Debug)]
pub struct BlockPool {
    /// Of one size each.
    memories: Mutex<Vec<PageMemory>>,
    limit: Option<usize>,
}

impl BlockPool {
    /// Pages of any size; at most `limit` bytes of them at a time.
    pub fn new(limit: Option<usize>) -> Self {
        Self { memories: Mutex::default(), limit }
    }

    /// A page of `bytes` bytes (rounded up to a multiple of 64) with one owner; its bytes are those of an earlier page or zero.
    ///
    /// # Errors
    /// When the limit is reached or the system has no memory; `tokens` is for the message.
    pub fn alloc(&self, bytes: usize, tokens: usize) -> Result<Arc<Page>, KvError> {
        let no_memory = |source| KvError::NoMemory { tokens, source };
        let new = PageMemory::new(bytes, None);
        let bytes = new.page_bytes();
        let mut memories = self.memories();
        if let Some(limit) = self.limit {
            let in_use = memories.iter().map(PageMemory::bytes_in_use).sum();
            if in_use + bytes > limit {
                return Err(no_memory(PageError::Limit { limit, in_use }));
            }
        }
        let index = memories.iter().position(|memory| memory.page_bytes() == bytes).unwrap_or_else(|| {
            memories.push(new);
            memories.len() - 1
        });
        memories[index].alloc().map(Arc::new).map_err(no_memory)
    }

    fn memories(&self) -> MutexGuard<'_, Vec<PageMemory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all pages that have an owner; a shared page counts once.
    pub fn bytes_in_use(&self) -> usize {
        self.memories().iter().map(PageMemory::bytes_in_use).sum()
    }

    /// Bytes that are taken from the system for pages.
    pub fn bytes_mapped(&self) -> usize {
        self.memories().iter().map(PageMemory::bytes_mapped).sum()
    }
}
