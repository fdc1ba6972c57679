//! From an id to rows of a table: one hash per id, then double hashing.
//!
//! ```text
//! mum(a, b)   = low 64 bits of a * b  xor  high 64 bits of a * b
//! key(f)      = mum(seed ^ P0, (f + 1) * P1)              once per feature
//! h           = mum(lo ^ P2, hi ^ P3), lo, hi = halves of (id ^ P2) * (key(f) ^ P3)
//! h1, h2      = low 32 bits of h, high 32 bits of h, made odd
//! index j     = h1 + j * h2          mod 2^32
//! row j       = base + (index j * rows) >> 32             fixed point: no division
//! signs       = mum(h, P1)                                a bit for each eight values of the vector
//! ```
//!
//! The mixing is that of wyhash (Wang Yi, public domain). Double hashing makes the indices of one id independent in
//! pairs, as a Bloom filter needs it (Kirsch and Mitzenmacher, "Less hashing, same performance", 2006). The functions
//! are part of the model file's format: they never change under their name.

pub(super) const P: [u64; 4] =
    [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3, 0x5899_65cc_7537_4cc3];

/// The largest number of rows that indices can address.
pub const MAX_ROWS: usize = 1 << 31;

#[inline(always)]
const fn wide(a: u64, b: u64) -> (u64, u64) {
    let product = a as u128 * b as u128;
    (product as u64, (product >> 64) as u64)
}

#[inline(always)]
pub(super) const fn mum(a: u64, b: u64) -> u64 {
    let (lo, hi) = wide(a, b);
    lo ^ hi
}

/// The seeded hash of the ids of one feature. See the [module](self) for the formula.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdHash {
    key: u64,
}

impl IdHash {
    /// The name under which model files record this function.
    pub const NAME: &'static str = "mum64-2";

    /// The hash of `feature` under `seed`.
    pub const fn new(seed: u64, feature: u32) -> Self {
        Self { key: mum(seed ^ P[0], (feature as u64 + 1).wrapping_mul(P[1])) }
    }

    /// 64 bits for `id`.
    #[inline(always)]
    pub const fn hash(self, id: u64) -> u64 {
        let (lo, hi) = wide(id ^ P[2], self.key ^ P[3]);
        mum(lo ^ P[2], hi ^ P[3])
    }
}

/// The rows of a table that one feature may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRange {
    /// The first row.
    pub base: u32,
    /// How many there are, at least 1.
    pub rows: u32,
}

/// Row of index `j` of an id whose hash is `h`.
#[inline(always)]
pub(crate) fn row(h: u64, j: u32, range: RowRange) -> u32 {
    let (start, step) = (h as u32, (h >> 32) as u32 | 1);
    let at = start.wrapping_add(j.wrapping_mul(step));
    range.base + ((u64::from(at) * u64::from(range.rows)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_stay_as_they_are() {
        // Computed in Python.
        for (seed, feature, id, expected) in VECTORS {
            assert_eq!(IdHash::new(seed, feature).hash(id), expected, "{seed} {feature} {id}");
        }
    }

    const VECTORS: [(u64, u32, u64, u64); 6] = [
        (0, 0, 0, 0x04f1_5ce7_f505_a154),
        (0, 0, 1, 0xa6dc_6e40_ea44_4758),
        (0, 1, 0, 0xbfd9_a460_2dd5_b0fd),
        (1, 0, 0, 0xfc7b_89f4_e1c6_82e8),
        (42, 25, 39_979_770, 0x4d38_006a_af59_2630),
        (u64::MAX, u32::MAX, u64::MAX, 0xd84c_63aa_b3b8_90bc),
    ];

    #[test]
    fn rows_are_inside_their_range_and_spread_evenly() {
        let range = RowRange { base: 100, rows: 37 };
        let mut seen = [0_u32; 37];
        for id in 0..37_000 {
            let h = IdHash::new(5, 1).hash(id);
            for j in 0..4 {
                seen[(row(h, j, range) - 100) as usize] += 1;
            }
        }
        // 4000 each, with a standard deviation of 63.
        assert!(seen.iter().all(|&n| n.abs_diff(4000) < 320), "{seen:?}");
    }

    /// Signs are fair coins, independent of the row of an id and pairwise of each other.
    #[test]
    fn signs_are_independent() {
        let (range, n) = (RowRange { base: 0, rows: 2 }, 20_000_u32);
        let (mut ones, mut as_row, mut as_next) = ([0_u32; 64], [0_u32; 64], [0_u32; 64]);
        for id in 0..n {
            let h = IdHash::new(7, 2).hash(u64::from(id));
            let signs = super::super::signs::of_hash(h);
            for i in 0..64 {
                let bit = (signs >> i) as u32 & 1;
                ones[i] += bit;
                as_row[i] += bit ^ row(h, 0, range);
                as_next[i] += bit ^ (signs >> ((i + 1) % 64)) as u32 & 1;
            }
        }
        // n / 2 each, with a standard deviation of 71.
        for counts in [ones, as_row, as_next] {
            assert!(counts.iter().all(|c| c.abs_diff(n / 2) < 350), "{counts:?}");
        }
    }

    /// Two ids share all k rows with probability about (1 / rows)^2 for every k >= 2 that double hashing can tell
    /// apart, and share row j with probability 1 / rows.
    #[test]
    fn collisions_follow_theory() {
        let (rows, ids) = (64_u32, 3000_u64);
        let range = RowRange { base: 0, rows };
        let all: Vec<[u32; 2]> = (0..ids)
            .map(|id| {
                let h = IdHash::new(11, 3).hash(id * 7919);
                [row(h, 0, range), row(h, 1, range)]
            })
            .collect();
        let (mut first, mut both) = (0.0, 0.0);
        for a in 0..all.len() {
            for b in 0..a {
                first += f64::from(u8::from(all[a][0] == all[b][0]));
                both += f64::from(u8::from(all[a] == all[b]));
            }
        }
        let pairs = (ids * (ids - 1) / 2) as f64;
        let expected = [pairs / f64::from(rows), pairs / f64::from(rows * rows)];
        assert!((first / expected[0] - 1.0).abs() < 0.05, "{first} of {}", expected[0]);
        assert!((both / expected[1] - 1.0).abs() < 0.2, "{both} of {}", expected[1]);
    }
}
