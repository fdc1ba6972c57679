//! Scoring with recommender models.

use crate::{
    linear::value_error,
    runtime::{Runtime, runtime},
};
use pyo3::{exceptions::PyValueError, prelude::*};
use scrimp_rec::{
    Error,
    data::{Batch, Data, OpenOptions, Split},
    encoders::Exec,
    model::Model,
};
use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
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
    fn embedding_bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).embedding_bytes()
    }

    /// The schema of the model's columns, as TOML.
    #[getter]
    fn schema(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).schema().to_toml()
    }

    /// The probability of each row of a file (CSV, Parquet, Criteo TSV), in order.
    fn score_file(&self, py: Python<'_>, path: PathBuf) -> PyResult<Vec<f32>> {
        let Runtime { pool, level } = runtime(py)?;
        py.detach(|| {
            let mut model = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let options =
                OpenOptions { threads: pool.threads().min(4), labels: false, ..OpenOptions::default() };
            let mut rows = Data::find(&path, Split::Test)?.open(model.schema(), &options)?;
            let (mut batch, mut some, mut all) = (Batch::default(), Vec::new(), Vec::new());
            while rows.next_batch(ROWS, &mut batch)? > 0 {
                model.predict(Exec { pool: &pool, level }, &batch, &mut some);
                all.extend_from_slice(&some);
            }
            Ok(all)
        })
        .map_err(error)
    }
}

fn error(error: Error) -> PyErr {
    match error.hint() {
        Some(hint) => PyValueError::new_err(format!("{error} (hint: {hint})")),
        None => value_error(error),
    }
}
