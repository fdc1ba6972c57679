//! MXFP4 as Hugging Face files store it: 32 numbers are 16 bytes and a scale (OCP Microscaling Formats 1.0, section 5.3).
//!
//! ```text
//! x[2j], x[2j + 1]   = FP4[low, high nibble of byte j] * 2^(scale - 127)
//! x[j], x[j + 16]    the same in a block of the kernels, which begins with the scale
//! ```

use scrimp_kernels::DType;

/// Appends 32 numbers to `out` as a block of [`DType::MXFP4`]: the same numbers, in another order of the nibbles.
pub(super) fn append_block(bytes: &[u8; 16], scale: u8, out: &mut Vec<u8>) {
    let nibble = |i: usize| bytes[i / 2] >> (4 * (i % 2)) & 15;
    out.push(scale);
    out.extend((0..16).map(|j| nibble(j) | nibble(j + 16) << 4));
    debug_assert!(out.len().is_multiple_of(DType::MXFP4.block_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrimp_kernels::quant::dequantize::dequantize_row;

    #[test]
    fn numbers_keep_their_places() {
        let bytes: [u8; 16] = std::array::from_fn(|j| (2 * j as u8 % 16) | ((2 * j as u8 + 1) % 16) << 4);
        let mut block = Vec::new();
        append_block(&bytes, 128, &mut block);
        let mut x = [0.0; 32];
        dequantize_row(DType::MXFP4, &block, &mut x);
        let values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let signed = |i: usize| if i % 16 < 8 { values[i % 8] } else { -values[i % 8] };
        assert_eq!(x, std::array::from_fn(|i| 2.0 * signed(i)));
    }
}
