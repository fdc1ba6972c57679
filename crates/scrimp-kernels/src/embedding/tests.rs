//! Every level against the scalar one, bit by bit, and the scalar one against sums that are written down here.

use super::{hash::row, signs::of_hash, *};
use crate::{
    SimdLevel,
    exec::{Exec, Pool},
};
use half::bf16;
use proptest::prelude::*;

/// A small generator of test numbers in [-1, 1].
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let hash = IdHash::new(seed, 0);
    (0..n).map(|i| (hash.hash(i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// What a batch does, one number at a time.
fn expected(values: &[f32], block_dim: usize, stride: usize, batch: &Plain<'_>, out: &mut [f64]) {
    let dim = batch.per_lookup / batch.num_hashes * block_dim;
    for (l, indices) in batch.indices.chunks(batch.per_lookup).enumerate() {
        for (p, &index) in indices.iter().enumerate() {
            let w = batch.weights.get(l * batch.per_lookup + p).map_or(1.0, |&w| f64::from(w));
            let b = p / batch.num_hashes;
            let scale = f64::from(
                batch.scales[l * batch.groups + b * batch.groups / (batch.per_lookup / batch.num_hashes)],
            );
            for i in 0..block_dim {
                let value = f64::from(values[index as usize * stride + i]);
                out[(l / batch.bag) * dim + b * block_dim + i] +=
                    sign(batch.signs, l, b * block_dim + i) * w * scale * value;
            }
        }
    }
}

/// The sign of value `i` of lookup `l`.
fn sign(signs: &[u64], l: usize, i: usize) -> f64 {
    let bits = signs.get(l).copied().unwrap_or(0);
    if bits >> (i / 8 % 64) & 1 == 1 { -1.0 } else { 1.0 }
}

struct Plain<'a> {
    signs: &'a [u64],
    indices: &'a [u32],
    per_lookup: usize,
    num_hashes: usize,
    weights: &'a [f32],
    scales: &'a [f32],
    groups: usize,
    bag: usize,
}

#[derive(Debug, Clone)]
struct Case {
    block_dim: usize,
    blocks: usize,
    num_hashes: usize,
    rows: u32,
    features: usize,
    samples: usize,
    signs: bool,
    groups: usize,
    bagged: bool,
    stride_one: bool,
    weighted: bool,
    weight_k: usize,
    seed: u64,
}

prop_compose! {
    fn case()(
        block_dim in prop::sample::select(vec![1_usize, 2, 3, 4, 8, 15, 16, 17, 32, 64, 80, 128, 144]),
        blocks in prop::sample::select(vec![1_usize, 2, 4, 8]),
        num_hashes in 1_usize..5,
        rows in prop::sample::select(vec![1_u32, 2, 7, 300]),
        features in 1_usize..4,
        samples in prop::sample::select(vec![1_usize, 2, 9, 40, 600]),
        signs: bool,
        groups in prop::sample::select(vec![1_usize, 2]),
        bagged: bool,
        stride_one: bool,
        weighted: bool,
        weight_k in 1_usize..3,
        seed: u64,
    ) -> Case {
        let groups = groups.min(blocks);
        Case { block_dim, blocks, num_hashes, rows, features, samples, signs, groups, bagged, stride_one, weighted, weight_k, seed }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(80)))]

    #[test]
    fn forward_and_backward(case in case()) {
        check(&case);
    }
}

