//! Arithmetic on rows of logits: maximum, softmax sums, log-probabilities.
//!
//! The code has loops that the compiler vectorizes and uses no math library of the system, so every machine computes
//! the same bits. `NaN` is less than any number; `NaN` and `-inf` have probability 0.

const LANES: usize = 16;
/// Additions per lane in `f32` before a partial sum moves to `f64`: rounding stays near 1e-7.
const F32_RUN: usize = 16;

/// `e^x` for `x <= 0`, within 2 units in the last place; 0 below -87 and for `NaN`.
///
/// `e^x = 2^n * e^r` with `n = round(x / ln 2)`, `|r| <= ln(2) / 2`, and a polynomial for `e^r` (Cephes `expf`).
#[inline(always)]
pub fn exp_nonpositive(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits.
    const MAGIC: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e_r = p * (r * r) + r + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let power = f32::from_bits((exponent.wrapping_add(127) << 23) as u32);
    if x >= -87.0 { e_r * power } else { 0.0 }
}

/// The largest logit; `-inf` if there is none.
pub fn max(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, tail) = logits.as_chunks::<LANES>();
    for block in blocks {
        for (m, &x) in lanes.iter_mut().zip(block) {
            *m = if x > *m { x } else { *m };
        }
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// The token with the largest logit, the first one among equals; `None` if all are `NaN` or `-inf`.
///
/// One pass over the row computes the maximum of each block; then the block with the largest maximum is searched.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    const BLOCK: usize = 512;
    let (mut best, mut winner) = (f32::NEG_INFINITY, None);
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        let m = max(block);
        if m > best {
            (best, winner) = (m, Some(i * BLOCK));
        }
    }
    let start = winner?;
    let offset = logits[start..].iter().position(|&x| x == best)?;
    u32::try_from(start + offset).ok()
}

/// `sum over i of e^((logits[i] - max) * scale)`, over the logits that are at least `floor`.
pub fn exp_sum(logits: &[f32], max: f32, scale: f32, floor: f32) -> f64 {
    let term = |x: f32| if x >= floor { exp_nonpositive((x - max) * scale) } else { 0.0 };
    let mut total = 0.0;
    for run in logits.chunks(LANES * F32_RUN) {
        let mut lanes = [0.0f32; LANES];
        let (blocks, tail) = run.as_chunks::<LANES>();
        for block in blocks {
            for (sum, &x) in lanes.iter_mut().zip(block) {
                *sum += term(x);
            }
        }
        total += lanes.iter().map(|&s| f64::from(s)).sum::<f64>();
        total += tail.iter().map(|&x| f64::from(term(x))).sum::<f64>();
    }
    total
}

/// `ln(sum of e^logit)`; not finite if the row holds no finite logit, or `+inf`.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = max(logits);
    f64::from(max) + exp_sum(logits, max, 1.0, f32::NEG_INFINITY).ln()
}

/// Kullback-Leibler divergence `KL(softmax(p) || softmax(q))` in nats.
///
/// `= sum of P (p - q) - lse(p) + lse(q)`, with `P` the softmax of `p`. The caller passes both log-sum-exps.
/// Equal rows give exactly 0.
pub fn kl_divergence(p: &[f32], lse_p: f64, q: &[f32], lse_q: f64) -> f64 {
    let max_p = max(p);
    let (mut weights, mut weighted) = (0.0f64, 0.0f64);
    for (p, q) in p.chunks(LANES * F32_RUN).zip(q.chunks(LANES * F32_RUN)) {
        let (mut w, mut wd) = ([0.0f32; LANES], [0.0f32; LANES]);
        let mut add = |lane: usize, p: f32, q: f32| {
            let e = exp_nonpositive(p - max_p);
            w[lane] += e;
            // If P is 0, the difference may be infinite or NaN and must not count.
            wd[lane] += if e > 0.0 { e * (p - q) } else { 0.0 };
        };
        let (blocks_p, tail_p) = p.as_chunks::<LANES>();
        let (blocks_q, tail_q) = q.as_chunks::<LANES>();
        for (p, q) in blocks_p.iter().zip(blocks_q) {
            for lane in 0..LANES {
                add(lane, p[lane], q[lane]);
            }
        }
        for (lane, (&p, &q)) in tail_p.iter().zip(tail_q).enumerate() {
            add(lane, p, q);
        }
        weights += w.iter().map(|&x| f64::from(x)).sum::<f64>();
        weighted += wd.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    weighted / weights - (lse_p - lse_q)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn softmax(row: &[f32]) -> Vec<f64> {
        let m = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let e: Vec<f64> = row.iter().map(|&x| (f64::from(x) - f64::from(m)).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|x| x / sum).collect()
    }

    #[test]
    fn exp_is_close_everywhere() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let (got, want) = (f64::from(exp_nonpositive(x)), f64::from(x).exp());
            assert!((got - want).abs() <= want * 2.5e-7, "e^{x}: {got} {want}");
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        for x in [-87.1, -1e30, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(exp_nonpositive(x), 0.0);
        }
    }

    #[test]
    fn argmax_skips_nan_and_takes_the_first_of_equals() {
        assert_eq!(argmax(&[f32::NAN, 1.0, 3.0, 3.0, f32::NEG_INFINITY]), Some(2));
        assert_eq!(argmax(&[1.0, f32::INFINITY, 3.0]), Some(1));
        assert_eq!(argmax(&[f32::NAN; 40]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn divergence_ignores_what_cannot_happen() {
        let p = [0.0, f32::NEG_INFINITY, 1.0];
        let q = [0.0, f32::NEG_INFINITY, 1.0];
        assert_eq!(kl_divergence(&p, log_sum_exp(&p), &q, log_sum_exp(&q)), 0.0);
    }

    proptest! {
        #[test]
        fn argmax_is_a_plain_scan(row in proptest::collection::vec(-5i8..5, 1..1200)) {
            let row: Vec<f32> = row.iter().map(|&x| f32::from(x)).collect();
            let want = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            prop_assert_eq!(argmax(&row), Some(want as u32));
        }

        #[test]
        fn sums_match_f64(row in proptest::collection::vec(-30f32..30.0, 1..700), other in -5f32..5.0) {
            let naive = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            prop_assert!((log_sum_exp(&row) - naive).abs() < 1e-6);
            let q: Vec<f32> = row.iter().map(|&x| (x * other).sin() * 8.0).collect();
            let kl: f64 =
                softmax(&row).iter().zip(softmax(&q)).map(|(&a, b)| if a > 0.0 { a * (a / b).ln() } else { 0.0 }).sum();
            let got = kl_divergence(&row, log_sum_exp(&row), &q, log_sum_exp(&q));
            prop_assert!((got - kl).abs() < 2e-5 * (1.0 + kl), "{} {}", got, kl);
        }
    }
}
