//! Gates of whole blocks: `x = x * sigmoid(gate)`, `sigmoid(g) = 1 / (1 + exp(-g))` (Qwen3-Next's gated attention).
//!
//! Every level gives the same bits.

use super::padded;
use crate::arch::{Kernel, Level, SimdLevel};

struct SigmoidGate<'a>(&'a [f32], &'a mut [f32]);

/// `x = x * sigmoid(gate)`, element by element.
///
/// # Panics
/// When lengths differ.
pub fn sigmoid_gate(level: SimdLevel, gate: &[f32], x: &mut [f32]) {
    assert!(gate.len() == x.len(), "sigmoid_gate: lengths differ");
    level.run(SigmoidGate(gate, x));
}

impl Kernel for SigmoidGate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let one = s.splat(1.0);
        for (gate, x) in self.0.chunks(16).zip(self.1.chunks_mut(16)) {
            let mut lanes = padded(x);
            let e = s.exp(s.sub(s.splat(0.0), s.load(&padded(gate))));
            s.store(s.div(s.load(&lanes), s.add(one, e)), &mut lanes);
            x.copy_from_slice(&lanes[..x.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_match_f64_in_every_level() {
        let gate: Vec<f32> = (-400..403).map(|i| i as f32 / 10.0).collect();
        for level in SimdLevel::supported() {
            let mut x: Vec<f32> = gate.iter().map(|g| 3.0 - g).collect();
            sigmoid_gate(level, &gate, &mut x);
            for (&g, &y) in gate.iter().zip(&x) {
                let want = f64::from(3.0 - g) / (1.0 + (-f64::from(g)).exp());
                assert!(
                    (f64::from(y) - want).abs() <= 1e-6 * want.abs().max(1e-6),
                    "{g}: {y}, {want} {level}"
                );
            }
        }
    }
}
