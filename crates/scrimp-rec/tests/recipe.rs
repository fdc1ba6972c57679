//! The complete training on files: any number of columns and rows, and checkpoints of one data set.

use scrimp_kernels::{Pool, SimdLevel};
use scrimp_rec::{
    Result,
    data::{Batch, Data, Hints, Memory, OpenOptions, Split},
    encoders::{ENCODERS, EncoderOptions, Exec},
    recipe::{Budget, Inputs, Recipe, TrainedModel, train},
    train::{OptimizerKind, Preset, TrainOptions},
};
use std::{fmt::Write as _, fs, path::Path};

fn recipe(encoder: &str, preset: &str, dim: usize) -> Recipe {
    Recipe {
        encoder: EncoderOptions::new(encoder, dim, 0),
        budget: Budget::Compression(2.0),
        preset: preset.to_owned(),
        seed: 1,
        shuffle: 64,
        hold_out: 20,
        train: TrainOptions { batch: 32, ..TrainOptions::default() },
    }
}

/// A CSV file with a label, categories and numbers.
fn write(path: &Path, rows: usize, categories: usize, numbers: usize) {
    let names = (0..categories).map(|c| format!(",c{c}_id")).chain((0..numbers).map(|n| format!(",x{n}")));
    let mut text = format!("label{}\n", names.collect::<String>());
    for i in 0..rows {
        let label = usize::from(i * 7 % 20 > 9);
        let ids = (0..categories).map(|c| format!(",{}", i * 7 % (20 + c)));
        let values = (0..numbers).map(|n| format!(",{}.5", i * (n + 3) % 31));
        writeln!(text, "{label}{}", ids.chain(values).collect::<String>()).unwrap();
    }
    fs::write(path, text).unwrap();
}

fn run(recipe: &Recipe, path: &Path, hints: &Hints) -> Result<TrainedModel> {
    let pool = Pool::new(2).unwrap();
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };
    let options = OpenOptions::default();
    let data = Data::find(path, Split::Train)?;
    let (schema, _) = data.schema(hints, &options)?;
    train(recipe, Inputs { train: &data, valid: None, schema: &schema, options: &options }, exec, &mut |_| ())
}

#[test]
fn every_number_of_columns_trains() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.csv");
    let pool = Pool::new(2).unwrap();
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };
    for (rows, categories, numbers) in [(60, 1, 0), (60, 1, 1), (60, 2, 0), (60, 3, 2), (1, 1, 0), (21, 1, 0)]
    {
        write(&path, rows, categories, numbers);
        let names = (0..categories).map(|c| format!("c{c}_id")).collect();
        let hints = Hints {
            categorical: Some(names),
            numeric: Some((0..numbers).map(|n| format!("x{n}")).collect()),
            ..Hints::default()
        };
        for encoder in ENCODERS {
            for (preset, dim) in Preset::NAMES.into_iter().flat_map(|preset| [(preset, 1), (preset, 8)]) {
                let shape = format!(
                    "{rows} rows, {categories} + {numbers} columns, {}, {preset}, {dim}",
                    encoder.name
                );
                // Some encoders need a larger dimension, or more than one id: an error, and not a panic.
                let Ok(mut trained) = run(&recipe(encoder.name, preset, dim), &path, &hints) else {
                    assert!(dim == 1 || rows == 1, "{shape}");
                    continue;
                };
                let schema = trained.model.schema().clone();
                let mut source =
                    Data::find(&path, Split::Test).unwrap().open(&schema, &OpenOptions::default()).unwrap();
                let all: Batch = Memory::read(&mut *source).unwrap().data().clone();
                let mut scores = Vec::new();
                trained.model.predict(exec, &all, &mut scores);
                assert_eq!(scores.len(), rows, "{shape}");
                assert!(scores.iter().all(|p| p.is_finite()), "{shape}");
            }
        }
    }
}

#[test]
fn one_category_is_learned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.csv");
    write(&path, 4000, 1, 0);
    let mut recipe = recipe("full", "dlrm", 8);
    recipe.train.epochs = 3;
    let trained = run(&recipe, &path, &Hints::default()).unwrap();
    // The label depends on the id alone.
    assert!(trained.report.valid.unwrap().auc > 0.99, "{:?}", trained.report.valid);
}

