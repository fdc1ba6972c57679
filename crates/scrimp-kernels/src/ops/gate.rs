//! The gated feed-forward's non-linearity, and soft caps on logits.
//!
//! ```text
//! SwiGLU    out = silu(gate) * up         silu(x) = x / (1 + exp(-x))
//! GeGLU     out = gelu(gate) * up         gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
//! clamped   out = (u + 1) g sigmoid(1.702 g)         g = min(gate, 7),  u = up, at most 7 from 0
//! GELU      x = x/2 (1 + erf(x / sqrt(2)))           or with the approximation of GeGLU
//! softcap   x = cap * tanh(x / cap)
//! ```
//! Every level gives the same bits. The error is at most 3e-7 of the value for SwiGLU, 2e-6 of |x| for GeGLU and 2e-7 of
//! |x| for GELU.
//!
//! Sources: Shazeer 2020, "GLU variants improve Transformer" (arXiv 2002.05202),
//! section 2; Gemma 2 (arXiv 2408.00118), section 2; gpt-oss (arXiv 2508.10925), section 2.2.

use super::padded;
use crate::arch::{Kernel, Level, Simd, SimdLevel};

/// Non-linearity of a gated feed-forward block (Shazeer 2020, "GLU variants improve Transformer").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// SwiGLU.
    Silu,
    /// GeGLU with the tanh approximation.
    GeluTanh,
    /// SwiGLU with bounded inputs, a steeper sigmoid and `up + 1` (gpt-oss).
    ClampedSilu,
}

/// The bound of [`Gate::ClampedSilu`].
pub const CLAMP: f32 = 7.0;
/// The slope of its sigmoid.
pub const CLAMPED_SLOPE: f32 = 1.702;

struct Gelu<'a>(bool, &'a mut [f32]);
struct Gated<'a>(Gate, &'a [f32], &'a [f32], &'a mut [f32]);
struct Softcap<'a>(f32, &'a mut [f32]);
struct Scale<'a>(f32, &'a mut [f32]);

/// `out = f(gate) * up`, element by element.
///
/// # Panics
/// When lengths differ.
pub fn gated(level: SimdLevel, f: Gate, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "gated: lengths differ");
    level.run(Gated(f, gate, up, out));
}

/// `x = gelu(x)`, in place: exact, or with the tanh approximation.
pub fn gelu(level: SimdLevel, approximate: bool, x: &mut [f32]) {
    level.run(Gelu(approximate, x));
}

/// `x = cap * tanh(x / cap)`, in place (Gemma 2).
pub fn softcap(level: SimdLevel, cap: f32, x: &mut [f32]) {
    level.run(Softcap(cap, x));
}

/// `x = factor * x`, in place.
pub fn scale(level: SimdLevel, factor: f32, x: &mut [f32]) {
    level.run(Scale(factor, x));
}

impl Kernel for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Gated(f, gate, up, out) = self;
        match f {
            Gate::Silu => gated_with::<S, SILU>(s, gate, up, out),
            Gate::GeluTanh => gated_with::<S, GELU_TANH>(s, gate, up, out),
            Gate::ClampedSilu => gated_with::<S, CLAMPED>(s, gate, up, out),
        }
    }
}

const SILU: u8 = 0;
const GELU_TANH: u8 = 1;
const CLAMPED: u8 = 2;

#[inline(always)]
fn gated_with<S: Simd, const F: u8>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let ((gate, gate_tail), (up, up_tail)) = (gate.as_chunks::<16>(), up.as_chunks::<16>());
    let (out, out_tail) = out.as_chunks_mut::<16>();
    for ((gate, up), out) in gate.iter().zip(up).zip(out) {
        s.store(gated_vector::<S, F>(s, gate, up), out);
    }
    if !out_tail.is_empty() {
        let mut lanes = [0.0; 16];
        s.store(gated_vector::<S, F>(s, &padded(gate_tail), &padded(up_tail)), &mut lanes);
        out_tail.copy_from_slice(&lanes[..out_tail.len()]);
    }
}

