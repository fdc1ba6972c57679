//! Sources: the rows do not depend on threads and block sizes, and rows to score need no label.

use super::*;

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
    // A label is not read, so that it may be anything.
    let labeled = dir.file("bad.txt", criteo_line("-1", "3", "05db9164"));
    let batch = read(&labeled, &Schema::criteo(), &unlabeled).unwrap();
    assert!(batch.labels[0].is_nan() && batch.ids[0] == 0x05db_9164);
    for (name, text) in [
        ("a.csv", "x,c,n,d\n1,a,2,b\n"),
        ("b.csv", "x,c,n,d,y\n1,a,2,b,-1\n"),
        ("c.csv", "x,c,n,d,y\n1,a,2,b,\n"),
        ("d.csv", "y,x,c,n,d\nNaN,1,a,2,b\n"),
        ("b.json", "{\"x\":1,\"c\":\"a\",\"n\":2,\"d\":\"b\",\"y\":[2]}\n"),
        ("a.json", "{\"x\":1,\"c\":\"a\",\"n\":2,\"d\":\"b\"}\n"),
    ] {
        let path = dir.file(name, text);
        let batch = read(&path, &csv_schema(), &unlabeled).unwrap();
        assert!(batch.labels[0].is_nan() && batch.ids[0] == id_of(b"a"));
    }
    let said = read(&path, &csv_schema(), &unlabeled).unwrap_err();
    assert_eq!(said.category(), scrimp_base::Category::BadFile, "{said}");
    // A scored row cannot be skipped.
    let path = dir.file("bad.csv", "x,c,n,d\nq,a,2,b\n");
    let hint = |options: &OpenOptions| read(&path, &csv_schema(), options).unwrap_err().hint().cloned();
    assert_eq!(hint(&unlabeled), None);
}
