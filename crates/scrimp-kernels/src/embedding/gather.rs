//! Sums of table rows: the forward pass of every encoder.
//!
//! For block `b` of the output, with probes `p` of `k` rows per block, `w` their weights and signs:
//!
//! ```text
//! out[b * width ..][..width] = scale(b) * sum over i < k of  sign(p) w(p) * row(p),   p = probes[b * k + i]
//! ```
//!
//! Rows are added in the order of the probes, products and sums rounded one by one, so every tier gives the same bits. Bound by
//! cache misses: `blocks * k` rows of `width` values each, asked for ahead of their use.

use super::{hash::NEGATIVE, table::Stored};
use crate::isa::Simd;

/// One look-up's view of a table.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) width: usize,
    pub(crate) stride: usize,
    /// Rows added up per block.
    pub(crate) k: usize,
    /// Probes may be [`NEGATIVE`].
    pub(crate) signs: bool,
}

/// Asks for the cache lines of a row. Any address will do.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T], start: usize, width: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let at = values.as_ptr().wrapping_add(start).cast::<i8>();
        let bytes = width * size_of::<T>();
        let mut offset = 0;
        while offset < bytes {
            // SAFETY: a prefetch reads nothing architecturally; any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(offset)) };
            offset += 64;
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, start, width);
}

impl<T: Stored> Rows<'_, T> {
    #[inline(always)]
    fn start(&self, probe: u32) -> usize {
        (probe & !NEGATIVE) as usize * self.stride
    }

    /// Asks for the rows of `probes`.
    #[inline(always)]
    pub(crate) fn prefetch(&self, probes: &[u32]) {
        for &probe in probes {
            prefetch(self.values, self.start(probe), self.width);
        }
    }

    /// One look-up: all blocks of `out`. `weights` are one per probe, or empty for ones; `scales` one for each group of
    /// neighbouring blocks. `add` keeps what `out` holds.
    #[inline(always)]
    pub(crate) fn look_up<S: Simd>(
        &self,
        s: S,
        probes: &[u32],
        weights: &[f32],
        scales: &[f32],
        add: bool,
        out: &mut [f32],
    ) {
        match self.width {
            2 => self.narrow::<S, 2>(s, probes, weights, scales, add, out),
            4 => self.narrow::<S, 4>(s, probes, weights, scales, add, out),
            8 => self.narrow::<S, 8>(s, probes, weights, scales, add, out),
            width => {
                let blocks = out.len() / width;
                for (b, out) in out.chunks_exact_mut(width).enumerate() {
                    let range = b * self.k..(b + 1) * self.k;
                    let weights = if weights.is_empty() { weights } else { &weights[range.clone()] };
                    self.block(s, &probes[range], weights, scales[b * scales.len() / blocks], add, out);
                }
            }
        }
    }

    #[inline(always)]
    fn narrow<S: Simd, const W: usize>(
        &self,
        _: S,
        probes: &[u32],
        weights: &[f32],
        scales: &[f32],
        add: bool,
        out: &mut [f32],
    ) {
        let (blocks, _) = out.as_chunks_mut::<W>();
        let groups = (scales.len(), blocks.len());
        for (b, out) in blocks.iter_mut().enumerate() {
            let scale = scales[b * groups.0 / groups.1];
            let mut acc = [0.0_f32; W];
            for p in b * self.k..(b + 1) * self.k {
                let start = self.start(probes[p]);
                let row: &[T; W] = self.values[start..start + W].try_into().expect("W values");
                let w = weight(probes[p], weights, p);
                for i in 0..W {
                    acc[i] += w * row[i].float();
                }
            }
            for i in 0..W {
                let value = scale * acc[i];
                out[i] = if add { out[i] + value } else { value };
            }
        }
    }

    #[inline(always)]
    fn block<S: Simd>(&self, s: S, probes: &[u32], weights: &[f32], scale: f32, add: bool, out: &mut [f32]) {
        let mut at = 0;
        while out.len() - at >= 64 {
            self.lanes::<S, 4>(s, probes, weights, scale, add, at, &mut out[at..at + 64]);
            at += 64;
        }
        while out.len() - at >= 16 {
            self.lanes::<S, 1>(s, probes, weights, scale, add, at, &mut out[at..at + 16]);
            at += 16;
        }
        for i in at..out.len() {
            let mut acc = 0.0_f32;
            for (p, &probe) in probes.iter().enumerate() {
                acc += weight(probe, weights, p) * self.values[self.start(probe) + i].float();
            }
            out[i] = if add { out[i] + scale * acc } else { scale * acc };
        }
    }

    /// `N` times 16 values from `at` on.
    #[inline(always)]
    fn lanes<S: Simd, const N: usize>(
        &self,
        s: S,
        probes: &[u32],
        weights: &[f32],
        scale: f32,
        add: bool,
        at: usize,
        out: &mut [f32],
    ) {
        let mut acc = [s.splat(0.0); N];
        for (p, &probe) in probes.iter().enumerate() {
            let start = self.start(probe) + at;
            let (row, _) = self.values[start..start + N * 16].as_chunks::<16>();
            if weights.is_empty() && !self.signs {
                for n in 0..N {
                    acc[n] = s.add(acc[n], T::lanes(s, &row[n]));
                }
            } else {
                let w = s.splat(weight(probe, weights, p));
                for n in 0..N {
                    // Two roundings, as in the narrow blocks.
                    acc[n] = s.add(acc[n], s.mul(w, T::lanes(s, &row[n])));
                }
            }
        }
        let scale = s.splat(scale);
        let (out, _) = out.as_chunks_mut::<16>();
        for n in 0..N {
            let mut value = s.mul(scale, acc[n]);
            if add {
                value = s.add(s.load(&out[n]), value);
            }
            s.store(value, &mut out[n]);
        }
    }
}

/// Weight and sign of a probe.
#[inline(always)]
fn weight(probe: u32, weights: &[f32], p: usize) -> f32 {
    let w = weights.get(p).copied().unwrap_or(1.0);
    f32::from_bits(w.to_bits() ^ (probe & NEGATIVE))
}
