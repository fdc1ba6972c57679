//! MEM-REC embeddings over tables that PyTorch owns.

use crate::{
    linear::value_error,
    runtime::{Runtime, runtime},
    tensor::Tensor,
};
use pyo3::{exceptions::PyValueError, prelude::*};
use scrimp_kernels::embedding::{Backward, Bags, Gradients, Optimizer, Table, Trained, Values};
use scrimp_rec::encoders::{HashIndexer, IdCounts, EncoderConfig, EncoderOptions, Exec, BackwardContext, plan};
use std::sync::{Mutex, PoisonError};

/// The shape of a MEM-REC embedding: which rows of a table and of a weight table an id reads.
#[pyclass(frozen, module = "scrimp._scrimp")]
pub(crate) struct MemRec {
    config: EncoderConfig,
    indexer: HashIndexer,
    scratch: Mutex<Scratch>,
}

#[derive(Default)]
struct Scratch {
    prepared: BackwardContext,
    table: Gradients,
    weights: Gradients,
}

/// Tensors of a call.
struct Call<'a> {
    table: &'a [f32],
    weights: &'a [f32],
    ids: &'a [u64],
    bags: Bags<'a>,
    outputs: usize,
}

#[pymethods]
impl MemRec {
    /// Sized for `budget` bytes of f32 tables.
    #[new]
    #[pyo3(signature = (features, dim, budget, seed, width, k, groups, signs, weight_share))]
    fn new(
        features: usize,
        dim: usize,
        budget: u64,
        seed: u64,
        width: usize,
        k: usize,
        groups: usize,
        signs: bool,
        weight_share: f64,
    ) -> PyResult<Self> {
        if features == 0 || features > 4096 || width == 0 {
            return Err(PyValueError::new_err(format!("{features} features in blocks of {width}")));
        }
        if !(0.0..=0.9).contains(&weight_share) {
            return Err(PyValueError::new_err(format!(
                "weight_share must be in [0, 0.9], not {weight_share}"
            )));
        }
        let options = EncoderOptions {
            seed,
            width: Some(width),
            overlap: Some(false),
            k: Some(k),
            groups,
            signs: Some(signs),
            weight_share: Some(weight_share),
            hot_share: Some(0.0),
            ..EncoderOptions::new("memrec", dim, budget)
        };
        let id_counts = IdCounts { distinct: vec![1; features], ..IdCounts::default() };
        let config = plan(&options, &id_counts).map_err(value_error)?;
        let indexer = HashIndexer::new(&config);
        Ok(Self { config, indexer, scratch: Mutex::default() })
    }

    /// Rows and columns of the table.
    #[getter]
    fn table_shape(&self) -> (u32, usize) {
        (self.config.rows.iter().sum(), self.config.width)
    }

    /// Rows and columns of the weight table; rows are 0 where there is none.
    #[getter]
    fn weight_shape(&self) -> (u32, usize) {
        (self.config.weight_rows.iter().sum(), self.config.groups)
    }

    /// Rows of the table that a look-up reads.
    #[getter]
    fn table_probes(&self) -> usize {
        self.config.dim / self.config.width * self.config.k
    }

    /// Rows of the weight table that a look-up reads.
    #[getter]
    fn weight_probes(&self) -> usize {
        self.config.weight_k
    }

    /// Writes the vectors to `out`: without offsets one for each of `ids` (feature after feature), with offsets one for each bag.
    #[pyo3(signature = (table, weights, ids, offsets, out))]
    fn forward(
        &self,
        py: Python<'_>,
        table: &Bound<'_, PyAny>,
        weights: Option<&Bound<'_, PyAny>>,
        ids: &Bound<'_, PyAny>,
        offsets: Option<&Bound<'_, PyAny>>,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let tensors = Tensors::new(table, weights, ids, offsets)?;
        let starts = tensors.offsets()?;
        let call = self.call(&tensors, starts.as_deref())?;
        let mut out = Tensor::new(out, "the output")?;
        // SAFETY: float32 is f32, and the output is the caller's alone.
        let out = unsafe { out.slice_mut::<f32>("the output", "float32")? };
        self.fits(&call, out.len())?;
        let Runtime { pool, level } = runtime(py)?;
        py.detach(|| {
            let exec = Exec { pool: &pool, level };
            let table = Table::new(Values::F32(call.table), self.config.width);
            self.indexer.forward(exec, table, call.weights, call.ids, call.bags, out);
        });
        Ok(())
    }

