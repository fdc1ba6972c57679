//! Large blocks of memory on huge pages, for weights that are streamed once per token.
//!
//! With 4 KiB pages a core spends a noticeable part of a streaming read on address translation; 2 MiB pages raise the
//! bandwidth by a fifth to a third. They are asked for with `madvise`, and where the system has none to give, ordinary pages serve.

use std::{ops::Deref, ops::DerefMut, ptr::NonNull, sync::Arc};

const HUGE_PAGE: usize = 2 << 20;
/// Every allocation starts at a multiple of this (two cache lines).
const ALIGN: usize = 128;

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory; access to it goes through `ArenaBox`es over disjoint ranges.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A bump allocator over one anonymous mapping.
#[derive(Debug)]
pub struct Arena {
    mapping: Arc<Mapping>,
    /// Offset of the first byte that may be handed out (the mapping is aligned to a huge page from here on).
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
        let out_of_memory = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        let huge = bytes >= HUGE_PAGE;
        let len = bytes.max(1).checked_add(if huge { HUGE_PAGE } else { 0 }).ok_or_else(out_of_memory)?;
        // SAFETY: an anonymous private mapping at an address of the system's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(out_of_memory)?;
        let mapping = Arc::new(Mapping { base, len });
        let next = if huge { base.as_ptr().align_offset(HUGE_PAGE) } else { 0 };
        #[cfg(target_os = "linux")]
        if huge {
            // SAFETY: the range lies inside the mapping; the advice changes no contents, and it may be refused.
            unsafe { libc::madvise(base.as_ptr().add(next).cast(), len - next, libc::MADV_HUGEPAGE) };
        }
        Ok(Self { mapping, next, end: next + bytes })
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
        let ptr = unsafe { self.mapping.base.add(self.next) };
        self.next += size;
        Ok(ArenaBox { ptr, len: bytes, _mapping: Arc::clone(&self.mapping) })
    }
}

impl Deref for ArenaBox {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside the mapping, initialised (anonymous pages are zero) and ours alone.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for ArenaBox {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
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
