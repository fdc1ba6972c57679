//! RMSNorm (Zhang & Sennrich 2019): `y = x / sqrt(mean(x²) + eps) * (w + offset)`.

use super::padded;
use crate::{dispatch::Kernel, isa::Simd, tier::Tier};

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    offset: f32,
    out: &'a mut [f32],
}

/// Normalises one row. `offset` is added to the weights (1 for Gemma's Hugging Face files, else 0).
///
/// # Panics
/// When lengths differ.
pub fn rms_norm(tier: Tier, x: &[f32], weight: &[f32], eps: f32, offset: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "rms_norm: lengths differ");
    tier.run(RmsNorm { x, weight, eps, offset, out });
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, tail) = self.x.as_chunks::<16>();
        let mut squares = s.splat(0.0);
        for x in x {
            let x = s.load(x);
            squares = s.fma(x, x, squares);
        }
        let last = s.load(&padded(tail));
        squares = s.fma(last, last, squares);
        let mean = s.reduce_add(squares) / self.x.len() as f32;
        let factor = s.splat(1.0 / (mean + self.eps).sqrt());
        let offset = s.splat(self.offset);
        let (w, w_tail) = self.weight.as_chunks::<16>();
        let (out, out_tail) = self.out.as_chunks_mut::<16>();
        for ((x, w), out) in x.iter().zip(w).zip(out) {
            s.store(s.mul(s.mul(s.load(x), factor), s.add(s.load(w), offset)), out);
        }
        let mut lanes = [0.0; 16];
        s.store(s.mul(s.mul(last, factor), s.add(s.load(&padded(w_tail)), offset)), &mut lanes);
        out_tail.copy_from_slice(&lanes[..tail.len()]);
    }
}
