//! Weight formats, SIMD kernels, threads and memory. This crate knows numbers, not models.
//!
//! Most of the workspace's `unsafe` code is here; scrimp-py has the rest.
//!
//! | entry point | purpose |
//! |---|---|
//! | [`SimdLevel`] | the instructions that kernels use, chosen once and passed along |
//! | [`Pool`], [`Exec`] | parallel regions of microseconds; a pool with a level |
//! | [`linear::linear`] | products of weights ([`linear::Matrix`]) with a batch of tokens ([`linear::Activations`]) |
//! | [`quant::packed`] | scrimp's own weight formats, dense and sparse |
//! | [`quant::dequantize::dequantize_row`] | the definition of every stored type ([`DType`]) |
//! | [`attention::attend`] | attention over pages of a [`attention::Storage`] |
//! | [`embedding::forward`] | embedding bags over hashed tables, and their gradients |
//! | [`ops`] | RMSNorm, RoPE, gates and soft caps, a row at a time; f32 products for training |
//! | [`mem::Arena`], [`mem::PageMemory`], [`mem::MappedFile`] | memory for weights, for pages, and files |
//! | [`system`], [`cpu_name`], [`cpu_features`] | facts about the machine |
//!
//! The folders form layers: `system` < `arch` < `exec`, `mem` < `quant` < `linear`, `attention`, `embedding`, `ops`. A folder
//! imports lower layers only (`tests/layers.rs`).
//!
//! A linear layer of two rows, with weights in bf16:
//!
//! ```
//! use scrimp_kernels::{
//!     DType, Exec, Pool, SimdLevel,
//!     linear::{ActivationShape, Activations, Linear, LinearScratch, Matrix, StoredRows, linear},
//!     mem::Arena,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = Pool::new(2)?;
//! let exec = Exec { pool: &pool, level: SimdLevel::from_env()? };
//! let (rows, cols) = (2, 3);
//! // Stored rows, one after another: [1, 2, 3] and [0.5, 0, -1].
//! let stored: Vec<u8> = [0x3f80_u16, 0x4000, 0x4040, 0x3f00, 0, 0xbf80].into_iter().flat_map(u16::to_le_bytes).collect();
//! let mut arena = Arena::new(Matrix::packed_bytes(DType::BF16, rows, cols).expect("whole blocks"))?;
//! let stored = StoredRows { dtype: DType::BF16, rows, cols, data: &stored };
//! let weight = Matrix::pack(&pool, &mut arena, stored)?;
//!
//! // Two tokens of three features each.
//! let tokens = [[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]];
//! let mut x = Activations::new();
//! let shape = ActivationShape { n_tokens: tokens.len(), cols, needs: weight.needs() };
//! x.fill(exec, shape, |t, row| row.copy_from_slice(&tokens[t]));
//! let mut out = vec![0.0; tokens.len() * rows];
//! let product = Linear { weight: &weight, bias: None, out: &mut out, stride: rows, accumulate: false };
//! linear(exec, &mut LinearScratch::default(), &x, &mut [product]);
//! assert_eq!(out, [6.0, -0.5, 5.0, 0.0]);
//! # Ok(())
//! # }
//! ```

mod arch;
pub mod attention;
pub mod embedding;
pub mod exec;
pub mod linear;
pub mod mem;
pub mod ops;
pub mod quant;
pub mod system;

pub use arch::{SimdLevel, UnsupportedSimdLevel, cpu_features, cpu_name};
pub use exec::{Exec, Pool};
pub use quant::DType;
