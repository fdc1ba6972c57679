//! One matrix, pruned, rounded and packed: what compressing a model does to each of its matrices.

use crate::{Dense, Inputs, Job, LayerConfig, Pruner, Rounding};
use scrimp_kernels::{
    Pool,
    quant::packed::{DenseMatrix, FormatError, WeightFormat, pack},
};

/// Prunes and rounds `weight` in place and packs it, as `choice` says; the sparse form of the format is taken where it is
/// smaller. Returns the format and the bytes.
///
/// `inputs` are statistics of what the matrix multiplies, as [`Pruner::needs`] says. With `keep_zeros`, weights that are zero
/// already stay zero.
///
/// # Errors
/// When the format cannot hold the weights.
pub fn compress_matrix(
    pool: &Pool,
    weight: &mut Dense,
    inputs: &Inputs,
    method: &dyn Pruner,
    choice: LayerConfig,
    keep_zeros: bool,
) -> Result<(WeightFormat, Vec<u8>), FormatError> {
    let rounding = round_matrix(pool, weight, inputs, method, choice, keep_zeros);
    let format = smaller(choice.format, weight);
    let bytes = pack(
        pool,
        format,
        DenseMatrix { rows: weight.rows, cols: weight.cols, weights: &weight.data },
        rounding.scales(),
    )?;
    Ok((format, bytes))
}

/// Prunes and rounds a matrix, in place.
pub(crate) fn round_matrix(
    pool: &Pool,
    weight: &mut Dense,
    inputs: &Inputs,
    method: &dyn Pruner,
    LayerConfig { format, sparsity }: LayerConfig,
    keep_zeros: bool,
) -> Rounding {
    let mut rounding = Rounding::new(format, weight.cols);
    if sparsity > 0.0 || rounding.group().is_some() {
        let rounding = &mut rounding;
        method.prune(Job { pool, weight, inputs, sparsity, keep_zeros, rounding });
    }
    rounding.apply(pool, weight);
    rounding
}

/// Bytes of `weight` in the dense and in the sparse form of `format` (see `scrimp_kernels::quant::packed`), the latter
/// to within half a byte per 64 weights in int4.
fn sizes(format: WeightFormat, weight: &Dense) -> (usize, usize) {
    let tiles = weight.rows.div_ceil(16);
    let starts = (8 * (tiles + 1)).next_multiple_of(64);
    let stored = weight.data.len() - weight.zeros();
    match format.dense() {
        WeightFormat::Bf16 => {
            let cols = weight.cols.next_multiple_of(32);
            (32 * tiles * cols, starts + 2 * tiles * cols + 2 * stored + 64)
        }
        WeightFormat::Int8 => {
            let cols = weight.cols.next_multiple_of(64);
            let scales = 64 * tiles;
            (scales + 16 * tiles * cols, starts + scales + 2 * tiles * cols + stored + 64)
        }
        _ => {
            let groups = weight.cols.div_ceil(32);
            let steps = 8 * tiles * groups;
            (288 * tiles * groups, starts + 96 * tiles * groups + (stored + steps) / 2 + 64)
        }
    }
}

/// `format`, or its sparse form where its zeros save more than the bitmap, a bit per weight, costs.
fn smaller(format: WeightFormat, weight: &Dense) -> WeightFormat {
    let bits = match format.dense() {
        WeightFormat::Bf16 => 16,
        WeightFormat::Int8 => 8,
        _ => 4,
    };
    if weight.zeros() * bits > weight.data.len() { format.sparse() } else { format.dense() }
}

/// Bytes that `weight` takes in the form of `format` that [`smaller`] chooses.
pub(crate) fn packed_bytes(format: WeightFormat, weight: &Dense) -> f64 {
    let (dense, sparse) = sizes(format, weight);
    if smaller(format, weight).is_sparse() { sparse as f64 } else { dense as f64 }
}
