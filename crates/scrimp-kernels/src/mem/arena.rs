//! Large blocks of memory on huge pages, for weights that are streamed once per token.
//!
//! With 4 KiB pages a core spends a noticeable part of a streaming read on address translation; 2 MiB pages raise the
//! bandwidth by a fifth to a third. `madvise` requests them; the system falls back to ordinary pages.

use super::mapping::Mapping;
#[cfg(test)]
use crate::system;
use std::{ops::Deref, ops::DerefMut, ptr::NonNull, sync::Arc};

/// Every allocation starts at a multiple of this (two cache lines).
const ALIGN: usize = 128;

/// A bump allocator over one anonymous mapping.
#[derive(Debug)]
pub struct Arena {
    mapping: Arc<Mapping>,
    /// Offset of the first free byte.
    next: usize,
    end: usize,
}

/// A zeroed block of an [`Arena`], owned; the arena's memory lives until the last of its blocks is dropped.
#[derive(Debug)]
pub struct ArenaBox {
    ptr: NonNull<u8>,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: an `ArenaBox` owns its range of the mapping alone.
unsafe impl Send for ArenaBox {}
// SAFETY: shared access only reads.
unsafe impl Sync for ArenaBox {}

impl Arena {
    /// Memory that an allocation of `bytes` takes.
    pub const fn size_of(bytes: usize) -> usize {
        bytes.next_multiple_of(ALIGN)
    }

    /// An arena for allocations whose [`Arena::size_of`] sum up to `bytes`.
    ///
    /// # Errors
    /// When the system does not give the memory.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        Ok(Self { mapping: Arc::new(Mapping::new(bytes)?), next: 0, end: bytes })
    }

    /// An arena whose one allocation, of `bytes` bytes, ends where memory that must not be touched begins.
    #[cfg(test)]
    pub(crate) fn before_guard_page(bytes: usize) -> std::io::Result<Self> {
        let page = system::page_bytes();
        let end = bytes.next_multiple_of(page);
        let mapping = Mapping::new(end + page)?;
        let guard = mapping.base().as_ptr().wrapping_add(end);
        // SAFETY: the page lies inside the mapping, and nobody has a reference into it.
        unsafe { system::forbid(guard, page) };
        Ok(Self { mapping: Arc::new(mapping), next: end - bytes, end: end + ALIGN })
    }

    /// The next `bytes` bytes, all zero.
    ///
    /// # Errors
    /// When the arena is full.
    pub fn alloc(&mut self, bytes: usize) -> std::io::Result<ArenaBox> {
        let size = Self::size_of(bytes);
        if size > self.end - self.next {
            return Err(std::io::Error::new(std::io::ErrorKind::OutOfMemory, "the weight arena is full"));
        }
        // SAFETY: `next + size` lies inside the mapping.
        let ptr = unsafe { self.mapping.base().add(self.next) };
        self.next += size;
        Ok(ArenaBox { ptr, len: bytes, _mapping: Arc::clone(&self.mapping) })
    }
}

impl Deref for ArenaBox {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside the mapping, initialized (anonymous pages are zero) and belongs to this box
        // alone.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for ArenaBox {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range is inside the mapping, initialized, and belongs to this box; `&mut self` makes the access
        // exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_zeroed_aligned_and_apart() {
        let sizes = [1, 63, 64, 5000, 3 << 20];
        let mut arena = Arena::new(sizes.iter().map(|&s| Arena::size_of(s)).sum()).unwrap();
        let mut blocks: Vec<_> = sizes.iter().map(|&s| arena.alloc(s).unwrap()).collect();
        assert!(arena.alloc(1).is_err());
        drop(arena);
        for (i, block) in blocks.iter_mut().enumerate() {
            assert!(block.iter().all(|&b| b == 0));
            assert_eq!(block.as_ptr() as usize % ALIGN, 0);
            block.fill(i as u8 + 1);
        }
        for (i, block) in blocks.iter().enumerate() {
            assert!(block.iter().all(|&b| b == i as u8 + 1));
        }
    }

    #[test]
    fn absurd_sizes_are_errors() {
        assert!(Arena::new(usize::MAX).is_err());
        assert!(Arena::new(1 << 60).is_err());
    }
}
