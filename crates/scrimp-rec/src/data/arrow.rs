//! Arrow record batches, and Arrow IPC streams in memory: flat columns of any type, plain or as dictionaries.

use super::{
    Batch, OpenOptions,
    columns::Columns,
    guard::guarded,
    roles::{Filler, Role},
    typed::{Unit, Value},
};
use crate::schema::Schema;
use arrow_array::{Array, ArrayRef, Float32Array, RecordBatch, cast::AsArray, downcast_integer_array, types};
use arrow_ipc::{reader::StreamReader, writer::StreamWriter};
use arrow_schema::{DataType, TimeUnit};
use std::sync::Arc;

/// Errors of [`ArrowRows::read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArrowError {
    /// The stream has too many rows.
    TooMany,
    /// The stream is invalid, or a column or value does not fit the schema.
    Bad(String),
}

/// Parses Arrow IPC streams into rows. Absent and null columns are missing values; labels are ignored.
pub struct ArrowRows {
    filler: Filler,
    options: OpenOptions,
}

/// An Arrow IPC stream with the column `score`.
pub fn arrow_scores(scores: Vec<f32>) -> Vec<u8> {
    let column = Arc::new(Float32Array::from(scores)) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("score", column)]).expect("one column");
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, batch.schema_ref()).expect("memory takes everything");
    writer.write(&batch).and_then(|()| writer.finish()).expect("memory takes everything");
    drop(writer);
    bytes
}

impl std::fmt::Debug for ArrowRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ArrowRows")
    }
}

impl ArrowRows {
    /// A parser for rows of `schema`.
    pub fn new(schema: &Schema) -> Self {
        let options = OpenOptions { labels: false, ..OpenOptions::default() };
        Self { filler: Filler::new(schema.clone(), options.missing, false), options }
    }

    /// The rows of the stream `bytes`, at most `most`.
    ///
    /// # Errors
    /// The stream is invalid, compressed or too long, or a column's type or a value does not fit the schema.
    pub fn read(&self, bytes: &[u8], most: usize) -> Result<Batch, ArrowError> {
        // The reader panics on some damaged streams.
        guarded(|| self.read_stream(bytes, most))
            .unwrap_or_else(|| Err(ArrowError::Bad("the Arrow stream is damaged".to_owned())))
    }

    /// The columns of the schema that a table with the columns `names` lacks.
    pub fn absent(&self, names: &[String]) -> Vec<&str> {
        self.filler.absent(names)
    }

    /// The rows of a record batch, which follow `before` rows.
    ///
    /// # Errors
    /// A column's type or a value does not fit the schema.
    pub fn read_batch(&self, batch: &RecordBatch, before: usize) -> Result<Batch, ArrowError> {
        self.rows(batch, before).map_err(ArrowError::Bad)
    }

    fn read_stream(&self, bytes: &[u8], most: usize) -> Result<Batch, ArrowError> {
        let damaged = |e| ArrowError::Bad(format!("not an Arrow IPC stream that can be read: {e}"));
        let mut all = Batch::default();
        for batch in StreamReader::try_new(bytes, None).map_err(damaged)? {
            let batch = batch.map_err(damaged)?;
            if batch.num_rows() > most - all.rows() {
                return Err(ArrowError::TooMany);
            }
            let rows = self.read_batch(&batch, all.rows())?;
            all.extend(&rows, 0..rows.rows());
        }
        Ok(all)
    }

    /// The rows of a record batch, which follow `before` rows.
    fn rows(&self, batch: &RecordBatch, before: usize) -> Result<Batch, String> {
        let names: Vec<String> =
            batch.schema_ref().fields().iter().map(|field| field.name().clone()).collect();
        if let Some(name) = self.filler.twice(&names) {
            return Err(format!("column {name} is there twice"));
        }
        let mut out = Batch::default();
        let mut rows = Columns::new(&self.filler, &self.options, batch.num_rows(), &mut out);
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            let role = self.filler.role(field.name());
            if matches!(role, Role::Number(_) | Role::Category(_)) {
                each(column, &mut |r, value| rows.set(r, role, value))
                    .map_err(|e| format!("column {}: {e}", field.name()))?;
            }
        }
        match rows.finish().first() {
            Some((r, what)) => Err(format!("row {}: {what}", before + r)),
            None => Ok(out),
        }
    }
}