fn check(case: &Case) {
    let Case { block_dim, blocks, num_hashes, rows, features, samples, signs, groups, .. } = *case;
    let (per_lookup, lookups) = (blocks * num_hashes, samples * features);
    let stride = if case.stride_one { 1 } else { block_dim };
    let values = numbers(case.seed, (rows as usize - 1) * stride + block_dim);
    let hashes: Vec<_> = (0..features).map(|f| IdHash::new(case.seed, f as u32)).collect();
    let ranges = vec![RowRange { base: 0, rows }; features];
    let hashing = Hashing { hashes: &hashes, ranges: &ranges, per_lookup, signs };
    let ids: Vec<u64> = (0..lookups).map(|l| hashes[0].hash(l as u64) % 50).collect();
    let bag = if case.bagged { features } else { 1 };
    let (pool, bags) = (Pool::new(3).unwrap(), Bags::Fixed(bag));
    let (indices, sign_bits) = hashed(&pool, &ids, &hashing);

    // Alpha hashed from the same ids.
    let weight_table = numbers(case.seed ^ 1, rows as usize * groups);
    let weight_hashes: Vec<_> = (0..features).map(|f| IdHash::new(case.seed ^ 2, f as u32)).collect();
    let weight_hashing =
        Hashing { hashes: &weight_hashes, ranges: &ranges, per_lookup: case.weight_k, signs: false };
    let mut weight_indices = vec![0; lookups * case.weight_k];
    hash_indices(&pool, &ids, &weight_hashing, &mut weight_indices, &mut []);
    let scales: Vec<f32> = (0..lookups * groups)
        .map(|i| {
            let (l, g) = (i / groups, i % groups);
            let rows = &weight_indices[l * case.weight_k..(l + 1) * case.weight_k];
            let sum: f32 = rows.iter().map(|&r| weight_table[r as usize * groups + g]).sum();
            sum * 0.5
        })
        .collect();
    let weights = if case.weighted { numbers(case.seed ^ 3, indices.len()) } else { Vec::new() };

    let plain = Plain {
        signs: if case.weighted { &[] } else { &sign_bits },
        indices: &indices,
        per_lookup,
        num_hashes,
        weights: &weights,
        scales: &scales,
        groups,
        bag,
    };
    let rows = Rows { values: &values, block_dim, stride };
    rows.for_each_type(|table, floats| {
        // Rows given, and rows and alpha hashed: alike, but only the one has weights and only the other signs.
        let given = Batch {
            table,
            indices: Indices::Given { indices: &indices, weights: &weights, per_lookup },
            num_hashes,
            scales: Scales::Given { scales: &scales, groups },
            bags,
            add: false,
        };
        let fused = Batch {
            indices: Indices::Hashed { ids: &ids, hashing },
            scales: Scales::Hashed { weights: &weight_table, hashing: weight_hashing, groups, scale: 0.5 },
            ..given
        };
        let batches = match (case.weighted, signs) {
            (true, _) => vec![given],
            (false, true) => vec![fused],
            (false, false) => vec![given, fused],
        };
        check_forward(case, floats, &plain, &batches);
    });
    backward(
        case,
        &values,
        &Backward {
            indices: &indices,
            per_lookup,
            num_hashes,
            weights: &weights,
            signs: &sign_bits,
            scales: &scales,
            groups,
            bags,
            grad: &[],
        },
        stride,
    );
}

/// The indices and the signs of `ids`, compared with the definition of the hash.
fn hashed(pool: &Pool, ids: &[u64], hashing: &Hashing<'_>) -> (Vec<u32>, Vec<u64>) {
    let (per_lookup, features) = (hashing.per_lookup, hashing.hashes.len());
    let mut indices = vec![0; ids.len() * per_lookup];
    let mut signs = vec![0; if hashing.signs { ids.len() } else { 0 }];
    hash_indices(pool, ids, hashing, &mut indices, &mut signs);
    for (l, indices) in indices.chunks(per_lookup).enumerate() {
        let h = hashing.hashes[l % features].hash(ids[l]);
        for (j, &index) in indices.iter().enumerate() {
            assert_eq!(index, row(h, j as u32, hashing.ranges[0]));
        }
        assert!(!hashing.signs || signs[l] == of_hash(h));
    }
    (indices, signs)
}

/// The rows of a table, before they are stored in some type.
struct Rows<'a> {
    values: &'a [f32],
    block_dim: usize,
    stride: usize,
}

impl Rows<'_> {
    /// Calls `check` for each stored type, with the table and the values that it represents.
    fn for_each_type(&self, check: impl Fn(Table<'_>, &[f32])) {
        let Self { values, block_dim, stride } = *self;
        let check = |stored, floats: &[f32]| check(Table { values: stored, block_dim, stride }, floats);
        check(Values::F32(values), values);
        let bits: Vec<u16> = values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
        let floats: Vec<f32> = bits.iter().map(|&b| bf16::from_bits(b).to_f32()).collect();
        check(Values::Bf16(&bits), &floats);
        let q: Vec<i8> = values.iter().map(|v| (v * 127.0) as i8).collect();
        let floats: Vec<f32> = q.iter().map(|&q| f32::from(q) * 0.25).collect();
        check(Values::Int8 { q: &q, scale: 0.25 }, &floats);
        let nibble = |v: f32| (v * 7.9) as i8;
        let layout = Int4 { len: values.len(), block_dim, stride };
        let mut packed = vec![0; layout.bytes()];
        layout.fill(0, &mut packed, values, nibble);
        let floats: Vec<f32> = values.iter().map(|&v| f32::from(nibble(v)) * 2.0).collect();
        check(Values::Int4 { q: &packed, len: values.len(), scale: 2.0 }, &floats);
    }
}

