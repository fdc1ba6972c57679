//! Weight formats, SIMD kernels, threads and memory: this crate knows numbers, not models.
//!
//! It is the only crate of the workspace with `unsafe` code.

pub mod dtype;
pub mod mmap;

pub use dtype::DType;
