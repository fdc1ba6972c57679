//! Every encoder: gradients against finite differences, budgets, quantization.

use super::*;
use scrimp_kernels::{Pool, SimdLevel, embedding::IdHash};

const FEATURES: usize = 3;

/// Ids of `samples` samples and the id_counts of them.
fn ids(samples: usize) -> (Vec<u64>, IdCounts) {
    let hash = IdHash::new(77, 0);
    let ids: Vec<u64> =
        (0..samples * FEATURES).map(|i| hash.hash(i as u64) % [5, 40, 300][i % FEATURES]).collect();
    let mut id_counts = IdCounts { distinct: vec![0; FEATURES], ..IdCounts::default() };
    for (i, &id) in ids.iter().enumerate() {
        let key = key_of(i % FEATURES, id);
        if !id_counts.keys.contains(&key) {
            id_counts.keys.push(key);
            id_counts.counts.push(1);
            id_counts.distinct[i % FEATURES] += 1;
        }
    }
    (ids, id_counts)
}

/// All encoders, in more shapes than their defaults.
fn shapes() -> Vec<EncoderOptions> {
    let mut all = Vec::new();
    for entry in ENCODERS {
        let budget = if entry.name == "full" { 1 << 20 } else { 6000 };
        let options = EncoderOptions::new(entry.name, 16, budget);
        all.push(options.clone());
        if entry.name.starts_with("memrec") {
            let whole = EncoderOptions {
                overlap: Some(false),
                num_hashes: Some(3),
                weight_num_hashes: 2,
                ..options.clone()
            };
            all.push(EncoderOptions { overlap: Some(true), weight_share: Some(0.05), ..whole.clone() });
            all.push(EncoderOptions { weight_share: Some(0.0), signs: Some(false), ..whole.clone() });
            all.push(EncoderOptions { frequent_share: Some(0.0), ..whole.clone() });
            all.push(whole);
            let blocks =
                EncoderOptions { block_dim: Some(4), groups: 4, num_hashes: Some(2), ..options.clone() };
            all.push(EncoderOptions { overlap: Some(false), ..blocks.clone() });
            all.push(blocks);
            all.push(EncoderOptions { per_feature_tables: true, ..options });
        }
    }
    all
}

