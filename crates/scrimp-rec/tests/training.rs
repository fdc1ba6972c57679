//! Training end to end: it learns, the file gives the same model back, and an interruption changes nothing.

use scrimp_kernels::{Pool, SimdLevel};
use scrimp_rec::{
    data::{Batch, Memory, RowSource},
    encoders::{ENCODERS, EncoderOptions, Exec, Precision, keys_for, plan},
    generate::{Generator, GeneratorOptions},
    model::Model,
    schema::Schema,
    train::{Preset, TrainData, TrainOptions, TrainReport, count_ids, evaluate, train},
};

const CARDINALITIES: [u64; 6] = [1000, 3, 50, 400, 20, 2000];

fn generated(first_row: u64, rows: u64, numeric: usize) -> Memory {
    let options = GeneratorOptions {
        first_row,
        rows,
        numeric,
        cardinalities: CARDINALITIES.to_vec(),
        effects: 2.0,
        ..GeneratorOptions::default()
    };
    Memory::read(&mut Generator::new(options, 1).unwrap()).unwrap()
}

fn fresh(source: &mut Memory, encoder: &str, precision: Precision) -> Model {
    fresh_with(source, encoder, precision, false)
}

fn fresh_with(source: &mut Memory, encoder: &str, precision: Precision, quantization_aware: bool) -> Model {
    source.rewind(0).unwrap();
    let (id_counts, rows) = count_ids(source, true, &mut |_, _| ()).unwrap();
    assert_eq!(Some(rows), source.rows());
    source.rewind(0).unwrap();
    let full = id_counts.full_bytes(16);
    let budget = if encoder == "full" { full } else { full / 4 };
    let options =
        EncoderOptions { precision, quantization_aware, ..EncoderOptions::new(encoder, 16, budget) };
    let config = plan(&options, &id_counts).unwrap();
    let keys = keys_for(&config, &id_counts);
    let preset = Preset::named("dlrm").unwrap();
    Model::new(preset.config(source.schema().clone(), config, 3, full), &keys).unwrap()
}

fn logits(model: &mut Model, exec: Exec<'_>, rows: &Batch) -> Vec<f32> {
    let mut out = Vec::new();
    model.logits(exec, rows, &mut out);
    out
}

/// Trains `model` on `data` with validation.
fn trained(
    model: &mut Model,
    exec: Exec<'_>,
    data: &mut Memory,
    valid: &mut Memory,
    options: &TrainOptions,
) -> TrainReport {
    let data = TrainData { train: data, valid: Some(valid), digest: None };
    train(model, exec, data, options, &mut |_| ()).unwrap()
}

#[test]
fn every_encoder_learns_and_comes_back_from_its_file() {
    let pool = Pool::new(2).unwrap();
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };
    let (mut data, mut valid) = (generated(0, 12_000, 4), generated(50_000, 4_000, 4));
    let dir = tempfile::tempdir().unwrap();
    for entry in ENCODERS {
        for precision in [Precision::F32, Precision::Int8, Precision::Int4] {
            let mut model = fresh(&mut data, entry.name, precision);
            let options = TrainOptions { batch: 256, epochs: 1, ..TrainOptions::default() };
            let report = trained(&mut model, exec, &mut data, &mut valid, &options);
            let auc = report.valid.unwrap().auc;
            assert!(auc > 0.68, "{}: {auc}", entry.name);
            model.quantize();
            let after = evaluate(&mut model, exec, &mut valid, 512).unwrap();
            assert!((after.auc - auc).abs() < 0.01, "{}: {} {auc}", entry.name, after.auc);
            let path = dir.path().join("model.safetensors");
            model.save(&path, None).unwrap();
            let (mut loaded, training) = Model::load(&path).unwrap();
            assert!(training.is_none());
            assert_eq!(loaded.config(), model.config());
            assert_eq!(loaded.embedding_bytes(), model.embedding_bytes());
            assert_eq!(
                logits(&mut loaded, exec, valid.data()),
                logits(&mut model, exec, valid.data()),
                "{}",
                entry.name
            );
        }
    }
}

