//! Element and block types of stored tensors, with GGUF's names.
//!
//! A block type stores 32 or 256 consecutive columns of a row in one block of bytes. The files of the formats draw the
//! blocks; [`dequantize`](super::dequantize) has the formulas.

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
}

impl DType {
    /// Every type, in the order of the documentation.
    pub const ALL: [Self; 11] = [
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
    ];

    /// Elements per block (1 for plain floats).
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
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
        }
    }

    /// Bytes of a row of `cols` elements, or `None` when `cols` is no whole number of blocks or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Where a block's f16 scales and minima are (byte offsets).
    pub(crate) const fn half_fields(self) -> &'static [usize] {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => &[],
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K => &[0, 2],
            Self::Q6_K => &[208],
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
            _ => data.chunks_exact(self.block_bytes()).fold(true, |ok, block| {
                self.half_fields().iter().fold(ok, |ok, &at| ok & (block[at + 1] & 0x7c != 0x7c))
            }),
        }
    }

    /// The name that users see: `f32`, `f16`, `bf16`, or GGUF's name in capitals.
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
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
