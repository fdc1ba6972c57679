//! Files of rows: recognizes their format and opens them.

use super::{
    RowSource,
    criteo::{Criteo, First},
    csv::Csv,
    infer::usual_label,
    input::Input,
    jsonl::JsonLines,
    roles::{Filler, listed},
    text::{self, TextSource, without_bom},
    values::shown,
};
use crate::{Error, Result, schema::Schema};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The longest first line in bytes.
const FIRST_LINE: usize = 1 << 20;

/// File formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Criteo's: 40 columns separated by tabs, without a header.
    Criteo,
    /// A header, then a row per line.
    Csv {
        /// The separator of fields: `,`, a tab, `;` or `|`.
        separator: u8,
    },
    /// A JSON object per line.
    JsonLines,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// The names of all formats: one for CSV with any separator.
    pub const NAMES: [&'static str; 4] = ["criteo", "csv", "jsonl", "parquet"];

    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Criteo => "criteo",
            Self::Csv { .. } => "csv",
            Self::JsonLines => "jsonl",
            Self::Parquet => "parquet",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Criteo => "Criteo TSV",
            Self::Csv { separator: b'\t' } => "TSV with a header",
            Self::Csv { .. } => "CSV",
            Self::JsonLines => "JSON lines",
            Self::Parquet => "Parquet",
        })
    }
}

/// Options of reading.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Number of parsing threads; 0: the calling thread parses.
    pub threads: usize,
    /// The number of invalid rows that are left out; one more is an error.
    pub skip_bad_rows: u64,
    /// Every row must have a label. If false, rows without a label get NaN.
    pub labels: bool,
    /// The value of a missing number.
    pub missing: f32,
    /// Bytes of a block of text, and the longest line.
    pub block: usize,
}

impl Default for OpenOptions {
    /// One thread, no invalid rows, labels in all rows.
    fn default() -> Self {
        Self { threads: 1, skip_bad_rows: 0, labels: true, missing: 0.0, block: text::BLOCK }
    }
}

/// A column that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) name: String,
    /// The kind of its values, in the plural.
    pub(super) why: String,
}

/// A file of rows, or a directory of files with the same columns, which are read in sequence.
#[derive(Debug, Clone)]
pub struct DataSet {
    paths: Vec<PathBuf>,
    format: Format,
    /// The names of the columns, for formats with a header.
    names: Vec<String>,
    /// The columns that cannot be read, for formats with types.
    unreadable: Vec<Unreadable>,
    /// Whether lines of Criteo's format begin with a label.
    labeled: bool,
}

impl DataSet {
    /// The data at `path`: a file, or the files of a directory in the order of their names (`day_2` before `day_10`), without
    /// hidden and `.toml` files. The beginning of the first file determines the format.
    ///
    /// # Errors
    /// The file does not exist, or its format is unknown.
    pub fn find(path: &Path) -> Result<Self> {
        let paths = files(path)?;
        let Some(first) = paths.first() else {
            return Err(Error::bad_input(format!("{}: there are no data files in it", path.display())));
        };
        let mut start = vec![0; FIRST_LINE];
        let read = Input::open(first, &Arc::default())?.fill(&mut start)?;
        start.truncate(read);
        if start.is_empty() {
            return Err(Error::bad_file(first, "the file is empty"));
        }
        if start.starts_with(b"PAR1") {
            return Self::parquet(paths);
        }
        let Some((_, line)) = text::lines(&start, 1).find(|(_, l)| !l.is_empty()) else {
            return Err(Error::bad_file(first, "there is not one row that can be used"));
        };
        let line = without_bom(line);
        if line.len() >= FIRST_LINE - 3 || line.contains(&0) {
            return Err(Error::bad_file(first, "not a text file with a row per line, and not Parquet"));
        }
        if let Some(columns) = Criteo::columns(line) {
            let labeled = columns == 40;
            return Ok(Self { labeled, ..Self::new(paths, Format::Criteo, Vec::new()) });
        }
        if line.trim_ascii_start().starts_with(b"{") {
            return Ok(Self::new(paths, Format::JsonLines, Vec::new()));
        }
        let count = |s: u8| line.iter().filter(|&&b| b == s).count();
        let separator = [b'\t', b',', b';', b'|'].into_iter().rev().max_by_key(|&s| count(s)).unwrap_or(b',');
        let names =
            Csv::names(line, separator).map_err(|e| Error::bad_file(first, format!("line 1: {e}")))?;
        header(first, &names, separator)?;
        Ok(Self::new(paths, Format::Csv { separator }, names))
    }

