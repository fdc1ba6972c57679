//! f32 weights to packed bytes (layout: [`packed`](super)).
//!
//! ```text
//! bf16   w rounded half to even
//! int8   q = round(w / scale) in -127..=127     scale = max |w| / 127 of a row
//! int4   q = round(w / scale) in -8..=7         scale = (w of largest magnitude) / -8 of 32 columns of a row, bf16
//! ```
//! These are the default scales; callers may pass others. Sparse formats store the weights that do not round to zero,
//! and a bitmap of their places.

use super::{FormatError, GROUP, INT4_BLOCK, INT4_INDEX, Layout, PANEL_ROWS, Value, WeightFormat};
use crate::{
    exec::{DisjointSliceMut, Pool},
    quant::round_to_bf16,
};
use half::bf16;
use std::sync::atomic::{AtomicBool, Ordering};

/// The scale as `format` stores it: int4 keeps bf16.
pub fn round_scale(format: WeightFormat, scale: f32) -> f32 {
    match format.value() {
        Value::Int4 => bf16::from_f32(scale).to_f32(),
        _ => scale,
    }
}

/// Whether weights with this scale are finite numbers.
pub(super) fn usable_scale(scale: f32) -> bool {
    scale.abs() <= f32::MAX / 256.0
}

/// A matrix of f32 weights.
#[derive(Debug, Clone, Copy)]
pub struct DenseMatrix<'a> {
    /// Out features.
    pub rows: usize,
    /// In features.
    pub cols: usize,
    /// `[rows][cols]`
    pub weights: &'a [f32],
}

