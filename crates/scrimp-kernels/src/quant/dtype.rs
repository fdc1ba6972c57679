//! Element and block types of stored tensors: those of GGUF with its names, and the codebook formats of scrimp.
//!
//! A block type stores 32 to 256 consecutive columns of a row in one block of bytes. The files of the formats draw the
//! blocks; [`dequantize`](super::dequantize) has the formulas.

use super::{fp4, iq};

/// How the elements of a stored tensor are encoded.
///
/// Block types store `block_len` consecutive elements of a row in `block_bytes` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 32 × 4 bits, one f16 scale, zero point 8.
    Q4_0,
    /// 32 × 4 bits, f16 scale and minimum.
    Q4_1,
    /// 32 × 5 bits, one f16 scale, zero point 16.
    Q5_0,
    /// 32 × 5 bits, f16 scale and minimum.
    Q5_1,
    /// 32 × 8 bits signed, one f16 scale.
    Q8_0,
    /// 256 × 4 bits, 6-bit scales and minima per 32.
    Q4_K,
    /// 256 × 5 bits, 6-bit scales and minima per 32.
    Q5_K,
    /// 256 × 6 bits, 8-bit scales per 16.
    Q6_K,
    /// 256 × 2 bits, 4-bit scales and minima per 16.
    Q2_K,
    /// 256 × 3 bits, 6-bit scales per 16.
    Q3_K,
    /// 32 × 4 bits: indexes into 16 values; one f16 scale.
    IQ4_NL,
    /// 256 × 4 bits: indexes into the values of `IQ4_NL`; 6-bit scales per 32.
    IQ4_XS,
    /// 256: indexes into 512 vectors of 4 magnitudes, and signs; 4-bit scales per 32.
    IQ3_S,
    /// 256: indexes into 256 vectors of 4 magnitudes, and signs; 4-bit scales per 32.
    IQ3_XXS,
    /// 256: indexes into 1024 vectors of 8 magnitudes, and signs; 4-bit scales per 16.
    IQ2_S,
    /// 256: indexes into 512 vectors of 8 magnitudes, and signs; 4-bit scales per 16.
    IQ2_XS,
    /// 256: indexes into 256 vectors of 8 magnitudes, and signs; 4-bit scales per 32.
    IQ2_XXS,
    /// 256: indexes into 2048 vectors of 8 ternary values; offsets per 8, 3-bit scales per 16.
    IQ1_M,
    /// 256: indexes into 2048 vectors of 8 ternary values; offsets and 3-bit scales per 32.
    IQ1_S,
    /// 256 ternary values, 5 per byte, one f16 scale.
    TQ1_0,
    /// 256 ternary values, 2 bits each, one f16 scale.
    TQ2_0,
    /// 128 signs, one f16 scale.
    Q1_0,
    /// 64 × 2 bits, one f16 scale, zero point 1.
    Q2_0,
    /// 32 × 4 bits: floats with 2 bits of exponent; one scale, a power of two (OCP Microscaling).
    MXFP4,
    /// 64 × 4 bits: floats with 2 bits of exponent; 8-bit float scales per 16.
    NVFP4,
    /// 32 × 4 bits: indexes into 16 values; one 8-bit float scale. A type of scrimp.
    CB4,
    /// 32 × 3 bits: indexes into 8 values; one 8-bit float scale. A type of scrimp.
    CB3,
    /// 32 × 2 bits: indexes into 4 values; one 8-bit float scale. A type of scrimp.
    CB2,
}

