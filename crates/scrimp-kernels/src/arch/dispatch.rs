//! The one place where a tier becomes compiled code.
//!
//! A kernel is a value that implements [`Kernel`]; [`SimdLevel::run`] calls it inside a function that carries the tier's
//! `target_feature`s, and everything below is inlined into that function.

#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};
use super::{
    level::{Kind, SimdLevel},
    scalar::Scalar,
    simd::Simd,
};

/// A computation written once over [`Simd`]. Implementations mark `run` `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

impl SimdLevel {
    /// Runs `kernel` with this tier's instructions.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.kind() {
            Kind::Scalar => kernel.run(Scalar),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `SimdLevel` of this kind exists only where the CPU has the features.
            Kind::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl SimdLevel {
    /// Runs a kernel that uses tile registers besides vectors, which is compiled for this tier only.
    ///
    /// # Panics
    /// In a tier without AMX.
    pub(crate) fn run_with_amx<K: Kernel>(self, kernel: K) -> K::Output {
        assert!(self.has_amx() && self.kind() == Kind::Avx512, "a level with AMX");
        // SAFETY: a `SimdLevel` of this kind exists only where the CPU has the features.
        unsafe { run_avx512(kernel) }
    }
}

/// # Safety
/// The CPU must have the features that are enabled here.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    kernel.run(unsafe { Avx2::new() })
}

/// # Safety
/// The CPU must have the features that are enabled here.
#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi,avx512vbmi2"
)]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    kernel.run(unsafe { Avx512::new() })
}
