//! Pruning of a weight matrix, and the statistics of a layer's inputs for it.

use crate::{
    linear::{PackedMatrix, value_error},
    runtime::runtime,
    tensor::Tensor,
};
use pyo3::{exceptions::PyValueError, prelude::*};
use scrimp_compress::{
    Dense, Inputs, MatrixConfig, MatrixOptions, Pruner, Statistics, compress_matrix as compress, pruner,
};
use scrimp_kernels::Exec;
use scrimp_kernels::quant::packed::{PackedView, WeightFormat};
use scrimp_llm::{Hint, load::Encoding};
use std::sync::{Mutex, PoisonError};

/// Rows of a chunk.
const ROWS: usize = 256;

/// Statistics of the inputs of layers for a pruning method.
#[pyclass(frozen, module = "scrimp._scrimp")]
pub(crate) struct InputStatistics {
    features: usize,
    inputs: Mutex<Inputs>,
}

fn method(name: &str) -> PyResult<&'static dyn Pruner> {
    pruner(name).map_err(|e| PyValueError::new_err(format!("{e}; {}", e.hint().map_or("", Hint::as_str))))
}

/// The largest size of the Gram matrix of the inputs: 16 GiB.
const MAX_GRAM_FEATURES: usize = 1 << 16;

#[pymethods]
impl InputStatistics {
    /// Empty statistics for layers of `features` inputs and the pruning method `name`.
    #[new]
    fn new(features: usize, name: &str) -> PyResult<Self> {
        let needs = method(name)?.needs();
        if features == 0 || needs == Statistics::Gram && features > MAX_GRAM_FEATURES {
            return Err(PyValueError::new_err(format!("{features} in features cannot be pruned by {name}")));
        }
        Ok(Self { features, inputs: Mutex::new(Inputs::new(features, needs)) })
    }

    /// Adds the rows of `x`, `[..., features]`.
    fn add(&self, py: Python<'_>, x: &Bound<'_, PyAny>) -> PyResult<()> {
        let x = Tensor::new(x, "the input")?;
        if !x.len().is_multiple_of(self.features) {
            return Err(PyValueError::new_err(format!("{} inputs for {} features", x.len(), self.features)));
        }
        let from = x.floats("the input")?;
        let runtime = runtime(py)?;
        py.detach(|| {
            let mut inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
            let mut rows = Vec::new();
            for first in (0..from.len()).step_by(ROWS * self.features) {
                rows.resize((ROWS * self.features).min(from.len() - first), 0.0);
                // SAFETY: `x`, which `from` came from, holds a reference to the tensor.
                unsafe { from.read(first, &mut rows) };
                inputs.add(Exec { pool: &runtime.pool, level: runtime.level }, &rows).map_err(value_error)?;
            }
            Ok(())
        })
    }

    /// The number of added rows.
    #[getter]
    fn tokens(&self) -> usize {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner).tokens()
    }
}

/// Prunes a copy of the weight matrix `[rows, cols]` and packs it. `options` are the pruning method, the sparsity and
/// the format.
#[pyfunction]
#[pyo3(signature = (weight, shape, options, inputs))]
pub(crate) fn compress_matrix(
    py: Python<'_>,
    weight: &Bound<'_, PyAny>,
    shape: (usize, usize),
    options: (String, f64, String),
    inputs: Option<&Bound<'_, InputStatistics>>,
) -> PyResult<PackedMatrix> {
    let ((rows, cols), (name, sparsity, format)) = (shape, options);
    let format: WeightFormat = format.parse().map_err(value_error)?;
    let method = method(&name)?;
    if !(0.0..1.0).contains(&sparsity) {
        return Err(PyValueError::new_err(format!("sparsity must be in [0, 1), not {sparsity}")));
    }
    let weight = Tensor::new(weight, "the weight")?;
    if rows.checked_mul(cols) != Some(weight.len()) || weight.len() == 0 {
        return Err(PyValueError::new_err(format!("{} weights are no {rows} × {cols}", weight.len())));
    }
    let from = weight.floats("the weight")?;
    let inputs = inputs.map(Bound::get);
    if inputs.is_none() && method.needs() != Statistics::None {
        return Err(PyValueError::new_err(format!("{name} needs calibration inputs")));
    }
    if inputs.is_some_and(|i| i.tokens() == 0) {
        return Err(PyValueError::new_err("the calibration inputs have no rows"));
    }
    if inputs.is_some_and(|i| i.features != cols) {
        return Err(PyValueError::new_err(format!("the calibration inputs do not have {cols} features")));
    }
    let runtime = runtime(py)?;
    py.detach(|| {
        let mut dense = Dense { rows, cols, data: vec![0.0; rows * cols] };
        // SAFETY: `weight`, which `from` came from, holds a reference to the tensor.
        unsafe { from.read(0, &mut dense.data) };
        if !dense.data.iter().all(|w| w.is_finite()) {
            return Err(PyValueError::new_err("a weight is NaN or infinite"));
        }
        let none;
        let guard;
        let inputs = match inputs {
            Some(inputs) => {
                guard = inputs.inputs.lock().unwrap_or_else(PoisonError::into_inner);
                &*guard
            }
            None => {
                none = Inputs::new(cols, Statistics::None);
                &none
            }
        };
        let config = MatrixConfig { format: format.into(), sparsity };
        let options = MatrixOptions { method, inputs, config, keep_zeros: true };
        let (encoding, bytes) = compress(&runtime.pool, &mut dense, &options).map_err(value_error)?;
        drop(dense);
        let Encoding::Packed(format) = encoding else {
            return Err(PyValueError::new_err(format!("{encoding} is no packed format")));
        };
        let view = PackedView::new(format, rows, cols, &bytes).map_err(value_error)?;
        PackedMatrix::new(&runtime.pool, &view)
    })
}
