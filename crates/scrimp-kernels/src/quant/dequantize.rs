//! Rows of stored types as f32, in plain Rust: the definition of every type.
//!
//! ```text
//! Q4_0, Q5_0, Q8_0   x = d (q - zero)                        blocks of 32 columns; zero = 8, 16, 0
//! Q4_1, Q5_1         x = d q + m
//! Q4_K, Q5_K         x = d scale[g] q - dmin minimum[g]      blocks of 256, g = group of 32 columns
//! Q6_K               x = d scale[g] (q - 32)                 blocks of 256, g = group of 16 columns
//! ```
//! The bytes of each type are drawn in the file of its format. Embedding tables in the mapped file are read with these
//! functions, and the tests compare the packed formats with them.
//!
//! Source: the block types of GGUF (`ggml-common.h` of llama.cpp).

use super::q4_k::scale_min;
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
