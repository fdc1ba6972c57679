//! Weights as multiples of the scales that a format stores.

use crate::Dense;
use scrimp_kernels::{
    Pool,
    quant::packed::{WeightFormat, default_scales, round_half_even},
};

/// How the weights of a matrix are rounded.
#[derive(Debug, Clone)]
pub struct Rounding {
    format: WeightFormat,
    /// Columns that share a scale; 0 for formats without scales.
    group: usize,
    /// Scales of a row.
    groups: usize,
    /// `[rows][groups]`; empty until they are fixed.
    scales: Option<Vec<f32>>,
}

impl Rounding {
    /// Rounding for a matrix of `cols` columns in `format`, without scales yet.
    pub fn new(format: WeightFormat, cols: usize) -> Self {
        let group = format.scale_group(cols).unwrap_or(0);
        let groups = if group == 0 { 0 } else { cols.div_ceil(group) };
        Self { format, group, groups, scales: None }
    }

    /// The format.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Columns that share a scale; `None` for bf16, whose rounding needs no compensation.
    pub fn group(&self) -> Option<usize> {
        (self.group > 0).then_some(self.group)
    }

    /// Fixes all scales from the current weights.
    pub fn fix(&mut self, pool: &Pool, weight: &Dense) {
        self.scales = Some(default_scales(pool, self.format, weight.view()));
    }

    /// The scales, `[rows][groups]`, if the format has scales and they are fixed.
    pub fn scales(&self) -> Option<&[f32]> {
        self.scales.as_deref().filter(|scales| !scales.is_empty())
    }

    /// The fixed scales of one row.
    pub(crate) fn row(&self, row: usize) -> RowRounding<'_> {
        let scales = self.scales.as_deref().unwrap_or_default();
        let scales = scales.get(row * self.groups..(row + 1) * self.groups).unwrap_or_default();
        RowRounding { largest: largest(self.format), group: self.group, scales }
    }

    /// Rounds all weights. Fixes the scales first if they are not fixed yet.
    pub fn apply(&mut self, pool: &Pool, weight: &mut Dense) {
        if self.group == 0 {
            let round = |w: &mut f32| *w = half::bf16::from_f32(*w).to_f32();
            pool.chunks(&mut weight.data, weight.cols, |_, row| row.iter_mut().for_each(round));
            return;
        }
        if self.scales.is_none() {
            self.fix(pool, weight);
        }
        let rounding = &*self;
        pool.chunks(&mut weight.data, weight.cols, |r, row| {
            let rounding = rounding.row(r);
            for (c, w) in row.iter_mut().enumerate() {
                *w = rounding.round(c, *w);
            }
        });
    }
}

/// Smallest and largest quant of a format with scales.
fn largest(format: WeightFormat) -> (f32, f32) {
    match format.dense() {
        WeightFormat::Int4 => (-8.0, 7.0),
        _ => (-127.0, 127.0),
    }
}

/// Scales of one row.
pub(crate) struct RowRounding<'a> {
    largest: (f32, f32),
    group: usize,
    scales: &'a [f32],
}

impl RowRounding<'_> {
    /// The multiple of column `col`'s scale that is nearest to `w`; for formats without scales, `w`.
    #[inline]
    pub(crate) fn round(&self, col: usize, w: f32) -> f32 {
        if self.scales.is_empty() {
            return w;
        }
        let scale = self.scales[col / self.group];
        if scale == 0.0 {
            return 0.0;
        }
        round_half_even((w / scale).clamp(self.largest.0, self.largest.1)) * scale
    }
}