/// All `batches`, over a table with the values `floats`, are `plain` in f64, in every level the same bits.
fn check_forward(case: &Case, floats: &[f32], plain: &Plain<'_>, batches: &[Batch<'_>]) {
    let pool = Pool::new(3).unwrap();
    let Table { block_dim, stride, .. } = batches[0].table;
    let mut sums = vec![0.0; case.samples * case.features / plain.bag * case.blocks * block_dim];
    expected(floats, block_dim, stride, plain, &mut sums);
    let mut scalar = vec![f32::NAN; sums.len()];
    forward(Exec { pool: &pool, level: SimdLevel::SCALAR }, &batches[0], &mut scalar);
    for (a, b) in scalar.iter().zip(&sums) {
        assert!((f64::from(*a) - b).abs() < 1e-5 * f64::from(plain.bag as u32 * 4), "{a} {b}");
    }
    for (level, batch) in
        SimdLevel::supported().into_iter().flat_map(|level| batches.iter().map(move |b| (level, b)))
    {
        let mut out = vec![f32::NAN; sums.len()];
        forward(Exec { pool: &pool, level }, batch, &mut out);
        assert_eq!(out, scalar, "{level}");
        forward(Exec { pool: &pool, level }, &Batch { add: true, ..*batch }, &mut out);
        assert!(case.bagged || out.iter().zip(&scalar).all(|(a, b)| *a == b + b));
    }
}

/// SGD with learning rate 1 subtracts exactly the summed gradient; more threads and other levels change no bit.
fn backward(case: &Case, values: &[f32], batch: &Backward<'_>, stride: usize) {
    let Case { block_dim, blocks, samples, features, .. } = *case;
    let dim = blocks * block_dim;
    let bags = if case.bagged { samples } else { samples * features };
    let bag = if case.bagged { features } else { 1 };
    let grad = numbers(case.seed ^ 9, bags * dim);
    let batch = Backward { grad: &grad, ..*batch };
    let (mut sums, mut magnitudes) = (vec![0.0_f64; values.len()], vec![0.0_f64; values.len()]);
    let mut dot = vec![0.0_f64; batch.indices.len()];
    for (p, &index) in batch.indices.iter().enumerate() {
        let (l, b) = (p / batch.per_lookup, p % batch.per_lookup / batch.num_hashes);
        let factor = batch.weights.get(p).map_or(1.0, |&w| f64::from(w))
            * f64::from(batch.scales[l * batch.groups + b * batch.groups / blocks]);
        for i in 0..block_dim {
            let at = index as usize * stride + i;
            let g =
                sign(batch.signs, l, b * block_dim + i) * f64::from(grad[l / bag * dim + b * block_dim + i]);
            sums[at] += factor * g;
            magnitudes[at] += (factor * g).abs();
            dot[p] += g * f64::from(values[at]);
        }
    }
    let optimizers = [
        Optimizer::Sgd { lr: 1.0 },
        Optimizer::Adagrad { lr: 0.1, eps: 1e-8 },
        Optimizer::RowWiseAdagrad { lr: 0.1, eps: 1e-8 },
    ];
    for optimizer in optimizers {
        let mut reference: Option<Vec<f32>> = None;
        for (threads, level) in
            [1, 2, 5].into_iter().flat_map(|n| SimdLevel::supported().into_iter().map(move |t| (n, t)))
        {
            let pool = Pool::new(threads).unwrap();
            let mut trained = values.to_vec();
            let mut state = vec![0.0; values.len()];
            let mut gradients = Gradients::default();
            for _ in 0..2 {
                let table = TableMut { values: &mut trained, state: &mut state, block_dim, stride };
                gradients.step(Exec { pool: &pool, level }, optimizer, table, &batch);
            }
            if matches!(optimizer, Optimizer::Sgd { .. }) {
                for (i, (new, old)) in trained.iter().zip(values).enumerate() {
                    let change = f64::from(old - new);
                    // Rounding errors grow with the terms, not with their sum.
                    let bound = 1e-3 * sums[i].abs().max(1.0) + 1e-6 * magnitudes[i];
                    assert!((change - 2.0 * sums[i]).abs() < bound, "{change} {}", sums[i]);
                }
            }
            if matches!(optimizer, Optimizer::Adagrad { .. }) {
                for (i, state) in state.iter().enumerate() {
                    let expected = 2.0 * sums[i] * sums[i];
                    let bound = 1e-3 * expected.max(1.0) + 4e-6 * sums[i].abs() * magnitudes[i];
                    assert!((f64::from(*state) - expected).abs() < bound);
                }
            }
            match &reference {
                None => reference = Some(trained),
                // The mean of squares of a row is the one sum that a level may reorder.
                Some(reference) => assert!(*reference == trained, "{optimizer:?} {threads} {level}"),
            }
        }
    }
    let pool = Pool::new(2).unwrap();
    let table = Table { values: Values::F32(values), block_dim, stride };
    let mut reference: Option<Vec<f32>> = None;
    for level in SimdLevel::supported() {
        let mut out = vec![0.0; dot.len()];
        dots(Exec { pool: &pool, level }, &table, &batch, &mut out);
        for (a, b) in out.iter().zip(&dot) {
            assert!((f64::from(*a) - b).abs() < 1e-4);
        }
        assert_eq!(*reference.get_or_insert_with(|| out.clone()), out, "{level}");
    }
}

