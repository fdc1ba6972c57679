//! RMSNorm: `y = x / sqrt(mean(x²) + eps) * (w + offset)` (Zhang and Sennrich 2019, section 3), and the LayerNorm of
//! encoders.
//!
//! The sum has 16 lanes, reduced in a fixed order: every level gives the same bits.

use super::padded;
use crate::arch::{Kernel, Level, Simd, SimdLevel};

/// The learned part of a norm.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// Weights, one per element.
    pub weight: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
    /// Added to the weights (1 for Gemma's Hugging Face files, else 0).
    pub offset: f32,
}

impl RmsNorm<'_> {
    /// `out = norm(x)` for one row.
    ///
    /// # Panics
    /// When lengths differ (as in all methods here).
    pub fn apply(&self, level: SimdLevel, x: &[f32], out: &mut [f32]) {
        self.check(x.len(), out.len());
        level.run(Into::<false> { norm: self, x, out });
    }

    /// `x = norm(x)` for one row.
    pub fn apply_in_place(&self, level: SimdLevel, x: &mut [f32]) {
        self.check(x.len(), x.len());
        level.run(InPlace { norm: self, x });
    }

    /// `out += norm(x)` for one row.
    pub fn add_to(&self, level: SimdLevel, x: &[f32], out: &mut [f32]) {
        self.check(x.len(), out.len());
        level.run(Into::<true> { norm: self, x, out });
    }

    fn check(&self, x: usize, out: usize) {
        assert!(x == self.weight.len() && out == x, "rms_norm: lengths differ");
    }

    /// `1 / sqrt(mean(x²) + eps)`.
    #[inline(always)]
    fn factor<S: Simd>(&self, s: S, x: &[f32]) -> S::F {
        let (chunks, tail) = x.as_chunks::<16>();
        let mut squares = s.splat(0.0);
        for x in chunks {
            let x = s.load(x);
            squares = s.fma(x, x, squares);
        }
        let last = s.load(&padded(tail));
        squares = s.fma(last, last, squares);
        s.splat(1.0 / (s.reduce_add(squares) / x.len() as f32 + self.eps).sqrt())
    }

    #[inline(always)]
    fn vector<S: Simd>(&self, s: S, x: &[f32; 16], w: &[f32; 16], factor: S::F) -> S::F {
        s.mul(s.mul(s.load(x), factor), s.add(s.load(w), s.splat(self.offset)))
    }
}

/// The norm of encoders: `y = (x - mean(x)) / sqrt(var(x) + eps) * w + b` (Ba et al. 2016, arXiv 1607.06450).
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// Weights, one per element.
    pub weight: &'a [f32],
    /// Biases, one per element.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNorm<'_> {
    /// `x = norm(x)` for one row.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn apply_in_place(&self, level: SimdLevel, x: &mut [f32]) {
        assert!(x.len() == self.weight.len() && x.len() == self.bias.len(), "layer_norm: lengths differ");
        level.run(LayerNormInPlace { norm: self, x });
    }
}

struct LayerNormInPlace<'a> {
    norm: &'a LayerNorm<'a>,
    x: &'a mut [f32],
}

impl Kernel for LayerNormInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Self { norm, x } = self;
        let n = x.len() as f32;
        let mut sum = s.splat(0.0);
        for x in x.chunks(16) {
            sum = s.add(sum, s.load(&padded(x)));
        }
        let mean = s.reduce_add(sum) / n;
        let mut squares = s.splat(0.0);
        for x in x.chunks_mut(16) {
            // The padding stays zero.
            let mut lanes = padded(x);
            s.store(s.sub(s.load(&lanes), s.splat(mean)), &mut lanes);
            x.copy_from_slice(&lanes[..x.len()]);
            let lanes = s.load(&padded(x));
            squares = s.fma(lanes, lanes, squares);
        }
        let factor = s.splat(1.0 / (s.reduce_add(squares) / n + norm.eps).sqrt());
        for ((x, w), b) in x.chunks_mut(16).zip(norm.weight.chunks(16)).zip(norm.bias.chunks(16)) {
            let mut lanes = padded(x);
            let scaled = s.mul(s.load(&lanes), factor);
            s.store(s.fma(scaled, s.load(&padded(w)), s.load(&padded(b))), &mut lanes);
            x.copy_from_slice(&lanes[..x.len()]);
        }
    }
}