    fn new(paths: Vec<PathBuf>, format: Format, names: Vec<String>) -> Self {
        Self { paths, format, names, unreadable: Vec::new(), labeled: false }
    }

    #[cfg(feature = "parquet")]
    fn parquet(paths: Vec<PathBuf>) -> Result<Self> {
        let (names, unreadable) = super::parquet::names(&paths[0])?;
        Ok(Self { unreadable, ..Self::new(paths, Format::Parquet, names) })
    }

    #[cfg(not(feature = "parquet"))]
    fn parquet(paths: Vec<PathBuf>) -> Result<Self> {
        Err(Error::bad_file(&paths[0], "this scrimp was built without Parquet")
            .with_hint("build it with the feature `parquet`, or convert the file to CSV"))
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The files, in order.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The names of the columns; empty for formats without a header.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The columns that cannot be read.
    pub(super) fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// The error of a column that the data does not have, or that cannot be read. `known` lists the columns.
    pub(super) fn no_column(&self, names: &[&str], known: &str) -> Error {
        let path = &self.paths[0];
        if let Some(column) = self.unreadable.iter().find(|column| names.contains(&column.name.as_str())) {
            return self.unreadable_column(&column.name, &column.why);
        }
        Error::bad_file(path, format!("there is no column {}", listed(names.iter().copied())))
            .with_hint(format!("the file has the columns {known}"))
    }

    /// The error of a column that has to be read, and has `why`.
    pub(super) fn unreadable_column(&self, name: &str, why: &str) -> Error {
        Error::bad_file(&self.paths[0], format!("column {name} has {why}, which cannot be read"))
            .with_hint("write one number or text per row to it, or leave it out")
    }

    /// The size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.paths.iter().filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum()
    }

    /// Opens the data with the columns of `schema`.
    ///
    /// # Errors
    /// A column of `schema` is missing. Invalid rows are errors of the source.
    pub fn open(&self, schema: &Schema, options: &OpenOptions) -> Result<Box<dyn RowSource>> {
        schema.check()?;
        let (schema, paths, o) = (schema.clone(), &self.paths, options.clone());
        let filler = Filler::new(schema.clone(), o.missing, o.labels);
        match self.format {
            Format::Criteo => {
                if !Criteo::fits(&schema) {
                    return Err(self.misfit(format!(
                        "the file has Criteo's format (13 numbers, 26 hexadecimal categories), but {} numbers and {} \
                         categories are expected",
                        schema.n_numeric(),
                        schema.categorical.len()
                    )));
                }
                if o.labels && !self.labeled {
                    return Err(self.misfit("the rows have no label (39 columns, 40 are expected)"));
                }
                let first = match (self.labeled, o.labels) {
                    (true, true) => First::Label,
                    (true, false) => First::Ignored,
                    (false, _) => First::Number,
                };
                let make = {
                    let (schema, missing) = (schema.clone(), o.missing);
                    move || Criteo::new(schema.clone(), first, missing)
                };
                Ok(Box::new(TextSource::new(schema, paths, o, make)))
            }
            Format::Csv { separator } => {
                self.has_columns(&filler)?;
                let names = self.names.clone();
                let make = {
                    let (schema, missing, labels) = (schema.clone(), o.missing, o.labels);
                    move || Csv::new(Filler::new(schema.clone(), missing, labels), names.clone(), separator)
                };
                Ok(Box::new(TextSource::new(schema, paths, o, make)))
            }
            Format::JsonLines => {
                let make = {
                    let (schema, missing, labels) = (schema.clone(), o.missing, o.labels);
                    move || JsonLines::new(Filler::new(schema.clone(), missing, labels))
                };
                Ok(Box::new(TextSource::new(schema, paths, o, make)))
            }
            Format::Parquet => {
                self.has_columns(&filler)?;
                self.open_parquet(filler, o)
            }
        }
    }

