//! Weight formats, SIMD kernels, threads and memory: this crate knows numbers, not models.
//!
//! It is the only crate of the workspace with `unsafe` code.

pub mod alloc;
pub mod arena;
pub mod attention;
mod dispatch;
pub mod dtype;
pub mod formats;
mod isa;
pub mod linear;
pub mod mmap;
pub mod ops;
pub mod page_memory;
mod shared;
mod sync;
pub mod threads;
pub mod tier;

pub use dtype::DType;
pub use tier::Tier;
