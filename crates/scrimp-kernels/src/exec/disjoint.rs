//! Handing disjoint parts of one mutable slice to the workers of a region.

use std::{marker::PhantomData, ops::Range};

/// A mutable slice that several threads may write at once, in parts that do not overlap.
#[derive(Clone, Copy)]
pub(crate) struct DisjointSliceMut<'a, T> {
    ptr: *mut T,
    len: usize,
    _lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: parts handed out do not overlap (see `slice`), so threads never touch the same element.
unsafe impl<T: Send> Send for DisjointSliceMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for DisjointSliceMut<'_, T> {}

impl<'a, T> DisjointSliceMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), _lifetime: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two parts that are alive at the same time may overlap.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range is inside the slice, and the caller keeps parts apart.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}
