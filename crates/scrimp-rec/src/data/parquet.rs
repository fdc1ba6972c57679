//! Apache Parquet: flat columns of any type. Nested columns (lists, structs, maps) cannot be read, and a schema must not name
//! them. Errors name an invalid row by its number in the file.

mod form;

use super::{
    Batch, Block, BlockSource, OpenOptions, RowSource,
    columns::Columns,
    roles::{Filler, Role},
    set::Unreadable,
    typed::Value,
};
use crate::{Error, Result, schema::Schema};
use form::Form;
use parquet::{
    basic::{ConvertedType, LogicalType, Repetition},
    column::reader::ColumnReader,
    data_type::{ByteArray, FixedLenByteArray, Int96},
    file::reader::{FileReader as _, SerializedFileReader},
    schema::types::Type,
};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// Rows of a decoded block.
const CHUNK: usize = 4096;

type Reader = SerializedFileReader<File>;

/// Runs the decoder, which panics on some damaged files.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    super::guard::guarded(work).unwrap_or_else(|| Err(Error::bad_file(path, "the Parquet data is damaged")))
}

fn damaged(path: &Path) -> impl Fn(parquet::errors::ParquetError) -> Error + '_ {
    move |e| Error::bad_file(path, format!("not a Parquet file that can be read: {e}"))
}

fn reader(path: &Path) -> Result<Reader> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    guarded(path, || Reader::new(file).map_err(damaged(path)))
}

/// A column that can be read.
struct Flat {
    /// The index among all leaves.
    leaf: usize,
    name: String,
    form: Form,
}

/// The columns that can be read, in the order of the file.
fn flat(reader: &Reader) -> Vec<Flat> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let usable = schema.columns().iter().enumerate().filter_map(|(leaf, column)| {
        let flat =
            column.path().parts().len() == 1 && column.max_rep_level() == 0 && column.max_def_level() <= 1;
        let form = flat.then(|| Form::of(column)).flatten()?;
        Some(Flat { leaf, name: column.name().to_owned(), form })
    });
    usable.collect()
}

/// The names of the columns that can be read, and the other columns.
pub(super) fn names(path: &Path) -> Result<(Vec<String>, Vec<Unreadable>)> {
    let reader = reader(path)?;
    let names: Vec<String> = flat(&reader).into_iter().map(|column| column.name).collect();
    let root = reader.metadata().file_metadata().schema_descr().root_schema();
    let others = root.get_fields().iter().filter(|field| !names.iter().any(|name| name == field.name()));
    let others =
        others.map(|field| Unreadable { name: field.name().to_owned(), why: reason(field) }).collect();
    Ok((names, others))
}

/// The reason that a column cannot be read.
fn reason(field: &Type) -> String {
    let info = field.get_basic_info();
    match (info.logical_type_ref(), info.converted_type()) {
        (Some(LogicalType::List), _) | (_, ConvertedType::LIST) => "lists".to_owned(),
        (Some(LogicalType::Map), _) | (_, ConvertedType::MAP) => "maps".to_owned(),
        _ if info.has_repetition() && info.repetition() == Repetition::REPEATED => "lists".to_owned(),
        _ if field.is_group() => "structs".to_owned(),
        (_, other) => format!("values of the type {other}"),
    }
}

/// Calls `see` with the texts of the first `rows` rows, column by column, and the index of the column in [`names`]. Returns
/// whether these are all rows.
pub(super) fn sample(path: &Path, rows: usize, see: &mut dyn FnMut(usize, &[u8])) -> Result<bool> {
    let reader = reader(path)?;
    guarded(path, || {
        let (mut left, mut group) = (rows, 0);
        while left > 0 && group < reader.num_row_groups() {
            let of_group = reader.get_row_group(group).map_err(damaged(path))?;
            let n = usize::try_from(of_group.metadata().num_rows()).unwrap_or(0).min(left);
            for (place, flat) in flat(&reader).iter().enumerate() {
                let decoder = of_group.get_column_reader(flat.leaf).map_err(damaged(path))?;
                let mut column = Column::new(Role::Ignored, flat.form, decoder);
                column.read(n).map_err(damaged(path))?;
                let mut text = Vec::new();
                column.each(&mut |_, value| {
                    text.clear();
                    value.text(&mut text);
                    see(place, &text);
                });
            }
            (left, group) = (left - n, group + 1);
        }
        Ok(left > 0)
    })
}

/// A column of a row group, and its decoded values.
struct Column {
    role: Role,
    form: Form,
    decoder: ColumnReader,
    present: Vec<i16>,
    optional: bool,
    records: usize,
    values: Values,
}

