//! Disjoint parts of one mutable slice, for the threads of a parallel region.

use std::{marker::PhantomData, ops::Range};

/// A mutable slice that several threads may write at once, in parts that do not overlap.
#[derive(Clone, Copy)]
pub(crate) struct DisjointSliceMut<'a, T> {
    ptr: *mut T,
    len: usize,
    _lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: parts do not overlap (the safety condition of `slice`), so threads never access the same element.
unsafe impl<T: Send> Send for DisjointSliceMut<'_, T> {}
// SAFETY: shared access creates parts only through `slice`, whose parts do not overlap.
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
        // SAFETY: the assertion checks that the range lies inside the slice; the caller guarantees that parts do not
        // overlap.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}
