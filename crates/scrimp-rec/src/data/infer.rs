//! Infers a schema from the first rows of the data.
//!
//! A column of text is categorical. A column of numbers is numeric if it has fractions, or if it has more than 256 distinct
//! integers and no name of an id; other integers are categorical. One value in 100 may be damaged. Text columns with a distinct
//! value in (almost) every row are left out, as are row numbers and ids of one row each. Notes explain each decision, and
//! [`Hints`] override it.

mod column;
mod names;

use super::{
    Batch, DataSet, Format, OpenOptions, csv,
    roles::listed,
    text::{Files, lines},
};
use crate::{
    Error, Result,
    schema::{Categorical, Kind, Numeric, Schema},
};
use column::{Column, Guess};
use std::sync::Arc;

/// Rows of the sample for the kinds of columns.
const SAMPLE: usize = 20_000;
/// Rows of the sample for means and deviations.
const FIT: usize = 100_000;
/// Usual names of labels, by priority.
const LABELS: [&str; 9] =
    ["label", "click", "clicked", "is_click", "target", "y", "conversion", "converted", "is_clicked"];

/// Whether `name` is a usual name of labels.
pub(super) fn usual_label(name: &str) -> bool {
    LABELS.iter().any(|label| name.eq_ignore_ascii_case(label))
}

/// The user's statements about columns.
#[derive(Debug, Clone, Default)]
pub struct Hints {
    /// The label; `None`: one of the usual names.
    pub label: Option<String>,
    /// Numeric columns. If this or `categorical` is set, other columns are left out.
    pub numeric: Option<Vec<String>>,
    /// Categorical columns. `NAME:id` rejects negative numbers, `NAME:hex` parses hexadecimal ids, `NAME:text` accepts any text.
    pub categorical: Option<Vec<String>>,
    /// Crosses of categorical columns.
    pub crosses: Vec<Vec<String>>,
}

/// The statistics of the first rows.
struct Sample {
    columns: Vec<Column>,
    /// Whether the sample has all rows.
    complete: bool,
}

impl DataSet {
    /// An inferred schema, and notes on the decisions. Numbers are not standardized; see [`DataSet::fit`].
    ///
    /// # Errors
    /// The label is unclear, a named column is missing, or the file cannot be read.
    pub fn infer(&self, hints: &Hints) -> Result<(Schema, Vec<String>)> {
        let mut notes = Vec::new();
        let mut schema = match self.format() {
            Format::Criteo => {
                if hints.numeric.is_some() || hints.categorical.is_some() || hints.label.is_some() {
                    return Err(Error::bad_input(format!(
                        "{}: columns of Criteo's format have no names of their own",
                        self.paths()[0].display()
                    ))
                    .with_hint("leave out `label`, `numeric` and `categorical`"));
                }
                Schema::criteo()
            }
            _ => self.guess(&self.sample()?, hints, &mut notes)?,
        };
        schema.crosses.clone_from(&hints.crosses);
        schema.check()?;
        Ok((schema, notes))
    }

    fn guess(&self, sample: &Sample, hints: &Hints, notes: &mut Vec<String>) -> Result<Schema> {
        let Sample { columns, complete } = sample;
        if !columns.iter().any(Column::has_values) {
            return Err(Error::bad_file(&self.paths()[0], "there is not one row that can be used"));
        }
        let known = || listed(columns.iter().map(|c| c.name.as_str()));
        let find = |name: &str| {
            let column = columns.iter().find(|c| c.name == name);
            let column = column.ok_or_else(|| self.no_column(&[name], &known()))?;
            match column.unreadable() {
                Some(why) => Err(self.unreadable_column(name, why)),
                None => Ok(column),
            }
        };
        let label = match &hints.label {
            Some(name) => find(name)?.name.clone(),
            None => {
                let usual =
                    LABELS.iter().find_map(|l| columns.iter().find(|c| c.name.eq_ignore_ascii_case(l)));
                let Some(usual) = usual else {
                    return Err(Error::bad_file(&self.paths()[0], "which column is the label?")
                        .with_hint(format!("name it with `label`: the file has the columns {}", known())));
                };
                notes.push(format!("label: {}", usual.name));
                usual.name.clone()
            }
        };
        let mut schema = Schema { label, numeric: Vec::new(), categorical: Vec::new(), crosses: Vec::new() };
        if hints.numeric.is_some() || hints.categorical.is_some() {
            for name in hints.numeric.iter().flatten() {
                schema.numeric.push(Numeric::new(name.clone(), find(name)?.transform()));
            }
            for text in hints.categorical.iter().flatten() {
                let (name, kind) = match text.rsplit_once(':') {
                    Some((name, "id")) => (name, Some(Kind::Id)),
                    Some((name, "hex")) => (name, Some(Kind::Hex)),
                    Some((name, "text")) => (name, Some(Kind::Text)),
                    _ => (text.as_str(), None),
                };
                let kind = kind.unwrap_or(find(name)?.kind());
                schema.categorical.push(Categorical { name: find(name)?.name.clone(), kind });
            }
            notes.extend(self.left_out(&schema, columns.iter().map(|c| c.name.as_str())));
            return Ok(schema);
        }
        for column in columns.iter().filter(|c| c.name != schema.label) {
            let guess = column.guess(*complete);
            notes.extend(column.remark(&guess));
            match guess {
                Guess::Numeric => schema.numeric.push(Numeric::new(&column.name, column.transform())),
                Guess::Categorical => {
                    schema.categorical.push(Categorical { name: column.name.clone(), kind: column.kind() });
                }
                Guess::Left(why) => {
                    notes.push(format!("left out: {} ({why})", quoted_if_empty(&column.name)));
                }
            }
        }
        for column in self.unreadable() {
            notes.push(format!("left out: {} ({})", column.name, column.why));
        }
        if !*complete && matches!(self.format(), Format::JsonLines) {
            notes.push(format!(
                "left out: keys that first occur after the first {SAMPLE} rows, if there are any"
            ));
        }
        let numeric: Vec<&str> = schema.numeric.iter().map(|c| c.name.as_str()).collect();
        let categorical: Vec<&str> = schema.categorical.iter().map(|c| c.name.as_str()).collect();
        for (what, names) in [("numeric", numeric), ("categorical", categorical)] {
            if !names.is_empty() {
                notes.push(format!("{what}: {}", names.join(", ")));
            }
        }
        Ok(schema)
    }

