//! Weight formats, SIMD kernels, threads and memory: this crate knows numbers, not models.
//!
//! It is the only crate of the workspace with `unsafe` code.
//!
//! | entry point | what it does |
//! |---|---|
//! | [`SimdLevel`] | which instructions kernels use, chosen once and passed along |
//! | [`threads::Pool`] | parallel regions of microseconds |
//! | [`linear::linear`] | products of packed weights ([`linear::Matrix`]) with a batch of tokens ([`linear::Activations`]) |
//! | [`formats::packed`] | scrimp's own formats, dense and sparse: [`formats::packed::pack`], [`formats::packed::PackedView`], [`linear::Matrix::from_packed`] |
//! | [`attention::attend`] | attention over pages that an [`attention::Storage`] wrote |
//! | [`ops`] | RMSNorm, RoPE, gates and soft caps, a row at a time |
//! | [`formats::dequantize::dequantize_row`] | the definition of every stored type ([`DType`]) |
//! | [`arena::Arena`], [`page_memory::PageMemory`], [`mmap::MappedFile`] | memory for weights, for pages, and files |
//!
//! A linear layer of two rows, with weights in bf16:
//!
//! ```
//! use scrimp_kernels::{
//!     DType, SimdLevel,
//!     arena::Arena,
//!     linear::{Activations, Linear, LinearScratch, Matrix, linear},
//!     threads::Pool,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (pool, tier) = (Pool::new(2)?, SimdLevel::from_env()?);
//! let (rows, cols) = (2, 3);
//! // Stored rows, one after another: [1, 2, 3] and [0.5, 0, -1].
//! let stored: Vec<u8> = [0x3f80_u16, 0x4000, 0x4040, 0x3f00, 0, 0xbf80].into_iter().flat_map(u16::to_le_bytes).collect();
//! let mut arena = Arena::new(Matrix::packed_bytes(DType::BF16, rows, cols).expect("whole blocks"))?;
//! let weight = Matrix::pack(&pool, &mut arena, DType::BF16, rows, cols, &stored)?;
//!
//! // Two tokens of three features each.
//! let tokens = [[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]];
//! let mut x = Activations::new();
//! x.fill(&pool, tier, tokens.len(), cols, weight.needs(), |t, row| row.copy_from_slice(&tokens[t]));
//! let mut out = vec![0.0; tokens.len() * rows];
//! let product = Linear { weight: &weight, bias: None, out: &mut out, stride: rows, accumulate: false };
//! linear(&pool, tier, &mut LinearScratch::default(), &x, &mut [product]);
//! assert_eq!(out, [6.0, -0.5, 5.0, 0.0]);
//! # Ok(())
//! # }
//! ```

pub mod alloc;
pub mod arena;
pub mod attention;
pub mod dense;
mod dispatch;
pub mod dtype;
pub mod embedding;
pub mod exec;
pub mod formats;
pub mod hamming;
mod isa;
pub mod level;
pub mod linear;
mod mapping;
pub mod mmap;
pub mod ops;
pub mod page_memory;
mod shared;
pub mod stream;
mod sync;
pub mod threads;

pub use dtype::DType;
pub use exec::Exec;
pub use level::SimdLevel;