    #[cfg(feature = "parquet")]
    fn open_parquet(&self, filler: Filler, options: OpenOptions) -> Result<Box<dyn RowSource>> {
        Ok(Box::new(super::parquet::ParquetSource::new(&self.paths, filler, options)?))
    }

    #[cfg(not(feature = "parquet"))]
    fn open_parquet(&self, _filler: Filler, _options: OpenOptions) -> Result<Box<dyn RowSource>> {
        Err(self.misfit("this scrimp was built without Parquet"))
    }

    fn has_columns(&self, filler: &Filler) -> Result<()> {
        match filler.absent(&self.names)[..] {
            [] => Ok(()),
            ref absent => Err(self.no_column(absent, &listed(self.names.iter().map(String::as_str)))),
        }
    }

    fn misfit(&self, what: impl fmt::Display) -> Error {
        Error::bad_file(&self.paths[0], what).with_hint("use data with the columns of the model's schema")
    }
}

/// Checks a header: it has a name, and a name occurs once. Names that are numbers need a usual label beside them: otherwise the
/// line is a row.
fn header(path: &Path, names: &[String], separator: u8) -> Result<()> {
    let number = |name: &&String| name.parse::<f64>().is_ok();
    let labeled = names.iter().any(|name| usual_label(name));
    let unnamed = || names.iter().all(String::is_empty).then(|| &names[0]);
    if let Some(name) = names.iter().filter(|_| !labeled).find(number).or_else(unnamed) {
        let columns = match separator {
            b'\t' => format!("{} columns separated by tabs", names.len()),
            s => format!("{} columns separated by '{}'", names.len(), char::from(s)),
        };
        return Err(Error::bad_file(path, format!("line 1 is no header ({columns}, one of them '{}')", shown(name.as_bytes()))).with_hint("CSV files need the names of their columns in the first line; Criteo's format, which needs none, has 40 \
             columns separated by tabs: the label, 13 numbers, 26 hexadecimal categories"));
    }
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|w| w[0] == w[1] && !w[0].is_empty()) {
        Some(w) => Err(Error::bad_file(path, format!("line 1: column '{}' is there twice", w[0]))),
        None => Ok(()),
    }
}

/// The files at `path`.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let meta = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !meta.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let entry = entry.map_err(|e| Error::io(path, e))?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if entry.is_file()
            && !name.starts_with(['.', '_'])
            && !name.ends_with(".toml")
            && !name.ends_with(".md")
        {
            found.push((natural(&name), entry));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, p)| p).collect())
}

/// A sort key that compares sequences of digits as numbers.
fn natural(name: &str) -> Vec<(u64, String)> {
    let mut key = vec![(0, String::new())];
    let mut digits = String::new();
    for c in name.chars().chain(['\0']) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        if !digits.is_empty() {
            key.push((digits.parse().unwrap_or(u64::MAX), String::new()));
            digits.clear();
        }
        if let Some((_, text)) = key.last_mut() {
            text.push(c);
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::natural;

    #[test]
    fn numbers_in_names_count() {
        let mut names = ["day_10.gz", "day_2.gz", "day_1.gz", "a", "day_2a.gz"];
        names.sort_by_key(|n| natural(n));
        assert_eq!(names, ["a", "day_1.gz", "day_2.gz", "day_2a.gz", "day_10.gz"]);
    }
}