    /// A note on the columns `names` (and those that cannot be read) that are not in `schema`.
    pub fn left_out<'a>(
        &'a self,
        schema: &Schema,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Option<String> {
        let used = |name: &str| {
            name == schema.label
                || schema.numeric.iter().any(|c| c.name == name)
                || schema.categorical.iter().any(|c| c.name == name)
        };
        let unreadable = self.unreadable().iter().map(|c| c.name.as_str());
        let others: Vec<&str> =
            names.into_iter().chain(unreadable).filter(|name| !used(name)).map(quoted_if_empty).collect();
        (!others.is_empty()).then(|| format!("left out: {} (not named)", listed(others)))
    }

    /// The statistics of the first rows.
    fn sample(&self) -> Result<Sample> {
        let mut columns: Vec<Column> = self.names().iter().cloned().map(Column::new).collect();
        match self.format() {
            #[cfg(feature = "parquet")]
            Format::Parquet => {
                let all =
                    super::parquet::sample(&self.paths()[0], SAMPLE, &mut |i, text| columns[i].see(text))?;
                return Ok(Sample { columns, complete: all && self.paths().len() == 1 });
            }
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => return Ok(Sample { columns, complete: false }),
            Format::Criteo | Format::Csv { .. } | Format::JsonLines => {}
        }
        let paths: Arc<[_]> = self.paths()[..1].into();
        let mut files = Files::new(paths, Arc::default(), super::text::BLOCK);
        let (mut rows, mut scratch) = (0, Vec::new());
        let mut complete = false;
        while rows < SAMPLE {
            let Some(block) = files.next().transpose()? else {
                complete = self.paths().len() == 1;
                break;
            };
            for (number, line) in lines(&block.text, block.line) {
                if line.is_empty() {
                    continue;
                }
                match self.format() {
                    Format::Csv { separator } if number > 1 => {
                        // Invalid rows are reported when the source reads them.
                        let _ = csv::fields(line, separator, &mut scratch, |i, text| {
                            if let Some(column) = columns.get_mut(i) {
                                column.see(text);
                            }
                            Ok(())
                        });
                    }
                    Format::JsonLines => json(line, &mut columns),
                    _ => {}
                }
                rows += 1;
            }
        }
        Ok(Sample { columns, complete })
    }

    /// Standardizes the numeric columns with mean 0 and scale 1, the defaults: after the transform, the values of the first
    /// 100,000 rows get mean 0 and deviation 1.
    ///
    /// # Errors
    /// As [`DataSet::open`] and its source.
    pub fn fit(&self, schema: &mut Schema, options: &OpenOptions) -> Result<()> {
        if schema.numeric.is_empty() {
            return Ok(());
        }
        let options = OpenOptions { missing: f32::NAN, threads: 0, ..options.clone() };
        let mut source = self.open(schema, &options)?;
        let n = schema.n_numeric();
        let (mut batch, mut rows) = (Batch::default(), 0);
        let mut sums = vec![(0f64, 0f64, 0f64); n];
        while rows < FIT {
            rows += match source.next_batch(8192, &mut batch)? {
                0 => break,
                n => n,
            };
            for row in batch.numeric.chunks_exact(n) {
                for (sum, &x) in sums.iter_mut().zip(row) {
                    if !x.is_nan() {
                        let x = f64::from(x);
                        *sum = (sum.0 + 1.0, sum.1 + x, sum.2 + x * x);
                    }
                }
            }
        }
        for (column, (count, sum, squares)) in schema.numeric.iter_mut().zip(sums) {
            if column.mean != 0.0 || column.scale != 1.0 || count < 2.0 {
                continue;
            }
            let mean = sum / count;
            let deviation = (squares / count - mean * mean).max(0.0).sqrt();
            column.mean = mean as f32;
            // An almost constant column keeps its scale.
            let usable = deviation > 1e-6 * mean.abs().max(1e-6);
            column.scale = if usable { (1.0 / deviation) as f32 } else { 1.0 };
        }
        Ok(())
    }
}

/// Adds the values of a JSON object to the statistics.
fn json(line: &[u8], columns: &mut Vec<Column>) {
    let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(line) else { return };
    for (name, value) in object {
        let text = match value {
            serde_json::Value::String(s) => s,
            serde_json::Value::Null => String::new(),
            serde_json::Value::Array(_) | serde_json::Value::Object(_) => {
                column(columns, name).see_nested();
                continue;
            }
            serde_json::Value::Number(n) => n.as_f64().map_or_else(|| n.to_string(), |x| x.to_string()),
            scalar => scalar.to_string(),
        };
        column(columns, name).see(text.as_bytes());
    }
}

/// The column `name`, which is added if it is new.
fn column(columns: &mut Vec<Column>, name: String) -> &mut Column {
    let at = columns.iter().position(|c| c.name == name).unwrap_or_else(|| {
        columns.push(Column::new(name));
        columns.len() - 1
    });
    &mut columns[at]
}

/// A name for a message.
fn quoted_if_empty(name: &str) -> &str {
    if name.is_empty() { "''" } else { name }
}
