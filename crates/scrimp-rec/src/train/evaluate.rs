//! Accuracy of a model.

use crate::{
    Error, Result,
    data::{Batch, RowSource},
    encoders::Exec,
    metrics,
    model::Model,
};
use serde::{Deserialize, Serialize};

/// Accuracy on labeled rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Area under the ROC curve.
    pub auc: f64,
    /// Mean negative log likelihood, nats per row.
    pub logloss: f64,
    /// Number of rows.
    pub rows: u64,
}

/// The accuracy of `model` on all rows of `source`, in batches of `batch` rows.
///
/// # Errors
/// Those of the source; no rows; rows without a label.
pub fn evaluate(
    model: &mut Model,
    exec: Exec<'_>,
    source: &mut dyn RowSource,
    batch: usize,
) -> Result<Evaluation> {
    check_schema(model, source)?;
    let (mut labels, mut predictions) = (Vec::new(), Vec::new());
    let (mut rows, mut probabilities) = (Batch::default(), Vec::new());
    source.rewind(0)?;
    while source.next_batch(batch.max(1), &mut rows)? > 0 {
        model.predict(exec, &rows, &mut probabilities);
        labels.extend_from_slice(&rows.labels);
        predictions.extend_from_slice(&probabilities);
    }
    if labels.is_empty() {
        return Err(Error::bad_input("the data to evaluate on has no rows"));
    }
    if labels.iter().any(|l| l.is_nan()) {
        return Err(Error::bad_input("the data to evaluate on has no labels"));
    }
    Ok(Evaluation {
        auc: metrics::auc(&labels, &predictions).unwrap_or(f64::NAN),
        logloss: metrics::log_loss(&labels, &predictions),
        rows: labels.len() as u64,
    })
}

/// Checks that the rows of `source` have the shape of the model's schema.
pub(super) fn check_schema(model: &Model, source: &dyn RowSource) -> Result<()> {
    let (a, b) = (model.schema(), source.schema());
    if (a.n_numeric(), a.n_categorical()) == (b.n_numeric(), b.n_categorical()) {
        return Ok(());
    }
    let what = format!(
        "the model has {} numeric and {} categorical columns, the data {} and {}",
        a.n_numeric(),
        a.n_categorical(),
        b.n_numeric(),
        b.n_categorical()
    );
    Err(Error::bad_input(what).with_hint("use data with the columns that the model was trained with"))
}
