//! A value has the same id and number in every format. Columns that cannot be read are named.

use super::*;

/// The files of `testdata/tables`: 40 rows as pandas and pyarrow write them.
fn table(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tables").join(name)
}

const NUMBERS: [&str; 9] = ["u64", "u32", "id", "large", "flag", "price", "wide", "half", "single"];

/// All columns as categories, or the numbers as numbers.
fn schema(numeric: bool) -> Schema {
    let other = ["day", "second", "micro", "text"];
    let categories = if numeric { [&other[3..], &[]] } else { [&NUMBERS[..], &other[..]] };
    let numbers = if numeric { &NUMBERS[..] } else { &[] };
    let category = |name: &&str| crate::schema::Categorical { name: (*name).into(), kind: Kind::Text };
    Schema {
        label: "y".into(),
        numeric: numbers.iter().map(|name| Numeric::new(*name, Transform::Identity)).collect(),
        categorical: categories.into_iter().flatten().map(category).collect(),
        crosses: vec![],
    }
}

#[test]
fn a_value_is_the_same_in_every_format() {
    for numeric in [false, true] {
        let schema = schema(numeric);
        let want = read(&table("rows.csv"), &schema, &OpenOptions::default()).unwrap();
        assert_eq!(want.rows(), 40);
        let names = schema.categorical_names();
        let same = |got: &Batch, format: &str| {
            for (i, (a, b)) in got.ids.iter().zip(&want.ids).enumerate() {
                assert_eq!(a, b, "{format}, row {}: {}", i / names.len(), names[i % names.len()]);
            }
            assert_eq!(got.numeric, want.numeric, "{format}");
        };
        for name in [
            "jsonl",
            "none.parquet",
            "snappy.parquet",
            "gzip.parquet",
            "zstd.parquet",
            "lz4.parquet",
            "brotli.parquet",
        ] {
            let got = read(&table(&format!("rows.{name}")), &schema, &OpenOptions::default()).unwrap();
            same(&got, name);
            assert_eq!(got.labels, want.labels, "{name}");
        }
        #[cfg(feature = "arrow")]
        same(&ArrowRows::new(&schema).read(&fs::read(table("rows.arrow")).unwrap(), 40).unwrap(), "arrow");
    }
    // 69.0, which pandas writes beside a missing value, is 69.
    let text = fs::read_to_string(table("rows.csv")).unwrap();
    assert!(text.contains(",63,") || text.contains(",63.0,"));
}

#[test]
fn notations_of_a_value_have_one_id() {
    for (text, same) in [
        ("69.0", "69"),
        ("69.00", "69"),
        ("0.0", "0"),
        ("-0.0", "0"),
        ("-7.0", "-7"),
        ("1e+16", "10000000000000000"),
        ("1E+16", "10000000000000000"),
        ("1.5e+1", "15"),
        ("1e-07", "0.0000001"),
        ("True", "1"),
        ("true", "1"),
        ("FALSE", "0"),
        ("NaN", ""),
        ("1.8446744073709552e+19", "18446744073709552000"),
    ] {
        assert_eq!(id_of(text.as_bytes()), id_of(same.as_bytes()), "{text}");
    }
    let texts = [
        "1.10", "1.1", "12e4", "120000", "1e5", "5.", "01.0", "1", "NA", "null", "None", "e+5", "1.0.0", "-",
    ];
    let ids: std::collections::HashSet<u64> = texts.iter().map(|text| id_of(text.as_bytes())).collect();
    assert_eq!(ids.len(), texts.len(), "texts of other values keep their ids");
}

#[test]
fn columns_that_cannot_be_read_are_named() {
    let data = DataSet::find(&table("rows.zstd.parquet")).unwrap();
    let (_, notes) = data.infer(&Hints::default()).unwrap();
    let notes = notes.join("\n");
    for note in ["left out: tags (lists)", "left out: place (structs)", "left out: counts (maps)"] {
        assert!(notes.contains(note), "{notes}");
    }
    assert!(notes.contains("numeric: ") && !notes.contains("left out: price"), "{notes}");
    let hints =
        |name: &str| Hints { categorical: Some(vec![name.into(), "text".into()]), ..Hints::default() };
    let said = data.infer(&hints("tags")).unwrap_err().to_string();
    assert!(said.ends_with("column tags has lists, which cannot be read"), "{said}");
    // Columns beside the named ones are left out, too.
    let (_, notes) = data.infer(&hints("flag")).unwrap();
    assert!(notes.iter().any(|n| n.starts_with("left out: u64, ") && n.contains("(not named)")), "{notes:?}");
    // Lists of JSON lines.
    let dir = Dir::new();
    let rows = (0..9).map(|i| format!("{{\"y\":{},\"c\":{i},\"tags\":[{i}],\"none\":null}}\n", i % 2));
    let data = DataSet::find(&dir.file("a.jsonl", rows.collect::<String>())).unwrap();
    let (_, notes) = data.infer(&Hints::default()).unwrap();
    let notes = notes.join("\n");
    assert!(
        notes.contains("left out: tags (lists or objects)") && notes.contains("left out: none ("),
        "{notes}"
    );
    assert!(!notes.contains("keys that first occur"), "the whole file was read: {notes}");
    let row = |i: usize| match i {
        59_999 => format!("{{\"y\":1,\"c\":{i},\"late\":\"a\"}}\n"),
        _ => format!("{{\"y\":{},\"c\":{}}}\n", i % 2, i % 7),
    };
    let long = DataSet::find(&dir.file("long.jsonl", (0..60_000).map(row).collect::<String>())).unwrap();
    let (_, notes) = long.infer(&Hints::default()).unwrap();
    assert!(
        notes.iter().any(|n| n.contains("keys that first occur after the first 20000 rows")),
        "{notes:?}"
    );
    let said = data.infer(&Hints { numeric: Some(vec!["tags".into()]), ..Hints::default() }).unwrap_err();
    assert!(said.to_string().contains("column tags has lists or objects"), "{said}");
}

/// Damaged files are refused or read, and do not panic.
#[test]
fn damaged_columns_of_all_types_do_not_panic() {
    hide_guarded_panics();
    let dir = Dir::new();
    let whole = fs::read(table("rows.none.parquet")).unwrap();
    for at in (0..whole.len()).step_by(29) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x5a;
        let path = dir.file("bad.parquet", bytes);
        for numeric in [false, true] {
            let _ = read(&path, &schema(numeric), &OpenOptions::default());
        }
        let _ = DataSet::find(&path).and_then(|data| data.infer(&Hints::default()));
    }
}
