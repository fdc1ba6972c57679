//! Reading memory as products read weights: what the bandwidth of a machine means here.

use crate::arch::{Kernel, L1, Level, SimdLevel, prefetch};

/// The distance, in bytes, at which a stream is prefetched; measured: 4 to 6 KiB do best. Without it, a core of Intel's
/// servers has too few lines in flight, and streams half as fast.
pub(crate) const PREFETCH: usize = 5 << 10;

/// The largest of the whole 4-byte words of `memory` as signed numbers: reads every byte of it once, front to back.
pub fn largest_word(level: SimdLevel, memory: &[u8]) -> i32 {
    let (head, lines, tail) = bytemuck::pod_align_to::<u8, [f32; 16]>(memory);
    let ends = [head, tail].into_iter().flat_map(|end| end.as_chunks::<4>().0);
    ends.map(|&word| i32::from_ne_bytes(word)).fold(level.run(Largest(lines)), i32::max)
}

struct Largest<'a>(&'a [[f32; 16]]);

impl Kernel for Largest<'_> {
    type Output = i32;

    #[inline(always)]
    fn run<S: Level>(self, s: S) -> i32 {
        let mut largest = [s.splat_i32(i32::MIN); 4];
        let (blocks, rest) = self.0.as_chunks::<4>();
        for block in blocks {
            for (largest, line) in largest.iter_mut().zip(block) {
                prefetch::<L1>(std::ptr::from_ref(line).cast::<u8>().wrapping_add(PREFETCH));
                *largest = s.max_i32(*largest, s.bits(s.load(line)));
            }
        }
        for line in rest {
            largest[0] = s.max_i32(largest[0], s.bits(s.load(line)));
        }
        let [a, b, c, d] = largest;
        s.reduce_max_i32(s.max_i32(s.max_i32(a, b), s.max_i32(c, d)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_counts_in_every_level() {
        for level in SimdLevel::supported() {
            for len in [0, 3, 4, 64, 500, 4096] {
                for at in 0..len / 4 {
                    let mut words = vec![-5i32; len / 4];
                    words[at] = 7;
                    assert_eq!(largest_word(level, bytemuck::cast_slice(&words)), 7, "{level} {len} {at}");
                }
            }
            assert_eq!(largest_word(level, &[1, 2, 3]), i32::MIN);
        }
    }
}
