//! Compressing one matrix: pruned, rounded, packed.

use crate::{Dense, Format, Inputs, Job, MatrixConfig, Pruner, Rounding};
use scrimp_kernels::{
    Pool,
    quant::packed::{WeightFormat, pack},
};
use scrimp_llm::{
    error::{Error, Result},
    load::Encoding,
};

/// How one matrix is compressed.
#[derive(Debug, Clone, Copy)]
pub struct MatrixOptions<'a> {
    /// Chooses the weights that become zero.
    pub method: &'a dyn Pruner,
    /// Statistics of the inputs of the matrix, as [`Pruner::needs`] lists them.
    pub inputs: &'a Inputs,
    /// Format and sparsity.
    pub config: MatrixConfig,
    /// Zeros of the original stay zero, even beyond `config.sparsity`.
    pub keep_zeros: bool,
}

/// Prunes and rounds `weight` in place and packs it; the sparse form of the format is used where it is smaller. Returns
/// the encoding and the bytes.
///
/// # Errors
/// When the format cannot hold the weights, or is [`Format::Keep`]: the bytes of the original are then the result.
pub fn compress_matrix(
    pool: &Pool,
    weight: &mut Dense,
    options: &MatrixOptions<'_>,
) -> Result<(Encoding, Vec<u8>)> {
    let format = options.config.format;
    format.check(weight)?;
    let rounding = round_matrix(pool, weight, options);
    match format {
        Format::Keep => Err(Error::bad_input("the original is kept")),
        Format::Packed(format) => {
            let format = smaller(format, weight);
            let bytes = pack(pool, format, weight.view(), rounding.scales())
                .map_err(|e| Error::bad_input(e.to_string()))?;
            Ok((Encoding::Packed(format), bytes))
        }
        Format::Codebook(dtype) => match rounding.encode(pool, weight) {
            Some(bytes) => Ok((Encoding::Rows(dtype), bytes)),
            None => Err(Error::bad_input(format!("{format} has no scales"))),
        },
    }
}

/// Prunes and rounds a matrix in place.
pub(crate) fn round_matrix(pool: &Pool, weight: &mut Dense, options: &MatrixOptions<'_>) -> Rounding {
    let MatrixOptions { method, inputs, config: MatrixConfig { format, sparsity }, keep_zeros } = *options;
    let mut rounding = Rounding::new(format, weight.cols);
    if sparsity > 0.0 || rounding.group().is_some() {
        let rounding = &mut rounding;
        method.prune(Job { pool, weight, inputs, sparsity, keep_zeros, rounding });
    }
    rounding.apply(pool, weight);
    rounding
}

/// Bytes of a matrix with `stored` nonzero weights in the dense and in the sparse form of `format` (see `scrimp_kernels::quant::packed`), the latter
/// to within half a byte per 64 weights in int4.
fn sizes(format: WeightFormat, rows: usize, columns: usize, stored: usize) -> (usize, usize) {
    let tiles = rows.div_ceil(16);
    let starts = (8 * (tiles + 1)).next_multiple_of(64);
    match format.dense() {
        WeightFormat::Bf16 => {
            let cols = columns.next_multiple_of(32);
            (32 * tiles * cols, starts + 2 * tiles * cols + 2 * stored + 64)
        }
        WeightFormat::Int8 => {
            let cols = columns.next_multiple_of(64);
            let scales = 64 * tiles;
            (scales + 16 * tiles * cols, starts + scales + 2 * tiles * cols + stored + 64)
        }
        _ => {
            let groups = columns.div_ceil(32);
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

/// Bytes of a matrix of `rows` and `cols` in `format`, without zeros.
pub(crate) fn dense_bytes(format: Format, rows: usize, cols: usize) -> usize {
    match format {
        Format::Keep => 0,
        Format::Codebook(dtype) => rows * dtype.row_bytes(cols).unwrap_or_default(),
        Format::Packed(format) => sizes(format, rows, cols, 0).0,
    }
}

/// Bytes that `weight` takes in `format`, a packed one in the form that [`smaller`] chooses.
pub(crate) fn stored_bytes(format: Format, weight: &Dense) -> usize {
    match format {
        Format::Keep | Format::Codebook(_) => dense_bytes(format, weight.rows, weight.cols),
        Format::Packed(format) => {
            let stored = weight.data.len() - weight.zeros();
            let (dense, sparse) = sizes(format, weight.rows, weight.cols, stored);
            if smaller(format, weight).is_sparse() { sparse } else { dense }
        }
    }
}
