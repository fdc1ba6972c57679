//! Files of rows: recognizes their format and opens them.

use super::{
    RowSource,
    criteo::Criteo,
    csv::Csv,
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

/// A file of rows, or a directory of files with the same columns, which are read in sequence.
#[derive(Debug, Clone)]
pub struct DataSet {
    paths: Vec<PathBuf>,
    format: Format,
    /// The names of the columns, for formats with a header.
    names: Vec<String>,
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
            return Ok(Self { paths, format: Format::Criteo, names: Vec::new(), labeled });
        }
        if line.trim_ascii_start().starts_with(b"{") {
            return Ok(Self { paths, format: Format::JsonLines, names: Vec::new(), labeled: false });
        }
        let count = |s: u8| line.iter().filter(|&&b| b == s).count();
        let separator = [b'\t', b',', b';', b'|'].into_iter().rev().max_by_key(|&s| count(s)).unwrap_or(b',');
        let names =
            Csv::names(line, separator).map_err(|e| Error::bad_file(first, format!("line 1: {e}")))?;
        header(first, &names, separator)?;
        Ok(Self { paths, format: Format::Csv { separator }, names, labeled: false })
    }

    #[cfg(feature = "parquet")]
    fn parquet(paths: Vec<PathBuf>) -> Result<Self> {
        let names = super::parquet::names(&paths[0])?;
        Ok(Self { paths, format: Format::Parquet, names, labeled: false })
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
        let filler = Filler::new(schema.clone(), o.missing);
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
                let (missing, labeled) = (o.missing, self.labeled);
                let make = {
                    let schema = schema.clone();
                    move || Criteo::new(schema.clone(), labeled, missing)
                };
                Ok(Box::new(TextSource::new(schema, paths, o, make)))
            }
            Format::Csv { separator } => {
                self.has_columns(&filler, o.labels)?;
                let names = self.names.clone();
                let make = {
                    let (schema, missing) = (schema.clone(), o.missing);
                    move || Csv::new(Filler::new(schema.clone(), missing), names.clone(), separator)
                };
                Ok(Box::new(TextSource::new(schema, paths, o, make)))
            }
            Format::JsonLines => {
                let make = {
                    let (schema, missing, labels) = (schema.clone(), o.missing, o.labels);
                    move || JsonLines::new(Filler::new(schema.clone(), missing), labels)
                };
                Ok(Box::new(TextSource::new(schema, paths, o, make)))
            }
            Format::Parquet => {
                self.has_columns(&filler, o.labels)?;
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

    fn has_columns(&self, filler: &Filler, labels: bool) -> Result<()> {
        match filler.absent(&self.names, labels)[..] {
            [] => Ok(()),
            ref absent => Err(Error::bad_file(
                &self.paths[0],
                format!("there is no column {}", listed(absent.iter().copied())),
            )
            .with_hint(format!(
                "the file has the columns {}",
                listed(self.names.iter().map(String::as_str))
            ))),
        }
    }

    fn misfit(&self, what: impl fmt::Display) -> Error {
        Error::bad_file(&self.paths[0], what).with_hint(
            "use data with the columns that the model was trained with (`scrimp rec inspect` shows them)",
        )
    }
}

/// Checks a header: a name is not a number and occurs once.
fn header(path: &Path, names: &[String], separator: u8) -> Result<()> {
    if let Some(name) = names.iter().find(|n| n.is_empty() || n.parse::<f64>().is_ok()) {
        let columns = match separator {
            b'\t' => format!("{} columns separated by tabs", names.len()),
            s => format!("{} columns separated by '{}'", names.len(), char::from(s)),
        };
        return Err(Error::bad_file(path, format!("line 1 is no header ({columns}, one of them '{}')", shown(name.as_bytes()))).with_hint("CSV files need the names of their columns in the first line; Criteo's format, which needs none, has 40 \
             columns separated by tabs: the label, 13 numbers, 26 hexadecimal categories"));
    }
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|w| w[0] == w[1]) {
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
