//! Rows of stored types as f32, in plain Rust: the definition of every type.
//!
//! ```text
//! Q4_0, Q5_0, Q8_0   x = d (q - zero)                        blocks of 32 columns; zero = 8, 16, 0
//! Q4_1, Q5_1         x = d q + m
//! Q4_K, Q5_K         x = d scale[g] q - dmin minimum[g]      blocks of 256, g = group of 32 columns
//! Q6_K, Q3_K         x = d scale[g] (q - zero)               blocks of 256, g = group of 16 columns; zero = 32, 4
//! Q2_K               x = d scale[g] q - dmin minimum[g]      blocks of 256, g = group of 16 columns
//! TQ1_0, TQ2_0       x = d (q - 1)                           blocks of 256
//! Q1_0, Q2_0         x = d (q - 1)                           blocks of 128 and 64
//! IQ4_NL             x = d values[q]                         blocks of 32
//! IQ1 to IQ4_XS      x = d factor scale[g] q                 blocks of 256, g = group of 16 columns: `iq`
//! MXFP4, NVFP4       x = scale values[q]                     blocks of 32 and 64; a scale per 32 and 16 columns
//! cb4, cb3, cb2      x = scale values[q]                     blocks of 32
//! ```
//! The bytes of each type are drawn in the file of its format. Embedding tables in the mapped file are read with these
//! functions, and the tests compare the packed formats with them.
//!
//! Source: the block types of GGUF (`ggml-common.h` of llama.cpp); `cb` for the codebook formats.

use super::{cb, fp4, iq, iq4_nl, q1_0, q2_0, q3_k, q4_k::scale_min, ternary};
use crate::DType;
use half::{bf16, f16};

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// Decodes `row`, a row of type `dtype`, into `out`.
///
/// # Panics
/// When `row` is not exactly as long as `out.len()` elements of this type need.
pub fn dequantize_row(dtype: DType, row: &[u8], out: &mut [f32]) {
    assert_eq!(Some(row.len()), dtype.row_bytes(out.len()), "row of {dtype}");
    let decode: fn(&[u8], &mut [f32]) = match dtype {
        DType::F32 => |b, y| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        DType::F16 => |b, y| y[0] = half_at(b, 0),
        DType::BF16 => |b, y| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        DType::Q4_0 => |b, y| nibbles(Nibbles { q: &b[2..], fifth: 0, zero: 8 }, half_at(b, 0), 0.0, y),
        DType::Q4_1 => {
            |b, y| nibbles(Nibbles { q: &b[4..], fifth: 0, zero: 0 }, half_at(b, 0), half_at(b, 2), y)
        }
        DType::Q5_0 => |b, y| {
            nibbles(Nibbles { q: &b[6..], fifth: u32_at(b, 2), zero: 16 }, half_at(b, 0), 0.0, y);
        },
        DType::Q5_1 => |b, y| {
            nibbles(Nibbles { q: &b[8..], fifth: u32_at(b, 4), zero: 0 }, half_at(b, 0), half_at(b, 2), y);
        },
        DType::Q8_0 => |b, y| {
            for (y, &q) in y.iter_mut().zip(&b[2..]) {
                *y = half_at(b, 0) * f32::from(q as i8);
            }
        },
        DType::Q4_K => |b, y| k_nibbles(b, None, &b[16..], y),
        DType::Q5_K => |b, y| k_nibbles(b, Some(&b[16..48]), &b[48..], y),
        DType::Q6_K => q6_k,
        DType::Q2_K => q2_k,
        DType::Q3_K => q3_k,
        DType::IQ4_NL => |b, y| indexed(half_at(b, 0), &iq4_nl::VALUES, &b[2..], y),
        DType::TQ1_0 => |b, y| scaled(half_at(b, 52), &ternary::values(DType::TQ1_0, b), y),
        DType::TQ2_0 => |b, y| scaled(half_at(b, 64), &ternary::values(DType::TQ2_0, b), y),
        DType::Q1_0 => |b, y| {
            for (i, y) in y.iter_mut().enumerate() {
                *y = half_at(b, 0) * (2.0 * f32::from(q1_0::bit(b, i)) - 1.0);
            }
        },
        DType::Q2_0 => |b, y| {
            for (i, y) in y.iter_mut().enumerate() {
                *y = half_at(b, 0) * (f32::from(q2_0::bits(b, i)) - 1.0);
            }
        },
        DType::MXFP4 => {
            |b, y| indexed(bf16::from_bits(fp4::half_e8m0(b[0])).to_f32(), &fp4::VALUES, &b[1..], y)
        }
        DType::NVFP4 => |b, y| {
            for (g, y) in y.chunks_exact_mut(16).enumerate() {
                indexed(fp4::half_e4m3(b[g]), &fp4::VALUES, &b[4 + 8 * g..12 + 8 * g], y);
            }
        },
        DType::IQ4_XS => |b, y| codes(DType::IQ4_XS, b, y),
        DType::IQ3_S => |b, y| codes(DType::IQ3_S, b, y),
        DType::IQ3_XXS => |b, y| codes(DType::IQ3_XXS, b, y),
        DType::IQ2_S => |b, y| codes(DType::IQ2_S, b, y),
        DType::IQ2_XS => |b, y| codes(DType::IQ2_XS, b, y),
        DType::IQ2_XXS => |b, y| codes(DType::IQ2_XXS, b, y),
        DType::IQ1_M => |b, y| codes(DType::IQ1_M, b, y),
        DType::IQ1_S => |b, y| codes(DType::IQ1_S, b, y),
        DType::CB4 => |b, y| cb::dequantize(DType::CB4, b, y),
        DType::CB3 => |b, y| cb::dequantize(DType::CB3, b, y),
        DType::CB2 => |b, y| cb::dequantize(DType::CB2, b, y),
    };
    for (block, y) in row.chunks_exact(dtype.block_bytes()).zip(out.chunks_exact_mut(dtype.block_len())) {
        decode(block, y);
    }
}

