//! Memory: an arena for weights, page memory for KV caches, mapped files, and the global allocator's failure mode.

pub mod alloc;
pub mod arena;
mod mapping;
pub mod mmap;
pub mod page_memory;
pub mod stream;

pub use alloc::ExitWhenOutOfMemory;
pub use arena::{Arena, ArenaBox};
pub use mmap::MappedFile;
pub use page_memory::{Page, PageError, PageMemory};
pub use stream::largest_word;
