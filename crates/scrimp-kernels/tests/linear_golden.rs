//! Linear layers with integer weights against results that `testdata/linear/make.py` computed on x86-64: the bits are
//! equal at every SIMD level of every architecture.

use scrimp_kernels::{
    DType, Exec, SimdLevel,
    exec::Pool,
    linear::{ActivationShape, Activations, Linear, LinearScratch, Matrix, StoredRows, linear},
    mem::Arena,
    quant::packed::{DenseMatrix, PackedView, WeightFormat, pack},
};

const ROWS: usize = 19;
const COLS: usize = 512;
/// One token, a tile, small batches, and a batch whose weights are unpacked once. AMX multiplies larger batches in bf16.
const BATCHES: [usize; 4] = [1, 4, 13, 40];
const PACKED: [WeightFormat; 4] =
    [WeightFormat::Int8, WeightFormat::Int4, WeightFormat::SparseInt8, WeightFormat::SparseInt4];

/// Numbers in [-2, 2) that every machine computes alike.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64)
        .map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) % 1999) as f32 / 500.0 - 2.0)
        .collect()
}

/// Every integer format, with its name.
fn matrices(pool: &Pool) -> Vec<(String, Matrix)> {
    let mut matrices = Vec::new();
    for dtype in DType::ALL.into_iter().filter(|dtype| dtype.block_len() > 1) {
        let path = scrimp_testkit::testdata("formats").join(format!("{dtype}.bin"));
        let stored = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let bytes = ROWS * dtype.row_bytes(COLS).expect("512 columns fit");
        let data: Vec<u8> = stored.into_iter().cycle().take(bytes).collect();
        let mut arena =
            Arena::new(Matrix::packed_bytes(dtype, ROWS, COLS).expect("512 columns fit")).unwrap();
        let matrix =
            Matrix::pack(pool, &mut arena, StoredRows { dtype, rows: ROWS, cols: COLS, data: &data });
        matrices.push((dtype.to_string(), matrix.unwrap()));
    }
    for format in PACKED {
        let mut weights = numbers(ROWS * COLS, 3);
        if format.is_sparse() {
            weights.iter_mut().enumerate().filter(|(i, _)| i * 7 % 11 < 5).for_each(|(_, w)| *w = 0.0);
        }
        let dense = DenseMatrix { rows: ROWS, cols: COLS, weights: &weights };
        let bytes = pack(pool, format, dense, None).unwrap();
        let mut arena = Arena::new(Arena::size_of(bytes.len())).unwrap();
        let view = PackedView::new(format, ROWS, COLS, &bytes).unwrap();
        matrices.push((format.to_string(), Matrix::from_packed(pool, &mut arena, &view).unwrap()));
    }
    matrices
}

fn multiply(exec: Exec<'_>, weight: &Matrix, n_tokens: usize) -> Vec<f32> {
    let x = numbers(n_tokens * COLS, 5);
    let mut activations = Activations::new();
    let shape = ActivationShape { n_tokens, cols: COLS, needs: weight.needs() };
    activations.fill(exec, shape, |t, out| out.copy_from_slice(&x[t * COLS..(t + 1) * COLS]));
    let mut out = vec![f32::NAN; n_tokens * ROWS];
    let product = Linear { weight, bias: None, out: &mut out, stride: ROWS, accumulate: false };
    linear(exec, &mut LinearScratch::default(), &activations, &mut [product]);
    out
}

#[test]
fn integer_products_have_the_same_bits_on_every_architecture() {
    let pool = Pool::new(2).unwrap();
    let matrices = matrices(&pool);
    if let Some(path) = std::env::var_os("SCRIMP_WRITE_GOLDEN") {
        let exec = Exec { pool: &pool, level: SimdLevel::SCALAR };
        let results = matrices.iter().flat_map(|(_, weight)| BATCHES.map(|n| multiply(exec, weight, n)));
        let bytes: Vec<u8> = results.flatten().flat_map(f32::to_le_bytes).collect();
        std::fs::write(path, bytes).unwrap();
        return;
    }
    let path = scrimp_testkit::testdata("linear").join("golden.bin");
    let golden = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut golden = golden.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    for (name, weight) in &matrices {
        for n in BATCHES {
            let want: Vec<f32> = golden.by_ref().take(n * ROWS).collect();
            assert_eq!(want.len(), n * ROWS, "length of golden.bin");
            // Scales of random rows reach the limits of their type; the bits of NaN depend on the architecture.
            assert!(want.iter().filter(|x| x.is_finite()).count() > want.len() / 2, "{name}");
            for level in SimdLevel::supported() {
                let got = multiply(Exec { pool: &pool, level }, weight, n);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let (token, row) = (i / ROWS, i % ROWS);
                    assert!(
                        got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                        "{name}, {level}, {n} tokens: row {row} of token {token}: {got}, not {want}"
                    );
                }
            }
        }
    }
    assert!(golden.next().is_none(), "golden.bin has results of no format");
}
