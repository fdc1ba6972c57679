//! Counts the ids of the training data.
//!
//! Counts are exact for features with few ids. For others, HyperLogLog (Flajolet et al., 2007) estimates the number of distinct
//! ids, and only frequent ids are counted: whenever a feature has too many, the rarer half is dropped, as in lossy counting
//! (Manku and Motwani, 2002). A dropped id that occurs again starts at one, so that counts are lower bounds.

use crate::{
    Result,
    data::{Batch, RowSource},
    encoders::{IdCounts, KeyMap, key_of},
};

/// The largest number of counted keys of a feature.
const EXACT: usize = 1 << 18;
/// Registers of HyperLogLog (standard error 0.8 %).
const REGISTERS: usize = 1 << 14;

struct Feature {
    /// Counts by key.
    counts: KeyMap<u32>,
    /// Keys in the order of their first row; `None` after keys were dropped.
    order: Option<Vec<u64>>,
    registers: Vec<u8>,
}

/// Reads `source` to its end and counts its ids. Returns the counts and the number of rows. `keep_keys` counts all ids exactly,
/// for encoders with a row per id.
///
/// # Errors
/// Those of the source.
pub fn count_ids(
    source: &mut dyn RowSource,
    keep_keys: bool,
    progress: &mut dyn FnMut(u64, Option<f64>),
) -> Result<(IdCounts, u64)> {
    let n = source.schema().n_categorical();
    let mut features: Vec<Feature> = (0..n)
        .map(|_| Feature {
            counts: KeyMap::default(),
            order: Some(Vec::new()),
            registers: vec![0; REGISTERS],
        })
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
                let count = feature.counts.entry(key).or_insert(0);
                if *count == 0
                    && let Some(order) = &mut feature.order
                {
                    order.push(key);
                }
                *count = count.saturating_add(1);
                if !keep_keys && feature.counts.len() > EXACT {
                    feature.drop_rare();
                }
            }
        }
        progress(rows, source.progress());
    }
    let mut id_counts = IdCounts::default();
    for feature in features {
        let counts = feature.counts;
        let keys = match feature.order {
            Some(order) => {
                id_counts.distinct.push(order.len() as u64);
                order
            }
            None => {
                id_counts.distinct.push(estimate(&feature.registers));
                let mut keys: Vec<u64> = counts.keys().copied().collect();
                keys.sort_unstable();
                keys
            }
        };
        id_counts.counts.extend(keys.iter().map(|key| counts[key]));
        id_counts.keys.extend(keys);
    }
    Ok((id_counts, rows))
}

impl Feature {
    /// Keeps at most the more frequent half of the keys.
    fn drop_rare(&mut self) {
        self.order = None;
        let mut counts: Vec<u32> = self.counts.values().copied().collect();
        let middle = counts.len() / 2;
        let median = *counts.select_nth_unstable(middle).1;
        self.counts.retain(|_, count| *count > median);
    }
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
        let (id_counts, seen) = count_ids(&mut source, false, &mut |_, _| ()).unwrap();
        assert_eq!(seen, rows as u64);
        assert_eq!(id_counts.distinct[1..], (1..n as u64).map(|f| f * 3).collect::<Vec<_>>());
        assert!(id_counts.distinct[0].abs_diff(rows as u64) < rows as u64 / 40, "{}", id_counts.distinct[0]);
        // Of the first feature, in which no id comes twice, nothing is worth keeping; all others are complete.
        assert_eq!(id_counts.keys.len(), id_counts.counts.len());
        let small: u64 = id_counts.distinct[1..].iter().sum();
        assert!((id_counts.keys.len() as u64) < small + EXACT as u64);
    }

    #[test]
    fn frequent_ids_are_known_among_many_others() {
        let schema = Schema::criteo();
        let (n, rows) = (schema.n_categorical(), 600_000_usize);
        let mut data = Batch { labels: vec![0.0; rows], ..Batch::default() };
        data.numeric = vec![0.0; rows * schema.n_numeric()];
        // In the first column every tenth row has one of 100 ids, all others have ids of their own.
        let id =
            |row: usize| if row.is_multiple_of(10) { (row / 10 % 100) as u64 } else { 1000 + row as u64 };
        data.ids = (0..rows * n).map(|i| if i % n == 0 { id(i / n) } else { 7 }).collect();
        let (id_counts, _) = count_ids(&mut Memory::new(schema, data), false, &mut |_, _| ()).unwrap();
        let mut by_count: Vec<_> = id_counts.counts.iter().zip(&id_counts.keys).collect();
        by_count.sort_unstable_by(|a, b| b.cmp(a));
        // Twenty-five columns of one id come first.
        let frequent: std::collections::HashSet<_> = by_count[25..125].iter().map(|(_, key)| **key).collect();
        assert!((0..100).all(|id| frequent.contains(&key_of(0, id))));
        assert_eq!(*by_count[25].0, 600);
    }
}
