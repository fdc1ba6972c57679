//! One decoder layer of a checkpoint as dense f32 matrices.

use scrimp_kernels::{
    DType, Pool,
    quant::{dequantize::dequantize_row, packed::DenseMatrix},
};
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    load::Encoding,
    model::LayerNorms,
    model::projections::{
        Projection, RowLayout, StoredMatrix, optional_vector, seven_matrices, stored_matrix, tensor_slice,
    },
};

/// A matrix `[rows][cols]` (out features × in features), row after row.
#[derive(Debug, Clone)]
pub struct Dense {
    /// Out features.
    pub rows: usize,
    /// In features.
    pub cols: usize,
    /// The weights.
    pub data: Vec<f32>,
}

impl Dense {
    /// The matrix as the packing functions read it.
    pub(crate) fn view(&self) -> DenseMatrix<'_> {
        DenseMatrix { rows: self.rows, cols: self.cols, weights: &self.data }
    }

    /// Weights that are exactly zero.
    pub fn zeros(&self) -> usize {
        self.data.iter().filter(|&&w| w == 0.0).count()
    }
}

/// A linear layer with its bias.
#[derive(Debug, Clone)]
pub(crate) struct DenseLinear {
    pub(crate) weight: Dense,
    pub(crate) bias: Option<Vec<f32>>,
}

/// A layer's tensors.
#[derive(Debug, Clone)]
pub(crate) struct DenseLayer {
    pub(crate) norms: LayerNorms,
    /// By [`Projection`], in the order of [`Projection::ALL`].
    projections: [DenseLinear; 7],
    /// Whether a matrix of floats was pruned before, as its zeros show.
    pruned: [bool; 7],
}

/// The smallest share of zeros of a pruned matrix of floats. Unpruned matrices have almost no zeros.
const PRUNED: f64 = 0.05;

impl DenseLayer {
    /// Reads layer `index` and decodes its matrices.
    ///
    /// # Errors
    /// A tensor is damaged: it is not a matrix, or a weight is not finite.
    pub(crate) fn read(checkpoint: &Checkpoint, pool: &Pool, index: usize) -> Result<Self> {
        seven_matrices(checkpoint.config())?;
        let mut projections = Vec::with_capacity(Projection::ALL.len());
        let mut pruned = Vec::with_capacity(Projection::ALL.len());
        for projection in Projection::ALL {
            let slice = tensor_slice(checkpoint, checkpoint.config(), index, projection);
            let bias = optional_vector(checkpoint, &slice.bias())?.map(|b| b[slice.rows.clone()].to_vec());
            let weight = matrix(checkpoint, pool, &slice.weight(), slice.rows.start, slice.rows.len())?;
            let float = matches!(
                checkpoint.stored(&slice.weight()),
                Some((Encoding::Rows(DType::F32 | DType::F16 | DType::BF16), _))
            );
            pruned.push(float && weight.zeros() as f64 > PRUNED * weight.data.len() as f64);
            projections.push(DenseLinear { weight, bias });
        }
        Ok(Self {
            norms: LayerNorms::read(checkpoint, index)?,
            projections: projections.try_into().expect("seven projections"),
            pruned: pruned.try_into().expect("seven projections"),
        })
    }

    pub(crate) fn get(&self, projection: Projection) -> &DenseLinear {
        &self.projections[projection as usize]
    }

    /// Whether the matrix was pruned before. Then its zeros stay.
    pub(crate) fn pruned_already(&self, projection: Projection) -> bool {
        self.pruned[projection as usize]
    }

    pub(crate) fn weight(&self, projection: Projection) -> &Dense {
        &self.get(projection).weight
    }

    pub(crate) fn weight_mut(&mut self, projection: Projection) -> &mut Dense {
        &mut self.projections[projection as usize].weight
    }
}

/// The rows of `projection` of layer `index` as the file stores them, with their shape, if they are whole rows of numbers.
pub(crate) fn original(
    checkpoint: &Checkpoint,
    index: usize,
    projection: Projection,
) -> Option<(Encoding, [usize; 2], &[u8])> {
    let slice = tensor_slice(checkpoint, checkpoint.config(), index, projection);
    let (encoding, data) = checkpoint.stored(&slice.weight())?;
    let [_, cols] = checkpoint.try_tensor(&slice.weight())?.shape[..] else { return None };
    let row_bytes = encoding.rows()?.row_bytes(cols)?;
    let plain = slice.layout == RowLayout::Rows && slice.step == 1;
    let data = data.get(slice.rows.start * row_bytes..slice.rows.end * row_bytes)?;
    plain.then_some((encoding, [slice.rows.len(), cols], data))
}

/// Rows `first .. first + rows` of a stored matrix in f32. The mapped original is released.
///
/// # Errors
/// When the tensor is no matrix, has fewer rows, or is not finite.
pub(crate) fn matrix(
    checkpoint: &Checkpoint,
    pool: &Pool,
    name: &str,
    first: usize,
    rows: usize,
) -> Result<Dense> {
    let (cols, data) = match stored_matrix(checkpoint, name, &(first..first + rows))? {
        StoredMatrix::Rows { dtype, cols, data: stored, .. } => {
            let row_bytes = stored.len() / rows.max(1);
            let mut data = vec![0.0; rows * cols];
            pool.chunks(&mut data, cols, |i, row| {
                dequantize_row(dtype, &stored[i * row_bytes..(i + 1) * row_bytes], row);
            });
            (cols, data)
        }
        StoredMatrix::Packed(view) => (view.cols(), view.to_dense_f32()),
        StoredMatrix::Converted { dtype, cols, data: stored } => {
            let mut data = vec![0.0; rows * cols];
            pool.chunks(&mut data, cols, |i, row| {
                dequantize_row(dtype, &stored[i * stored.len() / rows..], row);
            });
            (cols, data)
        }
    };
    checkpoint.release(name);
    if data.iter().any(|w| !w.is_finite()) {
        let what = format!("tensor {name} holds a NaN or an infinity");
        return Err(Error::damaged_file(checkpoint.path(), what));
    }
    Ok(Dense { rows, cols, data })
}
