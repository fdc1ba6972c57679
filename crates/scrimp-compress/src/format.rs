//! The formats that matrices are compressed to.

use crate::Dense;
use scrimp_kernels::{
    DType,
    quant::{cb, packed::WeightFormat},
};
use scrimp_llm::error::{Error, Result};
use std::fmt;

/// How a matrix is stored. A format of either kind that is new in [`WeightFormat::ALL`] or [`DType::CODEBOOKS`] can be
/// chosen without a change here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As in the original, without a change.
    Keep,
    /// Floats or integers; the sparse form replaces a dense one where it is smaller.
    Packed(WeightFormat),
    /// Indexes into a codebook: one of [`DType::CODEBOOKS`].
    Codebook(DType),
}

impl From<WeightFormat> for Format {
    fn from(format: WeightFormat) -> Self {
        Self::Packed(format.dense())
    }
}

impl Format {
    /// bfloat16.
    pub const BF16: Self = Self::Packed(WeightFormat::Bf16);
    /// Integers of 8 bits.
    pub const INT8: Self = Self::Packed(WeightFormat::Int8);
    /// Integers of 4 bits.
    pub const INT4: Self = Self::Packed(WeightFormat::Int4);

    /// Every format that changes weights, by descending size.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        let packed = WeightFormat::ALL.into_iter().filter(|format| !format.is_sparse()).map(Self::Packed);
        packed.chain(DType::CODEBOOKS.map(Self::Codebook))
    }

    /// The name that users and files see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Packed(format) => format.name(),
            Self::Codebook(dtype) => dtype.name(),
        }
    }

    /// One line for lists of formats.
    pub fn about(self) -> &'static str {
        match self {
            Self::Keep => "The format of the original",
            Self::Packed(format) => format.about(),
            Self::Codebook(DType::CB4) => "codebook of 16 values, one scale per 32 weights (4.25 bits)",
            Self::Codebook(DType::CB3) => "codebook of 8 values, one scale per 32 weights (3.25 bits)",
            Self::Codebook(_) => "codebook of 4 values, one scale per 32 weights (2.25 bits)",
        }
    }

    /// Checks that the format can hold `weight`.
    ///
    /// # Errors
    /// The format is a codebook, and the columns are no whole number of groups or a weight is too large.
    pub fn check(self, weight: &Dense) -> Result<()> {
        let Self::Codebook(dtype) = self else { return Ok(()) };
        if !weight.cols.is_multiple_of(dtype.block_len()) {
            let columns = format!("{} columns are no multiple of {}", weight.cols, dtype.block_len());
            return Err(Error::bad_input(columns));
        }
        if weight.data.iter().any(|w| w.abs() > cb::LARGEST) {
            return Err(Error::bad_input(format!("a weight is larger than {}", cb::LARGEST)));
        }
        Ok(())
    }

    /// Whether the format can hold `weight`.
    pub(crate) fn fits(self, weight: &Dense) -> bool {
        self.check(weight).is_ok()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::all().chain([Self::Keep]).find(|format| format.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::all().map(Self::name).collect();
            Error::bad_input(format!("there is no weight format `{name}`"))
                .with_hint(format!("these are: {}", known.join(", ")))
        })
    }
}
