//! Rotary position embedding (Su et al. 2021, "RoFormer", section 3.2).
//!
//! ```text
//! [x, y]  ->  [x cos - y sin,  y cos + x sin]         angle = position * inv_freq of the pair
//!
//! halves:    x = head[i],   y = head[i + pairs]
//! adjacent:  x = head[2 i], y = head[2 i + 1]
//! ```
//! Angles are rounded to f32 as in the reference implementations. Every level gives the same bits.

use crate::{
    arch::{Kernel, Level, SimdLevel},
    exec::{DisjointSliceMut, Pool},
};

/// Cosines and sines of a batch of positions, `[n_positions][pairs]` each.
#[derive(Debug, Default)]
pub struct RopeTable {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Fills the table for `positions`; `inv_freq` is the angle per position of each pair, `magnitude` a factor on
    /// both.
    pub fn fill(&mut self, pool: &Pool, positions: &[u32], inv_freq: &[f32], magnitude: f32) {
        self.clear(inv_freq.len());
        self.push(pool, positions, inv_freq, magnitude);
    }

    /// An empty table for heads of `pairs` pairs.
    pub fn clear(&mut self, pairs: usize) {
        self.pairs = pairs;
        self.cos.clear();
        self.sin.clear();
    }

    /// Adds rows for `positions`, as [`RopeTable::fill`].
    ///
    /// # Panics
    /// When `inv_freq` has not as many pairs as the table.
    pub fn push(&mut self, pool: &Pool, positions: &[u32], inv_freq: &[f32], magnitude: f32) {
        let pairs = self.pairs;
        assert_eq!(inv_freq.len(), pairs, "pairs of a rope table");
        let old = self.cos.len();
        self.cos.resize(old + positions.len() * pairs, 0.0);
        self.sin.resize(old + positions.len() * pairs, 0.0);
        let (cos, sin) =
            (DisjointSliceMut::new(&mut self.cos[old..]), DisjointSliceMut::new(&mut self.sin[old..]));
        const CHUNK: usize = 16;
        pool.run(positions.len().div_ceil(CHUNK), |task, _| {
            for i in task * CHUNK..((task + 1) * CHUNK).min(positions.len()) {
                let range = i * pairs..(i + 1) * pairs;
                // SAFETY: positions have rows of their own.
                let (cos, sin) = unsafe { (cos.slice(range.clone()), sin.slice(range)) };
                for ((cos, sin), &f) in cos.iter_mut().zip(sin).zip(inv_freq) {
                    // The angle is rounded to f32 as the reference implementations do.
                    let (s, c) = f64::from(positions[i] as f32 * f).sin_cos();
                    (*cos, *sin) = (c as f32 * magnitude, s as f32 * magnitude);
                }
            }
        });
    }

    /// Cosines and sines of the `i`-th position.
    pub fn row(&self, i: usize) -> (&[f32], &[f32]) {
        let range = i * self.pairs..(i + 1) * self.pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

struct Halves<'a>(&'a mut [f32], &'a [f32], &'a [f32]);

/// Rotates the pairs `(i, i + pairs)` of a head; elements from `2 * pairs` on stay.
///
/// # Panics
/// When the head is shorter than `2 * pairs`, or `cos` and `sin` differ in length.
pub fn rotate_halves(level: SimdLevel, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(cos.len() == sin.len() && head.len() >= 2 * cos.len(), "rope: lengths");
    level.run(Halves(head, cos, sin));
}

impl Kernel for Halves<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Halves(head, cos, sin) = self;
        let (a, b) = head.split_at_mut(cos.len());
        let ((a, a_tail), (b, b_tail)) = (a.as_chunks_mut::<16>(), b.as_chunks_mut::<16>());
        let ((cos, cos_tail), (sin, sin_tail)) = (cos.as_chunks::<16>(), sin.as_chunks::<16>());
        for (((a, b), cos), sin) in a.iter_mut().zip(b.iter_mut()).zip(cos).zip(sin) {
            let (x, y, cos, sin) = (s.load(a), s.load(b), s.load(cos), s.load(sin));
            s.store(s.sub(s.mul(x, cos), s.mul(y, sin)), a);
            s.store(s.add(s.mul(y, cos), s.mul(x, sin)), b);
        }
        // The second half may go on into elements that are not rotated; its tail starts at the same offset.
        let done = b.len().min(cos.len()) * 16;
        let rest = &mut b.as_flattened_mut()[done..];
        for (i, (a, (cos, sin))) in a_tail.iter_mut().zip(cos_tail.iter().zip(sin_tail)).enumerate() {
            let y = if i < rest.len() { &mut rest[i] } else { &mut b_tail[i - rest.len()] };
            (*a, *y) = (*a * cos - *y * sin, *y * cos + *a * sin);
        }
    }
}

/// Rotates the pairs `(2 i, 2 i + 1)` of a head; elements from `2 * pairs` on stay.
///
/// # Panics
/// When the head is shorter than `2 * pairs`, or `cos` and `sin` differ in length.
pub fn rotate_adjacent(_level: SimdLevel, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(cos.len() == sin.len() && head.len() >= 2 * cos.len(), "rope: lengths");
    for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
        let [x, y] = *pair;
        *pair = [x * cos - y * sin, y * cos + x * sin];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_adjacent_agree_after_permuting() {
        let pool = Pool::new(1).unwrap();
        for pairs in [3, 8, 16, 20, 32, 40] {
            for extra in [0, 5, 16] {
                let inv_freq: Vec<f32> = (0..pairs).map(|i| 0.9f32.powi(i as i32)).collect();
                let mut table = RopeTable::default();
                table.fill(&pool, &[0, 17], &inv_freq, 1.0);
                let head: Vec<f32> = (0..2 * pairs + extra).map(|i| (i as f32).sin()).collect();
                let mut adjacent = head.clone();
                for i in 0..pairs {
                    (adjacent[2 * i], adjacent[2 * i + 1]) = (head[i], head[i + pairs]);
                }
                let (cos, sin) = table.row(1);
                rotate_adjacent(SimdLevel::SCALAR, &mut adjacent, cos, sin);
                for level in SimdLevel::supported() {
                    let mut halves = head.clone();
                    rotate_halves(level, &mut halves, cos, sin);
                    for i in 0..pairs {
                        assert_eq!((halves[i], halves[i + pairs]), (adjacent[2 * i], adjacent[2 * i + 1]));
                    }
                    assert_eq!(halves[2 * pairs..], head[2 * pairs..]);
                }
            }
        }
    }
}
