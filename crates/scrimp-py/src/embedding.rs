//! MEM-REC embeddings over tables that PyTorch owns.

use crate::{
    linear::value_error,
    runtime::{Runtime, runtime},
    tensor::Tensor,
};
use pyo3::{exceptions::PyValueError, prelude::*};
use scrimp_kernels::embedding::{
    Backward, Bags, Gradients, Optimizer, SparseGradients, Table, TableMut, Values,
};
use scrimp_rec::encoders::{
    BackwardContext, EncoderConfig, EncoderOptions, Exec, HashIndexer, IdCounts, Lookups, Tables, plan,
};
use std::sync::{Mutex, PoisonError};

/// The shape of a MEM-REC embedding: the rows of a table and of a weight table that an id reads.
#[pyclass(frozen, module = "scrimp._scrimp")]
pub(crate) struct MemRec {
    config: EncoderConfig,
    indexer: HashIndexer,
    scratch: Mutex<Scratch>,
}

#[derive(Default)]
struct Scratch {
    context: BackwardContext,
    gradients: Buffers,
}

/// Buffers for the gradients of the table and of the weight table.
#[derive(Default)]
struct Buffers {
    table: Gradients,
    weights: Gradients,
}

/// The options of [`MemRec`], a dict. The keys `block` and `k` are those of saved state_dicts.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct MemRecOptions {
    features: usize,
    dim: usize,
    budget: u64,
    seed: u64,
    #[pyo3(item("block"))]
    block_dim: usize,
    #[pyo3(item("k"))]
    num_hashes: usize,
    groups: usize,
    signs: bool,
    weight_share: f64,
}

/// `(table, weight table or None)`, float32, or `(ids, offsets or None)`, int64.
type Pair<'py> = (Bound<'py, PyAny>, Option<Bound<'py, PyAny>>);
/// `(rows, values)`: an int64 and a float32 tensor for sparse gradients.
type SparseArgs<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// The slices of a call.
struct Call<'a> {
    table: &'a [f32],
    weights: &'a [f32],
    lookups: Lookups<'a>,
    outputs: usize,
}

#[pymethods]
impl MemRec {
    /// An embedding of `budget` bytes of f32 tables.
    #[new]
    fn new(options: MemRecOptions) -> PyResult<Self> {
        let o = options;
        if o.features == 0 || o.features > 4096 || o.block_dim == 0 {
            let what = format!("{} features in blocks of {}", o.features, o.block_dim);
            return Err(PyValueError::new_err(what));
        }
        if !(0.0..=0.9).contains(&o.weight_share) {
            let what = format!("weight_share must be in [0, 0.9], not {}", o.weight_share);
            return Err(PyValueError::new_err(what));
        }
        let options = EncoderOptions {
            seed: o.seed,
            block_dim: Some(o.block_dim),
            overlap: Some(false),
            num_hashes: Some(o.num_hashes),
            groups: o.groups,
            signs: Some(o.signs),
            weight_share: Some(o.weight_share),
            frequent_share: Some(0.0),
            ..EncoderOptions::new("memrec", o.dim, o.budget)
        };
        let id_counts = IdCounts { distinct: vec![1; o.features], ..IdCounts::default() };
        let config = plan(&options, &id_counts).map_err(value_error)?;
        let indexer = HashIndexer::new(&config);
        Ok(Self { config, indexer, scratch: Mutex::default() })
    }

    /// Rows and columns of the table.
    #[getter]
    fn table_shape(&self) -> (u32, usize) {
        (self.config.rows.iter().sum(), self.config.block_dim)
    }

    /// Rows and columns of the weight table; 0 rows if there is none.
    #[getter]
    fn weight_shape(&self) -> (u32, usize) {
        (self.config.weight_rows.iter().sum(), self.config.groups)
    }

    /// Rows of the table that a lookup reads.
    #[getter]
    fn table_rows_per_lookup(&self) -> usize {
        self.config.dim / self.config.block_dim * self.config.num_hashes
    }

    /// Rows of the weight table that a lookup reads.
    #[getter]
    fn weight_rows_per_lookup(&self) -> usize {
        self.config.weight_num_hashes
    }

    /// Writes the vectors to `out`: one for each id (feature after feature), or with offsets one for each bag.
    fn forward(
        &self,
        py: Python<'_>,
        tables: Pair<'_>,
        lookups: Pair<'_>,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let inputs = Inputs::new(&tables, &lookups)?;
        let call = self.call(&inputs)?;
        let mut out = Tensor::new(out, "the output")?;
        // SAFETY: `slice_mut` checks the dtype; `lookup` in _lookup.py made the tensor and shares it with no one.
        let out = unsafe { out.slice_mut::<f32>("the output", "float32")? };
        self.check_len(&call, out.len())?;
        let Runtime { pool, level } = runtime(py)?;
        py.detach(|| {
            let exec = Exec { pool: &pool, level };
            self.indexer.forward(exec, self.tables(&call), call.lookups, out);
        });
        Ok(())
    }