/// The scales that [`pack`] takes when none are given, `[rows][groups]`, a group being
/// [`WeightFormat::scale_group`] columns; empty where the format has no scales.
///
/// int8: `max|w| / 127`. int4: the value of largest magnitude becomes -8, as in GGUF's `Q4_0`.
///
/// # Panics
/// When `weights` is not `rows * cols` long.
pub fn default_scales(pool: &Pool, format: WeightFormat, matrix: DenseMatrix<'_>) -> Vec<f32> {
    let DenseMatrix { rows, cols, weights } = matrix;
    assert_eq!(weights.len(), rows * cols, "length of the weights");
    let Some(group) = format.scale_group(cols) else { return Vec::new() };
    let groups = cols.div_ceil(group);
    let mut scales = vec![0.0; rows * groups];
    pool.chunks(&mut scales, groups.max(1), |row, scales| {
        let groups = weights[row * cols..(row + 1) * cols].chunks(group);
        for (scale, w) in scales.iter_mut().zip(groups) {
            let largest = w.iter().fold(0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
            let int4 = format.value() == Value::Int4;
            *scale = round_scale(format, if int4 { largest / -8.0 } else { largest.abs() / 127.0 });
        }
    });
    scales
}

/// Packs a row-major matrix. Sparse formats leave out zeros, and weights that round to zero.
///
/// Weights are divided by their scale, rounded half to even and clamped to ±127 or -8..=7, so weights that are
/// multiples of the given `scales` (`[rows][groups]`, see [`default_scales`] and [`round_scale`]) are stored exactly.
///
/// # Errors
/// When a weight or scale is not finite or does not fit, the lengths do not fit the shape, or the shape is too large.
pub fn pack(
    pool: &Pool,
    format: WeightFormat,
    matrix: DenseMatrix<'_>,
    scales: Option<&[f32]>,
) -> Result<Vec<u8>, FormatError> {
    let DenseMatrix { rows, cols, weights } = matrix;
    let layout = Layout::new(format, rows, cols)?;
    if rows.checked_mul(cols) != Some(weights.len()) {
        return Err(FormatError(format!("{} weights are no matrix of {rows} × {cols}", weights.len())));
    }
    if !all(pool, weights, f32::is_finite) {
        return Err(FormatError("a weight is NaN or infinite".to_owned()));
    }
    if format.value() == Value::Bf16 && !all(pool, weights, |w| round_to_bf16(w) & 0x7f80 != 0x7f80) {
        return Err(FormatError("a weight is too large for bf16".to_owned()));
    }
    let groups = format.scale_group(cols).map_or(0, |group| cols.div_ceil(group));
    let default;
    let scales = match scales {
        Some(scales) => scales,
        None => {
            default = default_scales(pool, format, matrix);
            &default
        }
    };
    if scales.len() != rows * groups {
        return Err(FormatError(format!("{} scales for {rows} × {groups} groups", scales.len())));
    }
    if !scales.iter().all(|&s| usable_scale(round_scale(format, s))) {
        return Err(FormatError("a scale is NaN, infinite or absurdly large".to_owned()));
    }
    let source = Source { layout, weights, scales, groups };
    let mut encoded = vec![Encoded::default(); layout.panels];
    let out = DisjointSliceMut::new(&mut encoded);
    pool.run(layout.panels, |panel, _| {
        // SAFETY: each task has an element of its own.
        let out = unsafe { out.slice(panel..panel + 1) };
        out[0] = source.panel(panel);
    });
    let values: usize = encoded.iter().map(|panel| panel.values.len()).sum();
    let mut bytes = vec![0; layout.bytes(values)];
    let mut at = 0;
    for (t, panel) in encoded.into_iter().enumerate() {
        if format.is_sparse() {
            bytes[layout.start_of(t)].copy_from_slice(&(at as u64).to_le_bytes());
        }
        if format.value() == Value::Int8 {
            bytes[layout.scales_of(t)].copy_from_slice(&panel.scales);
        }
        bytes[layout.index_of(t)].copy_from_slice(&panel.index);
        bytes[layout.values + at..][..panel.values.len()].copy_from_slice(&panel.values);
        at += panel.values.len();
    }
    if format.is_sparse() {
        bytes[layout.start_of(layout.panels)].copy_from_slice(&(at as u64).to_le_bytes());
    }
    Ok(bytes)
}

/// Whether `test` holds for every weight.
fn all(pool: &Pool, weights: &[f32], test: impl Fn(f32) -> bool + Sync) -> bool {
    const TASK: usize = 1 << 16;
    let holds = AtomicBool::new(true);
    pool.run(weights.len().div_ceil(TASK), |task, _| {
        let weights = &weights[task * TASK..((task + 1) * TASK).min(weights.len())];
        // No early end: vectors do not know one.
        if !weights.iter().fold(true, |holds, &w| holds & test(w)) {
            holds.store(false, Ordering::Relaxed);
        }
    });
    holds.into_inner()
}

/// One packed panel.
#[derive(Debug, Clone, Default)]
struct Encoded {
    scales: Vec<u8>,
    index: Vec<u8>,
    values: Vec<u8>,
}

struct Source<'a> {
    layout: Layout,
    weights: &'a [f32],
    scales: &'a [f32],
    groups: usize,
}

