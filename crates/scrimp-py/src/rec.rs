//! Scoring with recommender models.

use crate::{
    linear::value_error,
    runtime::{Runtime, check_signals, runtime},
};
use arrow_array::{
    RecordBatchReader as _,
    ffi_stream::{FFI_ArrowArrayStream, RecordBatchStreamReader},
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyBool, PyBytes, PyCapsule, PyFloat, PyInt, PyString},
};
use scrimp_rec::{
    Error,
    data::{
        ArrowError, ArrowRows, Batch, Data, Memory, OpenOptions, RowSource, Split, Value, rows_of_columns,
    },
    encoders::Exec,
    model::Model,
};
use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Rows of a batch.
const ROWS: usize = 2048;

/// A model file of `scrimp rec train`.
#[pyclass(frozen, module = "scrimp._scrimp")]
pub(crate) struct RecModel(Mutex<Model>);

#[pymethods]
impl RecModel {
    /// Reads a model file.
    #[new]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let (model, _) = py.detach(|| Model::load(&path)).map_err(error)?;
        Ok(Self(Mutex::new(model)))
    }

    /// Bytes of the embedding tables.
    #[getter]
    fn embedding_bytes(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.model().embedding_bytes())
    }

    /// The schema of the model's columns, as TOML.
    #[getter]
    fn schema(&self, py: Python<'_>) -> String {
        py.detach(|| self.model().schema().to_toml())
    }

    /// The names of the columns that rows need.
    #[getter]
    fn columns(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| {
            let model = self.model();
            let schema = model.schema();
            let numeric = schema.numeric.iter().map(|c| c.name.clone());
            numeric.chain(schema.categorical.iter().map(|c| c.name.clone())).collect()
        })
    }

    /// The probability of each row of a file (CSV, JSON lines, Parquet, Criteo TSV), in order, as the bytes of f32 values.
    fn score_file<'py>(&self, py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyBytes>> {
        let runtime = runtime(py)?;
        let scores = py.detach(|| {
            let options = OpenOptions {
                threads: runtime.pool.threads().min(4),
                labels: false,
                ..OpenOptions::default()
            };
            let mut model = self.model();
            let data = Data::find(&path, Split::Test).map_err(error)?;
            let mut rows = data.open(model.schema(), &options).map_err(error)?;
            score(&mut model, &runtime, &mut *rows)
        });
        bytes(py, scores)
    }

    /// The probability of each row of `table`, an object with the Arrow C stream interface.
    fn score_stream<'py>(&self, py: Python<'py>, table: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let stream = arrow_stream(table)?;
        let runtime = runtime(py)?;
        // The producer of the stream may need the GIL.
        let scores = py.detach(|| {
            let reader = RecordBatchStreamReader::try_new(stream).map_err(unreadable)?;
            let mut model = self.model();
            let parser = ArrowRows::new(model.schema());
            let names: Vec<String> = reader.schema().fields().iter().map(|f| f.name().clone()).collect();
            if let [name, ..] = parser.absent(&names)[..] {
                return Err(PyValueError::new_err(format!("there is no column {name}")));
            }
            let mut all = Vec::new();
            for batch in reader {
                let rows =
                    parser.read_batch(&batch.map_err(unreadable)?, all.len()).map_err(|e| match e {
                        ArrowError::Bad(what) => PyValueError::new_err(what),
                        ArrowError::TooMany => PyValueError::new_err("too many rows"),
                    })?;
                let mut rows = Memory::new(model.schema().clone(), rows);
                all.extend(score(&mut model, &runtime, &mut rows)?);
            }
            Ok(all)
        });
        bytes(py, scores)
    }

    /// The probability of each row of columns of Python values.
    fn score_columns<'py>(
        &self,
        py: Python<'py>,
        columns: Vec<(String, Vec<Cell>)>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let runtime = runtime(py)?;
        let scores = py.detach(|| {
            let mut model = self.model();
            let rows = columns.first().map_or(0, |(_, values)| values.len());
            let columns =
                columns.iter().map(|(name, cells)| (name.as_str(), cells.iter().map(Cell::value).collect()));
            let batch = rows_of_columns(model.schema(), rows, columns).map_err(error)?;
            let mut rows = Memory::new(model.schema().clone(), batch);
            score(&mut model, &runtime, &mut rows)
        });
        bytes(py, scores)
    }
}

