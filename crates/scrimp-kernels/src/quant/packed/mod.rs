//! Formats of scrimp's own files: `bf16`, `int8`, `int4`, and their sparse forms (SparAMX, arXiv 2502.12444).
//!
//! A matrix is one sequence of bytes in the order in which kernels read it: panels of 16 rows, in each panel *steps* of
//! 2 (bf16) or 4 (int8, int4) neighboring columns. A step is the content of one vector register, `[16 rows][2 or 4
//! columns]`: the operand of `vdpbf16ps` and `vpdpbusd`, and a row of a B tile of AMX. The order is the same at every
//! level and in files.
//!
//! ```text
//! bf16          values[panels][steps][16][2] u16
//! int8          scales[panels][16] f32 │ values[panels][steps][16][4] u8, q + 128
//! int4          blocks[panels][groups] { scales[16] bf16, q[4][16][4] u8: low nibble column 4k.., high 16 + 4k.. }, q + 8
//! sparse-bf16   starts[panels + 1] u64 │ bitmap[panels][steps] u32 │ values u16 │ 64 × 0
//! sparse-int8   starts │ scales[panels][16] f32 │ bitmap[panels][steps] u64 │ values u8 │ 64 × 0
//! sparse-int4   starts │ index[panels][groups] { scales[16] bf16, bitmap[8] u64 } │ values │ 64 × 0
//! ```
//!
//! Bit `2 row + column` (bf16) or `4 row + column` of a step's bitmap is set if the weight is stored. `values` has the
//! stored weights in this order. In `sparse-int4`, a byte of a panel's values has a weight of an even group of 32
//! columns in its low half and a weight of an odd group in its high half, each in order; the shorter sequence is padded
//! with zeros. `starts[t]` is the byte of `values` at which panel `t` begins; the last entry is the length of `values`.
//! Sections begin at multiples of 64 bytes. Rows are padded to 16, columns to 32 (64 for 8 bits), with zeros in dense
//! formats and absent weights in sparse ones.
//!
//! | | bits per weight | at 50% |
//! |---|---|---|
//! | `bf16`, `sparse-bf16` | 16 | 1 + 16 d = 9 |
//! | `int8`, `sparse-int8` | 8 | 1 + 8 d = 5 |
//! | `int4`, `sparse-int4` | 4.5 | 1.5 + 4 d = 3.5 |
//!
//! `d` is the share of weights that are stored.
//!
//! ```
//! use scrimp_kernels::{
//!     Pool,
//!     linear::Matrix,
//!     mem::Arena,
//!     quant::packed::{DenseMatrix, PackedView, WeightFormat, pack},
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (pool, format) = (Pool::new(2)?, WeightFormat::SparseInt8);
//! let weights = [1.0, 0.0, 0.0, -0.5, 0.0, 0.25]; // 2 rows of 3
//! let matrix = DenseMatrix { rows: 2, cols: 3, weights: &weights };
//! let bytes = pack(&pool, format, matrix, None)?; // the bytes of a file
//! let view = PackedView::new(format, 2, 3, &bytes)?; // checks everything, once
//! assert_eq!(view.stored(), 3);
//! assert!((view.to_dense_f32()[3] + 0.5).abs() < 0.01);
//! let mut arena = Arena::new(Arena::size_of(bytes.len()))?;
//! let matrix = Matrix::from_packed(&pool, &mut arena, &view)?; // for `linear()`
//! assert_eq!(matrix.format_name(), "sparse-int8");
//! # Ok(())
//! # }
//! ```

mod encode;
pub(crate) mod int4;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::weights as test_weights;
mod view;

pub use encode::{DenseMatrix, default_scales, pack, round_half_even, round_scale};
pub use view::PackedView;

use super::{GROUP, PANEL_ROWS};
use std::{fmt, ops::Range, str::FromStr};

/// Zeros behind the values of sparse formats, so that kernels may load whole registers.
pub(crate) const VALUES_PADDING: usize = 64;
/// The largest number of columns of 8-bit formats: sums over a row stay within an i32.
const MAX_INT8_COLS: usize = 1 << 17;

