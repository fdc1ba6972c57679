//! Every stored type against values that llama.cpp's own code dequantized (`testdata/formats`): designed rows (zeros,
//! constants, huge, tiny, alternating, one outlier) out of its quantizer, then rows of random bytes.

use scrimp_kernels::{
    DType, Exec, SimdLevel,
    exec::Pool,
    linear::{ActivationShape, Activations, Linear, LinearScratch, Matrix, StoredRows, linear},
    mem::Arena,
    quant::dequantize::dequantize_row,
};

const COLS: usize = 512;
/// Rows that came out of the quantizer; the random ones have values up to the type's limits.
const DESIGNED: usize = 11;

/// A matrix as stored, and its values `[rows][COLS]`.
struct Golden {
    stored: Vec<u8>,
    values: Vec<f32>,
}

impl Golden {
    fn read(dtype: DType) -> Self {
        let folder = scrimp_testkit::testdata("formats");
        let read = |extension: &str| {
            let path = folder.join(format!("{dtype}.{extension}"));
            std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let values = read("f32")
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
            .collect();
        Self { stored: read("bin"), values }
    }

    fn rows(&self) -> usize {
        self.values.len() / COLS
    }

    fn matrix(&self, pool: &Pool, dtype: DType, rows: usize) -> Matrix {
        let mut arena =
            Arena::new(Matrix::packed_bytes(dtype, rows, COLS).expect("512 columns fit")).unwrap();
        let stored = &self.stored[..rows * dtype.row_bytes(COLS).expect("512 columns fit")];
        Matrix::pack(pool, &mut arena, StoredRows { dtype, rows, cols: COLS, data: stored }).unwrap()
    }
}

/// Equal but for the order of two roundings within a block.
fn assert_near(got: &[f32], want: &[f32], block: usize, what: &str) {
    for (b, (got, want)) in got.chunks(block).zip(want.chunks(block)).enumerate() {
        let largest = want.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((g - w).abs() <= 1e-6 * largest, "{what}: column {}: {g}, not {w}", b * block + i);
        }
    }
}

#[test]
fn rows_are_decoded_as_the_reference_does() {
    for dtype in DType::ALL {
        let golden = Golden::read(dtype);
        let row_bytes = dtype.row_bytes(COLS).expect("512 columns fit");
        assert_eq!(golden.stored.len(), golden.rows() * row_bytes, "{dtype}");
        let mut out = vec![f32::NAN; COLS];
        for (r, want) in golden.values.chunks_exact(COLS).enumerate() {
            dequantize_row(dtype, &golden.stored[r * row_bytes..(r + 1) * row_bytes], &mut out);
            assert_near(&out, want, dtype.block_len(), &format!("{dtype}, row {r}"));
        }
    }
}

#[test]
fn packed_rows_are_decoded_as_the_reference_does() {
    let pool = Pool::new(2).unwrap();
    for dtype in DType::ALL {
        let golden = Golden::read(dtype);
        let matrix = golden.matrix(&pool, dtype, golden.rows());
        let mut out = vec![f32::NAN; COLS];
        for level in SimdLevel::supported() {
            for (r, want) in golden.values.chunks_exact(COLS).enumerate() {
                matrix.row(level, r, &mut out);
                assert_near(
                    &out,
                    want,
                    dtype.block_len(),
                    &format!("{dtype}, row {r}, packed, {}", level.name()),
                );
            }
        }
    }
}

/// Activations that 8 bits hold exactly: whole numbers up to 127 in every group of 32, times a power of two.
fn activation(token: usize, column: usize) -> f32 {
    let n = if column.is_multiple_of(32) { 127 } else { ((column * 37 + token * 101) % 255) as i32 - 127 };
    n as f32 / 64.0
}

#[test]
fn products_with_exact_activations() {
    let pool = Pool::new(2).unwrap();
    for dtype in DType::ALL {
        let golden = Golden::read(dtype);
        let rows = DESIGNED; // no multiple of a tile either
        let matrix = golden.matrix(&pool, dtype, rows);
        for level in SimdLevel::supported() {
            for tokens in [1, 2, 13] {
                let (mut x, mut scratch) = (Activations::new(), LinearScratch::default());
                let exec = Exec { pool: &pool, level };
                x.fill(
                    exec,
                    ActivationShape { n_tokens: tokens, cols: COLS, needs: matrix.needs() },
                    |t, x| {
                        for (c, x) in x.iter_mut().enumerate() {
                            *x = activation(t, c);
                        }
                    },
                );
                let mut out = vec![f32::NAN; tokens * rows];
                let product =
                    Linear { weight: &matrix, bias: None, out: &mut out, stride: rows, accumulate: false };
                linear(exec, &mut scratch, &x, &mut [product]);
                for (i, got) in out.iter().enumerate() {
                    let (t, r) = (i / rows, i % rows);
                    let terms = golden.values[r * COLS..][..COLS]
                        .iter()
                        .enumerate()
                        .map(|(c, &w)| f64::from(w) * f64::from(activation(t, c)));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                    let error = (f64::from(*got) - sum).abs();
                    // A zero row gives exactly zero.
                    assert!(
                        error <= 2e-6 * size,
                        "{dtype}, {}, {tokens} tokens: row {r} of token {t}: {got}, not {sum}",
                        level.name()
                    );
                }
            }
        }
    }
}