/// The integers of a block of 32 columns.
struct Nibbles<'a> {
    /// Byte `i` has column `i` in its low nibble and column `i + 16` in its high nibble.
    q: &'a [u8],
    /// Bit `i` is the fifth bit of column `i`.
    fifth: u32,
    /// The integer that represents zero.
    zero: i32,
}

/// `y = scale * (q - zero) + minimum`.
fn nibbles(Nibbles { q, fifth, zero }: Nibbles<'_>, scale: f32, minimum: f32, y: &mut [f32]) {
    for (i, y) in y.iter_mut().enumerate() {
        let nibble = if i < 16 { q[i] & 15 } else { q[i - 16] >> 4 };
        let value = i32::from(nibble) + ((fifth >> i & 1) << 4) as i32 - zero;
        *y = scale * value as f32 + minimum;
    }
}

/// 8 groups of 32 columns with 6-bit scales and minima.
fn k_nibbles(b: &[u8], fifth: Option<&[u8]>, q: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for (g, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_min(&b[4..16], g);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for (i, y) in y.iter_mut().enumerate() {
            let byte = q[32 * (g / 2) + i];
            let nibble = if g % 2 == 0 { byte & 15 } else { byte >> 4 };
            let high = fifth.map_or(0, |h| h[i] >> g & 1) << 4;
            *y = scale * f32::from(nibble + high) - minimum;
        }
    }
}

fn q6_k(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 208);
    for (i, y) in y.iter_mut().enumerate() {
        let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let byte = b[64 * half + 32 * (quarter % 2) + l];
        let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
        let high = b[128 + 32 * half + l] >> (2 * quarter) & 3;
        let scale = f32::from(b[192 + i / 16] as i8);
        *y = d * scale * (i32::from(nibble | high << 4) - 32) as f32;
    }
}

/// Two bits of column `i` of a block of 256 (`Q2_K`).
fn two_bits(q: &[u8], i: usize) -> u8 {
    q[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32)) & 3
}

fn q2_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    for (i, y) in y.iter_mut().enumerate() {
        let (scale, minimum) = (b[i / 16] & 15, b[i / 16] >> 4);
        *y = d * f32::from(scale) * f32::from(two_bits(&b[16..], i)) - dmin * f32::from(minimum);
    }
}

fn q3_k(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 108);
    for (i, y) in y.iter_mut().enumerate() {
        let q = two_bits(&b[32..], i) | (b[i % 32] >> (i / 32) & 1) << 2;
        *y = d * f32::from(q3_k::scale(&b[96..108], i / 16)) * (f32::from(q) - 4.0);
    }
}

/// `y = scale * values[index]`, the indexes of the first half of the columns in low nibbles.
fn indexed(scale: f32, values: &[i8; 16], q: &[u8], y: &mut [f32]) {
    let half = y.len() / 2;
    for (i, y) in y.iter_mut().enumerate() {
        let index = if i < half { q[i] & 15 } else { q[i - half] >> 4 };
        *y = scale * f32::from(values[usize::from(index)]);
    }
}

/// `y = scale * q`.
fn scaled(scale: f32, q: &[i8], y: &mut [f32]) {
    y.iter_mut().zip(q).for_each(|(y, &q)| *y = scale * f32::from(q));
}

fn codes(dtype: DType, b: &[u8], y: &mut [f32]) {
    let codes = iq::decode(dtype, b);
    let d = f16::from_bits(codes.d).to_f32() * iq::factor(dtype);
    for (g, y) in y.chunks_exact_mut(16).enumerate() {
        scaled(d * f32::from(codes.scale[g]), &codes.q[16 * g..], y);
    }
}