/// A weight format of scrimp's own files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// bfloat16.
    Bf16,
    /// 8 bits, one scale per row.
    Int8,
    /// 4 bits, a bf16 scale for 32 columns of a row.
    Int4,
    /// A bitmap, and the bfloat16 values that are not zero.
    SparseBf16,
    /// A bitmap, and the 8-bit values that are not zero.
    SparseInt8,
    /// A bitmap, and the 4-bit values that are not zero.
    SparseInt4,
}

/// How the values of a format are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    Bf16,
    Int8,
    Int4,
}

impl WeightFormat {
    /// Every format, in the order of the documentation.
    pub const ALL: [Self; 6] =
        [Self::Bf16, Self::Int8, Self::Int4, Self::SparseBf16, Self::SparseInt8, Self::SparseInt4];

    /// The name that users and files see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::SparseBf16 => "sparse-bf16",
            Self::SparseInt8 => "sparse-int8",
            Self::SparseInt4 => "sparse-int4",
        }
    }

    /// One line for lists of formats.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::Int8 => "8 bits, one scale per row",
            Self::Int4 => "4 bits, one scale per 32 weights",
            Self::SparseBf16 => "bitmap and the nonzero bfloat16 values",
            Self::SparseInt8 => "bitmap and the nonzero 8-bit values",
            Self::SparseInt4 => "bitmap and the nonzero 4-bit values",
        }
    }

    /// Whether zeros are left out.
    pub const fn is_sparse(self) -> bool {
        matches!(self, Self::SparseBf16 | Self::SparseInt8 | Self::SparseInt4)
    }

    /// The same values with zeros left out.
    pub const fn sparse(self) -> Self {
        match self.value() {
            Value::Bf16 => Self::SparseBf16,
            Value::Int8 => Self::SparseInt8,
            Value::Int4 => Self::SparseInt4,
        }
    }

    /// The same values with zeros stored.
    pub const fn dense(self) -> Self {
        match self.value() {
            Value::Bf16 => Self::Bf16,
            Value::Int8 => Self::Int8,
            Value::Int4 => Self::Int4,
        }
    }

    /// Columns of a row that share a scale, for a matrix of `cols` columns; `None` where there are no scales.
    pub const fn scale_group(self, cols: usize) -> Option<usize> {
        match self.value() {
            Value::Bf16 => None,
            Value::Int8 => Some(if cols == 0 { 1 } else { cols }),
            Value::Int4 => Some(GROUP),
        }
    }

    pub(crate) const fn value(self) -> Value {
        match self {
            Self::Bf16 | Self::SparseBf16 => Value::Bf16,
            Self::Int8 | Self::SparseInt8 => Value::Int8,
            Self::Int4 | Self::SparseInt4 => Value::Int4,
        }
    }
}

impl Value {
    /// Columns of a step.
    pub(crate) const fn step_cols(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Int8 | Self::Int4 => 4,
        }
    }

    /// Columns are padded to a multiple of this.
    const fn block_cols(self) -> usize {
        match self {
            Self::Bf16 | Self::Int4 => 32,
            Self::Int8 => 64,
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightFormat {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self, FormatError> {
        Self::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| {
            FormatError(format!(
                "there is no weight format `{name}`; there are {}",
                Self::ALL.map(Self::name).join(", ")
            ))
        })
    }
}

/// Weights that cannot be packed, or packed bytes that are damaged, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatError(pub(crate) String);

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FormatError {}

/// Where the sections of a packed matrix are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) format: WeightFormat,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Panels of 16 rows.
    pub(crate) panels: usize,
    /// Steps of a panel.
    pub(crate) steps: usize,
    /// Bytes of one panel's part of the bitmap (with the scales, for `sparse-int4`); 0 for dense formats.
    pub(crate) index_bytes: usize,
    /// Offsets of the sections; `values` are blocks in `int4`.
    pub(crate) scales: usize,
    pub(crate) index: usize,
    pub(crate) values: usize,
    /// Bytes of one panel's values in a dense format.
    pub(crate) dense_panel_bytes: usize,
}

/// Bytes of a group of `int4`, and of the index of a group of `sparse-int4`.
pub(crate) const INT4_BLOCK: usize = 32 + 256;
pub(crate) const INT4_INDEX: usize = 32 + 64;