/// `out = norm(x)`, or `out += norm(x)`.
struct Into<'a, const ADD: bool> {
    norm: &'a RmsNorm<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

struct InPlace<'a> {
    norm: &'a RmsNorm<'a>,
    x: &'a mut [f32],
}

impl<const ADD: bool> Kernel for Into<'_, ADD> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Self { norm, x, out } = self;
        let factor = norm.factor(s, x);
        let ((x, x_tail), (w, w_tail)) = (x.as_chunks::<16>(), norm.weight.as_chunks::<16>());
        let (out, out_tail) = out.as_chunks_mut::<16>();
        for ((x, w), out) in x.iter().zip(w).zip(out) {
            let y = norm.vector(s, x, w, factor);
            s.store(if ADD { s.add(s.load(out), y) } else { y }, out);
        }
        let mut lanes = [0.0; 16];
        s.store(norm.vector(s, &padded(x_tail), &padded(w_tail), factor), &mut lanes);
        for (out, y) in out_tail.iter_mut().zip(lanes) {
            *out = if ADD { *out + y } else { y };
        }
    }
}

impl Kernel for InPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Self { norm, x } = self;
        let factor = norm.factor(s, x);
        let ((x, x_tail), (w, w_tail)) = (x.as_chunks_mut::<16>(), norm.weight.as_chunks::<16>());
        for (x, w) in x.iter_mut().zip(w) {
            s.store(norm.vector(s, x, w, factor), x);
        }
        let mut lanes = [0.0; 16];
        s.store(norm.vector(s, &padded(x_tail), &padded(w_tail), factor), &mut lanes);
        x_tail.copy_from_slice(&lanes[..x_tail.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_norms_match_f64_in_every_level() {
        for len in [1, 15, 16, 33, 384] {
            let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0 + 1.0).collect();
            let weight: Vec<f32> = (0..len).map(|i| (i as f32 * 0.3).cos()).collect();
            let bias: Vec<f32> = (0..len).map(|i| (i as f32 * 0.1).sin()).collect();
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / len as f64;
            let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / len as f64;
            for level in SimdLevel::supported() {
                let mut out = x.clone();
                LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 }.apply_in_place(level, &mut out);
                for i in 0..len {
                    let normed = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
                    let want = normed * f64::from(weight[i]) + f64::from(bias[i]);
                    assert!((f64::from(out[i]) - want).abs() < 1e-5, "{level}");
                }
            }
        }
    }

    #[test]
    fn matches_f64_in_every_level_and_form() {
        for len in [1, 15, 16, 17, 64, 100, 576] {
            let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
            let weight: Vec<f32> = (0..len).map(|i| (i as f32 * 0.3).cos()).collect();
            let norm = RmsNorm { weight: &weight, eps: 1e-5, offset: 1.0 };
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / len as f64;
            for level in SimdLevel::supported() {
                let (mut out, mut added, mut in_place) = (vec![0.0; len], vec![2.0; len], x.clone());
                norm.apply(level, &x, &mut out);
                norm.add_to(level, &x, &mut added);
                norm.apply_in_place(level, &mut in_place);
                assert_eq!(out, in_place);
                for i in 0..len {
                    let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * (f64::from(weight[i]) + 1.0);
                    assert!((f64::from(out[i]) - want).abs() < 1e-5, "{level}");
                    assert!((added[i] - 2.0 - out[i]).abs() < 1e-6);
                }
            }
        }
    }
}