impl DType {
    /// Every type, in the order of the documentation.
    pub const ALL: [Self; 31] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::Q2_K,
        Self::Q3_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::IQ3_S,
        Self::IQ3_XXS,
        Self::IQ2_S,
        Self::IQ2_XS,
        Self::IQ2_XXS,
        Self::IQ1_M,
        Self::IQ1_S,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::Q1_0,
        Self::Q2_0,
        Self::MXFP4,
        Self::NVFP4,
        Self::CB4,
        Self::CB3,
        Self::CB2,
    ];

    /// The codebook formats, by descending size. No GGUF file has them.
    pub const CODEBOOKS: [Self; 3] = [Self::CB4, Self::CB3, Self::CB2];

    /// Elements per block (1 for plain floats).
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::MXFP4 | Self::CB4 | Self::CB3 | Self::CB2 => 32,
            Self::NVFP4 | Self::Q2_0 => 64,
            Self::Q1_0 => 128,
            _ => 256,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::IQ4_NL => 18,
            Self::IQ4_XS => 136,
            Self::IQ3_S => 110,
            Self::IQ3_XXS => 98,
            Self::IQ2_S => 82,
            Self::IQ2_XS => 74,
            Self::IQ2_XXS => 66,
            Self::IQ1_M => 56,
            Self::IQ1_S => 50,
            Self::TQ1_0 => 54,
            Self::TQ2_0 => 66,
            Self::Q1_0 | Self::Q2_0 => 18,
            Self::MXFP4 => 17,
            Self::NVFP4 => 36,
            Self::CB4 => 17,
            Self::CB3 => 13,
            Self::CB2 => 9,
        }
    }

    /// Bytes of a row of `cols` elements, or `None` when `cols` is no whole number of blocks or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Where a block's f16 scales and minima are (byte offsets). That of `IQ1_M` is in four pieces elsewhere, and the
    /// scales of `MXFP4`, `NVFP4` and the codebook formats have 8 bits.
    pub(crate) const fn half_fields(self) -> &'static [usize] {
        match self {
            Self::F32 | Self::F16 | Self::BF16 | Self::IQ1_M | Self::MXFP4 | Self::NVFP4 => &[],
            Self::CB4 | Self::CB3 | Self::CB2 => &[],
            Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K => &[0, 2],
            Self::Q6_K => &[208],
            Self::Q2_K => &[80, 82],
            Self::Q3_K => &[108],
            Self::TQ1_0 => &[52],
            Self::TQ2_0 => &[64],
            _ => &[0],
        }
    }

    /// Whether stored `data` decodes to finite numbers only.
    pub(crate) fn all_finite(self, data: &[u8]) -> bool {
        let u16s = || data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
        match self {
            Self::F32 => data
                .as_chunks::<4>()
                .0
                .iter()
                .fold(true, |ok, b| ok & (u32::from_le_bytes(*b) & 0x7f80_0000 != 0x7f80_0000)),
            Self::F16 => u16s().fold(true, |ok, x| ok & (x & 0x7c00 != 0x7c00)),
            Self::BF16 => u16s().fold(true, |ok, x| ok & (x & 0x7f80 != 0x7f80)),
            Self::IQ1_M => {
                data.chunks_exact(self.block_bytes()).all(|b| iq::iq1_m_scale(b) & 0x7c00 != 0x7c00)
            }
            Self::MXFP4 => data.chunks_exact(self.block_bytes()).all(|b| b[0] <= fp4::LARGEST_E8M0),
            _ => data.chunks_exact(self.block_bytes()).fold(true, |ok, block| {
                self.half_fields().iter().fold(ok, |ok, &at| ok & (block[at + 1] & 0x7c != 0x7c))
            }),
        }
    }

    /// The name that users see: `f32`, `f16`, `bf16`, GGUF's name in capitals, or that of a codebook format (`cb4`).
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::IQ4_NL => "IQ4_NL",
            Self::IQ4_XS => "IQ4_XS",
            Self::IQ3_S => "IQ3_S",
            Self::IQ3_XXS => "IQ3_XXS",
            Self::IQ2_S => "IQ2_S",
            Self::IQ2_XS => "IQ2_XS",
            Self::IQ2_XXS => "IQ2_XXS",
            Self::IQ1_M => "IQ1_M",
            Self::IQ1_S => "IQ1_S",
            Self::TQ1_0 => "TQ1_0",
            Self::TQ2_0 => "TQ2_0",
            Self::Q1_0 => "Q1_0",
            Self::Q2_0 => "Q2_0",
            Self::MXFP4 => "MXFP4",
            Self::NVFP4 => "NVFP4",
            Self::CB4 => "cb4",
            Self::CB3 => "cb3",
            Self::CB2 => "cb2",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
