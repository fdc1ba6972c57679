//! Weights as multiples of the scales that a format stores.

use crate::{Dense, Format};
use scrimp_kernels::{
    Pool,
    quant::{
        cb::{self, Codebook},
        packed::{WeightFormat, default_scales, round_half_even, round_scale},
    },
};

/// How the weights of a matrix are rounded.
#[derive(Debug, Clone)]
pub struct Rounding {
    values: Values,
    /// Columns that share a scale; 0 for formats without scales.
    group: usize,
    /// Scales of a row.
    groups: usize,
    /// `[rows][groups]`; empty until they are fixed.
    scales: Option<Vec<f32>>,
}

/// The values that weights are rounded to.
#[derive(Debug, Clone)]
enum Values {
    /// Those of the original.
    Kept,
    /// bfloat16.
    Floats,
    /// Multiples of the scale by integers, from the smallest to the largest.
    Integers(WeightFormat, [f32; 2]),
    /// Multiples of the scale by the values of a codebook.
    Codebook(Codebook),
}

impl Rounding {
    /// Rounding for a matrix of `cols` columns in `format`, without scales yet.
    pub fn new(format: Format, cols: usize) -> Self {
        let (values, group) = match format {
            Format::Keep => (Values::Kept, 0),
            Format::Packed(format) => match (format.dense(), format.scale_group(cols)) {
                (WeightFormat::Int4, Some(group)) => {
                    (Values::Integers(WeightFormat::Int4, [-8.0, 7.0]), group)
                }
                (format, Some(group)) => (Values::Integers(format, [-127.0, 127.0]), group),
                (_, None) => (Values::Floats, 0),
            },
            Format::Codebook(dtype) => match Codebook::new(dtype) {
                Some(codebook) => (Values::Codebook(codebook), cb::COLUMNS),
                None => (Values::Kept, 0),
            },
        };
        let groups = if group == 0 { 0 } else { cols.div_ceil(group) };
        Self { values, group, groups, scales: None }
    }

    /// Columns that share a scale; `None` for formats whose rounding needs no compensation.
    pub fn group(&self) -> Option<usize> {
        (self.group > 0).then_some(self.group)
    }

    /// Fixes all scales from the current weights. The scale of a group has the least sum of squared errors, each times
    /// the `importance` of its column, of the scales that are tried.
    pub fn fix(&mut self, pool: &Pool, weight: &Dense, importance: &[f32]) {
        let search: &(dyn Fn(&[f32], &[f32]) -> f32 + Sync) = match &self.values {
            Values::Integers(format @ WeightFormat::Int4, _) => &|w, h| int4_scale(*format, w, h),
            Values::Codebook(codebook) => &|w, h| codebook.scale(w, h),
            Values::Integers(format, _) => {
                self.scales = Some(default_scales(pool, *format, weight.view()));
                return;
            }
            Values::Kept | Values::Floats => return,
        };
        let mut scales = vec![0.0; weight.rows * self.groups];
        pool.chunks(&mut scales, self.groups, |r, scales| {
            let groups = weight.data[r * weight.cols..][..weight.cols].chunks(self.group);
            for ((scale, w), h) in scales.iter_mut().zip(groups).zip(importance.chunks(self.group)) {
                *scale = search(w, h);
            }
        });
        self.scales = Some(scales);
    }

    /// The scales, `[rows][groups]`, if the format has scales and they are fixed.
    pub fn scales(&self) -> Option<&[f32]> {
        self.scales.as_deref().filter(|scales| !scales.is_empty())
    }

    /// The fixed scales of one row.
    pub(crate) fn row(&self, row: usize) -> RowRounding<'_> {
        let scales = self.scales.as_deref().unwrap_or_default();
        let scales = scales.get(row * self.groups..(row + 1) * self.groups).unwrap_or_default();
        RowRounding { values: &self.values, group: self.group, scales }
    }

    /// Rounds all weights. Fixes the scales first if they are not fixed yet, with equally important columns.
    pub fn apply(&mut self, pool: &Pool, weight: &mut Dense) {
        match self.values {
            Values::Kept => return,
            Values::Floats => {
                let round = |w: &mut f32| *w = half::bf16::from_f32(*w).to_f32();
                pool.chunks(&mut weight.data, weight.cols, |_, row| row.iter_mut().for_each(round));
                return;
            }
            Values::Integers(..) | Values::Codebook(_) => {}
        }
        if self.scales.is_none() {
            self.fix(pool, weight, &vec![1.0; weight.cols]);
        }
        let rounding = &*self;
        pool.chunks(&mut weight.data, weight.cols, |r, row| {
            let rounding = rounding.row(r);
            for (c, w) in row.iter_mut().enumerate() {
                *w = rounding.round(c, *w);
            }
        });
    }

    /// The rows of `weight`, which is rounded, as a codebook format stores them. `None` for other formats.
    pub(crate) fn encode(&self, pool: &Pool, weight: &Dense) -> Option<Vec<u8>> {
        let (Values::Codebook(codebook), Some(scales)) = (&self.values, &self.scales) else { return None };
        let row_bytes = codebook.dtype().row_bytes(weight.cols)?;
        let mut bytes = vec![0; weight.rows * row_bytes];
        pool.chunks(&mut bytes, row_bytes, |r, to| {
            let row = &weight.data[r * weight.cols..][..weight.cols];
            codebook.encode(row, &scales[r * self.groups..][..self.groups], to);
        });
        Some(bytes)
    }
}

/// The ratios of the largest weight of a group to 8 scales of `int4` that are tried.
const INT4_RATIOS: [f32; 10] = [1.0, 0.9, 0.95, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4];

/// The scale of `int4` with the least sum of `importance * error^2`, of those that are tried, with both signs.
fn int4_scale(format: WeightFormat, weights: &[f32], importance: &[f32]) -> f32 {
    let largest = weights.iter().fold(0.0_f32, |m, &w| if w.abs() > m.abs() { w } else { m });
    let mut best = (f32::INFINITY, 0.0);
    for ratio in INT4_RATIOS {
        for sign in [-8.0, 8.0] {
            let scale = round_scale(format, largest / (sign * ratio));
            if scale == 0.0 {
                continue;
            }
            let inverse = 1.0 / scale;
            let error: f32 = weights
                .iter()
                .zip(importance)
                .map(|(w, h)| {
                    let error = w - (w * inverse).round_ties_even().clamp(-8.0, 7.0) * scale;
                    h * error * error
                })
                .sum();
            if error < best.0 {
                best = (error, scale);
            }
        }
    }
    best.1
}

/// Scales of one row.
pub(crate) struct RowRounding<'a> {
    values: &'a Values,
    group: usize,
    scales: &'a [f32],
}

impl RowRounding<'_> {
    /// The value of column `col` that is nearest to `w`; for formats without scales, `w`.
    #[inline]
    pub(crate) fn round(&self, col: usize, w: f32) -> f32 {
        let Some(&scale) = self.scales.get(col / self.group.max(1)) else { return w };
        match self.values {
            Values::Kept | Values::Floats => w,
            Values::Codebook(codebook) => codebook.round(scale, w),
            Values::Integers(..) if scale == 0.0 => 0.0,
            Values::Integers(_, [least, largest]) => {
                round_half_even((w / scale).clamp(*least, *largest)) * scale
            }
        }
    }
}
