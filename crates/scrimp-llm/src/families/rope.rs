//! Rotary frequencies: `inv_freq[i] = base^(-2i / dim)`, optionally scaled for longer contexts:
//!
//! - linear (kaiokendev 2023): all frequencies are divided by the factor;
//! - Llama 3.1: slow frequencies are divided, fast ones are unchanged, those in between are interpolated;
//! - YaRN (Peng et al. 2023, <https://arxiv.org/abs/2309.00071>): the same idea by dimension, with a factor on sine
//!   and cosine;
//! - LongRoPE (Ding et al. 2024, <https://arxiv.org/abs/2402.13753>): a searched factor per frequency, one set for
//!   short and one for long sequences.

use std::f64::consts::PI;

use crate::config::Rope;

/// How frequencies are scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scaling {
    None,
    Linear { factor: f64 },
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_context: f64 },
    Yarn(Yarn),
}

/// YaRN's numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Yarn {
    pub(super) factor: f64,
    pub(super) original_context: f64,
    /// Frequencies with more rotations than this over the original context are unchanged.
    pub(super) beta_fast: f64,
    /// Frequencies with fewer rotations than this are divided by the factor.
    pub(super) beta_slow: f64,
    /// Round the bounds to whole dimensions.
    pub(super) truncate: bool,
}

/// YaRN's factor on sine and cosine.
pub(super) fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// LongRoPE's factor on sine and cosine.
pub(super) fn longrope_magnitude(factor: f64, original_context: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original_context.ln()).sqrt() }
}

/// The rotary embedding of the first `dim` elements of a head; `divisors` has one more divisor per frequency.
/// The error names the invalid value.
pub(super) fn rope(
    dim: usize,
    base: f64,
    scaling: &Scaling,
    divisors: Option<&[f32]>,
    magnitude: f64,
) -> Result<Rope, String> {
    if dim == 0 || !dim.is_multiple_of(2) {
        return Err(format!("rotary embedding of {dim} elements; an even number above 0 is needed"));
    }
    if !(base.is_finite() && base > 1.0) {
        return Err(format!("the rotary embedding's base is {base}, but must be above 1"));
    }
    check_scaling(scaling)?;
    if let Some(divisors) = divisors {
        if divisors.len() != dim / 2 {
            return Err(format!("{} rotary factors for {} frequencies", divisors.len(), dim / 2));
        }
        if let Some(bad) = divisors.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
            return Err(format!("a rotary factor is {bad}, but must be positive"));
        }
    }
    let mut inv_freq = Vec::with_capacity(dim / 2);
    for i in 0..dim / 2 {
        let mut freq = scale(base.powf(-2.0 * i as f64 / dim as f64), i, dim, base, scaling);
        if let Some(divisors) = divisors {
            freq /= f64::from(divisors[i]);
        }
        inv_freq.push(freq as f32);
    }
    let magnitude = magnitude as f32;
    if !magnitude.is_finite() || magnitude <= 0.0 || inv_freq.iter().any(|f| !f.is_finite()) {
        return Err("the rotary embedding's scaling is out of range".to_owned());
    }
    Ok(Rope { inv_freq, magnitude })
}

fn check_scaling(scaling: &Scaling) -> Result<(), String> {
    let positive = |what: &str, value: f64| {
        if value.is_finite() && value > 0.0 {
            Ok(())
        } else {
            Err(format!("the rotary scaling's {what} is {value}, but must be positive"))
        }
    };
    match *scaling {
        Scaling::None => Ok(()),
        Scaling::Linear { factor } => positive("factor", factor),
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            positive("factor", factor)?;
            positive("low_freq_factor", low_freq_factor)?;
            positive("original context", original_context)?;
            positive("high_freq_factor - low_freq_factor", high_freq_factor - low_freq_factor)
        }
        Scaling::Yarn(yarn) => {
            positive("factor", yarn.factor)?;
            positive("original context", yarn.original_context)?;
            positive("beta_fast", yarn.beta_fast)?;
            positive("beta_slow", yarn.beta_slow)
        }
    }
}

/// Frequency `freq`, the `i`th of `dim / 2`, after scaling.
fn scale(freq: f64, i: usize, dim: usize, base: f64, scaling: &Scaling) -> f64 {
    match *scaling {
        Scaling::None => freq,
        Scaling::Linear { factor } => freq / factor,
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            // Rotations over the original context.
            let turns = original_context * freq / (2.0 * PI);
            if turns > high_freq_factor {
                freq
            } else if turns < low_freq_factor {
                freq / factor
            } else {
                let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - keep) * freq / factor + keep * freq
            }
        }
        Scaling::Yarn(yarn) => {
            // The (fractional) index of the frequency with `turns` rotations over the original context.
            let index = |turns: f64| {
                dim as f64 * (yarn.original_context / (turns * 2.0 * PI)).ln() / (2.0 * base.ln())
            };
            let (mut low, mut high) = (index(yarn.beta_fast), index(yarn.beta_slow));
            if yarn.truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            let divide = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            freq / yarn.factor * divide + freq * (1.0 - divide)
        }
    }
}
