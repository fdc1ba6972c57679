//! Everything that names a CPU: levels and their detection, the vector operations that kernels are written in, and the
//! compiled entry points of each level.
//!
//! | file | content |
//! |---|---|
//! | [`level`] | [`SimdLevel`], the proof that the CPU has a set of features |
//! | [`dispatch`] | the function that runs a generic [`Kernel`] with a level's instructions |
//! | [`simd`] | [`Simd`], the vector operations of all kernels |
//! | [`attention`], [`codes`], [`embedding`] | further vector operations, for one family of kernels each |
//! | [`scalar`], [`avx2`], [`avx512`] | their implementations |
//! | [`amx`] | tile registers |

pub(crate) mod amx;
pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod codes;
pub(crate) mod dispatch;
pub(crate) mod embedding;
pub(crate) mod level;
pub(crate) mod scalar;
pub(crate) mod simd;

pub(crate) use dispatch::Kernel;
pub use level::{SimdLevel, UnsupportedSimdLevel};
pub(crate) use simd::{Simd, round_to_bf16};