#[test]
fn threads_levels_and_batches_of_prediction_change_nothing() {
    let mut data = generated(0, 3000, 3);
    let mut all: Option<Vec<f32>> = None;
    for threads in [1, 3] {
        for level in SimdLevel::supported() {
            let pool = Pool::new(threads).unwrap();
            let exec = Exec { pool: &pool, level };
            let mut model = fresh(&mut data, "memrec", Precision::F32);
            let options = TrainOptions { batch: 200, ..TrainOptions::default() };
            train(
                &mut model,
                exec,
                TrainData { train: &mut data, valid: None, digest: None },
                &options,
                &mut |_| (),
            )
            .unwrap();
            let whole = logits(&mut model, exec, data.data());
            let mut part = Batch::default();
            part.extend(data.data(), 7..20);
            assert_eq!(logits(&mut model, exec, &part), whole[7..20]);
            assert_eq!(*all.get_or_insert_with(|| whole.clone()), whole, "{level}, {threads} threads");
        }
    }
}

/// Stops after some rows, as a killed process would.
struct Dies {
    inner: Memory,
    left: usize,
}

impl RowSource for Dies {
    fn schema(&self) -> &Schema {
        self.inner.schema()
    }
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> scrimp_rec::Result<usize> {
        if self.left == 0 {
            return Err(scrimp_rec::Error::bad_input("killed"));
        }
        self.left -= 1;
        self.inner.next_batch(rows, batch)
    }
    fn rewind(&mut self, epoch: u64) -> scrimp_rec::Result<()> {
        self.inner.rewind(epoch)
    }
}

#[test]
fn an_interrupted_training_ends_like_an_uninterrupted_one() {
    let pool = Pool::new(2).unwrap();
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };
    let (mut data, mut valid) = (generated(0, 4000, 2), generated(9000, 1000, 2));
    let dir = tempfile::tempdir().unwrap();
    for (encoder, precision) in [
        ("memrec", Precision::F32),
        ("memrec", Precision::Int8),
        ("memrec", Precision::Int4),
        ("hashing", Precision::Int4),
        ("full", Precision::Bf16),
        ("cce", Precision::Int8),
        ("qr", Precision::F32),
    ] {
        let fresh = |data: &mut Memory| fresh_with(data, encoder, precision, precision != Precision::F32);
        let options = |name: &str| TrainOptions {
            batch: 128,
            epochs: 3,
            patience: 0,
            checkpoint: Some(dir.path().join(format!("{encoder}-{precision:?}-{name}"))),
            checkpoint_steps: 7,
            ..TrainOptions::default()
        };
        let mut whole = fresh(&mut data);
        data.rewind(0).unwrap();
        let report = trained(&mut whole, exec, &mut data, &mut valid, &options("a"));
        let mut model = fresh(&mut data);
        let mut resumed = None;
        for _ in 0..20 {
            let mut source = Dies { inner: data.clone(), left: 41 };
            let mut fresh = fresh(&mut data);
            if let Ok(report) = train(
                &mut fresh,
                exec,
                TrainData { train: &mut source, valid: Some(&mut valid), digest: None },
                &options("b"),
                &mut |_| (),
            ) {
                (model, resumed) = (fresh, Some(report));
                break;
            }
        }
        let resumed = resumed.expect("it gets on at every attempt");
        assert_eq!(resumed.curve, report.curve, "{encoder}");
        assert_eq!(
            logits(&mut model, exec, valid.data()),
            logits(&mut whole, exec, valid.data()),
            "{encoder}"
        );
    }
}

