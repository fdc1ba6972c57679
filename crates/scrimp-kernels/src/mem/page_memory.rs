//! Pages of equal size, cut from large chunks that go back to the system when they are empty.
//!
//! A chunk is an anonymous mapping of 2 MiB (or of one page, where that is larger), aligned to 2 MiB and advised to be
//! a huge page. A new page is taken from the lowest chunk that has a free slot, so that use gathers in few chunks; a
//! chunk whose last page is dropped is unmapped, so resident memory really falls. Nothing is reserved ahead of use.

use super::mapping::Mapping;
use crate::system::LARGE;
use std::{
    collections::BTreeSet,
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

/// Every page starts at a multiple of this and has a multiple of it as its size.
const ALIGN: usize = 64;

/// Why a page could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageError {
    /// The memory's byte limit is used up.
    Limit {
        /// Bytes that may be in use at once.
        limit: usize,
        /// Bytes of pages in use.
        in_use: usize,
    },
    /// The system gave no more memory.
    OutOfMemory {
        /// The requested bytes.
        bytes: usize,
    },
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit { limit, in_use } => {
                write!(f, "the limit of {limit} bytes is used up ({in_use} bytes are in use)")
            }
            Self::OutOfMemory { bytes } => write!(f, "the system has no {bytes} bytes to give"),
        }
    }
}

impl std::error::Error for PageError {}

#[derive(Debug)]
struct Chunk {
    mapping: Mapping,
    /// Indices of free slots.
    free: Vec<u32>,
    used: usize,
}

#[derive(Debug, Default)]
struct State {
    chunks: Vec<Option<Chunk>>,
    /// Indices of chunks that have a free slot.
    with_free: BTreeSet<usize>,
    /// Indices of unmapped chunks, whose place may be taken again.
    vacant: BTreeSet<usize>,
    pages_in_use: usize,
    chunks_mapped: usize,
}

#[derive(Debug)]
struct Inner {
    page_bytes: usize,
    chunk_bytes: usize,
    limit: Option<usize>,
    state: Mutex<State>,
}

/// A source of pages of one size. Clones share the same memory.
#[derive(Debug, Clone)]
pub struct PageMemory(Arc<Inner>);

/// One page, owned; dropping it gives the memory back.
pub struct Page {
    ptr: NonNull<u8>,
    chunk: usize,
    slot: u32,
    owner: Arc<Inner>,
}

// SAFETY: a `Page` owns its range of a chunk alone, and the chunk stays mapped while one of its pages lives.
unsafe impl Send for Page {}
// SAFETY: shared access only reads.
unsafe impl Sync for Page {}

impl PageMemory {
    /// Pages of at least `page_bytes` bytes (rounded up to a multiple of 64), at most `limit` bytes of them at a time.
    pub fn new(page_bytes: usize, limit: Option<usize>) -> Self {
        let page_bytes = page_bytes.clamp(1, isize::MAX as usize / 4).next_multiple_of(ALIGN);
        let chunk_bytes = page_bytes.next_multiple_of(LARGE);
        Self(Arc::new(Inner { page_bytes, chunk_bytes, limit, state: Mutex::default() }))
    }

    /// Bytes of one page.
    pub fn page_bytes(&self) -> usize {
        self.0.page_bytes
    }

    /// Bytes of pages that are in use.
    pub fn bytes_in_use(&self) -> usize {
        self.0.state().pages_in_use * self.0.page_bytes
    }

    /// Bytes that are mapped from the system: those in use and the free pages of chunks that are partly used.
    pub fn bytes_mapped(&self) -> usize {
        self.0.state().chunks_mapped * self.0.chunk_bytes
    }

    /// The limit on [`PageMemory::bytes_in_use`].
    pub fn limit(&self) -> Option<usize> {
        self.0.limit
    }

