//! Kinds of quants: how integer dot products of a group become floats.
//!
//! Formats of one kind share all kernels that read unpacked groups, which are most of the kernels' code. Each format
//! names its kind as [`BlockFormat::Quants`](super::BlockFormat::Quants).

/// How the integer dot product of a group becomes a float.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scaling {
    /// `scale * (sum(w x) - ZERO * sum(x))`
    Symmetric,
    /// `scale * sum(w x) + second * sum(x)`
    Minimum,
    /// Two scales per group, one for each 16 columns: `scale * sum_lo + second * sum_hi`, each less `ZERO * sum(x)`.
    TwoScales,
    /// `scale * sum(w x) + second * sum_lo(x) + third * sum_hi(x)`, the sums of the first and the last 16 columns.
    TwoMinima,
}

/// A kind of quants.
pub(crate) trait Quants: 'static {
    const SCALING: Scaling;
    /// Subtracted from every quant. With minima it is 0.
    const ZERO: i32;
    /// No quant is larger. More than 127 means that the kernels must use [`Simd::dot_wide`](crate::arch::Simd::dot_wide);
    /// `ZERO` is then 128.
    const LARGEST: usize;
}

/// [`Scaling::Symmetric`].
pub(crate) struct Symmetric<const ZERO: i32, const LARGEST: usize>;
/// [`Scaling::Minimum`].
pub(crate) struct Minimum<const LARGEST: usize>;
/// [`Scaling::TwoScales`].
pub(crate) struct TwoScales<const ZERO: i32, const LARGEST: usize>;
/// [`Scaling::TwoMinima`].
pub(crate) struct TwoMinima<const LARGEST: usize>;

impl<const ZERO: i32, const LARGEST: usize> Quants for Symmetric<ZERO, LARGEST> {
    const SCALING: Scaling = Scaling::Symmetric;
    const ZERO: i32 = ZERO;
    const LARGEST: usize = LARGEST;
}

impl<const LARGEST: usize> Quants for Minimum<LARGEST> {
    const SCALING: Scaling = Scaling::Minimum;
    const ZERO: i32 = 0;
    const LARGEST: usize = LARGEST;
}

impl<const ZERO: i32, const LARGEST: usize> Quants for TwoScales<ZERO, LARGEST> {
    const SCALING: Scaling = Scaling::TwoScales;
    const ZERO: i32 = ZERO;
    const LARGEST: usize = LARGEST;
}

impl<const LARGEST: usize> Quants for TwoMinima<LARGEST> {
    const SCALING: Scaling = Scaling::TwoMinima;
    const ZERO: i32 = 0;
    const LARGEST: usize = LARGEST;
}