impl RecModel {
    /// The model. The caller does not hold the GIL: the owner of the lock may wait for it.
    fn model(&self) -> MutexGuard<'_, Model> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The probability of each row. Ctrl-C ends it.
fn score(model: &mut Model, runtime: &Runtime, rows: &mut dyn RowSource) -> PyResult<Vec<f32>> {
    let exec = Exec { pool: &runtime.pool, level: runtime.level };
    let (mut batch, mut some, mut all) = (Batch::default(), Vec::new(), Vec::new());
    while rows.next_batch(ROWS, &mut batch).map_err(error)? > 0 {
        check_signals()?;
        model.predict(exec, &batch, &mut some);
        all.extend_from_slice(&some);
    }
    Ok(all)
}

/// Scores as bytes, which NumPy reads without a Python object per score.
fn bytes(py: Python<'_>, scores: PyResult<Vec<f32>>) -> PyResult<Bound<'_, PyBytes>> {
    let scores = scores?;
    let bytes: Vec<u8> = scores.iter().flat_map(|score| score.to_ne_bytes()).collect();
    Ok(PyBytes::new(py, &bytes))
}

/// The stream of an object with the Arrow PyCapsule interface.
fn arrow_stream(table: &Bound<'_, PyAny>) -> PyResult<FFI_ArrowArrayStream> {
    let capsule = table.call_method0("__arrow_c_stream__")?;
    let capsule = capsule.cast::<PyCapsule>()?;
    let pointer = capsule.pointer_checked(Some(c"arrow_array_stream"))?;
    // SAFETY: The Arrow PyCapsule interface defines that a capsule of this name, which `pointer_checked` compared, has the address
    // of an initialized ArrowArrayStream. `from_raw` moves the stream and leaves one that the capsule does not release again.
    Ok(unsafe { FFI_ArrowArrayStream::from_raw(pointer.as_ptr().cast()) })
}

fn unreadable(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(format!("the Arrow data cannot be read: {error}"))
}

/// A Python value.
enum Cell {
    Missing,
    Bool(bool),
    Integer(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
}

impl Cell {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Missing => Value::Missing,
            Self::Bool(b) => Value::Bool(*b),
            Self::Integer(n) => Value::Integer(*n),
            Self::Unsigned(n) => Value::Unsigned(*n),
            Self::Float(x) => Value::Float(*x),
            Self::Text(text) => Value::Bytes(text.as_bytes()),
            Self::Bytes(bytes) => Value::Bytes(bytes),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Cell {
    type Error = PyErr;

    /// Decimals, dates, times and UUIDs are their text.
    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if object.is_none() {
            return Ok(Self::Missing);
        }
        if let Ok(b) = object.cast::<PyBool>() {
            return Ok(Self::Bool(b.is_true()));
        }
        if object.is_instance_of::<PyInt>() {
            return Ok(match (object.extract(), object.extract()) {
                (Ok(n), _) => Self::Integer(n),
                (_, Ok(n)) => Self::Unsigned(n),
                _ => Self::Text(object.str()?.to_string()),
            });
        }
        if let Ok(x) = object.cast::<PyFloat>() {
            return Ok(Self::Float(x.value()));
        }
        if let Ok(text) = object.cast::<PyString>() {
            return Ok(Self::Text(text.to_string()));
        }
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Ok(Self::Bytes(bytes.as_bytes().to_vec()));
        }
        if object.len().is_ok() {
            let kind = object.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "a value is a {kind}: one number or text per row is expected"
            )));
        }
        match object.getattr("item").and_then(|item| item.call0()) {
            Ok(scalar) if !scalar.is(&*object) => scalar.extract(),
            _ => Ok(Self::Text(object.str()?.to_string())),
        }
    }
}

fn error(error: Error) -> PyErr {
    match error.hint() {
        Some(hint) => PyValueError::new_err(format!("{error} (hint: {hint})")),
        None => value_error(error),
    }
}