    /// Adds the gradients of the tables to `gradients`, zeroed tensors of the tables' shapes.
    fn backward_dense(
        &self,
        tables: Pair<'_>,
        lookups: Pair<'_>,
        grad: &Bound<'_, PyAny>,
        gradients: Pair<'_>,
    ) -> PyResult<()> {
        // SGD subtracts the gradient; a learning rate of -1 adds it.
        let update =
            Update { optimizer: Optimizer::Sgd { lr: -1.0 }, values: &gradients, states: &(None, None) };
        self.update(&Inputs::new(&tables, &lookups)?, grad, update)
    }

    /// Updates the tables in place with `optimizer`, a tuple of name (`sgd`, `adagrad` or `rowwise_adagrad`), learning
    /// rate and eps. `states` are float32 tensors: of the tables' shapes for `adagrad`, of their rows for
    /// `rowwise_adagrad`.
    fn step(
        &self,
        tables: Pair<'_>,
        lookups: Pair<'_>,
        grad: &Bound<'_, PyAny>,
        optimizer: (String, f32, f32),
        states: (Option<Bound<'_, PyAny>>, Option<Bound<'_, PyAny>>),
    ) -> PyResult<()> {
        let (name, lr, eps) = optimizer;
        let optimizer = match name.as_str() {
            "sgd" => Optimizer::Sgd { lr },
            "adagrad" => Optimizer::Adagrad { lr, eps },
            "rowwise_adagrad" => Optimizer::RowWiseAdagrad { lr, eps },
            other => return Err(PyValueError::new_err(format!("there is no fused optimizer {other}"))),
        };
        let update = Update { optimizer, values: &tables, states: &states };
        self.update(&Inputs::new(&tables, &lookups)?, grad, update)
    }

    /// Writes the touched rows of the table and of the weight table, and their gradients, to the fronts of `table_out`
    /// and
    /// `weight_out`. Returns the number of rows of each.
    fn backward_sparse(
        &self,
        tables: Pair<'_>,
        lookups: Pair<'_>,
        grad: &Bound<'_, PyAny>,
        table_out: SparseArgs<'_>,
        weight_out: Option<SparseArgs<'_>>,
    ) -> PyResult<(usize, usize)> {
        let inputs = Inputs::new(&tables, &lookups)?;
        let call = self.call(&inputs)?;
        let (py, grad) = (grad.py(), Tensor::new(grad, "the gradient")?);
        let grad = self.gradient(&call, &grad)?;
        let mut table_out = SparseOut::new(&table_out)?;
        let mut weight_out = weight_out.as_ref().map(SparseOut::new).transpose()?;
        let mut table_out = table_out.slices()?;
        let mut weight_out = weight_out.as_mut().map(SparseOut::slices).transpose()?;
        if call.lookups.ids.is_empty() {
            return Ok((0, 0));
        }
        let (block_dim, groups) = (self.config.block_dim, self.config.groups);
        let counts = self.backward(py, &call, grad, |exec, buffers, table, weights| {
            let n = table_out.collect(exec, &mut buffers.table, table, (call.table.len(), block_dim))?;
            let n_weights = match weights {
                Some(batch) => {
                    let shape = (call.weights.len(), groups);
                    weight_out.as_mut()?.collect(exec, &mut buffers.weights, batch, shape)?
                }
                None => 0,
            };
            Some((n, n_weights))
        })?;
        counts.ok_or_else(|| PyValueError::new_err("the tensors for the gradients are too small"))
    }
}

/// Tensors for sparse gradients.
struct SparseOut<'py>(Tensor<'py>, Tensor<'py>);

/// The same as slices: row numbers and values.
struct SparseSlices<'a>(&'a mut [i64], &'a mut [f32]);

impl<'py> SparseOut<'py> {
    fn new((rows, values): &SparseArgs<'py>) -> PyResult<Self> {
        Ok(Self(Tensor::new(rows, "the rows")?, Tensor::new(values, "the values")?))
    }

    fn slices(&mut self) -> PyResult<SparseSlices<'_>> {
        // SAFETY: `slice_mut` checks the dtypes; `_sparse` in _lookup.py made the tensors and shares them with no one.
        Ok(unsafe {
            SparseSlices(self.0.slice_mut("the rows", "int64")?, self.1.slice_mut("the values", "float32")?)
        })
    }
}

