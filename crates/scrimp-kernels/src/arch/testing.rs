//! Random numbers for the tests of this crate.

/// `n` numbers in [-1, 1), the same for the same seed.
pub(crate) fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let number = |i: u64| {
        // SplitMix64 (Steele, Lea and Flood, 2014).
        let mut x =
            seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ x >> 31) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n as u64).map(number).collect()
}
