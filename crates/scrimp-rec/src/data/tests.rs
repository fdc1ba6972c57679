//! Formats: what is read, what is refused and how, and that threads and block sizes do not matter.

use super::*;
use crate::{
    Error,
    generate::{Generator, GeneratorOptions, write_file},
    schema::{Kind, MISSING, Numeric, Transform, id_of},
};
use proptest::prelude::*;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn read(path: &Path, schema: &Schema, options: &OpenOptions) -> crate::Result<Batch> {
    let mut source = DataSet::find(path)?.open(schema, options)?;
    Ok(Memory::read(&mut *source)?.data().clone())
}

/// The error of reading with a schema that the file itself suggests.
fn complaint(path: &Path) -> String {
    let all = || -> crate::Result<Batch> {
        let (schema, _) = DataSet::find(path)?.infer(&Hints::default())?;
        read(path, &schema, &OpenOptions::default())
    };
    all().expect_err("this should be refused").to_string()
}

fn criteo_line(label: &str, number: &str, id: &str) -> String {
    let mut fields = vec![label.to_owned()];
    fields.extend((0..13).map(|i| if i == 4 { String::new() } else { number.to_owned() }));
    fields.extend((0..26).map(|i| if i == 7 { String::new() } else { id.to_owned() }));
    fields.join("\t") + "\n"
}

fn csv_schema() -> Schema {
    Schema {
        label: "y".into(),
        numeric: vec![Numeric::new("x", Transform::Identity), Numeric::new("n", Transform::Log1p)],
        categorical: ["c", "d"]
            .map(|name| crate::schema::Categorical { name: name.into(), kind: Kind::Text })
            .into(),
        crosses: vec![vec!["c".into(), "d".into()]],
    }
}

