//! Packing against plain arithmetic, and damaged bytes.

use super::*;
use crate::exec::Pool;
use proptest::prelude::*;
use scrimp_base::SplitMix64;

/// Random weights of which a share is zero; some rows are all zero, some have no zero at all.
pub(crate) fn weights(rows: usize, cols: usize, sparsity: f64, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64::new(seed);
    let mut next = || f64::from(random.next_f32());
    let mut out = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        let sparsity = match (row + seed as usize) % 7 {
            3 => 1.0,
            5 => 0.0,
            _ => sparsity,
        };
        for _ in 0..cols {
            let (w, keep) = (next() * 2.0 - 1.0, next() >= sparsity);
            out.push(if keep { (w + 0.1 * w.signum()) as f32 } else { 0.0 });
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(48)))]

    #[test]
    fn packed_values_are_the_rounded_weights(
        which in 0..6usize, rows in 1usize..50, cols in 1usize..150, sparsity in 0.0f64..1.0, seed: u64,
    ) {
        let pool = Pool::new(2).unwrap();
        let format = WeightFormat::ALL[which];
        let w = weights(rows, cols, sparsity, seed);
        let scales = default_scales(&pool, format, DenseMatrix { rows, cols, weights: &w });
        let bytes = pack(&pool, format, DenseMatrix { rows, cols, weights: &w }, None).unwrap();
        let view = PackedView::new(format, rows, cols, &bytes).unwrap();
        let got = view.to_dense_f32();
        let group = format.scale_group(cols);
        for (i, (&got, &w)) in got.iter().zip(&w).enumerate() {
            let want = match group {
                None => half::bf16::from_f32(w).to_f32(),
                Some(group) => {
                    let scale = scales[i / cols * cols.div_ceil(group) + i % cols / group];
                    let (low, high) = if format.value() == Value::Int4 { (-8.0, 7.0) } else { (-127.0, 127.0) };
                    if scale == 0.0 { 0.0 } else { scale * (w / scale).round_ties_even().clamp(low, high) }
                }
            };
            prop_assert_eq!(got, want, "weight {}", i);
        }
        if format.is_sparse() {
            prop_assert_eq!(view.stored(), got.iter().filter(|&&w| w != 0.0).count());
            // The dense format of the same values.
            let dense = pack(&pool, format.dense(), DenseMatrix { rows, cols, weights: &w }, None).unwrap();
            prop_assert_eq!(PackedView::new(format.dense(), rows, cols, &dense).unwrap().to_dense_f32(), got.clone());
        }
        // Values that are multiples of their scales survive another packing.
        let again = pack(&pool, format, DenseMatrix { rows, cols, weights: &got }, Some(&scales)).unwrap();
        prop_assert_eq!(again, bytes);
    }

    #[test]
    fn damaged_bytes_are_errors_or_other_numbers(
        which in 0..6usize, rows in 1usize..40, cols in 1usize..100, at: prop::sample::Index, bit in 0..8u32, cut: prop::sample::Index,
    ) {
        let pool = Pool::new(1).unwrap();
        let format = WeightFormat::ALL[which];
        let mut bytes = pack(&pool, format, DenseMatrix { rows, cols, weights: &weights(rows, cols, 0.5, 3) }, None).unwrap();
        prop_assert!(PackedView::new(format, rows, cols, &bytes[..cut.index(bytes.len())]).is_err());
        let layout = Layout::new(format, rows, cols).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let damaged = PackedView::new(format, rows, cols, &bytes);
        if let Ok(view) = &damaged {
            prop_assert!(view.to_dense_f32().iter().all(|w| w.is_finite()));
        }
        if format.is_sparse() && at < 8 * (layout.panels + 1) {
            prop_assert!(damaged.is_err(), "starts");
        }
        // A bit of the bitmap more or less: 4-bit values may share a byte that is there anyway.
        let in_bitmap = (layout.index..layout.values).contains(&at) && at < layout.index + layout.panels * layout.index_bytes;
        if matches!(format, WeightFormat::SparseBf16 | WeightFormat::SparseInt8) && in_bitmap {
            prop_assert!(damaged.is_err(), "bitmap");
        }
    }
}

#[test]
fn bad_weights_and_shapes_are_errors() {
    let pool = Pool::new(1).unwrap();
    for format in WeightFormat::ALL {
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(
                pack(&pool, format, DenseMatrix { rows: 1, cols: 2, weights: &[1.0, bad] }, None).is_err()
            );
        }
        assert!(pack(&pool, format, DenseMatrix { rows: 3, cols: 2, weights: &[1.0; 5] }, None).is_err());
        assert!(pack(&pool, format, DenseMatrix { rows: usize::MAX, cols: 16, weights: &[] }, None).is_err());
        assert!(PackedView::new(format, usize::MAX / 2, usize::MAX / 2, &[]).is_err());
        assert!(PackedView::new(format, 1 << 40, 1 << 20, &[0; 64]).is_err());
        if format.scale_group(2).is_some() {
            assert!(
                pack(&pool, format, DenseMatrix { rows: 1, cols: 2, weights: &[1.0; 2] }, Some(&[f32::NAN]))
                    .is_err()
            );
            assert!(
                pack(&pool, format, DenseMatrix { rows: 1, cols: 2, weights: &[1.0; 2] }, Some(&[])).is_err()
            );
        } else {
            assert!(
                pack(&pool, format, DenseMatrix { rows: 1, cols: 2, weights: &[f32::MAX; 2] }, None).is_err()
            );
        }
        assert_eq!(format.name().parse(), Ok(format));
        // Nothing at all is a matrix too.
        for (rows, cols) in [(0, 0), (0, 5), (5, 0)] {
            let bytes = pack(&pool, format, DenseMatrix { rows, cols, weights: &[] }, None).unwrap();
            assert!(PackedView::new(format, rows, cols, &bytes).unwrap().to_dense_f32().is_empty());
        }
    }
    assert!(
        pack(&pool, WeightFormat::Int8, DenseMatrix { rows: 0, cols: MAX_INT8_COLS + 1, weights: &[] }, None)
            .is_err()
    );
    assert!("int5".parse::<WeightFormat>().unwrap_err().to_string().contains("sparse-int4"));
}

#[test]
fn bits_per_weight_are_what_the_documentation_says() {
    let pool = Pool::new(2).unwrap();
    let (rows, cols) = (256, 512);
    // Every second weight, in a pattern without order.
    let w: Vec<f32> = (0..rows * cols)
        .map(|i| if ((i * 2_654_435_761) >> 7) & 1 == 0 { 0.0 } else { 1.0 + (i % 5) as f32 })
        .collect();
    for (format, want) in WeightFormat::ALL.into_iter().zip([16.0, 8.0, 4.5, 9.0, 5.0, 3.5]) {
        let bytes = pack(&pool, format, DenseMatrix { rows, cols, weights: &w }, None).unwrap();
        let got = (bytes.len() * 8) as f64 / (rows * cols) as f64;
        assert!((got - want).abs() < 0.1, "{format}: {got} bits");
    }
}

#[test]
fn every_bf16_is_rounded_as_the_half_crate_does() {
    // Every pattern of the bits that decide, with each kind of exponent.
    for high in 0..=u16::MAX {
        for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let x = f32::from_bits(u32::from(high) << 16 | low);
            assert_eq!(crate::quant::round_to_bf16(x), half::bf16::from_f32(x).to_bits(), "{x:e}");
        }
    }
}