/// Every value can be read from where a row has it, whichever row that is, and as many fit as are said to.
#[test]
fn halves_of_bytes_hold_every_row() {
    for (len, block_dim, stride) in
        [(1, 1, 1), (7, 3, 1), (40, 8, 1), (41, 8, 1), (64, 8, 8), (72, 8, 8), (30, 8, 2)]
    {
        let layout = Int4 { len, block_dim, stride };
        let value = |i: usize| (i * 5 % 16) as i8 - 8;
        let (mut filled, mut set) = (vec![0; layout.bytes()], vec![0; layout.bytes()]);
        let floats: Vec<f32> = (0..len).map(|i| f32::from(value(i))).collect();
        layout.fill(0, &mut filled, &floats, |v| v as i8);
        let mut in_parts = vec![0; layout.bytes()];
        for (i, part) in in_parts.chunks_mut(3).enumerate() {
            layout.fill(i * 3, part, &floats, |v| v as i8);
        }
        assert_eq!(filled, in_parts, "{layout:?}");
        (0..len).for_each(|i| layout.set(&mut set, i, value(i)));
        assert_eq!(filled, set, "{layout:?}");
        let table = Table { values: Values::Int4 { q: &filled, len, scale: 1.0 }, block_dim, stride };
        for row in 0..table.rows() {
            let mut out = vec![0.0; block_dim];
            forward_one(SimdLevel::SCALAR, &Batch::given(table, &[row as u32], 1, 1), &mut out);
            let expected: Vec<f32> =
                (row * stride..row * stride + block_dim).map(|i| f32::from(value(i))).collect();
            assert_eq!(out, expected, "{layout:?}, row {row}");
        }
        for bytes in 0..200 {
            let len = Int4::fitting(bytes, block_dim, stride);
            assert!(
                len < block_dim || Int4 { len, block_dim, stride }.bytes() <= bytes,
                "{bytes} {block_dim} {stride}"
            );
            assert!(len + 2 * block_dim + 2 * stride > 2 * bytes);
        }
    }
}

/// Outputs that bypass the caches are the same as small ones.
#[test]
fn large_batches_are_like_small_ones() {
    let pool = Pool::new(2).unwrap();
    let (values, n) = (numbers(1, 64 * 100), 40_000);
    let indices: Vec<u32> = (0..n).map(|i| i * 7 % 100).collect();
    let batch = |indices| Batch {
        table: Table::new(Values::F32(&values), 64),
        indices: Indices::Given { indices, weights: &[], per_lookup: 1 },
        num_hashes: 1,
        scales: Scales::One(0.5),
        bags: Bags::Fixed(1),
        add: false,
    };
    for level in SimdLevel::supported() {
        for offset in [0, 3] {
            let mut out = vec![0.0; n as usize * 64 + offset];
            forward(Exec { pool: &pool, level }, &batch(&indices), &mut out[offset..]);
            for (out, index) in out[offset..].chunks(64).zip(&indices) {
                let row = &values[*index as usize * 64..][..64];
                assert!(out.iter().zip(row).all(|(a, b)| *a == 0.5 * b));
            }
        }
    }
}

#[test]
fn bags_of_any_length() {
    let pool = Pool::new(2).unwrap();
    let values: Vec<f32> = (0..40).map(|i| i as f32).collect();
    let indices = [3, 1, 4, 1, 5];
    let batch = Batch {
        table: Table::new(Values::F32(&values), 4),
        indices: Indices::Given { indices: &indices, weights: &[], per_lookup: 1 },
        num_hashes: 1,
        scales: Scales::One(1.0),
        bags: Bags::Offsets(&[0, 2, 2, 5]),
        add: false,
    };
    let mut out = vec![f32::NAN; 16];
    forward(Exec { pool: &pool, level: SimdLevel::detect() }, &batch, &mut out);
    let bag = |rows: &[u32]| [0, 1, 2, 3].map(|i| rows.iter().map(|&r| values[r as usize * 4 + i]).sum());
    let expected: Vec<f32> = [bag(&[3, 1]), bag(&[]), bag(&[4, 1, 5]), bag(&[])].concat();
    assert_eq!(out, expected);
}

#[test]
#[should_panic]
fn probes_outside_the_table_are_refused() {
    let values = [0.0; 8];
    let batch = Batch {
        table: Table::new(Values::F32(&values), 4),
        indices: Indices::Given { indices: &[2], weights: &[], per_lookup: 1 },
        num_hashes: 1,
        scales: Scales::One(1.0),
        bags: Bags::Fixed(1),
        add: false,
    };
    forward(Exec { pool: &Pool::new(1).unwrap(), level: SimdLevel::detect() }, &batch, &mut [0.0; 4]);
}
