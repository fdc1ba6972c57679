//! Data by name: a file, a directory with `train.*`, `valid.*` and `test.*`, a directory of files with the same columns, or
//! `generate:...`.

use super::{DataSet, Hints, OpenOptions, RowSource};
use crate::{
    Error, Result,
    generate::{Generator, GeneratorOptions},
    schema::Schema,
};
use std::path::{Path, PathBuf};

/// The purpose of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Training.
    Train,
    /// Early stopping and model selection.
    Valid,
    /// The final evaluation.
    Test,
}

impl Split {
    fn stem(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

/// Files or a generator.
#[derive(Debug, Clone)]
pub enum Data {
    /// Files.
    Files(DataSet),
    /// Rows that are generated in memory.
    Generated(GeneratorOptions),
}

impl Data {
    /// The data `name`: `generate:PRESET[,rows=N][,first=N][,seed=N][,cap=N]`, or a path. In a directory with `train.*`, the file
    /// of `split`.
    ///
    /// # Errors
    /// The file or preset does not exist, or the format is unknown.
    pub fn find(name: &Path, split: Split) -> Result<Self> {
        if let Some(text) = name.to_str().and_then(|n| n.strip_prefix("generate:")) {
            return Ok(Self::Generated(generated(text)?));
        }
        let path = split_of(name, split)?.unwrap_or_else(|| name.to_owned());
        Ok(Self::Files(DataSet::find(&path)?))
    }

    /// The data of `split` in the directory `name`, if the directory has training data and such data.
    ///
    /// # Errors
    /// As [`Data::find`].
    pub fn beside(name: &Path, split: Split) -> Result<Option<Self>> {
        if name.is_dir()
            && split_of(name, Split::Train)?.is_some()
            && let Some(path) = split_of(name, split)?
        {
            return Ok(Some(Self::Files(DataSet::find(&path)?)));
        }
        Ok(None)
    }

    /// The schema file of directory `name`, if it has one.
    pub fn schema_file(name: &Path) -> Option<PathBuf> {
        Some(name.join("schema.toml")).filter(|p| name.is_dir() && p.is_file())
    }

    /// The files; none for generated rows.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::Files(data) => data.paths(),
            Self::Generated(_) => &[],
        }
    }

    /// A short description for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Files(data) => {
                let first = data.paths().first().map(|p| p.display().to_string()).unwrap_or_default();
                match data.paths().len() {
                    1 => format!("{first} ({})", data.format()),
                    n => format!("{first} and {} more ({})", n - 1, data.format()),
                }
            }
            Self::Generated(o) => format!("{} generated rows", o.rows),
        }
    }

    /// An inferred schema with standardized numbers, and notes on the decisions.
    ///
    /// # Errors
    /// As [`DataSet::infer`] and [`DataSet::fit`].
    pub fn schema(&self, hints: &Hints, options: &OpenOptions) -> Result<(Schema, Vec<String>)> {
        match self {
            Self::Files(data) => {
                let (mut schema, notes) = data.infer(hints)?;
                data.fit(&mut schema, options)?;
                Ok((schema, notes))
            }
            Self::Generated(o) => Ok((Generator::new(o.clone(), 0)?.schema().clone(), Vec::new())),
        }
    }

    /// Opens the data with the columns of `schema`.
    ///
    /// # Errors
    /// As [`DataSet::open`].
    pub fn open(&self, schema: &Schema, options: &OpenOptions) -> Result<Box<dyn RowSource>> {
        match self {
            Self::Files(data) => data.open(schema, options),
            Self::Generated(o) => {
                let source = Generator::new(o.clone(), options.threads)?;
                let own = source.schema();
                if (own.n_numeric(), own.n_categorical()) != (schema.n_numeric(), schema.n_categorical()) {
                    return Err(Error::bad_input(format!(
                        "the generated rows have {} numeric and {} categorical features, {} and {} are expected",
                        own.n_numeric(),
                        own.n_categorical(),
                        schema.n_numeric(),
                        schema.n_categorical()
                    )));
                }
                Ok(Box::new(source))
            }
        }
    }
}

/// The file of `split` in the directory `dir`.
fn split_of(dir: &Path, split: Split) -> Result<Option<PathBuf>> {
    if !dir.is_dir() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.split('.').next() == Some(split.stem()) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found.into_iter().next())
}

/// `criteo-tb,rows=20000000,first=0,seed=1`
fn generated(text: &str) -> Result<GeneratorOptions> {
    let mut words = text.split(',');
    let mut options = preset(words.next().unwrap_or_default())?;
    for word in words {
        let parsed =
            word.split_once('=').and_then(|(k, v)| Some((k, v.replace('_', "").parse::<u64>().ok()?)));
        match parsed {
            Some(("rows", n)) => options.rows = n,
            Some(("first", n)) => options.first_row = n,
            Some(("seed", n)) => options.seed = n,
            Some(("cap", n)) => options.cardinalities.iter_mut().for_each(|c| *c = (*c).min(n)),
            _ => {
                return Err(Error::bad_input(format!("generate: unknown option '{word}'"))
                    .with_hint("as in generate:criteo-tb,rows=20000000,first=0,seed=1,cap=1000000"));
            }
        }
    }
    options.check()?;
    Ok(options)
}

/// The names of the presets of [`preset`].
pub const PRESETS: [&str; 2] = ["criteo-tb", "small"];

/// The options of a preset: `criteo-tb` (true cardinalities) or `small` (at most 10,000 ids per feature).
///
/// # Errors
/// There is no such preset.
pub fn preset(name: &str) -> Result<GeneratorOptions> {
    match name {
        "criteo-tb" => Ok(GeneratorOptions::criteo_tb(1_000_000)),
        "small" => Ok(GeneratorOptions::default()),
        other => Err(Error::bad_input(format!("there is no preset '{other}' of the generator"))
            .with_hint(format!("the presets are {}", PRESETS.join(" and ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_data() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in
            [("train.csv", "y,c\n1,2\n"), ("test.csv", "y,c\n0,3\n"), ("schema.toml", "label=\"y\"\n")]
        {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let paths = |d: Data| match d {
            Data::Files(d) => d.paths()[0].file_name().unwrap().to_string_lossy().into_owned(),
            Data::Generated(_) => String::new(),
        };
        assert_eq!(paths(Data::find(dir.path(), Split::Test).unwrap()), "test.csv");
        assert_eq!(paths(Data::find(dir.path(), Split::Train).unwrap()), "train.csv");
        assert!(Data::beside(dir.path(), Split::Valid).unwrap().is_none());
        assert!(Data::beside(dir.path(), Split::Test).unwrap().is_some());
        assert!(Data::schema_file(dir.path()).is_some());
        let found =
            Data::find(Path::new("generate:criteo-tb,rows=20_000,first=7,cap=500"), Split::Train).unwrap();
        let Data::Generated(o) = found else { panic!() };
        assert_eq!((o.rows, o.first_row, o.cardinalities[0], o.cardinalities[5]), (20_000, 7, 500, 3));
        for bad in
            ["generate:", "generate:x", "generate:small,rows", "generate:small,rows=-1", "generate:small,n=1"]
        {
            assert!(Data::find(Path::new(bad), Split::Train).is_err(), "{bad}");
        }
    }
}
