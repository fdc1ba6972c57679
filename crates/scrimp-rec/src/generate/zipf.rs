//! Ids with a Zipf distribution: the id of rank `k` (1, 2, ...) has a probability proportional to `k^-s`.
//!
//! Ranks up to 32 are exact. Higher ranks are grouped: the last rank of a group exceeds the first by at most 1/16, and all ranks
//! of a group have the same probability. A draw is a table lookup and one multiplication, independent of the cardinality and
//! without floating-point functions, so that it is the same on all machines up to the rounding of the table.

/// Draws ranks `0 ..= n - 1` of one feature.
#[derive(Debug, Clone)]
pub(super) struct Zipf {
    groups: Vec<Group>,
    /// For the top 12 bits of a draw, the first group that it may belong to.
    guide: Vec<u16>,
    /// The id of rank k is `(k * step + start) mod n`, a permutation.
    n: u64,
    step: u64,
    start: u64,
}

#[derive(Debug, Clone, Copy)]
struct Group {
    /// Draws below this belong to this group or an earlier one.
    below: u64,
    first: u64,
    len: u64,
}

const GUIDE_BITS: u32 = 12;

impl Zipf {
    /// `n` ids (at least one), exponent `s`; `salt` chooses which id is popular.
    pub(super) fn new(n: u64, s: f64, salt: u64) -> Self {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut first = 0u64;
        while first < n {
            let len = if first < 32 { 1 } else { (first / 16).max(1) }.min(n - first);
            ranges.push((first, len));
            first += len;
        }
        // Integral of x^-s over the group, around whole ranks.
        let weight = |first: u64, len: u64| {
            let (a, b) = (first as f64 + 1.0, (first + len) as f64);
            if len == 1 {
                return a.powf(-s);
            }
            let (a, b) = (a - 0.5, b + 0.5);
            if (s - 1.0).abs() < 1e-9 {
                (b / a).ln()
            } else {
                (b.powf(1.0 - s) - a.powf(1.0 - s)) / (1.0 - s)
            }
        };
        let weights: Vec<f64> = ranges.iter().map(|&(f, l)| weight(f, l)).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let mut groups: Vec<Group> = ranges
            .iter()
            .zip(&weights)
            .map(|(&(first, len), w)| {
                sum += w / total;
                Group { below: (sum * 2f64.powi(64)) as u64, first, len }
            })
            .collect();
        if let Some(last) = groups.last_mut() {
            last.below = u64::MAX;
        }
        let guide = (0..1u64 << GUIDE_BITS)
            .map(|top| {
                let least = top << (64 - GUIDE_BITS);
                groups.partition_point(|g| g.below <= least).min(groups.len() - 1) as u16
            })
            .collect();
        let mut step = (salt | 1) % n.max(1);
        while gcd(step, n) != 1 {
            step = (step + 1) % n.max(2);
        }
        Self { groups, guide, n, step, start: (salt >> 7) % n.max(1) }
    }

    /// The id for two random words.
    #[inline]
    pub(super) fn id(&self, a: u64, b: u64) -> u64 {
        let mut at = usize::from(self.guide[(a >> (64 - GUIDE_BITS)) as usize]);
        while a >= self.groups[at].below && at + 1 < self.groups.len() {
            at += 1;
        }
        let g = self.groups[at];
        let rank = g.first + ((u128::from(b) * u128::from(g.len)) >> 64) as u64;
        ((u128::from(rank) * u128::from(self.step) + u128::from(self.start)) % u128::from(self.n)) as u64
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::Zipf;
    use scrimp_base::random::mix;
    use std::collections::HashMap;

    #[test]
    fn frequencies_follow_the_law() {
        let (n, s, draws) = (100_000u64, 1.1f64, 2_000_000u64);
        let zipf = Zipf::new(n, s, 12345);
        let mut counts: HashMap<u64, u64> = HashMap::new();
        for i in 0..draws {
            *counts.entry(zipf.id(mix(2 * i), mix(2 * i + 1))).or_default() += 1;
        }
        assert!(counts.keys().all(|&id| id < n));
        let mut counts: Vec<u64> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let total: f64 = (1..=n).map(|k| (k as f64).powf(-s)).sum();
        for rank in [1usize, 2, 10, 30, 100, 1000] {
            let want = draws as f64 * (rank as f64).powf(-s) / total;
            let got = counts[rank - 1] as f64;
            assert!((got - want).abs() < 0.06 * want + 5.0 * want.sqrt(), "rank {rank}: {got}, not {want}");
        }
        let head: u64 = counts[..1000].iter().sum();
        let want: f64 = (1..=1000).map(|k| (k as f64).powf(-s)).sum::<f64>() / total;
        assert!((head as f64 / draws as f64 - want).abs() < 0.005);
    }

    #[test]
    fn every_id_is_reached_on_small_sets() {
        for n in 1..=40u64 {
            let zipf = Zipf::new(n, 1.0, n * 7919);
            let seen: std::collections::HashSet<u64> =
                (0..20_000).map(|i| zipf.id(mix(i), mix(!i))).collect();
            assert_eq!(seen.len() as u64, n);
            assert!(seen.iter().all(|&id| id < n));
        }
    }
}