#[test]
fn a_line_of_criteo() {
    let dir = Dir::new();
    let text = criteo_line("1", "-2", "05db9164") + &criteo_line("0", "5000", "F") + "\n";
    for (name, bytes) in [
        ("plain", text.clone().into_bytes()),
        ("crlf", text.replace('\n', "\r\n").into_bytes()),
        ("no last line end", text.trim_end_matches('\n').as_bytes().to_vec()),
        ("gzip", gz(text.as_bytes())),
        ("two gzip members", [gz(&text.as_bytes()[..100]), gz(&text.as_bytes()[100..])].concat()),
        ("zstd", zstd(text.as_bytes())),
        ("two zstd frames", [zstd(&text.as_bytes()[..100]), zstd(&text.as_bytes()[100..])].concat()),
    ] {
        let path = dir.file("day_0", bytes);
        let data = DataSet::find(&path).unwrap();
        assert_eq!(data.format(), Format::Criteo, "{name}");
        let (schema, _) = data.infer(&Hints::default()).unwrap();
        let batch = read(&path, &schema, &OpenOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(batch.labels, [1.0, 0.0], "{name}");
        let row = |x: f32| (0..13).map(move |i| if i == 4 { 0.0 } else { x });
        let want: Vec<f32> = row(-(3f32.ln())).chain(row(5001f32.ln())).collect();
        assert!(batch.numeric.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{name}");
        let row = |x: u64| (0..26).map(move |i| if i == 7 { MISSING } else { x });
        assert_eq!(batch.ids, row(0x05db_9164).chain(row(15)).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn criteo_files_that_are_wrong() {
    let dir = Dir::new();
    let good = criteo_line("1", "3", "05db9164");
    let tail = good.split_once('\t').unwrap().1.to_owned();
    for (row, want) in [
        ("1\t2\t3\n".to_owned(), ":2: expected 40 columns separated by tabs, found 3"),
        (good.trim_end().to_owned() + "\tff\n", ":2: expected 40 columns separated by tabs, found 41"),
        (format!("2\t{tail}"), ":2: the label is `2`: 0 or 1 is expected"),
        (format!("-1\t{tail}"), ":2: the label is `-1`: 0 or 1 is expected"),
        (criteo_line("1", "x7", "05db9164"), ":2: column I1: `x7` is not a number"),
        (criteo_line("1", "7", "hello"), ":2: column C1: 'hello' is not a hexadecimal id"),
        (criteo_line("1", "7", "-5"), ":2: column C1: `-5` is not a hexadecimal id"),
        (
            criteo_line("1", "7", "11112222333344445"),
            ":2: column C1: `11112222333344445` is not a hexadecimal id",
        ),
        (format!("\t{tail}"), ":2: the label is missing: 0 or 1 is expected"),
    ] {
        let path = dir.file("a.tsv", good.clone() + &row + &good);
        let said = complaint(&path);
        assert_eq!(said, format!("{}{want}", path.display()));
        // The same row may be left out.
        let options = OpenOptions { skip_bad_rows: 1, ..OpenOptions::default() };
        let mut source = DataSet::find(&path).unwrap().open(&Schema::criteo(), &options).unwrap();
        assert_eq!(Memory::read(&mut *source).unwrap().data().rows(), 2);
        assert_eq!(source.bad_rows(), 1);
        let path = dir.file("b.tsv", good.clone() + &row + &row);
        let said = read(&path, &Schema::criteo(), &options).unwrap_err();
        assert!(said.to_string().contains("b.tsv:3: "), "{said}");
        assert!(said.to_string().contains("bad row number 2, 1 may be skipped"), "{said}");
        assert!(said.hint().unwrap().as_str().contains("`skip_bad_rows`"));
    }
}

#[test]
fn files_that_are_no_data() {
    let dir = Dir::new();
    let good = criteo_line("1", "3", "05db9164");
    let zipped = gz(good.repeat(3000).as_bytes());
    let frame = zstd(good.repeat(3000).as_bytes());
    assert!(complaint(&dir.file("empty", "")).ends_with("empty: the file is empty"));
    assert!(complaint(&dir.file("empty.gz", gz(b""))).ends_with("empty.gz: the file is empty"));
    assert!(complaint(&dir.file("lines", "\n\n\n")).contains("not one row that can be used"));
    for cut in [5, 12, zipped.len() / 2, zipped.len() - 1] {
        let said = complaint(&dir.file("cut.gz", &zipped[..cut]));
        assert!(said.contains("gzip data is damaged or cut off"), "{cut}: {said}");
    }
    for cut in [5, frame.len() / 2, frame.len() - 1] {
        let said = complaint(&dir.file("cut.zst", &frame[..cut]));
        assert!(said.contains("Zstandard data is damaged or cut off"), "{cut}: {said}");
    }
    let mut damaged = zipped.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 20].fill(0x55);
    assert!(complaint(&dir.file("bad.gz", damaged)).contains("gzip data is damaged"));
    assert!(complaint(&dir.file("zeros", vec![0; 5000])).contains("not a text file"));
    assert!(complaint(&dir.file("long", vec![b'x'; 3 << 20])).contains("not a text file"));
    let long = [good.as_bytes(), &vec![b'1'; 3 << 20], b"\n"].concat();
    assert!(complaint(&dir.file("long line", long)).contains("line 2 is longer than"));
    assert!(complaint(&dir.0.path().join("nothing")).contains("No such file"));
    let sub = dir.0.path().join("sub");
    fs::create_dir(&sub).unwrap();
    assert!(complaint(&sub).contains("no data files"));
}

#[test]
fn csv_and_json_lines_and_quotes() {
    let dir = Dir::new();
    let csv = "\u{feff}c,x,y,unused,n,d\nUA,1.5,1,,3,\"a \"\"b\"\", c\"\n,,0,?,NA,15\n";
    let tsv = csv.replace("\"a \"\"b\"\", c\"", "a \"b\", c").replace(',', "\t").replace("b\"\t c", "b\", c");
    let json = "{\"y\":1,\"x\":1.5,\"n\":3,\"c\":\"UA\",\"d\":\"a \\\"b\\\", c\",\"more\":[1,{}]}\n\
                {\"y\":false,\"n\":null,\"d\":15}\n";
    let schema = csv_schema();
    let (ua, abc) = (id_of(b"UA"), id_of(b"a \"b\", c"));
    let want = Batch {
        labels: vec![1.0, 0.0],
        numeric: vec![1.5, 4f32.ln(), 0.0, 0.0],
        ids: vec![ua, abc, crate::schema::cross([ua, abc]), MISSING, 15, crate::schema::cross([MISSING, 15])],
    };
    for (name, text) in [
        ("a.csv", csv),
        ("a.tsv", &tsv),
        ("a.json", json),
        ("b.csv", &csv.replace(',', ";").replace("; c", ", c")),
    ] {
        let path = dir.file(name, text);
        let batch = read(&path, &schema, &OpenOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(batch.ids, want.ids, "{name}");
        assert_eq!(batch.labels, want.labels, "{name}");
        assert!(batch.numeric.iter().zip(&want.numeric).all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
    }
}

#[test]
fn csv_files_that_are_wrong() {
    let dir = Dir::new();
    let read_csv = |text: &str| {
        let path = dir.file("a.csv", text);
        let said = read(&path, &csv_schema(), &OpenOptions::default()).unwrap_err();
        said.to_string().replace(&*path.to_string_lossy(), "a.csv")
    };
    let head = "c,x,y,n,d\n";
    for (row, want) in [
        ("a,1,1,2\n", "a.csv:2: expected 5 columns, found 4"),
        ("a,1,1,2,b,\n", "a.csv:2: expected 5 columns, found 6"),
        ("a,one,1,2,b\n", "a.csv:2: column x: 'one' is not a number"),
        ("a,1,yes,2,b\n", "a.csv:2: column y: the label is 'yes': 0 or 1 is expected"),
        ("a,1,,2,b\n", "a.csv:2: column y: the label is missing: 0 or 1 is expected"),
        ("a,1,1,2,\"b\n", "a.csv:2: the quote that opens field 5 is not closed on this line"),
        ("a,1,1,\"2\"x,b\n", "a.csv:2: text follows the closing quote of field 4"),
        ("a,inf,1,2,b\n", "a.csv:2: column x: 'inf' is not a finite 32-bit number"),
    ] {
        assert_eq!(read_csv(&(head.to_owned() + row)), want);
    }
    assert_eq!(read_csv("c,x,y,n\na,1,1,2\n"), "a.csv: there is no column d");
    assert_eq!(read_csv("c,x,y,n,d,c\na,1,1,2,3,4\n"), "a.csv: line 1: column 'c' is there twice");
    assert!(
        read_csv("a,1,1,2,3\n")
            .starts_with("a.csv: line 1 is no header (5 columns separated by `,`, one of them `1`)")
    );
    assert!(read_csv(head).contains("not one row"));
    let ids = Hints { categorical: Some(vec!["c:id".into()]), label: Some("y".into()), ..Hints::default() };
    let path = dir.file("b.csv", "c,y\n1,0\n-4,1\n");
    let (schema, _) = DataSet::find(&path).unwrap().infer(&ids).unwrap();
    let said = read(&path, &schema, &OpenOptions::default()).unwrap_err().to_string();
    assert!(said.contains(":3: column c: the id '-4' is negative"), "{said}");
    let unknown = Hints { categorical: Some(vec!["q".into()]), ..Hints::default() };
    let said = DataSet::find(&path).unwrap().infer(&unknown).unwrap_err();
    assert!(
        said.to_string().contains("there is no column q") && said.hint().unwrap().contains("c, y"),
        "{said}"
    );
    let json = dir.file("a.json", "{\"y\":1,\"x\":[1]}\n");
    let said = read(&json, &csv_schema(), &OpenOptions::default()).unwrap_err().to_string();
    assert!(said.contains(":1: invalid type: sequence, expected a number"), "{said}");
    let json = dir.file("a.json", "{\"x\":1}\n");
    let said = read(&json, &csv_schema(), &OpenOptions::default()).unwrap_err().to_string();
    assert!(said.contains("there is no label 'y'"), "{said}");
}

#[test]
fn files_of_a_directory_follow_one_another_and_must_agree() {
    let dir = Dir::new();
    for (name, row) in [("p10.csv", "3,0"), ("p2.csv.gz", "2,1"), ("p1.csv", "1,0")] {
        let text = format!("c,y\n{row}\n");
        dir.file(name, if name.ends_with("gz") { gz(text.as_bytes()) } else { text.into_bytes() });
    }
    dir.file("schema.toml", "");
    let hints = Hints { categorical: Some(vec!["c".into()]), ..Hints::default() };
    let (schema, _) = DataSet::find(dir.0.path()).unwrap().infer(&hints).unwrap();
    let batch = read(dir.0.path(), &schema, &OpenOptions::default()).unwrap();
    assert_eq!((batch.ids, batch.labels), (vec![1, 2, 3], vec![0.0, 1.0, 0.0]));
    dir.file("p11.csv", "y,c\n1,4\n");
    let said = read(dir.0.path(), &schema, &OpenOptions::default()).unwrap_err().to_string();
    assert!(
        said.contains(
            "p11.csv: line 1: the columns c, y are expected here, as in the first file; found y, c"
        )
    );
}

#[test]
fn generated_files_are_generated_rows_whatever_threads_and_blocks() {
    let dir = Dir::new();
    let options = GeneratorOptions { rows: 3000, ..GeneratorOptions::default() };
    let stream = Memory::read(&mut Generator::new(options.clone(), 0).unwrap()).unwrap();
    let schema = stream.schema().clone();
    for name in ["a.tsv", "a.csv", "a.tsv.gz"] {
        let path = dir.0.path().join(name);
        write_file(options.clone(), &path, 1, &mut |_| true).unwrap();
        for (threads, block) in [(0, 1 << 20), (3, 1 << 12), (1, 1000), (2, 777)] {
            let o = OpenOptions { threads, block, ..OpenOptions::default() };
            let batch = read(&path, &schema, &o).unwrap();
            assert_eq!(batch.labels, stream.data().labels, "{name} {threads} {block}");
            assert_eq!(batch.ids, stream.data().ids);
            assert!(batch.numeric.iter().zip(&stream.data().numeric).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
    // Reading twice, progress, and a mistake far behind.
    let path = dir.0.path().join("a.tsv");
    let mut source = DataSet::find(&path).unwrap().open(&schema, &OpenOptions::default()).unwrap();
    for epoch in 0..2 {
        source.rewind(epoch).unwrap();
        assert_eq!(source.skip(2000).unwrap(), 2000);
        assert_eq!(source.skip(2000).unwrap(), 1000);
        assert_eq!(source.progress(), Some(1.0));
    }
    let mut text = fs::read(&path).unwrap();
    let places: Vec<usize> = memchr::memchr_iter(b'\n', &text).collect();
    text[places[2344] + 1] = b'7';
    let path = dir.file("b.tsv", text);
    for threads in [0, 2] {
        let o = OpenOptions { threads, block: 5000, ..OpenOptions::default() };
        let said = read(&path, &schema, &o).unwrap_err().to_string();
        assert!(said.ends_with("b.tsv:2346: the label is '7': 0 or 1 is expected"), "{said}");
    }
}

#[test]
fn rows_to_score_need_no_label() {
    let dir = Dir::new();
    let line = criteo_line("1", "3", "05db9164");
    let path = dir.file("test.txt", line.split_once('\t').unwrap().1);
    assert!(
        read(&path, &Schema::criteo(), &OpenOptions::default()).unwrap_err().to_string().contains("no label")
    );
    let unlabeled = OpenOptions { labels: false, ..OpenOptions::default() };
    let batch = read(&path, &Schema::criteo(), &unlabeled).unwrap();
    assert!(batch.labels[0].is_nan() && batch.ids[0] == 0x05db_9164);
    for (name, text) in
        [("a.csv", "x,c,n,d\n1,a,2,b\n"), ("a.json", "{\"x\":1,\"c\":\"a\",\"n\":2,\"d\":\"b\"}\n")]
    {
        let path = dir.file(name, text);
        let batch = read(&path, &csv_schema(), &unlabeled).unwrap();
        assert!(batch.labels[0].is_nan() && batch.ids[0] == id_of(b"a"));
    }
    let said = read(&path, &csv_schema(), &unlabeled).unwrap_err();
    assert!(matches!(said, Error::BadFile { .. }), "{said}");
}

#[test]
fn a_schema_is_guessed() {
    let dir = Dir::new();
    let mut text = String::from("id,click,site_id,hour,price,age,name,amount,same\n");
    for i in 0..500u64 {
        let amount = if i % 50 == 0 { 100_000 } else { i % 7 };
        text += &format!(
            "{i},{},{},{},{}.5,{},n{i},{amount},z\n",
            i % 2,
            i * 7919 % 300,
            i % 24,
            i % 10,
            i * 31 % 450
        );
    }
    let path = dir.file("a.csv", text);
    let data = DataSet::find(&path).unwrap();
    let (mut schema, notes) = data.infer(&Hints::default()).unwrap();
    assert_eq!(schema.label, "click");
    let names = |s: &Schema| s.categorical.iter().map(|c| c.name.clone()).collect::<Vec<_>>().join(" ");
    assert_eq!(names(&schema), "site_id hour amount");
    assert!(schema.categorical.iter().all(|c| c.kind == Kind::Id));
    assert_eq!(schema.numeric.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["price", "age"]);
    let notes = notes.join("\n");
    assert!(notes.contains("left out: id (different in every row)"), "{notes}");
    assert!(
        notes.contains("left out: name (different") && notes.contains("left out: same (always"),
        "{notes}"
    );
    data.fit(&mut schema, &OpenOptions::default()).unwrap();
    let batch = read(&path, &schema, &OpenOptions::default()).unwrap();
    for j in 0..2 {
        let x: Vec<f64> = batch.numeric.iter().skip(j).step_by(2).map(|&x| f64::from(x)).collect();
        let mean = x.iter().sum::<f64>() / 500.0;
        let square = x.iter().map(|x| x * x).sum::<f64>() / 500.0;
        assert!(mean.abs() < 1e-4 && (square - 1.0).abs() < 1e-3, "{mean} {square}");
    }
    // What the user says, stands.
    let hints = Hints {
        numeric: Some(vec!["amount".into()]),
        categorical: Some(vec!["age".into(), "name:text".into()]),
        crosses: vec![vec!["age".into(), "name".into()]],
        ..Hints::default()
    };
    let (schema, _) = data.infer(&hints).unwrap();
    assert_eq!((names(&schema), schema.n_categorical()), ("age name".to_owned(), 3));
    assert_eq!(schema.numeric[0].transform, Transform::Log1p);
    // Through TOML and back.
    let file = dir.file("schema.toml", schema.to_toml());
    assert_eq!(Schema::from_toml_file(&file).unwrap(), schema);
    let file = dir.file(
        "schema.toml",
        "label = \"y\"\nnumeric = [\"a\", { name = \"b\", transform = \"log1p\" }]\ncategorical = [\"c\"]\n",
    );
    assert_eq!(Schema::from_toml_file(&file).unwrap().numeric[1].transform, Transform::Log1p);
    for bad in [
        "label = 1",
        "nonsense = 2\ncategorical=[\"c\"]",
        "categorical = [\"label\"]",
        "crosses = [[\"a\",\"b\"]]\ncategorical=[\"a\"]",
        "",
    ] {
        assert!(Schema::from_toml_file(&dir.file("bad.toml", bad)).is_err(), "{bad}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever is in a file, it is an answer or an error.
    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), start in 0usize..6, kind in 0usize..3) {
        let dir = Dir::new();
        let starts = ["", "c,x,y,n,d\n", "{\"y\":1,\"c\":", "1\t", "PAR1", "\u{feff}y\tx\n"];
        let mut text = starts[start].as_bytes().to_vec();
        text.extend(bytes);
        let text = match kind { 0 => text, 1 => gz(&text), _ => zstd(&text) };
        let path = dir.file("a", text);
        if let Ok(data) = DataSet::find(&path) {
            let _ = data.infer(&Hints::default());
            for schema in [csv_schema(), Schema::criteo()] {
                let options = OpenOptions { threads: 0, skip_bad_rows: 3, ..OpenOptions::default() };
                let read = data.open(&schema, &options).and_then(|mut source| Memory::read(&mut *source));
                if let Ok(m) = read {
                    prop_assert!(m.data().numeric.iter().all(|x| !x.is_nan()));
                }
            }
        }
    }

    /// Compressed data with damage is an error or still what it was.
    #[test]
    fn damage_is_noticed_or_harmless(at in 0usize..2000, flip in 1u8.., gzip: bool) {
        let dir = Dir::new();
        let text = criteo_line("1", "3", "05db9164").repeat(20) + &criteo_line("0", "77", "12345678").repeat(20);
        let mut bytes = if gzip { gz(text.as_bytes()) } else { zstd(text.as_bytes()) };
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let path = dir.file("a", bytes);
        if let Ok(data) = DataSet::find(&path)
            && let Ok(mut source) = data.open(&Schema::criteo(), &OpenOptions { threads: 0, ..OpenOptions::default() }) {
            let _ = Memory::read(&mut *source);
        }
    }

    /// Lines of Criteo with odd fields: the quick way and the careful way agree.
    #[test]
    fn the_quick_way_and_the_careful_way_agree(fields in proptest::collection::vec("[0-9a-f]{0,9}|-?[0-9]{0,4}|[0-9]{1,3}\\.[05]|x", 38..42)) {
        let dir = Dir::new();
        let quick = format!("1\t{}\n", fields.join("\t"));
        let careful = format!("1.0\t{}\n", fields.join("\t"));
        let good = criteo_line("1", "3", "05db9164");
        let a = read(&dir.file("a", good.clone() + &quick), &Schema::criteo(), &OpenOptions { threads: 0, ..OpenOptions::default() });
        let b = read(&dir.file("a", good + &careful), &Schema::criteo(), &OpenOptions { threads: 0, ..OpenOptions::default() });
        prop_assert_eq!(a.map_err(|e| e.to_string()), b.map_err(|e| e.to_string()));
    }

    /// CSV fields, quoted or not, come back.
    #[test]
    fn csv_fields_come_back(fields in proptest::collection::vec("[^\r\n]{0,12}", 1..6)) {
        let quoted: Vec<String> = fields.iter().map(|f| {
            if f.contains([',', '"']) || f.len() % 3 == 1 { format!("\"{}\"", f.replace('"', "\"\"")) } else { f.clone() }
        }).collect();
        let mut got = Vec::new();
        let n = csv::fields(quoted.join(",").as_bytes(), b',', &mut Vec::new(), |i, f| {
            assert_eq!(i, got.len());
            got.push(String::from_utf8(f.to_vec()).unwrap());
            Ok(())
        }).unwrap();
        prop_assert_eq!(n, fields.len());
        prop_assert_eq!(got, fields);
    }
}

#[cfg(feature = "parquet")]
mod parquet_files {
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
        let mut writer =
            SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, properties).unwrap();
        for start in (0..n).step_by(1000) {
            let rows = start..(start + 1000).min(n);
            let mut group = writer.next_row_group().unwrap();
            let levels =
                |missing: usize| rows.clone().map(|i| i16::from(i % 10 != missing)).collect::<Vec<_>>();
            macro_rules! column {
                ($type:ty, $levels:expr, $values:expr) => {{
                    let mut column = group.next_column().unwrap().unwrap();
                    let values: Vec<_> = $values.collect();
                    column.typed::<$type>().write_batch(&values, $levels, None).unwrap();
                    column.close().unwrap();
                }};
            }
            column!(Int32Type, None, rows.clone().map(|i| (i % 2) as i32));
            column!(
                DoubleType,
                Some(&levels(3)),
                rows.clone().filter(|i| i % 10 != 3).map(|i| i as f64 / 2.0)
            );
            column!(Int32Type, None, rows.clone().map(|i| (i % 50) as i32));
            column!(
                ByteArrayType,
                Some(&levels(4)),
                rows.clone()
                    .filter(|i| i % 10 != 4)
                    .map(|i| ByteArray::from(format!("c{}", i % 7).into_bytes()))
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
        for compression in
            [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())]
        {
            write(&path, 2500, 5, compression);
            assert_eq!(DataSet::find(&path).unwrap().format(), Format::Parquet);
            let mut source =
                DataSet::find(&path).unwrap().open(&csv_schema(), &OpenOptions::default()).unwrap();
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
        assert!(
            said.contains("a.parquet:1: ") && said.contains("column d: the id `-2` is negative"),
            "{said}"
        );
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
}
