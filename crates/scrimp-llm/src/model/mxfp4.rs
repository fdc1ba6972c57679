//! MXFP4 as Hugging Face files store it: 32 numbers are 16 bytes and a scale (OCP Microscaling Formats 1.0, section 5.3).
//!
//! ```text
//! x[2j], x[2j + 1] = FP4[low, high nibble of byte j] * 2^(scale - 127)
//! ```

/// The numbers of 4 bits, times 2.
const TWICE: [i8; 8] = [0, 1, 2, 3, 4, 6, 8, 12];

/// Appends the 32 numbers of `block` to `out` as bf16, exactly. `None`: a number is not finite in bf16.
pub(super) fn to_bf16(block: &[u8], scale: u8, out: &mut Vec<u8>) -> Option<()> {
    // 255 means NaN.
    let factor = (scale != 255).then(|| (f64::from(scale) - 128.0).exp2())?;
    for byte in block {
        for nibble in [byte & 15, byte >> 4] {
            let magnitude = f64::from(TWICE[usize::from(nibble & 7)]) * factor;
            let x = if nibble & 8 != 0 { -magnitude } else { magnitude } as f32;
            let x = half::bf16::from_f32(x);
            x.is_finite().then(|| out.extend_from_slice(&x.to_le_bytes()))?;
        }
    }
    Some(())
}
