//! Packed weight matrices and their products with tensors.

use crate::{
    runtime::{Runtime, runtime},
    tensor::{Float, Floats, Tensor},
};
use pyo3::{
    exceptions::{PyMemoryError, PyValueError},
    prelude::*,
    types::{PyBytes, PyType},
};
use scrimp_kernels::{
    Exec, Pool,
    linear::{ActivationShape, Activations, Linear, LinearScratch, Matrix, linear},
    mem::Arena,
    quant::packed::{PackedView, WeightFormat},
};
use std::cell::RefCell;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Tokens of a chunk, which bound the memory of a call besides its output.
const CHUNK: usize = 512;
/// The largest scratch memory that a thread keeps between calls, in bytes.
const KEEP_BYTES: usize = 32 << 20;

/// Buffers of a call.
#[derive(Default)]
struct Scratch {
    x: Activations,
    linear: LinearScratch,
    out: Vec<f32>,
    bias: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A weight matrix `[rows, cols]` (out features × in features) in one of scrimp's formats. Immutable.
#[pyclass(frozen, weakref, module = "scrimp._scrimp")]
pub(crate) struct PackedMatrix {
    matrix: Matrix,
    format: WeightFormat,
    stored: usize,
}

impl PackedMatrix {
    /// A copy of a checked packed matrix.
    pub(crate) fn new(pool: &Pool, view: &PackedView<'_>) -> PyResult<Self> {
        let no_memory = |e| PyMemoryError::new_err(format!("{} bytes of weights: {e}", view.bytes().len()));
        let mut arena = Arena::new(Arena::size_of(view.bytes().len())).map_err(no_memory)?;
        let matrix = Matrix::from_packed(pool, &mut arena, view).map_err(no_memory)?;
        Ok(Self { matrix, format: view.format(), stored: view.stored() })
    }

    fn view(&self) -> PackedView<'_> {
        self.matrix.packed().expect("made of packed bytes")
    }

    /// `out[t] = W x[t] + bias` for all tokens.
    fn product(&self, Runtime { pool, level }: &Runtime, x: Floats, bias: Option<Floats>, out: Floats) {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let n_tokens = out.len() / rows;
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { x: activations, linear: panels, out: buffer, bias: bias_f32 } = &mut *scratch;
            if let Some(bias) = bias {
                bias_f32.resize(rows, 0.0);
                // SAFETY: `PackedMatrix::linear` holds the tensor during the call.
                unsafe { bias.read(0, bias_f32) };
            }
            let bias = bias.map(|_| &bias_f32[..]);
            for first in (0..n_tokens).step_by(CHUNK) {
                let n = CHUNK.min(n_tokens - first);
                let exec = Exec { pool, level: *level };
                let shape = ActivationShape { n_tokens: n, cols, needs: self.matrix.needs() };
                activations.fill(exec, shape, |t, row| {
                    // SAFETY: `PackedMatrix::linear` holds the tensor during the call.
                    unsafe { x.read((first + t) * cols, row) }
                });
                let direct = out.dtype() == Float::F32;
                let to = if direct {
                    // SAFETY: `PackedMatrix::linear` holds the output, a new tensor of `run` in _op.py; `to` is its
                    // only slice.
                    unsafe { out.f32_mut(first * rows, n * rows) }
                } else {
                    buffer.resize(n * rows, 0.0);
                    &mut buffer[..]
                };
                let product = Linear { weight: &self.matrix, bias, out: to, stride: rows, accumulate: false };
                linear(exec, panels, activations, &mut [product]);
                if !direct {
                    let from = &buffer[..];
                    let parts = if n == 1 { 1 } else { n };
                    pool.run(parts, |part, _| {
                        // SAFETY: `PackedMatrix::linear` holds the output; each part writes to a different row.
                        unsafe { out.write((first + part) * rows, &from[part * rows..(part + 1) * rows]) }
                    });
                }
            }
            if scratch.x.bytes() + scratch.linear.bytes() + 4 * scratch.out.capacity() > KEEP_BYTES {
                *scratch = Scratch::default();
            }
        });
    }
}