#[test]
fn a_checkpoint_resumes_with_its_data_and_settings_only() {
    let dir = tempfile::tempdir().unwrap();
    let (data, other, saved) = (dir.path().join("a.csv"), dir.path().join("b.csv"), dir.path().join("c"));
    write(&data, 200, 2, 1);
    // The same columns and ids in other rows.
    let text = fs::read_to_string(&data).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.swap(7, 120);
    fs::write(&other, lines.join("\n")).unwrap();
    let mut recipe = recipe("memrec", "dlrm", 8);
    recipe.train.checkpoint = Some(saved.clone());
    run(&recipe, &data, &Hints::default()).unwrap();
    assert!(saved.exists());
    let said = |recipe: &Recipe, data: &Path| {
        run(recipe, data, &Hints::default()).map(|_| String::new()).unwrap_or_else(|e| e.to_string())
    };
    assert_eq!(said(&recipe, &data), "");
    assert!(said(&recipe, &other).ends_with("a checkpoint of a training on other data, or in another order"));
    let with = |change: fn(&mut Recipe)| {
        let mut changed = recipe.clone();
        change(&mut changed);
        said(&changed, &data)
    };
    assert!(with(|r| r.train.lr = 0.1).contains("another `lr`"));
    assert!(with(|r| r.train.dense_lr = 0.1).contains("another `dense_lr`"));
    assert!(with(|r| r.train.optimizer = OptimizerKind::Sgd).contains("another `optimizer`"));
    assert!(with(|r| r.shuffle = 0).contains("in another order"));
    assert!(with(|r| r.seed = 2).contains("`seed`"));
    assert_eq!(with(|r| r.train.epochs = 2), "", "more epochs continue the training");
}

#[test]
fn numbers_that_train_nothing_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.csv");
    write(&path, 60, 2, 1);
    let said = |change: fn(&mut TrainOptions)| {
        let mut recipe = recipe("memrec", "dlrm", 8);
        change(&mut recipe.train);
        run(&recipe, &path, &Hints::default()).map(|_| String::new()).unwrap_or_else(|e| e.to_string())
    };
    for lr in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let recipe =
            Recipe { train: TrainOptions { lr, ..TrainOptions::default() }, ..recipe("memrec", "dlrm", 8) };
        let error = run(&recipe, &path, &Hints::default()).err().unwrap();
        assert!(error.to_string().starts_with("`lr` is "), "{error}");
    }
    for encoder in ENCODERS {
        let changes: [fn(&mut EncoderOptions); 7] = [
            |o| o.dim = 0,
            |o| o.num_hashes = Some(0),
            |o| o.block_dim = Some(0),
            |o| o.weight_num_hashes = 0,
            |o| o.groups = 0,
            |o| o.weight_share = Some(f64::NAN),
            |o| o.frequent_share = Some(-1.0),
        ];
        for change in changes {
            let mut recipe = recipe(encoder.name, "dlrm", 8);
            change(&mut recipe.encoder);
            let error = run(&recipe, &path, &Hints::default()).err().unwrap().to_string();
            assert!(error.starts_with('`') && error.ends_with(" is expected"), "{}: {error}", encoder.name);
        }
        for (num_hashes, block_dim) in [(1, 3), (99_999, 1), (1, 99_999), (1, 7), (usize::MAX, usize::MAX)] {
            let mut recipe = recipe(encoder.name, "dlrm", 8);
            (recipe.encoder.num_hashes, recipe.encoder.block_dim) = (Some(num_hashes), Some(block_dim));
            // An error or a model, and no panic.
            let _ = run(&recipe, &path, &Hints::default());
        }
    }
    assert!(said(|o| o.dense_lr = f32::NAN).starts_with("`dense_lr` is NaN"));
    assert_eq!(said(|o| o.epochs = 0), "`epochs` is 0: at least 1 is expected");
    assert_eq!(said(|o| o.batch = 0), "`batch` is 0: at least 1 is expected");
}