    /// A page. Its contents are some valid bytes: zeros, or what an earlier page left there.
    ///
    /// # Errors
    /// When the limit is reached or the system has no memory to give.
    pub fn alloc(&self) -> Result<Page, PageError> {
        let inner = &*self.0;
        let mut state = inner.state();
        let in_use = state.pages_in_use * inner.page_bytes;
        if let Some(limit) = inner.limit
            && in_use + inner.page_bytes > limit
        {
            return Err(PageError::Limit { limit, in_use });
        }
        let index = match state.with_free.first() {
            Some(&index) => index,
            None => inner.add_chunk(&mut state)?,
        };
        let Some(chunk) = state.chunks[index].as_mut() else {
            unreachable!("a chunk with free slots is mapped")
        };
        let Some(slot) = chunk.free.pop() else { unreachable!("the set names chunks with free slots") };
        chunk.used += 1;
        // SAFETY: the slot lies inside the chunk.
        let ptr = unsafe { chunk.mapping.base().add(slot as usize * inner.page_bytes) };
        if chunk.free.is_empty() {
            state.with_free.remove(&index);
        }
        state.pages_in_use += 1;
        Ok(Page { ptr, chunk: index, slot, owner: Arc::clone(&self.0) })
    }
}

impl Inner {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps one more chunk and returns its index.
    fn add_chunk(&self, state: &mut State) -> Result<usize, PageError> {
        let mapping =
            Mapping::new(self.chunk_bytes).map_err(|_| PageError::OutOfMemory { bytes: self.chunk_bytes })?;
        let slots = (self.chunk_bytes / self.page_bytes) as u32;
        let chunk = Chunk { mapping, free: (0..slots).rev().collect(), used: 0 };
        let index = match state.vacant.pop_first() {
            Some(index) => {
                state.chunks[index] = Some(chunk);
                index
            }
            None => {
                state.chunks.push(Some(chunk));
                state.chunks.len() - 1
            }
        };
        state.with_free.insert(index);
        state.chunks_mapped += 1;
        Ok(index)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let mut guard = self.owner.state();
        let state = &mut *guard;
        state.pages_in_use -= 1;
        let Some(chunk) = state.chunks[self.chunk].as_mut() else { return };
        chunk.free.push(self.slot);
        chunk.used -= 1;
        if chunk.used > 0 {
            state.with_free.insert(self.chunk);
            return;
        }
        state.with_free.remove(&self.chunk);
        state.vacant.insert(self.chunk);
        state.chunks_mapped -= 1;
        let empty = state.chunks[self.chunk].take();
        // Unmapping takes its time: not under the lock.
        drop(guard);
        drop(empty);
    }
}

impl Deref for Page {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range belongs to this page, is mapped, and is initialized (anonymous memory is zero).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.owner.page_bytes) }
    }
}

impl DerefMut for Page {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range belongs to this page, is mapped and initialized; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.owner.page_bytes) }
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page({}.{})", self.chunk, self.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_apart_and_aligned() {
        let memory = PageMemory::new(5000, None);
        let mut pages: Vec<_> = (0..1000).map(|_| memory.alloc().unwrap()).collect();
        for (i, page) in pages.iter_mut().enumerate() {
            assert_eq!(page.as_ptr() as usize % ALIGN, 0);
            page.fill(i as u8);
        }
        for (i, page) in pages.iter().enumerate() {
            assert!(page.iter().all(|&b| b == i as u8));
        }
        assert_eq!(memory.bytes_in_use(), 1000 * memory.page_bytes());
        // Every second page goes; what is allocated next takes the free slots.
        let mapped = memory.bytes_mapped();
        let mut i = 0;
        pages.retain(|_| {
            i += 1;
            i % 2 == 0
        });
        pages.extend((0..500).map(|_| memory.alloc().unwrap()));
        assert_eq!(memory.bytes_mapped(), mapped);
        drop(pages);
        assert_eq!((memory.bytes_in_use(), memory.bytes_mapped()), (0, 0));
    }

    #[test]
    fn limits_and_absurd_sizes_are_errors() {
        let memory = PageMemory::new(4096, Some(3 * 4096));
        let pages: Vec<_> = (0..3).map(|_| memory.alloc().unwrap()).collect();
        assert!(matches!(memory.alloc(), Err(PageError::Limit { .. })));
        drop(pages);
        assert!(memory.alloc().is_ok());
        assert!(matches!(PageMemory::new(1 << 50, None).alloc(), Err(PageError::OutOfMemory { .. })));
    }

    #[test]
    fn pages_outlive_their_memory() {
        let page = PageMemory::new(4096, None).alloc().unwrap();
        assert_eq!(page.len(), 4096);
    }
}
