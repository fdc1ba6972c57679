//! Text formats: accepted rows, refused rows and their messages.

use super::*;

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
        (format!("2\t{tail}"), ":2: the label is '2': 0 or 1 is expected"),
        (format!("-1\t{tail}"), ":2: the label is '-1': 0 or 1 is expected"),
        (criteo_line("1", "x7", "05db9164"), ":2: column I1: 'x7' is not a number"),
        (criteo_line("1", "7", "hello"), ":2: column C1: 'hello' is not a hexadecimal id"),
        (criteo_line("1", "7", "-5"), ":2: column C1: '-5' is not a hexadecimal id"),
        (
            criteo_line("1", "7", "11112222333344445"),
            ":2: column C1: '11112222333344445' is not a hexadecimal id",
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
        ("a,1e39,1,2,b\n", "a.csv:2: column x: '1e39' is not a finite 32-bit number"),
    ] {
        assert_eq!(read_csv(&(head.to_owned() + row)), want);
    }
    assert_eq!(read_csv("c,x,y,n\na,1,1,2\n"), "a.csv: there is no column d");
    assert_eq!(read_csv("c,x,y,n,d,c\na,1,1,2,3,4\n"), "a.csv: line 1: column 'c' is there twice");
    assert!(
        read_csv("a,1,1,2,3\n")
            .starts_with("a.csv: line 1 is no header (5 columns separated by ',', one of them '1')")
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
        said.to_string().contains("there is no column q") && said.hint().unwrap().as_str().contains("c, y"),
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