impl Source<'_> {
    fn scale(&self, row: usize, group: usize) -> f32 {
        if row < self.layout.rows && group < self.groups {
            self.scales[row * self.groups + group]
        } else {
            0.0
        }
    }

    /// The values of a panel as integers, `[PANEL_ROWS][steps * step columns]`: bits of bf16, or signed quants; 0 in
    /// the padding.
    fn codes(&self, panel: usize) -> Vec<i16> {
        let Layout { rows, cols, format, steps, .. } = self.layout;
        let stride = steps * format.value().step_cols();
        let mut codes = vec![0; PANEL_ROWS * stride];
        for (i, codes) in codes.chunks_exact_mut(stride.max(1)).enumerate() {
            let row = panel * PANEL_ROWS + i;
            if row >= rows {
                break;
            }
            let weights = &self.weights[row * cols..(row + 1) * cols];
            let (group, (low, high)) = match format.value() {
                Value::Bf16 => {
                    codes.iter_mut().zip(weights).for_each(|(code, &w)| *code = round_to_bf16(w) as i16);
                    continue;
                }
                Value::Int8 => (cols, (-127.0, 127.0)),
                Value::Int4 => (GROUP, (-8.0, 7.0)),
            };
            let groups = codes.chunks_mut(group.max(1)).zip(weights.chunks(group.max(1)));
            for (g, (codes, weights)) in groups.enumerate() {
                let scale = round_scale(format, self.scale(row, g));
                if scale != 0.0 {
                    let code = |w: f32| round_half_even((w / scale).clamp(low, high)) as i16;
                    codes.iter_mut().zip(weights).for_each(|(c, &w)| *c = code(w));
                }
            }
        }
        codes
    }

    fn panel(&self, panel: usize) -> Encoded {
        let value = self.layout.format.value();
        let sparse = self.layout.format.is_sparse();
        let first = panel * PANEL_ROWS;
        let mut out = Encoded::default();
        let group_scales = |out: &mut Vec<u8>, group| {
            for row in first..first + PANEL_ROWS {
                out.extend(bf16::from_f32(self.scale(row, group)).to_le_bytes());
            }
        };
        if value == Value::Int8 {
            for row in first..first + PANEL_ROWS {
                out.scales.extend(self.scale(row, 0).to_le_bytes());
            }
        }
        let width = value.step_cols();
        let stride = self.layout.steps * width;
        let codes = self.codes(panel);
        if value == Value::Int4 && !sparse {
            out.values.reserve(self.layout.dense_panel_bytes);
            for group in 0..self.layout.dense_panel_bytes / INT4_BLOCK {
                group_scales(&mut out.values, group);
                for k in 0..4 {
                    for (row, j) in (0..64).map(|i| (i / 4, i % 4)) {
                        let at = row * stride + GROUP * group + 4 * k + j;
                        let (low, high) = (codes[at] + 8, codes[at + 16] + 8);
                        out.values.push((low | high << 4) as u8);
                    }
                }
            }
            return out;
        }
        // 4-bit values of even and of odd groups.
        let mut nibbles = [Vec::new(), Vec::new()];
        for step in 0..self.layout.steps {
            if value == Value::Int4 && (step * width).is_multiple_of(GROUP) {
                debug_assert_eq!(out.index.len() % INT4_INDEX, 0);
                group_scales(&mut out.index, step * width / GROUP);
            }
            // The step's codes, `[PANEL_ROWS][width]`; those that are stored come first.
            let mut block = [0; 4 * PANEL_ROWS];
            let mut block = &mut block[..PANEL_ROWS * width];
            for (row, block) in block.chunks_exact_mut(width).enumerate() {
                block.copy_from_slice(&codes[row * stride + step * width..][..width]);
            }
            if sparse {
                let (mut mask, mut n) = (0u64, 0);
                for i in 0..block.len() {
                    let code = block[i];
                    // The bits of -0.0 in bf16 are not zero, but it is.
                    let stored = code != 0 && (value != Value::Bf16 || code != i16::MIN);
                    mask |= u64::from(stored) << i;
                    block[n] = code;
                    n += usize::from(stored);
                }
                out.index.extend(&mask.to_le_bytes()[..block.len() / 8]);
                block = &mut block[..n];
            }
            match value {
                Value::Bf16 => block.iter().for_each(|code| out.values.extend(code.to_le_bytes())),
                Value::Int8 => out.values.extend(block.iter().map(|q| (q + 128) as u8)),
                Value::Int4 => nibbles[step * width / GROUP % 2].extend(block.iter().map(|q| (q + 8) as u8)),
            }
        }
        if value == Value::Int4 {
            let [even, odd] = nibbles;
            let at = |values: &[u8], i: usize| values.get(i).copied().unwrap_or(0);
            out.values.extend((0..even.len().max(odd.len())).map(|i| at(&even, i) | at(&odd, i) << 4));
        }
        out
    }
}

/// `x.round_ties_even()` of numbers far below 2^22, in two additions instead of a call: the first leaves no room for
/// fractions. -0.0 becomes 0.0.
#[inline(always)]
pub fn round_half_even(x: f32) -> f32 {
    const NO_FRACTIONS: f32 = 12_582_912.0;
    (x + NO_FRACTIONS) - NO_FRACTIONS
}
