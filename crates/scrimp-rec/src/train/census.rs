//! Counting distinct ids before training: exactly while they are few, by HyperLogLog (Flajolet et al., 2007) beyond.

use crate::{
    Result,
    data::{Batch, RowSource},
    encoders::{Census, KeyMap, key_of},
};

/// Keys of one feature that are kept before only an estimate is.
const EXACT: usize = 1 << 18;
/// Registers of an estimate (standard error 0.8 %).
const REGISTERS: usize = 1 << 14;

struct Feature {
    /// First row order and count by key; dropped when there are too many.
    exact: Option<KeyMap<u32>>,
    order: Vec<u64>,
    registers: Vec<u8>,
}

/// Reads `source` to its end and counts its ids. `keep_keys` keeps all of them whatever their number, for encoders that
/// have rows for ids.
///
/// # Errors
/// Those of the source.
pub fn census(
    source: &mut dyn RowSource,
    keep_keys: bool,
    progress: &mut dyn FnMut(u64, Option<f64>),
) -> Result<(Census, u64)> {
    let n = source.schema().n_categorical();
    let mut features: Vec<Feature> = (0..n)
        .map(|_| Feature { exact: Some(KeyMap::default()), order: Vec::new(), registers: vec![0; REGISTERS] })
        .collect();
    let (mut batch, mut rows) = (Batch::default(), 0);
    loop {
        let read = source.next_batch(8192, &mut batch)?;
        if read == 0 {
            break;
        }
        rows += read as u64;
        for ids in batch.ids.chunks_exact(n.max(1)) {
            for (f, (&id, feature)) in ids.iter().zip(&mut features).enumerate() {
                let key = key_of(f, id);
                let register = &mut feature.registers[(key >> 50) as usize];
                *register = (*register).max((key << 14 | 1 << 13).leading_zeros() as u8 + 1);
                if let Some(exact) = &mut feature.exact {
                    let count = exact.entry(key).or_insert(0);
                    if *count == 0 {
                        feature.order.push(key);
                    }
                    *count = count.saturating_add(1);
                    if !keep_keys && exact.len() > EXACT {
                        feature.exact = None;
                        feature.order = Vec::new();
                    }
                }
            }
        }
        progress(rows, source.progress());
    }
    let all_exact = features.iter().all(|f| f.exact.is_some());
    let mut census = Census::default();
    for feature in features {
        match feature.exact {
            Some(exact) => {
                census.distinct.push(exact.len() as u64);
                if all_exact {
                    census.counts.extend(feature.order.iter().map(|key| exact[key]));
                    census.keys.extend(feature.order);
                }
            }
            None => census.distinct.push(estimate(&feature.registers)),
        }
    }
    Ok((census, rows))
}

fn estimate(registers: &[u8]) -> u64 {
    let m = registers.len() as f64;
    let sum: f64 = registers.iter().map(|&r| 0.5_f64.powi(i32::from(r))).sum();
    (0.7213 / (1.0 + 1.079 / m) * m * m / sum).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data::Memory, schema::Schema};

    #[test]
    fn few_ids_are_counted_and_many_estimated() {
        let schema = Schema::criteo();
        let (n, rows) = (schema.n_categorical(), 400_000_usize);
        let mut data = Batch { labels: vec![0.0; rows], ..Batch::default() };
        data.numeric = vec![0.0; rows * schema.n_numeric()];
        data.ids =
            (0..rows * n).map(|i| if i % n == 0 { i as u64 } else { (i / n % (i % n * 3)) as u64 }).collect();
        let mut source = Memory::new(schema, data);
        let (census, seen) = census(&mut source, false, &mut |_, _| ()).unwrap();
        assert_eq!(seen, rows as u64);
        assert_eq!(census.distinct[1..], (1..n as u64).map(|f| f * 3).collect::<Vec<_>>());
        assert!(census.distinct[0].abs_diff(rows as u64) < rows as u64 / 40, "{}", census.distinct[0]);
        assert!(census.keys.is_empty());
    }
}
