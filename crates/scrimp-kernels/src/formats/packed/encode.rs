//! f32 weights to packed bytes.

use super::{FormatError, GROUP, INT4_BLOCK, INT4_INDEX, Layout, TILE_ROWS, Value, WeightFormat};
use crate::{shared::SharedMut, threads::Pool};
use half::bf16;

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

/// The scales that [`pack`] takes when none are given, `[rows][groups]`, a group being
/// [`WeightFormat::scale_group`] columns; empty where the format has no scales.
///
/// int8: `max|w| / 127`. int4: the value of largest magnitude becomes -8, as in GGUF's `Q4_0`.
///
/// # Panics
/// When `weights` is not `rows * cols` long.
pub fn default_scales(format: WeightFormat, rows: usize, cols: usize, weights: &[f32]) -> Vec<f32> {
    assert_eq!(weights.len(), rows * cols, "length of the weights");
    let Some(group) = format.scale_group(cols) else { return Vec::new() };
    let mut scales = Vec::with_capacity(rows * cols.div_ceil(group));
    for row in weights.chunks_exact(cols.max(1)) {
        for w in row.chunks(group) {
            let largest = w.iter().fold(0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
            scales.push(round_scale(
                format,
                if format.value() == Value::Int4 { largest / -8.0 } else { largest.abs() / 127.0 },
            ));
        }
    }
    scales
}

/// Packs a row-major matrix. In sparse formats what is zero (also: what rounds to zero) is left out.
///
/// Weights are divided by their scale, rounded half to even and clamped to ±127 or -8..=7, so weights that are
/// multiples of the given `scales` (`[rows][groups]`, see [`default_scales`] and [`round_scale`]) are stored exactly.
///
/// # Errors
/// When a weight or scale is not finite or does not fit, the lengths do not fit the shape, or the shape is too large.
pub fn pack(
    pool: &Pool,
    format: WeightFormat,
    rows: usize,
    cols: usize,
    weights: &[f32],
    scales: Option<&[f32]>,
) -> Result<Vec<u8>, FormatError> {
    let layout = Layout::new(format, rows, cols)?;
    if rows.checked_mul(cols) != Some(weights.len()) {
        return Err(FormatError(format!("{} weights are no matrix of {rows} × {cols}", weights.len())));
    }
    if !weights.iter().all(|w| w.is_finite()) {
        return Err(FormatError("a weight is NaN or infinite".to_owned()));
    }
    let groups = format.scale_group(cols).map_or(0, |group| cols.div_ceil(group));
    let default;
    let scales = match scales {
        Some(scales) => scales,
        None => {
            default = default_scales(format, rows, cols, weights);
            &default
        }
    };
    if scales.len() != rows * groups {
        return Err(FormatError(format!("{} scales for {rows} × {groups} groups", scales.len())));
    }
    if !scales.iter().all(|&s| usable_scale(round_scale(format, s))) {
        return Err(FormatError("a scale is NaN, infinite or absurdly large".to_owned()));
    }
    if format.value() == Value::Bf16 && !weights.iter().all(|&w| bf16::from_f32(w).is_finite()) {
        return Err(FormatError("a weight is too large for bf16".to_owned()));
    }
    let source = Source { layout, weights, scales, groups };
    let mut encoded = vec![Encoded::default(); layout.tiles];
    let out = SharedMut::new(&mut encoded);
    pool.run(layout.tiles, |tile, _| {
        // SAFETY: each unit has an element of its own.
        let out = unsafe { out.slice(tile..tile + 1) };
        out[0] = source.tile(tile);
    });
    let values: usize = encoded.iter().map(|tile| tile.values.len()).sum();
    let mut bytes = vec![0; layout.bytes(values)];
    let mut at = 0;
    for (t, tile) in encoded.into_iter().enumerate() {
        if format.is_sparse() {
            bytes[layout.start_of(t)].copy_from_slice(&(at as u64).to_le_bytes());
        }
        if format.value() == Value::Int8 {
            bytes[layout.scales_of(t)].copy_from_slice(&tile.scales);
        }
        bytes[layout.index_of(t)].copy_from_slice(&tile.index);
        bytes[layout.values + at..][..tile.values.len()].copy_from_slice(&tile.values);
        at += tile.values.len();
    }
    if format.is_sparse() {
        bytes[layout.start_of(layout.tiles)].copy_from_slice(&(at as u64).to_le_bytes());
    }
    Ok(bytes)
}

/// One packed tile.
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
    /// The weight, 0 in the padding.
    fn weight(&self, row: usize, col: usize) -> f32 {
        let Layout { rows, cols, .. } = self.layout;
        if row < rows && col < cols { self.weights[row * cols + col] } else { 0.0 }
    }

    fn scale(&self, row: usize, group: usize) -> f32 {
        if row < self.layout.rows && group < self.groups {
            self.scales[row * self.groups + group]
        } else {
            0.0
        }
    }

    /// The quantised weight, signed.
    fn quant(&self, row: usize, col: usize) -> i32 {
        let (int4, group) = match self.layout.format.value() {
            Value::Int4 => (true, col / GROUP),
            _ => (false, 0),
        };
        let scale = round_scale(self.layout.format, self.scale(row, group));
        if scale == 0.0 {
            return 0;
        }
        let q = (self.weight(row, col) / scale).round_ties_even();
        if int4 { q.clamp(-8.0, 7.0) as i32 } else { q.clamp(-127.0, 127.0) as i32 }
    }

    fn tile(&self, tile: usize) -> Encoded {
        let value = self.layout.format.value();
        let sparse = self.layout.format.is_sparse();
        let first = tile * TILE_ROWS;
        let mut out = Encoded::default();
        let group_scales = |out: &mut Vec<u8>, group| {
            for row in first..first + TILE_ROWS {
                out.extend(bf16::from_f32(self.scale(row, group)).to_le_bytes());
            }
        };
        if value == Value::Int8 {
            for row in first..first + TILE_ROWS {
                out.scales.extend(self.scale(row, 0).to_le_bytes());
            }
        }
        if value == Value::Int4 && !sparse {
            for group in 0..self.layout.dense_tile_bytes / INT4_BLOCK {
                group_scales(&mut out.values, group);
                for k in 0..4 {
                    for (row, j) in (0..64).map(|i| (first + i / 4, i % 4)) {
                        let col = GROUP * group + 4 * k + j;
                        let (low, high) = (self.quant(row, col) + 8, self.quant(row, col + 16) + 8);
                        out.values.push((low | high << 4) as u8);
                    }
                }
            }
            return out;
        }
        let width = value.step_cols();
        // 4-bit values of even and of odd groups.
        let mut nibbles = [Vec::new(), Vec::new()];
        for step in 0..self.layout.steps {
            if value == Value::Int4 && (step * width).is_multiple_of(GROUP) {
                debug_assert_eq!(out.index.len() % INT4_INDEX, 0);
                group_scales(&mut out.index, step * width / GROUP);
            }
            let mut mask = 0u64;
            for i in 0..TILE_ROWS * width {
                let (row, col) = (first + i / width, step * width + i % width);
                if value == Value::Bf16 {
                    let w = bf16::from_f32(self.weight(row, col));
                    if !sparse || w != bf16::ZERO {
                        mask |= 1 << i;
                        out.values.extend(w.to_le_bytes());
                    }
                    continue;
                }
                let q = self.quant(row, col);
                if sparse && q == 0 {
                    continue;
                }
                mask |= 1 << i;
                if value == Value::Int8 {
                    out.values.push((q + 128) as u8);
                } else {
                    nibbles[step * width / GROUP % 2].push((q + 8) as u8);
                }
            }
            if sparse {
                let bytes = mask.to_le_bytes();
                out.index.extend(&bytes[..TILE_ROWS * width / 8]);
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
