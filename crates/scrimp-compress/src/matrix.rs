//! Compressing one matrix: pruned, rounded, packed.

use crate::{Dense, Inputs, Job, LayerConfig, Pruner, Rounding};
use scrimp_kernels::{
    Pool,
    quant::packed::{FormatError, WeightFormat, pack},
};

/// How one matrix is compressed.
#[derive(Debug, Clone, Copy)]
pub struct MatrixOptions<'a> {
    /// Chooses the weights that become zero.
    pub method: &'a dyn Pruner,
    /// Statistics of the inputs of the matrix, as [`Pruner::needs`] lists them.
    pub inputs: &'a Inputs,
    /// Format and sparsity.
    pub config: LayerConfig,
    /// Zeros of the original stay zero, even beyond `config.sparsity`.
    pub keep_zeros: bool,
}

/// Prunes and rounds `weight` in place and packs it; the sparse form of the format is used where it is smaller. Returns
/// the format and the bytes.
///
/// # Errors
/// When the format cannot hold the weights.
pub fn compress_matrix(
    pool: &Pool,
    weight: &mut Dense,
    options: &MatrixOptions<'_>,
) -> Result<(WeightFormat, Vec<u8>), FormatError> {
    let rounding = round_matrix(pool, weight, options);
    let format = smaller(options.config.format, weight);
    let bytes = pack(pool, format, weight.view(), rounding.scales())?;
    Ok((format, bytes))
}

/// Prunes and rounds a matrix in place.
pub(crate) fn round_matrix(pool: &Pool, weight: &mut Dense, options: &MatrixOptions<'_>) -> Rounding {
    let MatrixOptions { method, inputs, config: LayerConfig { format, sparsity }, keep_zeros } = *options;
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

/// `format`, or its sparse form if the zeros save more than the bitmap costs (a bit per weight).
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
