//! Parquet files.

use super::*;
use ::parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use std::sync::Arc;

/// Rows i = 0 .. n in groups of 1000: `y` = i % 2, `x` = i / 2 (missing where i % 10 = 3), `n` = i % 50, `c` = `c{i % 7}`
/// (missing where i % 10 = 4), `d` = `d + i % 3`.
fn write(path: &Path, n: usize, d: i64, compression: Compression) {
    let message = "message m { required int32 y; optional double x; required int32 n; optional binary c (UTF8); \
                   required int64 d; optional group g { required int32 z; } }";
    let message = message.replace(" optional group g { required int32 z; }", "");
    let schema = Arc::new(parse_message_type(&message).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, properties).unwrap();
    for start in (0..n).step_by(1000) {
        let rows = start..(start + 1000).min(n);
        let mut group = writer.next_row_group().unwrap();
        let levels = |missing: usize| rows.clone().map(|i| i16::from(i % 10 != missing)).collect::<Vec<_>>();
        macro_rules! column {
            ($type:ty, $levels:expr, $values:expr) => {{
                let mut column = group.next_column().unwrap().unwrap();
                let values: Vec<_> = $values.collect();
                column.typed::<$type>().write_batch(&values, $levels, None).unwrap();
                column.close().unwrap();
            }};
        }
        column!(Int32Type, None, rows.clone().map(|i| (i % 2) as i32));
        column!(DoubleType, Some(&levels(3)), rows.clone().filter(|i| i % 10 != 3).map(|i| i as f64 / 2.0));
        column!(Int32Type, None, rows.clone().map(|i| (i % 50) as i32));
        column!(
            ByteArrayType,
            Some(&levels(4)),
            rows.clone().filter(|i| i % 10 != 4).map(|i| ByteArray::from(format!("c{}", i % 7).into_bytes()))
        );
        column!(Int64Type, None, rows.clone().map(|i| d + (i % 3) as i64));
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn parquet_is_what_csv_would_be() {
    let dir = Dir::new();
    let mut csv = String::from("y,x,n,c,d\n");
    for i in 0..2500 {
        let x = if i % 10 == 3 { String::new() } else { format!("{}", f64::from(i) / 2.0) };
        let c = if i % 10 == 4 { String::new() } else { format!("c{}", i % 7) };
        csv += &format!("{},{x},{},{c},{}\n", i % 2, i % 50, 5 + i % 3);
    }
    let want = read(&dir.file("a.csv", csv), &csv_schema(), &OpenOptions::default()).unwrap();
    let path = dir.0.path().join("a.parquet");
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())]
    {
        write(&path, 2500, 5, compression);
        assert_eq!(DataSet::find(&path).unwrap().format(), Format::Parquet);
        let mut source = DataSet::find(&path).unwrap().open(&csv_schema(), &OpenOptions::default()).unwrap();
        assert_eq!(source.rows(), Some(2500));
        let got = Memory::read(&mut *source).unwrap();
        assert_eq!(got.data(), &want);
        source.rewind(1).unwrap();
        assert_eq!(source.skip(2000).unwrap(), 2000);
        assert_eq!(source.skip(2000).unwrap(), 500);
    }
    let (schema, _) = DataSet::find(&path).unwrap().infer(&Hints::default()).unwrap();
    assert_eq!((schema.n_numeric(), schema.n_categorical()), (1, 3));
}

#[test]
fn parquet_files_that_are_wrong() {
    let dir = Dir::new();
    let path = dir.0.path().join("a.parquet");
    write(&path, 100, -2, Compression::SNAPPY);
    let mut schema = csv_schema();
    schema.categorical[1].kind = Kind::Id;
    let said = read(&path, &schema, &OpenOptions::default()).unwrap_err().to_string();
    assert!(said.contains("a.parquet:1: ") && said.contains("column d: the id '-2' is negative"), "{said}");
    let skipping = OpenOptions { skip_bad_rows: 100, ..OpenOptions::default() };
    let rows = read(&path, &schema, &skipping).unwrap();
    // Of -2, -1, 0 only the last is an id.
    assert_eq!(rows.rows(), 33);
    assert_eq!(rows.ids.len(), 99);
    schema.numeric[0].name = "q".into();
    let said = read(&path, &schema, &OpenOptions::default()).unwrap_err().to_string();
    assert!(said.ends_with("there is no column q"), "{said}");
    let whole = fs::read(&path).unwrap();
    for cut in [4, 8, whole.len() / 2, whole.len() - 3] {
        let said = complaint(&dir.file("cut.parquet", &whole[..cut]));
        assert!(said.contains("not a Parquet file that can be read"), "{said}");
    }
    // Damage anywhere is an error or harmless, and never the end of the process.
    std::panic::set_hook(Box::new(|_| {}));
    for at in (0..whole.len()).step_by(whole.len() / 300) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x5a;
        let _ = read(&dir.file("bad.parquet", bytes), &csv_schema(), &OpenOptions::default());
    }
    let _ = std::panic::take_hook();
}