/// With few ids and many rows, a full table learns almost all there is to know.
#[test]
fn the_best_possible_auc_is_approached() {
    let pool = Pool::new(2).unwrap();
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };
    let options = |first_row, rows| GeneratorOptions {
        first_row,
        rows,
        numeric: 2,
        cardinalities: vec![30, 8, 100, 4],
        effects: 1.5,
        ..GeneratorOptions::default()
    };
    let bayes = Generator::new(options(0, 200_000), 1).unwrap().bayes(200_000).auc;
    let read = |first, rows| Memory::read(&mut Generator::new(options(first, rows), 1).unwrap()).unwrap();
    let (mut data, mut valid) = (read(0, 150_000), read(1_000_000, 50_000));
    let mut model = fresh(&mut data, "full", Precision::F32);
    let options = TrainOptions { batch: 512, epochs: 3, ..TrainOptions::default() };
    let report = trained(&mut model, exec, &mut data, &mut valid, &options);
    let auc = report.valid.unwrap().auc;
    assert!(bayes - 0.015 < auc && auc < bayes + 0.008, "{auc} of {bayes}");
}

#[test]
fn early_stopping_returns_the_best_model() {
    let pool = Pool::new(2).unwrap();
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };
    let (mut data, mut valid) = (generated(0, 2000, 2), generated(9000, 2000, 2));
    let mut model = fresh(&mut data, "full", Precision::F32);
    // Far too eager: it overfits within a few passes.
    let options = TrainOptions { batch: 128, epochs: 40, lr: 0.3, patience: 2, ..TrainOptions::default() };
    let report = trained(&mut model, exec, &mut data, &mut valid, &options);
    assert!(report.curve.len() < 40);
    let best = report.curve.iter().map(|p| p.valid.unwrap().auc).fold(0.0, f64::max);
    assert_eq!(report.valid.unwrap().auc, best);
    assert_eq!(evaluate(&mut model, exec, &mut valid, 100).unwrap().auc, best);
    assert!(scrimp_rec::train::svg(&report.curve).contains("polyline"));
}

#[test]
fn models_without_numbers_and_small_baselines_work() {
    let pool = Pool::new(1).unwrap();
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };
    let mut data = generated(0, 8000, 0);
    let (id_counts, _) = count_ids(&mut data, true, &mut |_, _| ()).unwrap();
    for (preset, dim) in [("dlrm", 8), ("lr", 1), ("fm", 8)] {
        let full = id_counts.full_bytes(dim);
        let config = plan(&EncoderOptions::new("hashing", dim, full), &id_counts).unwrap();
        let preset = Preset::named(preset).unwrap();
        let mut model = Model::new(preset.config(data.schema().clone(), config, 1, full), &[]).unwrap();
        let options =
            TrainOptions { batch: 128, epochs: 3, lr: 0.1, dense_lr: 0.01, ..TrainOptions::default() };
        data.rewind(0).unwrap();
        train(
            &mut model,
            exec,
            TrainData { train: &mut data, valid: None, digest: None },
            &options,
            &mut |_| (),
        )
        .unwrap();
        let auc = evaluate(&mut model, exec, &mut data, 500).unwrap().auc;
        assert!(auc > 0.7, "{preset:?}: {auc}");
    }
}

#[test]
fn damaged_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let mut model = fresh(&mut generated(0, 500, 2), "memrec", Precision::F32);
    model.save(&path, None).unwrap();
    let good = std::fs::read(&path).unwrap();
    let bad = dir.path().join("bad.safetensors");
    for cut in [0, 7, 8, 100, good.len() / 2, good.len() - 1] {
        std::fs::write(&bad, &good[..cut]).unwrap();
        let error = Model::load(&bad).err().expect("a truncated file");
        assert!(error.to_string().contains("bad.safetensors"), "{error}");
    }
    for at in (0..good.len().min(3000)).step_by(13) {
        let mut damaged = good.clone();
        damaged[at] ^= 0x15;
        std::fs::write(&bad, &damaged).unwrap();
        // An error or a model, but no panic.
        let _ = Model::load(&bad);
    }
    assert!(Model::load(&dir.path().join("absent")).is_err());
}