impl SparseSlices<'_> {
    /// Collects the gradients of a table of shape `(values, values per row)`; `None` if they do not fit.
    fn collect(
        &mut self,
        exec: Exec<'_>,
        buffer: &mut Gradients,
        batch: &Backward<'_>,
        (len, dim): (usize, usize),
    ) -> Option<usize> {
        buffer.collect(exec, (len, dim), batch, SparseGradients { rows: self.0, values: self.1 })
    }
}

/// The tensors that a call reads.
struct Inputs<'py> {
    table: Tensor<'py>,
    weights: Option<Tensor<'py>>,
    ids: Tensor<'py>,
    /// The first lookup of each bag, checked.
    starts: Option<Vec<usize>>,
}

impl<'py> Inputs<'py> {
    fn new((table, weights): &Pair<'py>, (ids, offsets): &Pair<'py>) -> PyResult<Self> {
        let ids = Tensor::new(ids, "the ids")?;
        Ok(Self {
            table: Tensor::new(table, "the table")?,
            weights: weights.as_ref().map(|w| Tensor::new(w, "the weight table")).transpose()?,
            starts: offsets.as_ref().map(|offsets| bag_starts(offsets, ids.len())).transpose()?,
            ids,
        })
    }
}

/// The first lookup of each bag, from a tensor of offsets.
fn bag_starts(offsets: &Bound<'_, PyAny>, n_ids: usize) -> PyResult<Vec<usize>> {
    let offsets = Tensor::new(offsets, "the offsets")?;
    // SAFETY: `slice` checks the dtype; the elements are copied at once.
    let offsets: &[i64] = unsafe { offsets.slice("the offsets", "int64")? };
    let starts: Vec<usize> = offsets.iter().map(|&o| usize::try_from(o).unwrap_or(usize::MAX)).collect();
    let valid = starts.is_sorted()
        && starts.first().is_none_or(|&first| first == 0)
        && starts.last().is_none_or(|&last| last <= n_ids);
    if !valid || starts.is_empty() && n_ids > 0 {
        return Err(PyValueError::new_err(format!("offsets must start at 0 and rise to {n_ids} at most")));
    }
    Ok(starts)
}

/// The destination of an optimizer's step.
struct Update<'a, 'py> {
    optimizer: Optimizer,
    values: &'a Pair<'py>,
    states: &'a (Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>),
}

impl MemRec {
    fn call<'a>(&self, inputs: &'a Inputs<'_>) -> PyResult<Call<'a>> {
        // SAFETY: `slice` checks the dtypes, and an int64 is read as the u64 with the same bits. `update` writes to the
        // tables after the last read of these slices; no other code of this crate writes to them during a call.
        let (table, weights, ids) = unsafe {
            let table: &[f32] = inputs.table.slice("the table", "float32")?;
            let weights: &[f32] = match &inputs.weights {
                Some(weights) => weights.slice("the weight table", "float32")?,
                None => &[],
            };
            let ids: &[u64] = inputs.ids.slice("the ids", "int64")?;
            (table, weights, ids)
        };
        let size = |(rows, cols): (u32, usize)| rows as usize * cols;
        if table.len() != size(self.table_shape()) || weights.len() != size(self.weight_shape()) {
            return Err(PyValueError::new_err("the tables have other sizes than the embedding"));
        }
        let features = self.indexer.features();
        let (bags, outputs) = match &inputs.starts {
            Some(_) if features != 1 => {
                return Err(PyValueError::new_err("bags with offsets are for embeddings of one feature"));
            }
            Some(starts) => (Bags::Offsets(starts), starts.len()),
            None => (Bags::Fixed(1), ids.len()),
        };
        if !ids.len().is_multiple_of(features) {
            return Err(PyValueError::new_err(format!("{} ids for {features} features", ids.len())));
        }
        Ok(Call { table, weights, lookups: Lookups { ids, bags }, outputs })
    }