/// Calls `f` with each row's number and value.
fn each(column: &dyn Array, f: &mut dyn FnMut(usize, Value<'_>)) -> Result<(), String> {
    let mut at = |r: usize, value: Value<'_>| f(r, if column.is_null(r) { Value::Missing } else { value });
    macro_rules! all {
        ($array:expr, $value:expr) => {{
            let array = $array;
            for r in 0..array.len() {
                at(r, $value(array.value(r)));
            }
        }};
    }
    macro_rules! primitive {
        ($type:ident, $value:expr) => {
            all!(column.as_primitive::<types::$type>(), $value)
        };
    }
    let text = |x| Value::Bytes(str::as_bytes(x));
    downcast_integer_array!(
        column => {
            for r in 0..column.len() {
                let n = i128::from(column.value(r));
                let unsigned = |_| Value::Unsigned(n.try_into().unwrap_or(u64::MAX));
                at(r, i64::try_from(n).map_or_else(unsigned, Value::Integer));
            }
        },
        DataType::Boolean => all!(column.as_boolean(), Value::Bool),
        DataType::Float16 => primitive!(Float16Type, |x: half::f16| Value::Single(x.to_f32())),
        DataType::Float32 => primitive!(Float32Type, Value::Single),
        DataType::Float64 => primitive!(Float64Type, Value::Float),
        DataType::Decimal32(_, scale) => primitive!(Decimal32Type, |n: i32| Value::Decimal(n.into(), *scale)),
        DataType::Decimal64(_, scale) => primitive!(Decimal64Type, |n: i64| Value::Decimal(n.into(), *scale)),
        DataType::Decimal128(_, scale) => primitive!(Decimal128Type, |n| Value::Decimal(n, *scale)),
        DataType::Date32 => primitive!(Date32Type, Value::Date),
        DataType::Date64 => primitive!(Date64Type, |n: i64| {
            i32::try_from(n.div_euclid(86_400_000)).map_or(Value::Integer(n), Value::Date)
        }),
        DataType::Time32(TimeUnit::Second) => primitive!(Time32SecondType, time(Unit::Second)),
        DataType::Time32(TimeUnit::Millisecond) => primitive!(Time32MillisecondType, time(Unit::Milli)),
        DataType::Time64(TimeUnit::Microsecond) => primitive!(Time64MicrosecondType, time(Unit::Micro)),
        DataType::Time64(TimeUnit::Nanosecond) => primitive!(Time64NanosecondType, time(Unit::Nano)),
        DataType::Timestamp(unit, zone) => {
            let utc = zone.is_some();
            match unit {
                TimeUnit::Second => primitive!(TimestampSecondType, point(Unit::Second, utc)),
                TimeUnit::Millisecond => primitive!(TimestampMillisecondType, point(Unit::Milli, utc)),
                TimeUnit::Microsecond => primitive!(TimestampMicrosecondType, point(Unit::Micro, utc)),
                TimeUnit::Nanosecond => primitive!(TimestampNanosecondType, point(Unit::Nano, utc)),
            }
        },
        DataType::Utf8 => all!(column.as_string::<i32>(), text),
        DataType::LargeUtf8 => all!(column.as_string::<i64>(), text),
        DataType::Utf8View => all!(column.as_string_view(), text),
        DataType::Binary => all!(column.as_binary::<i32>(), Value::Bytes),
        DataType::LargeBinary => all!(column.as_binary::<i64>(), Value::Bytes),
        DataType::BinaryView => all!(column.as_binary_view(), Value::Bytes),
        DataType::FixedSizeBinary(_) => all!(column.as_fixed_size_binary(), Value::Bytes),
        DataType::Dictionary(_, values) if !matches!(**values, DataType::Dictionary(..)) => dictionary(column, f)?,
        DataType::Null => (0..column.len()).for_each(|r| f(r, Value::Missing)),
        other => return Err(format!("values of the type {other} cannot be read: numbers, texts, dates and times can")),
    );
    Ok(())
}

/// The value of a time of day.
fn time<N: Into<i64>>(unit: Unit) -> impl Fn(N) -> Value<'static> {
    move |n| Value::Time(n.into(), unit)
}

/// The value of a point in time.
fn point(unit: Unit, utc: bool) -> impl Fn(i64) -> Value<'static> {
    move |n| Value::Timestamp(n, unit, utc)
}

