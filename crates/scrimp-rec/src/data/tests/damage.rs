//! Arbitrary and damaged bytes never panic; the two parsers of a Criteo line agree.

use super::*;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(150)))]

    /// Any file content gives rows or an error.
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

    /// Damaged compressed data gives an error or the original rows.
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