    fn tables<'a>(&self, call: &Call<'a>) -> Tables<'a> {
        Tables { table: Table::new(Values::F32(call.table), self.config.block_dim), weights: call.weights }
    }

    fn check_len(&self, call: &Call<'_>, values: usize) -> PyResult<()> {
        let (outputs, dim) = (call.outputs, self.config.dim);
        if outputs * dim == values {
            return Ok(());
        }
        Err(PyValueError::new_err(format!("{values} values for {outputs} vectors of {dim}")))
    }

    /// The gradient of the outputs, of the right size.
    fn gradient<'a>(&self, call: &Call<'_>, grad: &'a Tensor<'_>) -> PyResult<&'a [f32]> {
        // SAFETY: `slice` checks the dtype; autograd does not write to a gradient during the backward function.
        let grad: &[f32] = unsafe { grad.slice("the gradient", "float32")? };
        self.check_len(call, grad.len())?;
        Ok(grad)
    }

    /// Calls `apply` with the gradients of the table and of the weight table.
    fn backward<R: Send>(
        &self,
        py: Python<'_>,
        call: &Call<'_>,
        grad: &[f32],
        apply: impl FnOnce(Exec<'_>, &mut Buffers, &Backward<'_>, Option<&Backward<'_>>) -> R + Send,
    ) -> PyResult<R> {
        let Runtime { pool, level } = runtime(py)?;
        Ok(py.detach(|| {
            let exec = Exec { pool: &pool, level };
            let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            let Scratch { context, gradients } = &mut *scratch;
            self.indexer.prepare_backward(exec, self.tables(call), call.lookups, grad, context);
            let table = self.indexer.table_batch(context, call.lookups.bags, grad);
            let weights = self.indexer.weight_batch(context);
            apply(exec, gradients, &table, weights.as_ref())
        }))
    }

    /// Makes a step of `update.optimizer`.
    fn update(&self, inputs: &Inputs<'_>, grad: &Bound<'_, PyAny>, update: Update<'_, '_>) -> PyResult<()> {
        let call = self.call(inputs)?;
        let (py, grad) = (grad.py(), Tensor::new(grad, "the gradient")?);
        let grad = self.gradient(&call, &grad)?;
        let Update { optimizer, values, states } = update;
        let table_to = Updated::new(&values.0, states.0.as_ref())?;
        let weights_to = values.1.as_ref().map(|w| Updated::new(w, states.1.as_ref())).transpose()?;
        let (block_dim, groups) = (self.config.block_dim, self.config.groups);
        table_to.check(optimizer, call.table.len(), block_dim)?;
        match &weights_to {
            Some(to) => to.check(optimizer, call.weights.len(), groups)?,
            None if call.weights.is_empty() => {}
            None => return Err(PyValueError::new_err("a tensor for the weight table's gradient is missing")),
        }
        if call.lookups.ids.is_empty() {
            return Ok(());
        }
        self.backward(py, &call, grad, |exec, buffers, table, weights| {
            if let (Some(to), Some(batch)) = (&weights_to, weights) {
                // SAFETY: `weights_to` holds the tensors alive through `values` and `states`; `backward` has read the
                // weight table for the last time.
                let to = unsafe { to.table_mut(groups) };
                buffers.weights.step(exec, optimizer, to, batch);
            }
            // SAFETY: as for the weights, with `table_to` and the table.
            let to = unsafe { table_to.table_mut(block_dim) };
            buffers.table.step(exec, optimizer, to, table);
        })
    }
}

/// A table that a step changes, and its optimizer's state.
struct Updated {
    values: Raw,
    state: Raw,
}

/// The memory of a float32 tensor. Its user keeps the tensor alive.
struct Raw(*mut f32, usize);

// SAFETY: the memory belongs to the tensor and not to a thread; `Updated::table_mut` states who may use it.
unsafe impl Send for Raw {}
// SAFETY: shared access reads the pointer and the length only.
unsafe impl Sync for Raw {}

impl Raw {
    fn new(object: &Bound<'_, PyAny>, name: &str) -> PyResult<Self> {
        let mut tensor = Tensor::new(object, name)?;
        // SAFETY: `slice_mut` checks the dtype; the slice is converted to a pointer before any other use of the memory.
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

    fn check(&self, optimizer: Optimizer, len: usize, dim: usize) -> PyResult<()> {
        if self.values.1 != len || self.state.1 < optimizer.states(len, dim) {
            return Err(PyValueError::new_err("a gradient or an optimizer's state has the wrong size"));
        }
        Ok(())
    }

    /// # Safety
    /// The tensors are alive and have no other user while the result lives.
    unsafe fn table_mut(&self, dim: usize) -> TableMut<'_> {
        // SAFETY: `Raw::new` took pointer and length from a checked tensor (or a dangling pointer with length 0); the
        // caller guarantees that the tensors are alive and not used elsewhere.
        let (values, state) = unsafe {
            (
                std::slice::from_raw_parts_mut(self.values.0, self.values.1),
                std::slice::from_raw_parts_mut(self.state.0, self.state.1),
            )
        };
        TableMut { values, state, block_dim: dim, stride: dim }
    }
}
