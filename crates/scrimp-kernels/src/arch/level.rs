//! Instruction-set levels: which kernels this process runs, chosen once and passed along.

use std::{fmt, str::FromStr};

/// A set of CPU features that kernels are compiled for.
///
/// A value other than [`SimdLevel::SCALAR`] can only be had through [`SimdLevel::detect`] and friends, which check the
/// CPU: holding one is the proof that its instructions may be executed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SimdLevel(Kind, Amx);

/// The use of tile registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Amx {
    None,
    /// See [`SimdLevel::exact`].
    Exact,
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    #[cfg(target_arch = "aarch64")]
    I8mm,
}

/// Names of the levels of all architectures.
const NAMES: [&str; 7] = ["scalar", "avx2", "avx512", "amx", "neon", "dotprod", "i8mm"];

impl SimdLevel {
    /// Plain Rust: the specification of every kernel.
    pub const SCALAR: Self = Self(Kind::Scalar, Amx::None);

    pub(crate) const fn kind(self) -> Kind {
        self.0
    }

    /// AVX2, FMA, F16C and the bit operations that came with them (BMI, LZCNT, POPCNT), where the CPU has them.
    pub fn avx2() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if super::avx2::Avx2::available() {
            return Some(Self(Kind::Avx2, Amx::None));
        }
        None
    }

    /// AVX-512 F, BW, DQ, VL, VNNI, BF16, VBMI and VBMI2, where the CPU has them (Zen 4, Sapphire Rapids and later).
    pub fn avx512() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if super::avx512::Avx512::available() {
            return Some(Self(Kind::Avx512, Amx::None));
        }
        None
    }

    /// AVX-512 and AMX with bf16 and int8 (Sapphire Rapids and later), where the CPU has them and the system gives this
    /// process permission to use tile registers.
    pub fn amx() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let Some(Self(kind, _)) = Self::avx512()
            && super::amx::asm::available()
        {
            return Some(Self(kind, Amx::Any));
        }
        None
    }

    /// NEON, which every aarch64 CPU has.
    pub fn neon() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if super::neon::NeonBase::available() {
            return Some(Self(Kind::Neon, Amx::None));
        }
        None
    }

    /// NEON and the dot products of Armv8.4 (Cortex-A76, Neoverse N1, Apple M1 and later), where the CPU has them.
    pub fn dotprod() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if super::neon::NeonDotprod::available() {
            return Some(Self(Kind::Dotprod, Amx::None));
        }
        None
    }

    /// NEON, dot products, and the matrix products of Armv8.6 for 8-bit integers and bf16 (Cortex-A510, Neoverse V1,
    /// Apple M2 and later), where the CPU has them.
    pub fn i8mm() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if super::neon::NeonI8mm::available() {
            return Some(Self(Kind::I8mm, Amx::None));
        }
        None
    }

    /// A level that uses AMX whether the CPU has it or not: for tests that execute the instructions themselves.
    #[cfg(test)]
    pub(crate) fn emulated_amx() -> Option<Self> {
        Self::avx512().map(|Self(kind, _)| Self(kind, Amx::Any))
    }

    /// Whether batches of bf16 are multiplied faster than f32 (two or more products per lane and instruction).
    pub const fn has_bf16_products(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self.0, Kind::Avx512);
        #[cfg(target_arch = "aarch64")]
        return matches!(self.0, Kind::I8mm);
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        return false;
    }

    /// Whether this is the level in plain Rust.
    pub(crate) const fn is_scalar(self) -> bool {
        matches!(self.0, Kind::Scalar)
    }

    /// Whether batches are multiplied with tile registers.
    pub(crate) const fn has_amx(self) -> bool {
        !matches!(self.1, Amx::None)
    }

    /// This level, limited to kernels of linear layers that give a token the same bits in batches of any size. Without
    /// AMX, that is the level itself. With AMX, large batches multiply in bf16; the exact level does not.
    #[must_use]
    pub const fn exact(self) -> Self {
        match self.1 {
            Amx::Any => Self(self.0, Amx::Exact),
            Amx::None | Amx::Exact => self,
        }
    }

    /// Whether this is an exact level with AMX.
    pub(crate) const fn is_exact(self) -> bool {
        matches!(self.1, Amx::Exact)
    }

    /// Every level that this CPU supports, slowest first.
    pub fn supported() -> Vec<Self> {
        let x86 = [Self::avx2(), Self::avx512(), Self::amx()];
        let arm = [Self::neon(), Self::dotprod(), Self::i8mm()];
        [Some(Self::SCALAR)].into_iter().chain(x86).chain(arm).flatten().collect()
    }

    /// The best level of this CPU.
    pub fn detect() -> Self {
        Self::supported().pop().unwrap_or(Self::SCALAR)
    }

    /// The level that the variable `SCRIMP_TIER` names, or the best level of this CPU.
    ///
    /// # Errors
    /// When the variable names a level that is unknown or that this CPU lacks.
    pub fn from_env() -> Result<Self, UnsupportedSimdLevel> {
        match std::env::var("SCRIMP_TIER") {
            Ok(name) if !name.is_empty() => name.parse(),
            _ => Ok(Self::detect()),
        }
    }

    /// `scalar`; `avx2`, `avx512` or `amx`; `neon`, `dotprod` or `i8mm`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => NAMES[0],
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => NAMES[1],
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 if self.has_amx() => NAMES[3],
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => NAMES[2],
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => NAMES[4],
            #[cfg(target_arch = "aarch64")]
            Kind::Dotprod => NAMES[5],
            #[cfg(target_arch = "aarch64")]
            Kind::I8mm => NAMES[6],
        }
    }
}

impl fmt::Debug for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The error for a level that does not exist or that this CPU lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedSimdLevel {
    name: String,
}

impl fmt::Display for UnsupportedSimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let supported: Vec<_> = SimdLevel::supported().into_iter().map(SimdLevel::name).collect();
        let why = if NAMES.contains(&self.name.as_str()) {
            "this CPU lacks it"
        } else {
            "there is no such SIMD level"
        };
        write!(f, "SIMD level `{}`: {why}; supported here: {}", self.name, supported.join(", "))
    }
}

impl std::error::Error for UnsupportedSimdLevel {}

impl FromStr for SimdLevel {
    type Err = UnsupportedSimdLevel;

    fn from_str(name: &str) -> Result<Self, UnsupportedSimdLevel> {
        Self::supported()
            .into_iter()
            .find(|level| level.name() == name)
            .ok_or_else(|| UnsupportedSimdLevel { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for level in SimdLevel::supported() {
            assert_eq!(level.name().parse(), Ok(level));
        }
        assert!("avx3".parse::<SimdLevel>().unwrap_err().to_string().contains("scalar"));
    }
}
