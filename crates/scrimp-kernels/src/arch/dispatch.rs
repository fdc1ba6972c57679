//! The only place where a [`SimdLevel`] becomes compiled code, and where the CPU features of each level are listed.
//!
//! A kernel is written once over [`Level`]. [`SimdLevel::run`] calls it inside a function that carries the level's
//! `target_feature`s, and everything below is inlined into that function. Kernels that are chosen once and called often
//! ([`EntryKernel`]) have such a function each, whose pointer [`Level::call`] is.

#[cfg(target_arch = "aarch64")]
use super::neon::{NeonBase, NeonDotprod, NeonI8mm};
use super::{
    attention::AttentionSimd,
    embedding::EmbeddingSimd,
    level::{Kind, SimdLevel},
    scalar::Scalar,
    simd::Simd,
};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};

/// A computation written once over [`Level`]. Implementations mark `run` `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Level>(self, s: S) -> Self::Output;
}

/// A computation that is called through a pointer: `S::call::<K>` for level `S`. Implementations mark `run`
/// `#[inline(always)]`.
pub(crate) trait EntryKernel {
    type Args<'a>;
    /// # Safety
    /// As the implementation says of its arguments.
    unsafe fn run<S: Level>(s: S, args: Self::Args<'_>);
}

/// All vector operations of a level, and the functions that carry its `target_feature`s.
pub(crate) trait Level: Simd + AttentionSimd + EmbeddingSimd {
    /// Runs `kernel` with the level's instructions.
    ///
    /// # Safety
    /// The CPU has the level's features.
    unsafe fn enter<K: Kernel>(kernel: K) -> K::Output;

    /// Calls `K` with the level's instructions.
    ///
    /// # Safety
    /// The CPU has the level's features, and `args` are as `K` requires.
    unsafe fn call<K: EntryKernel>(args: K::Args<'_>);
}

impl Level for Scalar {
    unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Self)
    }

    unsafe fn call<K: EntryKernel>(args: K::Args<'_>) {
        // SAFETY: the caller passes arguments that `K` accepts.
        unsafe { K::run(Self, args) }
    }
}

/// Makes a level of CPU features: their detection with the macro `$detected`, and the functions that carry them.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! level {
    ($level:ident, $detected:path, [$($feature:tt),+ $(,)?]) => {
        impl $level {
            /// Whether this CPU has every feature of the level.
            pub(super) fn available() -> bool {
                use $detected as detected;
                $(detected!($feature))&&+
            }
        }

        impl Level for $level {
            #[target_feature($(enable = $feature),+)]
            unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
                // SAFETY: this function requires the CPU to have the features.
                kernel.run(unsafe { Self::new() })
            }

            #[target_feature($(enable = $feature),+)]
            unsafe fn call<K: EntryKernel>(args: K::Args<'_>) {
                // SAFETY: this function requires the CPU to have the features, and arguments that `K` accepts.
                unsafe { K::run(Self::new(), args) }
            }
        }
    };
}

/// [`level`] with the features of AVX2 and others.
#[cfg(target_arch = "x86_64")]
macro_rules! level_above_avx2 {
    ($level:ident, [$($feature:tt),*]) => {
        level!(
            $level,
            std::is_x86_feature_detected,
            ["avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt", "popcnt", $($feature),*]
        );
    };
}

#[cfg(target_arch = "x86_64")]
level_above_avx2!(Avx2, []);
#[cfg(target_arch = "x86_64")]
level_above_avx2!(
    Avx512,
    ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16", "avx512vbmi", "avx512vbmi2"]
);
#[cfg(target_arch = "aarch64")]
level!(NeonBase, std::arch::is_aarch64_feature_detected, ["neon"]);
#[cfg(target_arch = "aarch64")]
level!(NeonDotprod, std::arch::is_aarch64_feature_detected, ["neon", "dotprod"]);
#[cfg(target_arch = "aarch64")]
level!(NeonI8mm, std::arch::is_aarch64_feature_detected, ["neon", "dotprod", "i8mm", "bf16"]);

impl SimdLevel {
    /// Runs `kernel` with this level's instructions.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: a `SimdLevel` of a kind exists only where its constructor has found the kind's features.
        unsafe {
            match self.kind() {
                Kind::Scalar => Scalar::enter(kernel),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => Avx2::enter(kernel),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => Avx512::enter(kernel),
                #[cfg(target_arch = "aarch64")]
                Kind::Neon => NeonBase::enter(kernel),
                #[cfg(target_arch = "aarch64")]
                Kind::Dotprod => NeonDotprod::enter(kernel),
                #[cfg(target_arch = "aarch64")]
                Kind::I8mm => NeonI8mm::enter(kernel),
            }
        }
    }

    /// Runs a kernel that uses tile registers besides vectors; it is compiled for AVX-512 only.
    ///
    /// # Panics
    /// In a level without AMX.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn run_with_amx<K: Kernel>(self, kernel: K) -> K::Output {
        assert!(self.has_amx() && self.kind() == Kind::Avx512, "a level with AMX");
        // SAFETY: the level is AVX-512, so its constructor has found the features.
        unsafe { Avx512::enter(kernel) }
    }

    /// Tokens that a GEMM kernel of this level multiplies at once.
    pub(crate) fn token_tile(self) -> usize {
        struct TokenTile;
        impl Kernel for TokenTile {
            type Output = usize;
            #[inline(always)]
            fn run<S: Level>(self, _: S) -> usize {
                S::TOKEN_TILE
            }
        }
        self.run(TokenTile)
    }
}
