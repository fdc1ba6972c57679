//! Hamming distances of packed bit strings to one other.
//!
//! ```text
//!   d[i] = popcount(x[i] XOR anchor)          x: [n][words] u64, anchor: [words]
//! ```
//! Bound by memory from a few words on: 8 bytes per word are read once, in order. Each word is a XOR, a population count and an
//! addition; AVX-512 VPOPCNTDQ counts 8 words at once. All tiers give the same numbers.

use crate::arch::{SimdLevel, level::Kind};

/// Writes the distance of each of `out.len()` strings to `anchor`.
///
/// # Panics
/// When `strings` does not hold `out.len()` times as many words as `anchor`, or `anchor` is empty.
pub fn distances(level: SimdLevel, strings: &[u64], anchor: &[u64], out: &mut [u32]) {
    assert!(!anchor.is_empty() && strings.len() == out.len() * anchor.len(), "words of strings");
    match level.kind() {
        Kind::Scalar => scalar(strings, anchor, out),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512
            if std::is_x86_feature_detected!("avx512vpopcntdq")
                && std::is_x86_feature_detected!("popcnt") =>
        {
            // SAFETY: the CPU has the features: the tier says so of avx512f, and the others were looked at.
            unsafe { avx512(strings, anchor, out) }
        }
        #[cfg(target_arch = "x86_64")]
        _ if std::is_x86_feature_detected!("popcnt") => {
            // SAFETY: the tier has avx2, and popcnt was looked at.
            unsafe { avx2(strings, anchor, out) }
        }
        #[cfg(target_arch = "x86_64")]
        _ => scalar(strings, anchor, out),
    }
}

#[inline(always)]
fn scalar(strings: &[u64], anchor: &[u64], out: &mut [u32]) {
    for (d, x) in out.iter_mut().zip(strings.chunks_exact(anchor.len())) {
        *d = x.iter().zip(anchor).map(|(x, a)| (x ^ a).count_ones()).sum();
    }
}

/// The plain loop, with the `popcnt` instruction.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn avx2(strings: &[u64], anchor: &[u64], out: &mut [u32]) {
    scalar(strings, anchor, out);
}

/// Eight strings of one word at a time; longer ones word by word.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vpopcntdq,popcnt")]
fn avx512(strings: &[u64], anchor: &[u64], out: &mut [u32]) {
    use std::arch::x86_64::{
        _mm256_storeu_si256, _mm512_cvtepi64_epi32, _mm512_loadu_si512, _mm512_popcnt_epi64,
        _mm512_set1_epi64, _mm512_xor_si512,
    };
    let &[word] = anchor else { return scalar(strings, anchor, out) };
    let (strings, rest) = strings.as_chunks::<8>();
    let (out, out_rest) = out.as_chunks_mut::<8>();
    let word = _mm512_set1_epi64(word.cast_signed());
    for (d, x) in out.iter_mut().zip(strings) {
        // SAFETY: reads 64 bytes of an array that has as many.
        let x = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
        let counts = _mm512_cvtepi64_epi32(_mm512_popcnt_epi64(_mm512_xor_si512(x, word)));
        // SAFETY: writes 32 bytes of an array that has as many.
        unsafe { _mm256_storeu_si256(d.as_mut_ptr().cast(), counts) };
    }
    scalar(rest, anchor, out_rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_tiers_count_the_differing_bits(
            words in 1_usize..5,
            strings in prop::collection::vec(any::<u64>(), 0..120),
            anchor in prop::collection::vec(any::<u64>(), 4),
        ) {
            let (n, anchor) = (strings.len() / words, &anchor[..words]);
            let strings = &strings[..n * words];
            let want: Vec<u32> = (0..n)
                .map(|i| {
                    let bit = |x: &[u64], b: usize| x[b / 64] >> (b % 64) & 1;
                    (0..64 * words).filter(|&b| bit(&strings[i * words..], b) != bit(anchor, b)).count() as u32
                })
                .collect();
            for level in SimdLevel::supported() {
                let mut out = vec![u32::MAX; n];
                distances(level, strings, anchor, &mut out);
                prop_assert_eq!(&out, &want, "{}", level);
            }
        }
    }
}
