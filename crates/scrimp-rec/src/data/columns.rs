//! Rows from columns of typed values, for Parquet and Arrow.

use super::{
    Batch, OpenOptions,
    roles::{Filler, Role, Row},
    typed::Value,
    values::{applied, id, label},
};
use crate::{Error, Result, schema::Schema};

/// The rows of columns in memory, `rows` values each. Columns that `schema` lacks, and the label, are ignored.
///
/// # Errors
/// A column of `schema` is absent or has another length, or a value does not fit its column.
pub fn rows_of_columns<'a>(
    schema: &Schema,
    rows: usize,
    columns: impl IntoIterator<Item = (&'a str, Vec<Value<'a>>)>,
) -> Result<Batch> {
    let options = OpenOptions { labels: false, ..OpenOptions::default() };
    let filler = Filler::new(schema.clone(), options.missing, false);
    let mut out = Batch::default();
    let mut filled = Columns::new(&filler, &options, rows, &mut out);
    let mut names = Vec::new();
    for (name, values) in columns {
        if values.len() != rows {
            return Err(Error::bad_input(format!(
                "columns of different lengths: {} and {rows}",
                values.len()
            )));
        }
        let role = filler.role(name);
        for (r, value) in values.into_iter().enumerate() {
            filled.set(r, role, value);
        }
        names.push(name.to_owned());
    }
    let problems = filled.finish();
    if let [name, ..] = filler.absent(&names)[..] {
        return Err(Error::bad_input(format!("there is no column {name}")));
    }
    if let Some(name) = filler.twice(&names) {
        return Err(Error::bad_input(format!("column {name} is there twice")));
    }
    match problems.first() {
        Some((r, what)) => Err(Error::bad_input(format!("row {r}: {what}"))),
        None => Ok(out),
    }
}

/// Rows under construction, filled column by column.
pub(super) struct Columns<'a> {
    filler: &'a Filler,
    options: &'a OpenOptions,
    rows: Vec<Row>,
    out: &'a mut Batch,
    problems: Vec<Option<String>>,
    scratch: Vec<u8>,
}

impl<'a> Columns<'a> {
    /// Makes `out` a batch of `n` rows of missing values.
    pub(super) fn new(filler: &'a Filler, options: &'a OpenOptions, n: usize, out: &'a mut Batch) -> Self {
        out.clear();
        // `finish` inserts the crosses, which follow the ids of a row.
        let rows = (0..n).map(|_| filler.begin(out)).collect();
        Self { filler, options, rows, out, problems: vec![None; n], scratch: Vec::new() }
    }

    /// Sets a value of row `r`.
    pub(super) fn set(&mut self, r: usize, role: Role, value: Value<'_>) {
        if self.problems[r].is_none() {
            self.problems[r] = self.try_set(r, role, value).err();
        }
    }

    fn try_set(&mut self, r: usize, role: Role, value: Value<'_>) -> Result<(), String> {
        let Self { filler, options, rows, out, scratch, .. } = self;
        let (schema, row) = (&filler.schema, rows[r]);
        match (role, value) {
            (Role::Ignored, _) | (_, Value::Missing) => Ok(()),
            (Role::Label, value) => {
                scratch.clear();
                value.text(scratch);
                out.labels[r] = label(scratch).map_err(|e| format!("column {}: {e}", schema.label))?;
                Ok(())
            }
            (Role::Number(i), value) => {
                let column = &schema.numeric[i];
                let x = value.number().map_err(|e| format!("column {}: {e}", column.name))?;
                out.numeric[row.number(i)] = applied(column, x, options.missing);
                Ok(())
            }
            (Role::Category(i), value) => {
                let column = &schema.categorical[i];
                let text = match value {
                    Value::Bytes(b) => b,
                    other => {
                        scratch.clear();
                        other.text(scratch);
                        scratch
                    }
                };
                out.ids[row.category(i)] =
                    id(column, text).map_err(|e| format!("column {}: {e}", column.name))?;
                Ok(())
            }
        }
    }

    /// Appends the crosses and removes invalid rows. Returns their numbers with the reasons.
    pub(super) fn finish(mut self) -> Vec<(usize, String)> {
        if self.options.labels {
            for (problem, y) in self.problems.iter_mut().zip(&self.out.labels) {
                if problem.is_none() && y.is_nan() {
                    *problem = Some("the label is missing: 0 or 1 is expected".to_owned());
                }
            }
        }
        let Self { filler, out, problems, .. } = self;
        let mut whole = Batch::default();
        let (numbers, ids) = (filler.schema.n_numeric(), filler.schema.categorical.len());
        let mut bad = Vec::new();
        for (r, problem) in problems.into_iter().enumerate() {
            if let Some(what) = problem {
                bad.push((r, what));
                continue;
            }
            let start = filler.start(&whole);
            whole.labels.push(out.labels[r]);
            whole.numeric.extend_from_slice(&out.numeric[r * numbers..][..numbers]);
            whole.ids.extend_from_slice(&out.ids[r * ids..][..ids]);
            filler.end(start, &mut whole);
        }
        *out = whole;
        bad
    }
}
