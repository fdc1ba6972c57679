//! The block pool: allocation of pages.

use crate::error::KvError;
use scrimp_kernels::mem::{Page, PageError, PageMemory};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The pages of one cache, in a few sizes.
///
/// A page's reference count is that of its `Arc`. The only owner may write (`Arc::get_mut`); when the last owner
/// drops the page, it returns to the free list.
#[derive(Debug)]
pub struct BlockPool {
    /// One per page size.
    memories: Mutex<Vec<PageMemory>>,
    limit: Option<usize>,
}

impl BlockPool {
    /// A pool whose pages take at most `limit` bytes together.
    pub fn new(limit: Option<usize>) -> Self {
        Self { memories: Mutex::default(), limit }
    }

    /// A page of `bytes` bytes (rounded up to a multiple of 64) with one owner. Its content is unspecified.
    ///
    /// # Errors
    /// When the limit is reached or the system has no memory. `tokens` is the number of tokens that the message names.
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

    /// Bytes of all allocated pages; a shared page counts once.
    pub fn bytes_in_use(&self) -> usize {
        self.memories().iter().map(PageMemory::bytes_in_use).sum()
    }

    /// Bytes of memory that is mapped for pages.
    pub fn bytes_mapped(&self) -> usize {
        self.memories().iter().map(PageMemory::bytes_mapped).sum()
    }
}
