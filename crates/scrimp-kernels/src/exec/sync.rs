//! What [`super::pool`] synchronizes with: the standard library, or loom where its tests explore interleavings.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p scrimp-kernels --lib --target-dir target/loom exec::pool::model
//! ```

#[cfg(not(all(loom, test)))]
pub(crate) use std::{
    hint::spin_loop,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize},
    },
    thread::{Builder, JoinHandle, yield_now},
};

#[cfg(all(loom, test))]
pub(crate) use loom::{
    cell::UnsafeCell,
    hint::spin_loop,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize},
    },
    thread::{Builder, JoinHandle, yield_now},
};

/// [`std::cell::UnsafeCell`] with the interface of loom's, which notices accesses that may overlap.
#[cfg(not(all(loom, test)))]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(all(loom, test)))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// A pointer for reading.
    #[inline(always)]
    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    /// A pointer for writing.
    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}