    /// Adds the gradients of the tables to zeroed tensors of their shapes.
    #[pyo3(signature = (table, weights, ids, offsets, grad, table_grad, weight_grad))]
    fn backward_dense(
        &self,
        py: Python<'_>,
        table: &Bound<'_, PyAny>,
        weights: Option<&Bound<'_, PyAny>>,
        ids: &Bound<'_, PyAny>,
        offsets: Option<&Bound<'_, PyAny>>,
        grad: &Bound<'_, PyAny>,
        table_grad: &Bound<'_, PyAny>,
        weight_grad: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        // Minus the gradient, with a learning rate of minus one.
        let optimizer = Optimizer::Sgd { lr: -1.0 };
        let to = (table_grad, weight_grad);
        self.backward(py, (table, weights, ids, offsets), grad, optimizer, to, (None, None))
    }

    /// Lets an optimizer (`sgd`, `adagrad` or `rowwise_adagrad`) update the tables in place. States are float32 tensors: of the
    /// tables' shapes for `adagrad`, of their rows for `rowwise_adagrad`.
    #[pyo3(signature = (table, weights, ids, offsets, grad, optimizer, lr, eps, table_state, weight_state))]
    fn step(
        &self,
        py: Python<'_>,
        table: &Bound<'_, PyAny>,
        weights: Option<&Bound<'_, PyAny>>,
        ids: &Bound<'_, PyAny>,
        offsets: Option<&Bound<'_, PyAny>>,
        grad: &Bound<'_, PyAny>,
        optimizer: &str,
        lr: f32,
        eps: f32,
        table_state: Option<&Bound<'_, PyAny>>,
        weight_state: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let optimizer = match optimizer {
            "sgd" => Optimizer::Sgd { lr },
            "adagrad" => Optimizer::Adagrad { lr, eps },
            "rowwise_adagrad" => Optimizer::RowWiseAdagrad { lr, eps },
            other => return Err(PyValueError::new_err(format!("there is no fused optimizer {other}"))),
        };
        let tensors = (table, weights, ids, offsets);
        self.backward(py, tensors, grad, optimizer, (table, weights), (table_state, weight_state))
    }

    /// Writes the rows of the table and of the weight table that the ids touch, and their gradients, to the fronts of the given
    /// tensors (int64 and float32); returns how many there are of each.
    #[pyo3(signature = (table, weights, ids, offsets, grad, table_rows, table_values, weight_rows, weight_values))]
    fn backward_sparse(
        &self,
        py: Python<'_>,
        table: &Bound<'_, PyAny>,
        weights: Option<&Bound<'_, PyAny>>,
        ids: &Bound<'_, PyAny>,
        offsets: Option<&Bound<'_, PyAny>>,
        grad: &Bound<'_, PyAny>,
        table_rows: &Bound<'_, PyAny>,
        table_values: &Bound<'_, PyAny>,
        weight_rows: Option<&Bound<'_, PyAny>>,
        weight_values: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<(usize, usize)> {
        let tensors = Tensors::new(table, weights, ids, offsets)?;
        let starts = tensors.offsets()?;
        let call = self.call(&tensors, starts.as_deref())?;
        let grad = Tensor::new(grad, "the gradient")?;
        // SAFETY: float32 is f32; it is only read.
        let grad: &[f32] = unsafe { grad.slice("the gradient", "float32")? };
        self.fits(&call, grad.len())?;
        let mut table_to = SparseTo::new(Some(table_rows), Some(table_values))?;
        let mut weight_to = SparseTo::new(weight_rows, weight_values)?;
        let (mut table_to, mut weight_to) = (table_to.slices()?, weight_to.slices()?);
        let Runtime { pool, level } = runtime(py)?;
        if call.ids.is_empty() {
            return Ok((0, 0));
        }
        let counts = py.detach(|| {
            let exec = Exec { pool: &pool, level };
            let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            let Scratch { prepared, table, weights } = &mut *scratch;
            let read = Table::new(Values::F32(call.table), self.config.width);
            self.indexer.prepare(exec, &read, call.weights, call.ids, call.bags, grad, prepared);
            let batch = self.indexer.table_batch(prepared, call.bags, grad);
            let of_table = collect(exec, table, &batch, call.table.len(), self.config.width, &mut table_to)?;
            let of_weights = match self.indexer.weight_batch(prepared) {
                Some(batch) => {
                    collect(exec, weights, &batch, call.weights.len(), self.config.groups, &mut weight_to)?
                }
                None => 0,
            };
            Some((of_table, of_weights))
        });
        counts.ok_or_else(|| PyValueError::new_err("the tensors for the gradients are too small"))
    }
}

/// Gradients of a table into `to`; `None` where they do not fit.
fn collect(
    exec: Exec<'_>,
    gradients: &mut Gradients,
    batch: &Backward<'_>,
    len: usize,
    width: usize,
    to: &mut Option<(&mut [i64], &mut [f32])>,
) -> Option<usize> {
    let (rows, values) = to.as_mut()?;
    gradients.collect(exec.pool, exec.level, len, width, batch, rows, values)
}

/// Where the gradients of a table go.
struct SparseTo<'py>(Option<(Tensor<'py>, Tensor<'py>)>);

impl<'py> SparseTo<'py> {
    fn new(rows: Option<&Bound<'py, PyAny>>, values: Option<&Bound<'py, PyAny>>) -> PyResult<Self> {
        let (Some(rows), Some(values)) = (rows, values) else { return Ok(Self(None)) };
        Ok(Self(Some((Tensor::new(rows, "the rows")?, Tensor::new(values, "the values")?))))
    }

