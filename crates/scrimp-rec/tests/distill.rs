//! Compression of a trained model.

use scrimp_kernels::{Pool, SimdLevel};
use scrimp_rec::{
    Result,
    data::{Data, OpenOptions, Split},
    distill::{DistillOptions, Distilled, compress},
    encoders::{EncoderOptions, Exec},
    model::Model,
    recipe::{Budget, Inputs, Recipe, train},
    train::TrainOptions,
};
use std::path::Path;

const DATA: &str = "generate:small,rows=20000,seed=3,cap=300";

fn recipe(encoder: &str, compression: f64, epochs: u64) -> Recipe {
    Recipe {
        encoder: EncoderOptions::new(encoder, 8, 0),
        budget: Budget::Compression(compression),
        preset: "dlrm".to_owned(),
        seed: 1,
        shuffle: 0,
        hold_out: 10,
        train: TrainOptions { epochs, batch: 256, ..TrainOptions::default() },
    }
}

/// Calls `work` with the inputs and two threads.
fn with_inputs<T>(work: impl FnOnce(Inputs<'_>, Exec<'_>) -> T) -> T {
    let pool = Pool::new(2).unwrap();
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };
    let (data, options) = (Data::find(Path::new(DATA), Split::Train).unwrap(), OpenOptions::default());
    let (schema, _) = data.schema(&Default::default(), &options).unwrap();
    work(Inputs { train: &data, valid: None, schema: &schema, options: &options }, exec)
}

fn whole() -> Model {
    with_inputs(|inputs, exec| train(&recipe("full", 1.0, 2), inputs, exec, &mut |_| ()).unwrap().model)
}

fn small(whole: &mut Model, recipe: &Recipe, options: DistillOptions) -> Result<Distilled> {
    with_inputs(|inputs, exec| compress(whole, recipe, options, inputs, exec, &mut |_| ()))
}

#[test]
fn a_copy_with_the_same_tables_is_the_same_model() {
    let mut whole = whole();
    let options = DistillOptions { fit_passes: 12, ..DistillOptions::default() };
    let copy = small(&mut whole, &recipe("full", 1.0, 0), options).unwrap();
    assert!(copy.fit_error < 0.01, "{}", copy.fit_error);
    let (whole, copy) = (copy.whole.unwrap(), copy.small.unwrap());
    assert!((whole.auc - copy.auc).abs() < 0.002, "{} became {}", whole.auc, copy.auc);
}

#[test]
fn predictions_teach_a_small_model_more_than_labels() {
    let mut whole = whole();
    let recipe = recipe("memrec", 20.0, 4);
    let logloss = |whole: &mut Model, label_share| {
        let options = DistillOptions { label_share, ..DistillOptions::default() };
        small(whole, &recipe, options).unwrap().small.unwrap().logloss
    };
    let (taught, labels) = (logloss(&mut whole, 0.2), logloss(&mut whole, 1.0));
    assert!(taught < labels, "{taught} with predictions, {labels} with labels only");
}

#[test]
fn a_fit_starts_a_copy_from_the_trained_tables() {
    let mut whole = whole();
    let auc = |whole: &mut Model, fit_passes| {
        let options = DistillOptions { fit_passes, ..DistillOptions::default() };
        small(whole, &recipe("memrec", 10.0, 0), options).unwrap().small.unwrap().auc
    };
    let (fitted, random) = (auc(&mut whole, 4), auc(&mut whole, 0));
    assert!(fitted > random + 0.02, "{fitted} after a fit, {random} without it");
}

#[test]
fn equal_seeds_give_equal_copies() {
    let mut whole = whole();
    let mut copy = || {
        let options = DistillOptions { fit_passes: 1, ..DistillOptions::default() };
        let copy = small(&mut whole, &recipe("memrec", 20.0, 1), options).unwrap();
        copy.small.unwrap().logloss
    };
    assert_eq!(copy().to_bits(), copy().to_bits());
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut whole = whole();
    let said = small(&mut whole, &recipe("memrec-bagged", 20.0, 0), DistillOptions::default());
    assert!(said.err().unwrap().to_string().contains("do not fit the dense layers"));
    let options = DistillOptions { label_share: f32::NAN, ..DistillOptions::default() };
    let said = small(&mut whole, &recipe("memrec", 20.0, 0), options).err().unwrap().to_string();
    assert!(said.contains("label_share"), "{said}");
}