impl Layout {
    /// The panels of part `task` of `tasks` parts with about as many packed bytes each; for sparse formats.
    pub(crate) fn panels_by_bytes(&self, data: &[u8], task: usize, tasks: usize) -> Range<usize> {
        let cost = |panel: usize| {
            let start = data[self.start_of(panel)].first_chunk().expect("8 bytes");
            u64::from_le_bytes(*start) as usize + panel * self.index_bytes
        };
        let total = cost(self.panels);
        let first = |task: usize| {
            if task == tasks {
                return self.panels;
            }
            let wanted = (total as u128 * task as u128 / tasks as u128) as usize;
            // Rows are much alike as a rule: start where they would end if they were, and widen.
            let guess = (self.panels as u128 * task as u128 / tasks as u128) as usize;
            let (mut low, mut high, mut width) = (guess, guess, 1);
            while low > 0 && cost(low - 1) >= wanted {
                (high, low, width) = (low, low.saturating_sub(width), 2 * width);
            }
            while high < self.panels && cost(high) < wanted {
                (low, high, width) = (high + 1, (high + width).min(self.panels), 2 * width);
            }
            while low < high {
                let middle = low.midpoint(high);
                if cost(middle) < wanted { low = middle + 1 } else { high = middle }
            }
            low
        };
        first(task)..first(task + 1)
    }

    /// The layout of a matrix.
    ///
    /// # Errors
    /// When it is too large to be addressed, or has more columns than an 8-bit format allows.
    pub(crate) fn new(format: WeightFormat, rows: usize, cols: usize) -> Result<Self, FormatError> {
        let value = format.value();
        if value == Value::Int8 && cols > MAX_INT8_COLS {
            return Err(FormatError(format!("{format} takes at most {MAX_INT8_COLS} columns, not {cols}")));
        }
        let sizes = || {
            let panels = rows.div_ceil(PANEL_ROWS);
            let padded = cols.checked_next_multiple_of(value.block_cols())?;
            let steps = padded / value.step_cols();
            let dense_panel_bytes = match value {
                Value::Int4 => (padded / GROUP).checked_mul(INT4_BLOCK)?,
                _ => steps.checked_mul(64)?,
            };
            let index_bytes = match format {
                WeightFormat::SparseBf16 => 4 * steps,
                WeightFormat::SparseInt8 => 8 * steps,
                WeightFormat::SparseInt4 => padded / GROUP * INT4_INDEX,
                _ => 0,
            };
            let aligned = |n: usize| n.checked_next_multiple_of(64);
            let scales =
                if format.is_sparse() { aligned(panels.checked_add(1)?.checked_mul(8)?)? } else { 0 };
            let index =
                if value == Value::Int8 { scales.checked_add(panels.checked_mul(64)?)? } else { scales };
            let values = aligned(index.checked_add(panels.checked_mul(index_bytes)?)?)?;
            // All values stored, and the padding: nothing beyond can occur.
            values.checked_add(panels.checked_mul(dense_panel_bytes)?)?.checked_add(VALUES_PADDING)?;
            Some(Self {
                format,
                rows,
                cols,
                panels,
                steps,
                index_bytes,
                scales,
                index,
                values,
                dense_panel_bytes,
            })
        };
        sizes().ok_or_else(|| FormatError(format!("a matrix of {rows} × {cols} is too large")))
    }

    /// Bytes of a packed matrix whose values take `values` bytes.
    pub(crate) fn bytes(&self, values: usize) -> usize {
        self.values + values + if self.format.is_sparse() { VALUES_PADDING } else { 0 }
    }

    /// The scales of the rows of `panel` (8-bit formats).
    pub(crate) fn scales_of(&self, panel: usize) -> Range<usize> {
        self.scales + 64 * panel..self.scales + 64 * (panel + 1)
    }

    /// The bitmap of `panel`.
    pub(crate) fn index_of(&self, panel: usize) -> Range<usize> {
        self.index + self.index_bytes * panel..self.index + self.index_bytes * (panel + 1)
    }

    /// The values of `panel` in a dense format.
    pub(crate) fn dense_panel(&self, panel: usize) -> Range<usize> {
        self.values + self.dense_panel_bytes * panel..self.values + self.dense_panel_bytes * (panel + 1)
    }

    /// Where the byte offsets of a sparse format's panels are.
    pub(crate) fn start_of(&self, panel: usize) -> Range<usize> {
        8 * panel..8 * (panel + 1)
    }
}