    fn slices(&mut self) -> PyResult<Option<(&mut [i64], &mut [f32])>> {
        let Some((rows, values)) = &mut self.0 else { return Ok(None) };
        // SAFETY: int64 is i64 and float32 f32; they are the caller's alone.
        Ok(Some(unsafe {
            (rows.slice_mut("the rows", "int64")?, values.slice_mut("the values", "float32")?)
        }))
    }
}

/// What a call reads.
struct Tensors<'py> {
    table: Tensor<'py>,
    weights: Option<Tensor<'py>>,
    ids: Tensor<'py>,
    offsets: Option<Tensor<'py>>,
}

/// The same as they come from Python.
type Given<'a, 'py> = (
    &'a Bound<'py, PyAny>,
    Option<&'a Bound<'py, PyAny>>,
    &'a Bound<'py, PyAny>,
    Option<&'a Bound<'py, PyAny>>,
);

impl<'py> Tensors<'py> {
    fn new(
        table: &Bound<'py, PyAny>,
        weights: Option<&Bound<'py, PyAny>>,
        ids: &Bound<'py, PyAny>,
        offsets: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        Ok(Self {
            table: Tensor::new(table, "the table")?,
            weights: weights.map(|w| Tensor::new(w, "the weight table")).transpose()?,
            ids: Tensor::new(ids, "the ids")?,
            offsets: offsets.map(|o| Tensor::new(o, "the offsets")).transpose()?,
        })
    }

    /// Where bags start, checked.
    fn offsets(&self) -> PyResult<Option<Vec<usize>>> {
        let Some(offsets) = &self.offsets else { return Ok(None) };
        // SAFETY: int64 is i64; they are only read.
        let given: &[i64] = unsafe { offsets.slice("the offsets", "int64")? };
        let starts: Vec<usize> = given.iter().map(|&o| usize::try_from(o).unwrap_or(usize::MAX)).collect();
        let fits = starts.is_sorted()
            && starts.first().is_none_or(|&first| first == 0)
            && starts.last().is_none_or(|&last| last <= self.ids.len());
        if !fits || starts.is_empty() && self.ids.len() > 0 {
            let n = self.ids.len();
            return Err(PyValueError::new_err(format!("offsets must start at 0 and rise to {n} at most")));
        }
        Ok(Some(starts))
    }
}