#[pymethods]
impl PackedMatrix {
    /// The matrix from the result of `to_bytes`. Damaged bytes are an error.
    #[classmethod]
    fn from_bytes(
        class: &Bound<'_, PyType>,
        format: &str,
        rows: usize,
        cols: usize,
        bytes: &[u8],
    ) -> PyResult<Self> {
        let format: WeightFormat = format.parse().map_err(value_error)?;
        let py = class.py();
        let runtime = runtime(py)?;
        py.detach(|| {
            let view = PackedView::new(format, rows, cols, bytes).map_err(value_error)?;
            Self::new(&runtime.pool, &view)
        })
    }

    /// The packed bytes, a format for files.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.view().bytes())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Arguments<'py>)> {
        let this = slf.get();
        let arguments = (this.format.name(), this.matrix.rows(), this.matrix.cols(), this.to_bytes(slf.py()));
        Ok((slf.getattr("from_bytes")?, arguments))
    }

    /// The same object, which is immutable.
    fn __deepcopy__<'py>(slf: Bound<'py, Self>, _memo: &Bound<'py, PyAny>) -> Bound<'py, Self> {
        slf
    }

    /// A hash of the format, the shape and the bytes (XXH3, 63 bits).
    #[getter]
    fn fingerprint(&self, py: Python<'_>) -> u64 {
        py.detach(|| {
            let name = format!("{} {} {}", self.format.name(), self.matrix.rows(), self.matrix.cols());
            xxh3_64_with_seed(self.view().bytes(), xxh3_64_with_seed(name.as_bytes(), 0)) >> 1
        })
    }

    /// The name of the format, such as `sparse-bf16`.
    #[getter]
    fn format(&self) -> &'static str {
        self.format.name()
    }

    /// Out features.
    #[getter]
    fn rows(&self) -> usize {
        self.matrix.rows()
    }

    /// In features.
    #[getter]
    fn cols(&self) -> usize {
        self.matrix.cols()
    }

    /// Size in bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.matrix.bytes()
    }

    /// The number of stored weights (all in dense formats).
    #[getter]
    fn stored(&self) -> usize {
        self.stored
    }

    /// Writes `x @ W.T + bias` to `out`: `x` has `[..., cols]`, `out` `[..., rows]`, `bias` is None or has `rows`;
    /// float32, bfloat16 or float16, contiguous, on the CPU.
    #[pyo3(signature = (x, bias, out))]
    fn linear(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        bias: Option<&Bound<'_, PyAny>>,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let (x, out) = (Tensor::new(x, "the input")?, Tensor::new(out, "the output")?);
        let bias = bias.map(|b| Tensor::new(b, "the bias")).transpose()?;
        if !x.len().is_multiple_of(cols) || x.len() / cols * rows != out.len() {
            return Err(PyValueError::new_err(format!(
                "{} inputs and {} outputs do not fit a matrix of {rows} × {cols}",
                x.len(),
                out.len()
            )));
        }
        if let Some(bias) = bias.as_ref().filter(|b| b.len() != rows) {
            return Err(PyValueError::new_err(format!("a bias of {} for {rows} features", bias.len())));
        }
        let (from, to) = (x.floats("the input")?, out.floats("the output")?);
        let add = bias.as_ref().map(|b| b.floats("the bias")).transpose()?;
        let runtime = runtime(py)?;
        py.detach(|| self.product(&runtime, from, add, to));
        Ok(())
    }

    /// Writes the weights to the float32 tensor `out`, `[rows, cols]`.
    fn dense(&self, py: Python<'_>, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let out = Tensor::new(out, "the output")?;
        if out.len() != self.matrix.rows() * self.matrix.cols() {
            return Err(PyValueError::new_err(format!("{} elements for the weights", out.len())));
        }
        let to = out.floats("the output")?;
        py.detach(|| {
            // SAFETY: `out` holds the tensor, which `dense` in _op.py made and shares with no one.
            unsafe { to.write(0, &self.view().to_dense_f32()) }
        });
        Ok(())
    }
}

/// The arguments of [`PackedMatrix::from_bytes`].
type Arguments<'py> = (&'static str, usize, usize, Bound<'py, PyBytes>);

/// A `ValueError`.
pub(crate) fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}
