//! Infers a schema from the first rows of the data.
//!
//! A column of text is categorical. A column of numbers is numeric if it has fractions, or if it has more than 256 distinct
//! integers and no name of an id; other integers are categorical. Text columns with a distinct value in (almost) every row are
//! left out, as are such integer columns with the name `id`. Notes explain each decision, and [`Hints`] override it.

use super::{
    Batch, DataSet, Format, OpenOptions, csv,
    roles::listed,
    text::{Files, lines},
    values::number,
};
use crate::{
    Error, Result,
    schema::{Categorical, Kind, Numeric, Schema, Transform, id_of},
};
use std::{collections::HashSet, sync::Arc};

/// Rows of the sample for the kinds of columns.
const SAMPLE: usize = 20_000;
/// Rows of the sample for means and deviations.
const FIT: usize = 100_000;
/// Usual names of labels, by priority.
const LABELS: [&str; 9] =
    ["label", "click", "clicked", "is_click", "target", "y", "conversion", "converted", "is_clicked"];

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

/// Statistics of a column in the sample.
#[derive(Debug, Clone)]
struct Column {
    name: String,
    present: usize,
    numbers: usize,
    integers: usize,
    negative: bool,
    distinct: HashSet<u64>,
    sum: f64,
    max: f64,
}

impl Column {
    fn new(name: String) -> Self {
        Self {
            name,
            present: 0,
            numbers: 0,
            integers: 0,
            negative: false,
            distinct: HashSet::new(),
            sum: 0.0,
            max: 0.0,
        }
    }

    fn see(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        self.distinct.insert(id_of(text));
        match number(text) {
            Ok(None) => {}
            Ok(Some(x)) => {
                self.present += 1;
                self.numbers += 1;
                // Tables with missing values write integers as `260.0`.
                self.integers += usize::from(x.fract() == 0.0);
                self.negative |= x < 0.0;
                self.sum += f64::from(x);
                self.max = self.max.max(f64::from(x));
            }
            Err(_) => self.present += 1,
        }
    }

    fn is_number(&self) -> bool {
        self.numbers == self.present && self.present > 0
    }

    fn is_integer(&self) -> bool {
        self.is_number() && self.integers == self.numbers
    }

    /// Whether almost every row has a distinct value.
    fn is_unique(&self) -> bool {
        self.present >= 100 && self.distinct.len() * 100 >= self.present * 98
    }

    fn called_id(&self) -> bool {
        let name = self.name.to_ascii_lowercase();
        name == "id" || name.ends_with("_id") || name.ends_with("id") && self.name.ends_with("Id")
    }

    fn guess(&self) -> Guess {
        let named_number = named(&self.name, 'I') && self.is_number();
        let named_category = named(&self.name, 'C');
        if named_number {
            Guess::Numeric
        } else if named_category {
            Guess::Categorical
        } else if self.present == 0 || self.distinct.len() < 2 {
            Guess::Left("always the same")
        } else if !self.is_number() {
            if self.is_unique() { Guess::Left("different in every row") } else { Guess::Categorical }
        } else if self.called_id() {
            let row_number = self.name.eq_ignore_ascii_case("id") && self.is_unique();
            if row_number { Guess::Left("different in every row") } else { Guess::Categorical }
        } else if !self.is_integer() || self.distinct.len() > 256 {
            Guess::Numeric
        } else {
            Guess::Categorical
        }
    }

    /// `log1p` for values over several orders of magnitude.
    fn transform(&self) -> Transform {
        let spread = self.max > 20.0 * self.sum / self.numbers.max(1) as f64;
        if spread && !self.negative || named(&self.name, 'I') {
            Transform::Log1p
        } else {
            Transform::Identity
        }
    }

    fn kind(&self) -> Kind {
        if self.is_integer() && !self.negative { Kind::Id } else { Kind::Text }
    }
}

enum Guess {
    Numeric,
    Categorical,
    Left(&'static str),
}

/// Whether `name` is Criteo's: a letter and a number.
fn named(name: &str, letter: char) -> bool {
    name.strip_prefix(letter).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
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

    fn guess(&self, columns: &[Column], hints: &Hints, notes: &mut Vec<String>) -> Result<Schema> {
        if columns.iter().all(|c| c.distinct.is_empty()) {
            return Err(Error::bad_file(&self.paths()[0], "there is not one row that can be used"));
        }
        let known = || listed(columns.iter().map(|c| c.name.as_str()));
        let find = |name: &str| {
            columns.iter().find(|c| c.name == name).ok_or_else(|| {
                Error::bad_file(&self.paths()[0], format!("there is no column {name}"))
                    .with_hint(format!("the file has the columns {}", known()))
            })
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
            return Ok(schema);
        }
        for column in columns.iter().filter(|c| c.name != schema.label) {
            match column.guess() {
                Guess::Numeric => schema.numeric.push(Numeric::new(&column.name, column.transform())),
                Guess::Categorical => {
                    schema.categorical.push(Categorical { name: column.name.clone(), kind: column.kind() });
                }
                Guess::Left(why) => notes.push(format!("left out: {} ({why})", column.name)),
            }
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

    /// The statistics of the first rows.
    fn sample(&self) -> Result<Vec<Column>> {
        let mut columns: Vec<Column> = self.names().iter().cloned().map(Column::new).collect();
        match self.format() {
            #[cfg(feature = "parquet")]
            Format::Parquet => {
                super::parquet::sample(&self.paths()[0], SAMPLE, &mut |i, text| columns[i].see(text))?;
                return Ok(columns);
            }
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => return Ok(columns),
            Format::Criteo | Format::Csv { .. } | Format::JsonLines => {}
        }
        let paths: Arc<[_]> = self.paths()[..1].into();
        let mut files = Files::new(paths, Arc::default(), super::text::BLOCK);
        let (mut rows, mut scratch) = (0, Vec::new());
        while rows < SAMPLE {
            let Some(block) = files.next().transpose()? else { break };
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
        Ok(columns)
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

/// Adds the scalars of a JSON object to the statistics.
fn json(line: &[u8], columns: &mut Vec<Column>) {
    let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(line) else { return };
    for (name, value) in object {
        let text = match value {
            serde_json::Value::String(s) => s,
            serde_json::Value::Null => continue,
            serde_json::Value::Array(_) | serde_json::Value::Object(_) => continue,
            serde_json::Value::Number(n) => n.as_f64().map_or_else(|| n.to_string(), |x| x.to_string()),
            scalar => scalar.to_string(),
        };
        let at = columns.iter().position(|c| c.name == name).unwrap_or_else(|| {
            columns.push(Column::new(name));
            columns.len() - 1
        });
        columns[at].see(text.as_bytes());
    }
}