fn dictionary(column: &dyn Array, f: &mut dyn FnMut(usize, Value<'_>)) -> Result<(), String> {
    let column = column.as_any_dictionary();
    let mut texts = vec![Vec::new(); column.values().len()];
    each(column.values(), &mut |i, value| value.text(&mut texts[i]))?;
    let keys = if texts.is_empty() { vec![0; column.len()] } else { column.normalized_keys() };
    for (r, &key) in keys.iter().enumerate() {
        let text = texts.get(key).filter(|_| column.is_valid(r));
        f(r, text.map_or(Value::Missing, |t| Value::Bytes(t)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::JsonRows,
        schema::{Categorical, Kind, Numeric, Schema, Transform},
    };
    use arrow_array::{
        BooleanArray, DictionaryArray, Float64Array, Int64Array, RecordBatchOptions, StringArray,
        types::Int8Type,
    };
    use arrow_schema::{Field, Schema as ArrowSchema};

    fn schema() -> Schema {
        Schema {
            label: "y".into(),
            numeric: ["a", "b"].map(|name| Numeric::new(name, Transform::Identity)).to_vec(),
            categorical: ["c", "d"].map(|name| Categorical { name: name.into(), kind: Kind::Text }).to_vec(),
            ..Schema::criteo()
        }
    }

    fn stream(columns: Vec<(&str, Arc<dyn Array>)>, batches: usize) -> Vec<u8> {
        let fields: Vec<_> =
            columns.iter().map(|(n, c)| Field::new(*n, c.data_type().clone(), true)).collect();
        let schema = Arc::new(ArrowSchema::new(fields));
        let columns: Vec<_> = columns.into_iter().map(|(_, c)| c).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(columns[0].len()));
        let batch = RecordBatch::try_new_with_options(schema.clone(), columns, &options).unwrap();
        let mut bytes = Vec::new();
        let mut writer = StreamWriter::try_new(&mut bytes, &schema).unwrap();
        (0..batches).for_each(|_| writer.write(&batch).unwrap());
        writer.finish().unwrap();
        drop(writer);
        bytes
    }

    fn columns() -> Vec<(&'static str, Arc<dyn Array>)> {
        let d: DictionaryArray<Int8Type> = vec![Some("x"), None, Some("y")].into_iter().collect();
        vec![
            ("a", Arc::new(Int64Array::from(vec![Some(3), None, Some(-7)]))),
            ("other", Arc::new(BooleanArray::from(vec![true, false, true]))),
            ("b", Arc::new(Float64Array::from(vec![Some(0.5), Some(f64::NAN), Some(1e3)]))),
            ("c", Arc::new(StringArray::from(vec![Some("UA"), Some("7"), None]))),
            ("d", Arc::new(d)),
        ]
    }

    #[test]
    fn rows_are_those_of_json() {
        let schema = schema();
        let got = ArrowRows::new(&schema).read(&stream(columns(), 2), 6).unwrap();
        let (mut json, mut want) = (JsonRows::new(&schema), Batch::default());
        for _ in 0..2 {
            for row in [
                r#"{"a": 3, "b": 0.5, "c": "UA", "d": "x"}"#,
                r#"{"c": 7}"#,
                r#"{"a": -7, "b": 1000, "d": "y"}"#,
            ] {
                json.push(row.as_bytes(), &mut want).unwrap();
            }
        }
        assert_eq!((got.numeric, got.ids), (want.numeric, want.ids));
        assert_eq!(got.labels.len(), 6);
    }

    #[test]
    fn scores_are_a_stream() {
        let bytes = arrow_scores(vec![0.25, 1.0]);
        let batch = StreamReader::try_new(&bytes[..], None).unwrap().next().unwrap().unwrap();
        assert_eq!(
            batch.column_by_name("score").unwrap().as_primitive::<types::Float32Type>().values(),
            &[0.25, 1.0]
        );
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let rows = ArrowRows::new(&schema());
        assert_eq!(rows.read(&stream(columns(), 2), 5), Err(ArrowError::TooMany));
        let error = |bytes: &[u8], most| match rows.read(bytes, most) {
            Err(ArrowError::Bad(what)) => what,
            other => panic!("{other:?}"),
        };
        let text = |c: Vec<&str>| Arc::new(StringArray::from(c)) as Arc<dyn Array>;
        assert!(error(&stream(vec![("a", text(vec!["1", "x"]))], 1), 9).contains("row 1: column a"));
        let twice = vec![("c", text(vec!["a"])), ("c", text(vec!["b"]))];
        assert_eq!(error(&stream(twice, 1), 9), "column c is there twice");
        let spans = Arc::new(arrow_array::DurationSecondArray::from(vec![1])) as Arc<dyn Array>;
        assert!(error(&stream(vec![("c", spans)], 1), 9).contains("column c: values of the type Duration"));
        assert!(error(b"", 9).contains("not an Arrow IPC stream"));
        let empty = DictionaryArray::<Int8Type>::from_iter([None::<&str>, None]);
        assert_eq!(rows.read(&stream(vec![("c", Arc::new(empty))], 1), 9).unwrap().rows(), 2);
    }

    /// Damaged streams do not panic, and have no more rows than allowed.
    #[test]
    fn damaged_streams_are_refused_or_read() {
        let rows = ArrowRows::new(&schema());
        let whole = stream(columns(), 2);
        let mut state = 1_u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        crate::data::hide_guarded_panics();
        for _ in 0..3000 {
            let mut bytes = whole.clone();
            for _ in 0..=next(3) {
                let at = next(bytes.len());
                match next(3) {
                    0 => bytes[at] ^= 1 << next(8),
                    1 => bytes[at] = [0, 0x7f, 0x80, 0xff][next(4)],
                    _ => bytes.truncate(at.max(1)),
                }
            }
            if let Ok(batch) = rows.read(&bytes, 1000) {
                assert!(batch.rows() <= 1000);
            }
        }
    }
}