impl MemRec {
    fn call<'a>(&self, tensors: &'a Tensors<'_>, starts: Option<&'a [usize]>) -> PyResult<Call<'a>> {
        // SAFETY: float32 is f32, int64 as many bits as u64; they are only read while this lives, but for the tables that
        // `step` updates, which it reads before.
        let (table, weights, ids) = unsafe {
            let table: &[f32] = tensors.table.slice("the table", "float32")?;
            let weights: &[f32] = match &tensors.weights {
                Some(weights) => weights.slice("the weight table", "float32")?,
                None => &[],
            };
            let ids: &[u64] = tensors.ids.slice("the ids", "int64")?;
            (table, weights, ids)
        };
        let size = |(rows, cols): (u32, usize)| rows as usize * cols;
        if table.len() != size(self.table_shape()) || weights.len() != size(self.weight_shape()) {
            return Err(PyValueError::new_err("the tables have other sizes than the embedding"));
        }
        let features = self.indexer.features();
        let (bags, outputs) = match starts {
            Some(_) if features != 1 => {
                return Err(PyValueError::new_err("bags with offsets are for embeddings of one feature"));
            }
            Some(starts) => (Bags::Offsets(starts), starts.len()),
            None => (Bags::Fixed(1), ids.len()),
        };
        if !ids.len().is_multiple_of(features) {
            return Err(PyValueError::new_err(format!("{} ids for {features} features", ids.len())));
        }
        Ok(Call { table, weights, ids, bags, outputs })
    }

    fn fits(&self, call: &Call<'_>, values: usize) -> PyResult<()> {
        let (outputs, dim) = (call.outputs, self.config.dim);
        if outputs * dim == values {
            return Ok(());
        }
        Err(PyValueError::new_err(format!("{values} values for {outputs} vectors of {dim}")))
    }

    /// Applies gradients to `to` with `states`.
    fn backward(
        &self,
        py: Python<'_>,
        (table, weights, ids, offsets): Given<'_, '_>,
        grad: &Bound<'_, PyAny>,
        optimizer: Optimizer,
        to: (&Bound<'_, PyAny>, Option<&Bound<'_, PyAny>>),
        states: (Option<&Bound<'_, PyAny>>, Option<&Bound<'_, PyAny>>),
    ) -> PyResult<()> {
        let tensors = Tensors::new(table, weights, ids, offsets)?;
        let starts = tensors.offsets()?;
        let call = self.call(&tensors, starts.as_deref())?;
        let grad = Tensor::new(grad, "the gradient")?;
        // SAFETY: float32 is f32; it is only read.
        let grad: &[f32] = unsafe { grad.slice("the gradient", "float32")? };
        self.fits(&call, grad.len())?;
        let table_to = Updated::new(to.0, states.0)?;
        let weights_to = to.1.map(|w| Updated::new(w, states.1)).transpose()?;
        let (width, groups) = (self.config.width, self.config.groups);
        table_to.check(optimizer, call.table.len(), width)?;
        match &weights_to {
            Some(to) => to.check(optimizer, call.weights.len(), groups)?,
            None if call.weights.is_empty() => {}
            None => return Err(PyValueError::new_err("the weight table's gradient has no place")),
        }
        if call.ids.is_empty() {
            return Ok(());
        }
        let Runtime { pool, level } = runtime(py)?;
        py.detach(|| {
            let exec = Exec { pool: &pool, level };
            let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            let Scratch { prepared, table, weights } = &mut *scratch;
            let read = Table::new(Values::F32(call.table), width);
            self.indexer.prepare(exec, &read, call.weights, call.ids, call.bags, grad, prepared);
            if let (Some(to), Some(batch)) = (&weights_to, self.indexer.weight_batch(prepared)) {
                // SAFETY: nothing reads the weight table any more.
                weights.step(exec.pool, exec.level, optimizer, unsafe { to.trained(groups) }, &batch);
            }
            let batch = self.indexer.table_batch(prepared, call.bags, grad);
            // SAFETY: nothing reads the table any more.
            table.step(exec.pool, exec.level, optimizer, unsafe { table_to.trained(width) }, &batch);
        });
        Ok(())
    }
}

/// A table that changes, and its optimizer's state.
struct Updated {
    values: Raw,
    state: Raw,
}

/// Memory of a float32 tensor that the caller keeps alive.
struct Raw(*mut f32, usize);

// SAFETY: see `crate::tensor`.
unsafe impl Send for Raw {}
// SAFETY: see `crate::tensor`.
unsafe impl Sync for Raw {}

impl Raw {
    fn new(object: &Bound<'_, PyAny>, name: &str) -> PyResult<Self> {
        let mut tensor = Tensor::new(object, name)?;
        // SAFETY: float32 is f32; the slice is gone before anybody else uses the memory.
        let slice = unsafe { tensor.slice_mut::<f32>(name, "float32")? };
        Ok(Self(slice.as_mut_ptr(), slice.len()))
    }
}

impl Updated {
    fn new(values: &Bound<'_, PyAny>, state: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let none = Raw(std::ptr::NonNull::dangling().as_ptr(), 0);
        let state = state.map_or(Ok(none), |s| Raw::new(s, "the optimizer's state"))?;
        Ok(Self { values: Raw::new(values, "a table")?, state })
    }

    fn check(&self, optimizer: Optimizer, len: usize, width: usize) -> PyResult<()> {
        if self.values.1 != len || self.state.1 < optimizer.states(len, width) {
            return Err(PyValueError::new_err("a gradient or an optimizer's state has the wrong size"));
        }
        Ok(())
    }

    /// # Safety
    /// The tensors are alive, and nobody else uses them.
    unsafe fn trained(&self, width: usize) -> Trained<'_> {
        // SAFETY: pointers and lengths are those of the tensors.
        let (values, state) = unsafe {
            (
                std::slice::from_raw_parts_mut(self.values.0, self.values.1),
                std::slice::from_raw_parts_mut(self.state.0, self.state.1),
            )
        };
        Trained { values, state, width, stride: width }
    }
}
