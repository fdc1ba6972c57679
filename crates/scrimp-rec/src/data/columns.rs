//! Rows from columns of typed values, for Parquet and Arrow.

use super::{
    Batch, OpenOptions,
    roles::{Filler, Role, Row},
    values::{applied, id, label, number},
};

/// A typed value or `Missing`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Missing,
    Integer(i64),
    Float(f64),
    Bytes(&'a [u8]),
}

impl Value<'_> {
    /// The value as text, as in a CSV file.
    pub(super) fn text(self, out: &mut Vec<u8>) {
        match self {
            Self::Missing => {}
            Self::Integer(n) => out.extend_from_slice(n.to_string().as_bytes()),
            Self::Float(x) if x.is_nan() => {}
            Self::Float(x) => out.extend_from_slice(x.to_string().as_bytes()),
            Self::Bytes(b) => out.extend_from_slice(b),
        }
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
                out.labels[r] = match value {
                    Value::Integer(0) => 0.0,
                    Value::Integer(1) => 1.0,
                    Value::Float(x) if x == 0.0 || x == 1.0 => x as f32,
                    other => {
                        scratch.clear();
                        other.text(scratch);
                        label(scratch).map_err(|e| format!("column {}: {e}", schema.label))?
                    }
                };
                Ok(())
            }
            (Role::Number(i), value) => {
                let column = &schema.numeric[i];
                let x = match value {
                    Value::Integer(n) => Some(n as f32),
                    Value::Float(x) if x.is_nan() => None,
                    Value::Float(x) if (x as f32).is_finite() => Some(x as f32),
                    Value::Float(x) => {
                        return Err(format!("column {}: '{x}' is not a finite 32-bit number", column.name));
                    }
                    Value::Bytes(b) => number(b).map_err(|e| format!("column {}: {e}", column.name))?,
                    Value::Missing => None,
                };
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