enum Values {
    Bool(Vec<bool>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    I96(Vec<Int96>),
    Bytes(Vec<ByteArray>),
    Fixed(Vec<FixedLenByteArray>),
}

impl Column {
    fn new(role: Role, form: Form, decoder: ColumnReader) -> Self {
        let values = match decoder {
            ColumnReader::BoolColumnReader(_) => Values::Bool(Vec::new()),
            ColumnReader::Int32ColumnReader(_) => Values::I32(Vec::new()),
            ColumnReader::Int64ColumnReader(_) => Values::I64(Vec::new()),
            ColumnReader::FloatColumnReader(_) => Values::F32(Vec::new()),
            ColumnReader::DoubleColumnReader(_) => Values::F64(Vec::new()),
            ColumnReader::Int96ColumnReader(_) => Values::I96(Vec::new()),
            ColumnReader::ByteArrayColumnReader(_) => Values::Bytes(Vec::new()),
            ColumnReader::FixedLenByteArrayColumnReader(_) => Values::Fixed(Vec::new()),
        };
        Self { role, form, decoder, present: Vec::new(), optional: false, records: 0, values }
    }

    /// Decodes `n` values, nulls included.
    fn read(&mut self, n: usize) -> Result<(), parquet::errors::ParquetError> {
        macro_rules! read {
            ($reader:expr, $values:expr) => {{
                $values.clear();
                self.present.clear();
                let mut records = 0;
                while records < n {
                    let got = $reader.read_records(n - records, Some(&mut self.present), None, $values)?;
                    if got.0 == 0 {
                        break;
                    }
                    records += got.0;
                }
                self.optional = !self.present.is_empty();
                self.records = records;
            }};
        }
        match (&mut self.decoder, &mut self.values) {
            (ColumnReader::BoolColumnReader(r), Values::Bool(v)) => read!(r, v),
            (ColumnReader::Int32ColumnReader(r), Values::I32(v)) => read!(r, v),
            (ColumnReader::Int64ColumnReader(r), Values::I64(v)) => read!(r, v),
            (ColumnReader::FloatColumnReader(r), Values::F32(v)) => read!(r, v),
            (ColumnReader::DoubleColumnReader(r), Values::F64(v)) => read!(r, v),
            (ColumnReader::Int96ColumnReader(r), Values::I96(v)) => read!(r, v),
            (ColumnReader::ByteArrayColumnReader(r), Values::Bytes(v)) => read!(r, v),
            (ColumnReader::FixedLenByteArrayColumnReader(r), Values::Fixed(v)) => read!(r, v),
            _ => {
                return Err(parquet::errors::ParquetError::General(
                    "a type that is not supported".to_owned(),
                ));
            }
        }
        if self.records < n {
            return Err(parquet::errors::ParquetError::General("a column ends too early".to_owned()));
        }
        Ok(())
    }

    /// Calls `f` with each row's number in the decoded block, and its value.
    fn each(&self, f: &mut dyn FnMut(usize, Value<'_>)) {
        let (form, mut at, mut text) = (self.form, 0, String::new());
        for row in 0..self.records {
            if self.optional && self.present.get(row) == Some(&0) {
                f(row, Value::Missing);
                continue;
            }
            let value = match &self.values {
                Values::Bool(v) => v.get(at).map(|&b| Value::Bool(b)),
                Values::I32(v) => v.get(at).map(|&n| form.integer(n.into(), n.cast_unsigned().into())),
                Values::I64(v) => v.get(at).map(|&n| form.integer(n, n.cast_unsigned())),
                Values::F32(v) => v.get(at).map(|&x| Value::Single(x)),
                Values::F64(v) => v.get(at).map(|&x| Value::Float(x)),
                Values::I96(v) => v.get(at).map(form::int96),
                Values::Bytes(v) => v.get(at).map(|b| form.bytes(b.data(), &mut text)),
                Values::Fixed(v) => v.get(at).map(|b| form.bytes(b.data(), &mut text)),
            };
            at += 1;
            f(row, value.unwrap_or(Value::Missing));
        }
    }
}

/// Rows of Parquet files.
pub(super) struct ParquetSource {
    paths: Vec<PathBuf>,
    filler: Filler,
    options: OpenOptions,
    total: u64,
    /// The index of the current file.
    file: usize,
    reader: Option<Reader>,
    group: usize,
    columns: Vec<Column>,
    left: usize,
    /// Rows read from this file.
    row: u64,
    rows_read: u64,
    bad_rows: u64,
    block: Block,
}

impl ParquetSource {
    pub(super) fn new(paths: &[PathBuf], filler: Filler, options: OpenOptions) -> Result<Self> {
        let mut total = 0;
        for path in paths {
            let rows = reader(path)?.metadata().file_metadata().num_rows();
            total += u64::try_from(rows).unwrap_or(0);
        }
        if total == 0 {
            return Err(Error::bad_file(&paths[0], "there is not one row that can be used"));
        }
        Ok(Self {
            paths: paths.to_vec(),
            filler,
            options,
            total,
            file: 0,
            reader: None,
            group: 0,
            columns: Vec::new(),
            left: 0,
            row: 0,
            rows_read: 0,
            bad_rows: 0,
            block: Block::default(),
        })
    }