/// With SGD and learning rate 1 a step subtracts the gradient; it is compared with how the loss `<out, direction>` changes.
#[test]
fn gradients_are_those_of_finite_differences() {
    let (pool, level) = (Pool::new(2).unwrap(), SimdLevel::detect());
    let exec = Exec { pool: &pool, level };
    let (ids, id_counts) = ids(40);
    for options in shapes() {
        let config = plan(&options, &id_counts).unwrap();
        let build = || build(&config, &keys_for(&config, &id_counts)).unwrap();
        let mut encoder = build();
        let len = 40 * encoder.vectors() * 16;
        let hash = IdHash::new(5, 5);
        let direction: Vec<f32> =
            (0..len).map(|i| (hash.hash(i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
        let loss = |encoder: &dyn Encoder| {
            let mut out = vec![f32::NAN; len];
            encoder.forward(exec, &ids, &mut out);
            out.iter().zip(&direction).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let before: Vec<Vec<f32>> = encoder.params().iter().map(|(_, p)| p.floats().to_vec()).collect();
        encoder.backward(exec, &ids, &direction, Optimizer::Sgd { lr: 1.0 });
        let after: Vec<Vec<f32>> = encoder.params().iter().map(|(_, p)| p.floats().to_vec()).collect();
        let mut probe = build();
        for (t, (before, after)) in before.iter().zip(&after).enumerate() {
            let mut nonzero = 0;
            // Row 0 of frequent ids is that of all others: always zero.
            let name = encoder.params()[t].0;
            for i in (if name == "hot" { 16 } else { 0 }..before.len()).step_by(before.len() / 60 + 1) {
                let gradient = f64::from(before[i] - after[i]);
                let mut at = |x: f32| {
                    let mut params = probe.params_mut();
                    let Stored::F32(values) = &mut params[t].1.values else { unreachable!() };
                    values[i] = x;
                    loss(&*probe)
                };
                // All encoders are linear in each single value.
                let slope = (at(before[i] + 0.25) - at(before[i] - 0.25)) / 0.5;
                at(before[i]);
                nonzero += usize::from(slope != 0.0);
                assert!(
                    (slope - gradient).abs() < 2e-3 * slope.abs().max(1.0),
                    "{options:?}: table {t}, value {i}: {gradient}, but {slope}"
                );
            }
            assert!(nonzero > 0, "{options:?}: table {t} does nothing");
        }
    }
}

#[test]
fn encoders_stay_within_their_budget() {
    let (_, id_counts) = ids(400);
    for options in shapes() {
        for budget in [600, 5000, 100_000] {
            let options = EncoderOptions { budget, ..options.clone() };
            let Ok(config) = plan(&options, &id_counts) else {
                // Only a full table is all or nothing; the others shrink to almost nothing.
                assert!(options.encoder == "full" || budget == 600, "{options:?}");
                continue;
            };
            let encoder = build(&config, &keys_for(&config, &id_counts)).unwrap();
            assert!(encoder.bytes() as u64 <= budget, "{options:?}: {} bytes", encoder.bytes());
            assert!(
                encoder.bytes() as u64 > budget / 3 || options.encoder == "full" || options.encoder == "qr"
            );
        }
        assert!(plan(&EncoderOptions { budget: 3, ..options }, &id_counts).is_err());
    }
}

#[test]
fn stored_rows_are_close_to_the_trained_ones() {
    let pool = Pool::new(1).unwrap();
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };
    let (ids, id_counts) = ids(50);
    for mut options in shapes() {
        for (precision, error) in [(Precision::Bf16, 0.01), (Precision::Int8, 0.04), (Precision::Int4, 0.2)] {
            options.precision = precision;
            let config = plan(&options, &id_counts).unwrap();
            let mut encoder = build(&config, &keys_for(&config, &id_counts)).unwrap();
            let mut exact = vec![0.0; 50 * encoder.vectors() * 16];
            let mut stored = exact.clone();
            encoder.forward(exec, &ids, &mut exact);
            let before = encoder.bytes();
            encoder.quantize();
            assert!(encoder.bytes() < before);
            assert!(encoder.bytes() as u64 <= options.budget, "{options:?}");
            encoder.forward(exec, &ids, &mut stored);
            let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
            let difference = norm(&mut exact.iter().zip(&stored).map(|(a, b)| a - b));
            assert!(difference < error * norm(&mut exact.iter().copied()), "{options:?} {difference}");
        }
    }
}

/// In quantization-aware training the forward pass is that of the stored model, at any time; gradients are those of the rounded rows.
#[test]
fn training_through_rounding_sees_what_will_be_stored() {
    let pool = Pool::new(2).unwrap();
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };
    let (ids, id_counts) = ids(50);
    for options in shapes() {
        for precision in [Precision::Bf16, Precision::Int8, Precision::Int4] {
            let options = EncoderOptions { precision, quantization_aware: true, ..options.clone() };
            let config = plan(&options, &id_counts).unwrap();
            let mut encoder = build(&config, &keys_for(&config, &id_counts)).unwrap();
            let len = 50 * encoder.vectors() * 16;
            let (mut first, mut out) = (vec![0.0; len], vec![0.0; len]);
            encoder.forward(exec, &ids, &mut first);
            // Towards zero, in steps that are far smaller than those of int8: only exact values can sum them up.
            for step in 0..150 {
                encoder.forward(exec, &ids, &mut out);
                encoder.backward(exec, &ids, &out, Optimizer::Sgd { lr: 0.004 });
                if step == 70 {
                    encoder.between_epochs(exec);
                }
            }
            encoder.forward(exec, &ids, &mut out);
            let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>();
            assert!(norm(&out) < 0.8 * norm(&first), "{options:?}: {} {}", norm(&first), norm(&out));
            let rounding: Vec<_> = encoder.params().iter().map(|(_, p)| p.rounding()).collect();
            assert!(rounding[0].is_some());
            encoder.quantize();
            let mut stored = vec![0.0; len];
            encoder.forward(exec, &ids, &mut stored);
            assert_eq!(stored, out, "{options:?}");
        }
    }
}

#[test]
fn unknown_names_and_absurd_shapes_are_errors() {
    let (_, id_counts) = ids(40);
    let good = plan(&EncoderOptions::new("memrec", 16, 10_000), &id_counts).unwrap();
    assert!(
        plan(&EncoderOptions::new("mem", 16, 10_000), &id_counts)
            .unwrap_err()
            .hint()
            .unwrap()
            .as_str()
            .contains("memrec")
    );
    for bad in [
        EncoderConfig { block_dim: 3, ..good.clone() },
        EncoderConfig { block_dim: 0, ..good.clone() },
        EncoderConfig { num_hashes: 1000, ..good.clone() },
        EncoderConfig { rows: vec![0], ..good.clone() },
        EncoderConfig { rows: vec![1; 2], ..good.clone() },
        EncoderConfig { rows: vec![u32::MAX], ..good.clone() },
        EncoderConfig { groups: 3, ..good.clone() },
        EncoderConfig { hash: "md5".to_owned(), ..good.clone() },
        EncoderConfig { features: 0, ..good.clone() },
        EncoderConfig { encoder: "qr".to_owned(), ..good.clone() },
        EncoderConfig { encoder: "full".to_owned(), ..good },
    ] {
        assert!(build(&bad, &[]).is_err(), "{bad:?}");
    }
}