#[inline(always)]
fn gated_vector<S: Simd, const F: u8>(s: S, gate: &[f32; 16], up: &[f32; 16]) -> S::F {
    let (gate, up) = (s.load(gate), s.load(up));
    match F {
        GELU_TANH => s.mul(s.gelu_tanh(gate), up),
        CLAMPED => {
            let (bound, slope) = (s.splat(CLAMP), s.splat(CLAMPED_SLOPE));
            let (gate, up) = (s.min(gate, bound), s.max(s.min(up, bound), s.splat(-CLAMP)));
            let glu = s.mul(s.silu(s.mul(gate, slope)), s.splat(1.0 / CLAMPED_SLOPE));
            s.mul(s.add(up, s.splat(1.0)), glu)
        }
        _ => s.mul(s.silu(gate), up),
    }
}

impl Kernel for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Gelu(approximate, x) = self;
        for x in x.chunks_mut(16) {
            let mut lanes = padded(x);
            let vector = s.load(&lanes);
            s.store(if approximate { s.gelu_tanh(vector) } else { s.gelu(vector) }, &mut lanes);
            x.copy_from_slice(&lanes[..x.len()]);
        }
    }
}

impl Kernel for Softcap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let (cap, inverse) = (s.splat(self.0), s.splat(1.0 / self.0));
        for x in self.1.chunks_mut(16) {
            let mut lanes = padded(x);
            s.store(s.mul(cap, s.tanh(s.mul(s.load(&lanes), inverse))), &mut lanes);
            x.copy_from_slice(&lanes[..x.len()]);
        }
    }
}

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, _: S) {
        self.1.iter_mut().for_each(|x| *x *= self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_has_the_values_of_the_normal_distribution() {
        // x Phi(x), from mpmath.
        let known = [
            (0.0, 0.0),
            (0.5, 0.345_731_230_637_006_56),
            (1.0, 0.841_344_746_068_542_9),
            (-1.0, -0.158_655_253_931_457_07),
            (2.0, 1.954_499_736_103_641_6),
            (-3.0, -0.004_049_694_094_890_31),
            (20.0, 20.0),
            (-20.0, 0.0),
        ];
        for level in SimdLevel::supported() {
            let mut x: Vec<f32> = known.iter().map(|&(x, _)| x).collect();
            gelu(level, false, &mut x);
            for (got, (x, want)) in x.iter().zip(known) {
                assert!((f64::from(*got) - want).abs() <= 2e-7 * f64::from(x.abs()), "{level} {x}: {got}");
            }
            let mut x = vec![1.0; 17];
            gelu(level, true, &mut x);
            assert!(x.iter().all(|x| (x - 0.841_192).abs() < 1e-5), "{level} {x:?}");
        }
    }

    #[test]
    fn non_linearities_match_f64_in_every_level() {
        let x: Vec<f32> = (-400..403).map(|i| i as f32 / 10.0).collect();
        let ones = vec![1.0; x.len()];
        let mut out = vec![0.0; x.len()];
        for level in SimdLevel::supported() {
            gated(level, Gate::Silu, &x, &ones, &mut out);
            for (&x, &y) in x.iter().zip(&out) {
                let want = f64::from(x) / (1.0 + f64::from(-x).exp());
                assert!(
                    (f64::from(y) - want).abs() <= 3e-7 * want.abs().max(1e-6),
                    "silu({x}) = {y}, {want} {level}"
                );
            }
            gated(level, Gate::GeluTanh, &x, &ones, &mut out);
            for (&x, &y) in x.iter().zip(&out) {
                let x = f64::from(x);
                let want = 0.5
                    * x
                    * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
                assert!(
                    (f64::from(y) - want).abs() <= 2e-6 * x.abs().max(0.1),
                    "gelu({x}) = {y}, {want} {level}"
                );
            }
            let up: Vec<f32> = x.iter().rev().map(|x| x / 3.0).collect();
            gated(level, Gate::ClampedSilu, &x, &up, &mut out);
            for ((&x, &up), &y) in x.iter().zip(&up).zip(&out) {
                let (gate, up) = (f64::from(x.min(7.0)), f64::from(up.clamp(-7.0, 7.0)));
                let want = (up + 1.0) * gate / (1.0 + (-1.702 * gate).exp());
                assert!(
                    (f64::from(y) - want).abs() <= 1e-6 * want.abs().max(1.0),
                    "{gate} {up}: {y}, {want} {level}"
                );
            }
            let mut capped = x.clone();
            softcap(level, 30.0, &mut capped);
            for (&x, &y) in x.iter().zip(&capped) {
                let want = 30.0 * (f64::from(x) / 30.0).tanh();
                assert!((f64::from(y) - want).abs() <= 1e-5, "softcap({x}) = {y}, {want} {level}");
            }
        }
    }
}