    /// Opens the next row group if the current one is read. Returns false at the end of all files.
    fn ready(&mut self) -> Result<bool> {
        while self.left == 0 {
            let Some(path) = self.paths.get(self.file) else { return Ok(false) };
            let reader = match &mut self.reader {
                Some(reader) => reader,
                none => none.insert(reader(path)?),
            };
            if self.group == reader.num_row_groups() {
                (self.file, self.reader, self.group, self.row) = (self.file + 1, None, 0, 0);
                continue;
            }
            let flat = flat(reader);
            let names: Vec<String> = flat.iter().map(|column| column.name.clone()).collect();
            if let Some(name) = self.filler.absent(&names).first() {
                return Err(Error::bad_file(
                    path,
                    format!("there is no column {name}, unlike in the first file"),
                ));
            }
            if let Some(name) = self.filler.twice(&names) {
                return Err(Error::bad_file(path, format!("column {name} is there twice")));
            }
            let group = reader.get_row_group(self.group).map_err(damaged(path))?;
            self.columns.clear();
            for Flat { leaf, name, form } in flat {
                let role = self.filler.role(&name);
                if role != Role::Ignored {
                    let decoder = group.get_column_reader(leaf).map_err(damaged(path))?;
                    self.columns.push(Column::new(role, form, decoder));
                }
            }
            self.left = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
            self.group += 1;
        }
        Ok(true)
    }

    /// Decodes `n` rows, without the invalid ones. Returns their numbers with the reasons.
    fn decode(&mut self, path: &Path, n: usize) -> Result<Vec<(usize, String)>> {
        let Self { columns, filler, block, options, .. } = self;
        let mut rows = Columns::new(filler, options, n, block.refill());
        for column in columns.iter_mut() {
            column.read(n).map_err(damaged(path))?;
            column.each(&mut |r, value| rows.set(r, column.role, value));
        }
        Ok(rows.finish())
    }
}

impl BlockSource for ParquetSource {
    fn block(&mut self) -> &mut Block {
        &mut self.block
    }

    fn read_block(&mut self) -> Result<bool> {
        self.block.clear();
        while self.block.left() == 0 {
            let path = self.paths.get(self.file).cloned().unwrap_or_default();
            if !guarded(&path, || self.ready())? {
                if self.rows_read == self.bad_rows {
                    return Err(Error::bad_file(&self.paths[0], "there is not one row that can be used"));
                }
                return Ok(false);
            }
            let path = self.paths[self.file].clone();
            let n = self.left.min(CHUNK);
            let problems = guarded(&path, || self.decode(&path, n))?;
            for (row, what) in &problems {
                self.bad_rows += 1;
                if self.bad_rows > self.options.skip_bad_rows {
                    let (row, what) = (self.row + *row as u64 + 1, format!("(row) {what}"));
                    return Err(super::bad_row(&path, row, what, &self.options));
                }
            }
            self.left -= n;
            self.row += n as u64;
            self.rows_read += n as u64;
        }
        Ok(true)
    }
}

impl RowSource for ParquetSource {
    fn schema(&self) -> &Schema {
        &self.filler.schema
    }

    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<usize> {
        self.batch_from_blocks(rows, batch)
    }

    fn rewind(&mut self, _epoch: u64) -> Result<()> {
        (self.file, self.reader, self.group, self.left) = (0, None, 0, 0);
        (self.row, self.rows_read, self.bad_rows) = (0, 0, 0);
        self.columns.clear();
        self.block.clear();
        Ok(())
    }

    fn rows(&self) -> Option<u64> {
        Some(self.total)
    }

    fn progress(&self) -> Option<f64> {
        Some((self.rows_read - self.block.left() as u64) as f64 / self.total as f64)
    }

    fn bad_rows(&self) -> u64 {
        self.bad_rows
    }
}
