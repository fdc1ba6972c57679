//! FP8 matrices of Hugging Face files: numbers in E4M3 (Micikevicius et al., arXiv 2209.05433, section 3) and factors.
//!
//! ```text
//! w[r][c] = e4m3(q[r][c]) * scale[r / R][c / C]        R x C numbers share a factor
//! ```
//! A factor belongs to a block of 128 x 128 numbers, to a row, or to the whole matrix. The numbers are rounded to bf16:
//! E4M3 has 3 bits of mantissa, bf16 has 7.

use crate::load::hf_quantization::FP8_BLOCK;
use std::ops::Range;

/// The name of the factors of the matrix `name`.
pub(super) fn factors(name: &str) -> String {
    format!("{name}_scale")
}

/// The factors of a matrix.
pub(super) struct Factors {
    values: Vec<f32>,
    per_row: usize,
    /// Rows and columns that share a factor.
    block: [usize; 2],
}

impl Factors {
    /// The factors `values`, of shape `shape`, of a matrix of `rows` x `cols`. `None`: they do not fit the matrix.
    pub(super) fn new(values: Vec<f32>, shape: &[usize], [rows, cols]: [usize; 2]) -> Option<Self> {
        let shape = match *shape {
            [] => [1, 1],
            [n] => [n, 1],
            [n, m] => [n, m],
            _ => return None,
        };
        let blocks = [rows.div_ceil(FP8_BLOCK), cols.div_ceil(FP8_BLOCK)];
        let block = match shape {
            [1, 1] => [rows, cols],
            [n, 1] if n == rows => [1, cols],
            shape if shape == blocks => [FP8_BLOCK; 2],
            _ => return None,
        };
        (values.len() == shape[0] * shape[1]).then_some(Self { values, per_row: shape[1], block })
    }

    /// The rows `rows` of the matrix with the numbers `q`, `[rows][cols]`, as bf16. `None`: there are too few rows.
    pub(super) fn rows_as_bf16(&self, q: &[u8], cols: usize, rows: Range<usize>) -> Option<Vec<u8>> {
        let table: [f32; 256] = std::array::from_fn(|code| e4m3(code as u8));
        let first = rows.start;
        let q = q.get(first * cols..rows.end * cols)?;
        let mut out = Vec::with_capacity(2 * q.len());
        for (r, q) in q.chunks_exact(cols.max(1)).enumerate() {
            let factors = &self.values[(first + r) / self.block[0] * self.per_row..];
            for (q, factor) in q.chunks(self.block[1].max(1)).zip(factors) {
                let numbers = q.iter().map(|&q| half::bf16::from_f32(table[usize::from(q)] * factor));
                out.extend(numbers.flat_map(half::bf16::to_le_bytes));
            }
        }
        Some(out)
    }
}

/// The number with the code `code`: a sign, 4 bits of exponent with a bias of 7, 3 bits of mantissa. No code is infinite.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if code >> 7 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_values_of_the_paper() {
        // Table 1 of the paper: the largest, the smallest normal, the largest and the smallest subnormal number.
        let numbers =
            [(0x7e, 448.0), (0x08, 2f32.powi(-6)), (0x07, 0.875 * 2f32.powi(-6)), (0x01, 2f32.powi(-9))];
        for (code, value) in numbers {
            assert_eq!((e4m3(code), e4m3(code | 0x80)), (value, -value), "{code:#x}");
        }
        assert_eq!((e4m3(0x38), e4m3(0x3c), e4m3(0)), (1.0, 1.5, 0.0));
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }

    #[test]
    fn factors_belong_to_blocks_rows_or_the_matrix() {
        let one = |values: &[f32], shape: &[usize], of| Factors::new(values.to_vec(), shape, of).unwrap();
        let row = |factors: &Factors, cols: usize, r: usize| -> Vec<f32> {
            let bytes = factors.rows_as_bf16(&vec![0x38; 300 * cols], cols, r..r + 1).unwrap();
            bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        };
        let blocks = one(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2], [300, 130]);
        assert_eq!(row(&blocks, 130, 127)[126..], [1.0, 1.0, 2.0, 2.0]);
        assert_eq!(row(&blocks, 130, 128)[126..], [3.0, 3.0, 4.0, 4.0]);
        assert_eq!(row(&blocks, 130, 299)[127..129], [5.0, 6.0]);
        let rows: Vec<f32> = (0..300).map(|r| r as f32).collect();
        assert_eq!(row(&one(&rows, &[300, 1], [300, 4]), 4, 200), [200.0; 4]);
        assert_eq!(row(&one(&rows, &[300], [300, 4]), 4, 7), [7.0; 4]);
        assert_eq!(row(&one(&[0.5], &[], [300, 4]), 4, 9), [0.5; 4]);
        for (values, shape) in [(5, vec![5, 1]), (4, vec![3, 2]), (6, vec![2, 3]), (1, vec![1, 1, 1])] {
            assert!(Factors::new(vec![1.0; values], &shape, [300, 130]).is_none(), "{shape:?}");
        }
    }
}
