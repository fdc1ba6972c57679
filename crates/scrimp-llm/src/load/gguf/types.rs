//! The numbers that GGUF uses for tensor types and for metadata types.

use scrimp_kernels::DType;

/// The tensor type with number `number`. An unsupported type is an error with its name, `None` if it is unknown.
pub(super) fn tensor_type(number: u32) -> Result<DType, Option<&'static str>> {
    let unsupported = match number {
        0 => return Ok(DType::F32),
        1 => return Ok(DType::F16),
        2 => return Ok(DType::Q4_0),
        3 => return Ok(DType::Q4_1),
        6 => return Ok(DType::Q5_0),
        7 => return Ok(DType::Q5_1),
        8 => return Ok(DType::Q8_0),
        10 => return Ok(DType::Q2_K),
        11 => return Ok(DType::Q3_K),
        12 => return Ok(DType::Q4_K),
        13 => return Ok(DType::Q5_K),
        14 => return Ok(DType::Q6_K),
        16 => return Ok(DType::IQ2_XXS),
        17 => return Ok(DType::IQ2_XS),
        18 => return Ok(DType::IQ3_XXS),
        19 => return Ok(DType::IQ1_S),
        20 => return Ok(DType::IQ4_NL),
        21 => return Ok(DType::IQ3_S),
        22 => return Ok(DType::IQ2_S),
        23 => return Ok(DType::IQ4_XS),
        29 => return Ok(DType::IQ1_M),
        30 => return Ok(DType::BF16),
        34 => return Ok(DType::TQ1_0),
        35 => return Ok(DType::TQ2_0),
        39 => return Ok(DType::MXFP4),
        40 => return Ok(DType::NVFP4),
        41 => return Ok(DType::Q1_0),
        42 => return Ok(DType::Q2_0),
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => return Err(None),
    };
    Err(Some(unsupported))
}

/// Type of a metadata value, or of the items of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// Single precision.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// UTF-8 with a 64-bit length before it.
    Str,
    /// Item type, 64-bit count, items.
    Array,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// Double precision.
    F64,
}

impl ValueType {
    /// The type with GGUF's number `number`.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        const TYPES: [ValueType; 13] = [
            ValueType::U8,
            ValueType::I8,
            ValueType::U16,
            ValueType::I16,
            ValueType::U32,
            ValueType::I32,
            ValueType::F32,
            ValueType::Bool,
            ValueType::Str,
            ValueType::Array,
            ValueType::U64,
            ValueType::I64,
            ValueType::F64,
        ];
        TYPES.get(usize::try_from(number).ok()?).copied()
    }

    /// GGUF's number of the type.
    pub(super) fn number(self) -> u32 {
        self as u32
    }

    /// Bytes of a value of fixed size; for strings and arrays, the smallest possible size.
    pub(super) fn min_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Str => 8,
            Self::Array => 12,
        }
    }

    /// The name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Str => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}
