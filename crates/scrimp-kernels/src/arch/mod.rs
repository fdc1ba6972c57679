//! Everything that names a CPU: levels and their detection, the vector operations that kernels are written in, and the
//! compiled entry points of each level.
//!
//! | file | content |
//! |---|---|
//! | [`level`] | [`SimdLevel`], the proof that the CPU has a set of features |
//! | [`dispatch`] | the features of each level, and the functions that run a generic [`Kernel`] with them |
//! | [`simd`] | [`Simd`], the vector operations of all kernels |
//! | [`attention`], [`embedding`] | further vector operations, for one family of kernels each |
//! | [`scalar`], `avx2`, `avx512`, `neon` | a folder per level: its implementation of these operations |
//! | `array` | arrays that cost the compiler little |
//! | `expand` | tables for levels without an expanding instruction |
//! | [`amx`] | tile registers |
//! | `features` | the CPU's name and features, for reports |
//! | [`prefetch`](mod@prefetch) | loading cache lines before they are read |

/// Calls an intrinsic in a method of a level.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! isa {
    ($e:expr) => {{
        // SAFETY: `self` proves that the CPU has the features, and pointers come from references to arrays of the
        // size that the instructions read or write; unaligned variants are used throughout.
        unsafe { $e }
    }};
}

pub(crate) mod amx;
mod array;
pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dispatch;
pub(crate) mod embedding;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod expand;
mod features;
mod level;
#[cfg(target_arch = "aarch64")]
mod neon;
mod prefetch;
mod scalar;
mod simd;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use array::array;
pub(crate) use attention::AttentionSimd;
pub(crate) use dispatch::{EntryKernel, Kernel, Level};
pub(crate) use embedding::EmbeddingSimd;
pub use features::{cpu_features, cpu_name};
pub use level::{SimdLevel, UnsupportedSimdLevel};
pub(crate) use prefetch::{L1, L2, prefetch, prefetch_stream};
pub(crate) use scalar::Scalar;
pub(crate) use simd::{Simd, round_to_bf16};
