//! Generated data: independence from the number of threads, statistics, equality of files and streams.

use super::*;
use crate::{data::Memory, metrics};

fn small() -> GeneratorOptions {
    GeneratorOptions {
        rows: 20_000,
        cardinalities: vec![1000, 3, 50, 7, 100_000, 12],
        numeric: 4,
        ..Default::default()
    }
}

#[test]
fn rows_do_not_depend_on_threads_batches_or_place() {
    let all = Memory::read(&mut Generator::new(small(), 0).unwrap()).unwrap();
    assert_eq!(all.data().rows(), 20_000);
    for threads in [1, 3] {
        let mut g = Generator::new(small(), threads).unwrap();
        let mut batch = Batch::default();
        let mut at = 0;
        while g.next_batch(777, &mut batch).unwrap() > 0 {
            let mut same = Batch::default();
            same.extend(all.data(), at..at + batch.rows());
            assert_eq!(batch, same);
            at += batch.rows();
        }
        assert_eq!(at, 20_000);
        g.rewind(3).unwrap();
        assert_eq!(g.skip(12_345).unwrap(), 12_345);
        assert_eq!(g.next_batch(10, &mut batch).unwrap(), 10);
        assert_eq!(batch.ids, all.data().ids[12_345 * 6..12_355 * 6]);
        assert_eq!(g.skip(1_000_000).unwrap(), 20_000 - 12_355);
        assert_eq!(g.next_batch(10, &mut batch).unwrap(), 0);
    }
    let later = GeneratorOptions { first_row: 15_000, rows: 100, ..small() };
    let later = Memory::read(&mut Generator::new(later, 0).unwrap()).unwrap();
    assert_eq!(later.data().ids, all.data().ids[15_000 * 6..15_100 * 6]);
    let other = GeneratorOptions { seed: 2, ..small() };
    assert_ne!(Memory::read(&mut Generator::new(other, 0).unwrap()).unwrap().data(), all.data());
}

#[test]
fn labels_have_the_auc_that_is_promised() {
    let g = Generator::new(GeneratorOptions { rows: 200_000, ..small() }, 0).unwrap();
    let bayes = g.bayes(u64::MAX);
    let (mut batch, mut p) = (Batch::default(), Vec::new());
    for row in 0..200_000 {
        p.push(g.world.row(row, &mut batch));
    }
    let auc = metrics::auc(&batch.labels, &p).unwrap();
    let loss = metrics::log_loss(&batch.labels, &p);
    assert!((auc - bayes.auc).abs() < 0.004, "{auc} {bayes:?}");
    assert!((loss - bayes.logloss).abs() < 0.004, "{loss} {bayes:?}");
    assert!((0.7..0.9).contains(&bayes.auc), "{bayes:?}");
    let rate = batch.labels.iter().sum::<f32>() / 200_000.0;
    assert!((f64::from(rate) - bayes.positives).abs() < 0.005);
    assert!((0.1..0.4).contains(&bayes.positives), "{bayes:?}");
}

#[test]
fn values_are_in_range() {
    let all = Memory::read(&mut Generator::new(small(), 0).unwrap()).unwrap();
    let cardinalities = small().cardinalities;
    let mut missing = [0; 6];
    for row in all.data().ids.chunks(6) {
        for (f, &id) in row.iter().enumerate() {
            assert!(id == MISSING || id < cardinalities[f]);
            missing[f] += usize::from(id == MISSING);
        }
    }
    assert_eq!(missing.map(|m| m > 0), [false, false, false, false, true, false]);
    assert!((1700..2300).contains(&missing[4]));
    let x = &all.data().numeric;
    assert!(x.iter().all(|x| (-1.8..=1.8).contains(x)), "{:?}", x.iter().copied().fold(0.0, f32::max));
    let mean = |f: &dyn Fn(f32) -> f32| x.iter().map(|&x| f64::from(f(x))).sum::<f64>() / x.len() as f64;
    assert!(mean(&|x| x).abs() < 0.02 && (mean(&|x| x * x) - 1.0).abs() < 0.1, "{}", mean(&|x| x * x));
}

#[test]
fn nonsense_is_refused() {
    for bad in [
        GeneratorOptions { cardinalities: vec![], numeric: 0, ..Default::default() },
        GeneratorOptions { cardinalities: vec![0], ..Default::default() },
        GeneratorOptions { zipf: f64::NAN, ..Default::default() },
        GeneratorOptions { missing: 1.5, ..Default::default() },
        GeneratorOptions { bias: f64::INFINITY, ..Default::default() },
    ] {
        assert!(Generator::new(bad, 0).is_err());
    }
}

#[test]
fn files_do_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, threads| {
        let path = dir.path().join(name);
        let written = write_file(small(), &path, threads, &mut |_| true).unwrap();
        assert_eq!(written.rows, 20_000);
        assert_eq!(written.bytes, std::fs::metadata(&path).unwrap().len());
        std::fs::read(path).unwrap()
    };
    let plain = write("a.csv", 0);
    assert_eq!(plain, write("b.csv", 3));
    assert!(plain.starts_with(b"label,I1,I2,I3,I4,C1,C2,C3,C4,C5,C6\n"));
    assert_eq!(plain.iter().filter(|&&b| b == b'\n').count(), 20_001);
    let zipped = write("a.csv.gz", 2);
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&zipped[..]), &mut text).unwrap();
    assert_eq!(text, plain);
    let stopped = dir.path().join("c.csv");
    assert!(write_file(small(), &stopped, 1, &mut |_| false).is_err());
    assert!(!stopped.exists());
    assert!(write_file(small(), &dir.path().join("c.parquet"), 1, &mut |_| true).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}
