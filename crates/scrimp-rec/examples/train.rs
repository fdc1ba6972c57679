//! Trains a recommender on synthetic clicks, saves it, loads it and scores rows:
//! `cargo run --release -p scrimp-rec --example train`.
#![allow(clippy::print_stdout)]

use scrimp_kernels::{SimdLevel, exec::Pool};
use scrimp_rec::{
    Error, Result,
    data::{Batch, Data, OpenOptions, RowSource as _},
    encoders::{EncoderOptions, Exec, Precision},
    generate::{Generator, GeneratorOptions},
    model::Model,
    recipe::{Budget, Inputs, Recipe, train},
    train::{TrainOptions, evaluate},
};

fn main() -> Result<()> {
    let pool = Pool::new(2).map_err(|e| Error::bad_input(format!("no threads: {e}")))?;
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };

    // Clicks on 8 categorical features of up to 10,000 ids. The generator knows the best possible AUC.
    let rows = GeneratorOptions {
        rows: 40_000,
        cardinalities: vec![10_000, 5_000, 1_000, 500, 100, 50, 20, 10],
        numeric: 4,
        ..GeneratorOptions::default()
    };
    let test = GeneratorOptions { first_row: rows.rows, rows: 10_000, ..rows.clone() };
    let best = Generator::new(test.clone(), 0)?.bayes(test.rows).auc;

    // Vectors of 16 values in a tenth of a full table, as int4 with quantization-aware training.
    let encoder = EncoderOptions {
        precision: Precision::Int4,
        quantization_aware: true,
        ..EncoderOptions::new("memrec", 16, 0)
    };
    let recipe = Recipe {
        encoder,
        budget: Budget::Compression(10.0),
        preset: "dlrm".to_owned(),
        seed: 1,
        shuffle: 0,
        hold_out: 20,
        train: TrainOptions { epochs: 2, batch: 256, ..TrainOptions::default() },
    };
    let (data, options) = (Data::Generated(rows), OpenOptions::default());
    let (schema, _) = data.schema(&Default::default(), &options)?;
    let inputs = Inputs { train: &data, valid: None, schema: &schema, options: &options };
    let mut trained = train(&recipe, inputs, exec, &mut |_| ())?;

    let path = std::env::temp_dir().join(format!("scrimp-example-{}.safetensors", std::process::id()));
    trained.model.save(&path, None)?;
    let (mut model, _) = Model::load(&path)?;
    let _ = std::fs::remove_file(&path);

    let mut test = Generator::new(test, 0)?;
    let accuracy = evaluate(&mut model, exec, &mut test, 2048)?;
    println!("test AUC {:.4}, the best possible is {best:.4}", accuracy.auc);
    let (bytes, full) = (model.embedding_bytes(), model.config().full_embedding_bytes);
    println!("embeddings: {bytes} bytes, a full table has {full}");

    // The probabilities of the first three rows.
    let (mut batch, mut probabilities) = (Batch::default(), Vec::new());
    test.rewind(0)?;
    test.next_batch(3, &mut batch)?;
    model.predict(exec, &batch, &mut probabilities);
    println!("clicks: {:?}, predicted: {probabilities:.3?}", batch.labels);
    Ok(())
}
