//! Checked views of packed bytes (layout: [`packed`](super)).
//!
//! [`PackedView::new`] compares every length, offset, bitmap and scale with the shape, so that kernels may read without
//! checks. [`PackedView::to_dense_f32`] is the plain definition of the stored values.

use super::{
    FormatError, GROUP, INT4_BLOCK, INT4_INDEX, Layout, PANEL_ROWS, VALUES_PADDING, Value, WeightFormat,
    encode::usable_scale,
};
use half::bf16;

impl Layout {
    /// Writes row `row` of a packed matrix that has been checked into `out`.
    pub(crate) fn row(&self, bytes: &[u8], row: usize, out: &mut [f32]) {
        out.fill(0.0);
        PackedView { layout: *self, bytes }.decode_panel(row / PANEL_ROWS, |r, col, w| {
            if r == row % PANEL_ROWS && col < out.len() {
                out[col] = w;
            }
        });
    }
}

/// A packed matrix whose bytes have been checked: counts, starts and the bitmap agree, and all numbers are finite.
///
/// Kernels rely on it, so there is no other way to have packed weights multiplied.
#[derive(Debug, Clone, Copy)]
pub struct PackedView<'a> {
    layout: Layout,
    bytes: &'a [u8],
}

impl<'a> PackedView<'a> {
    /// Checks `bytes`, which [`super::pack`] wrote and which may be damaged.
    ///
    /// # Errors
    /// When they are no matrix of this format and shape.
    pub fn new(format: WeightFormat, rows: usize, cols: usize, bytes: &'a [u8]) -> Result<Self, FormatError> {
        let layout = Layout::new(format, rows, cols)?;
        let view = Self { layout, bytes };
        let least = layout.bytes(0);
        let wrong_length = |want: usize| {
            FormatError(format!(
                "{} bytes are no {format} matrix of {rows} × {cols}, which has {want}",
                bytes.len()
            ))
        };
        if bytes.len() < least {
            return Err(wrong_length(least));
        }
        if format.is_sparse() {
            view.check_starts(bytes.len() - least)?;
        } else if bytes.len() != layout.bytes(layout.panels * layout.dense_panel_bytes) {
            return Err(wrong_length(layout.bytes(layout.panels * layout.dense_panel_bytes)));
        }
        view.check_numbers()?;
        Ok(view)
    }

    /// Bytes that have been checked before.
    pub(crate) fn of_checked(layout: Layout, bytes: &'a [u8]) -> Self {
        Self { layout, bytes }
    }

    /// The format.
    pub fn format(&self) -> WeightFormat {
        self.layout.format
    }

    /// Out features.
    pub fn rows(&self) -> usize {
        self.layout.rows
    }

    /// In features.
    pub fn cols(&self) -> usize {
        self.layout.cols
    }

    /// All bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Weights that are stored (in dense formats: all, without the padding).
    pub fn stored(&self) -> usize {
        let Layout { rows, cols, panels, .. } = self.layout;
        if !self.format().is_sparse() {
            return rows * cols;
        }
        (0..panels).flat_map(|panel| self.masks(panel)).map(|mask| mask.count_ones() as usize).sum()
    }

    fn start(&self, panel: usize) -> u64 {
        u64::from_le_bytes(self.bytes[self.layout.start_of(panel)].try_into().expect("8 bytes"))
    }

    /// The bitmaps of the steps of a panel.
    fn masks(&self, panel: usize) -> impl Iterator<Item = u64> + use<'a> {
        let index = &self.bytes[self.layout.index_of(panel)];
        let (width, skip, block) = match self.layout.format {
            WeightFormat::SparseBf16 => (4, 0, 64),
            WeightFormat::SparseInt8 => (8, 0, 64),
            _ => (8, INT4_INDEX - 64, INT4_INDEX),
        };
        index.chunks(block).flat_map(move |block| block[skip..].chunks(width)).map(|mask| {
            let mut bytes = [0; 8];
            bytes[..mask.len()].copy_from_slice(mask);
            u64::from_le_bytes(bytes)
        })
    }

    /// Bytes of a panel's values, as its bitmap implies.
    fn value_bytes(&self, panel: usize) -> u64 {
        // Of the steps of even and odd groups.
        let mut n = [0u64; 2];
        for (step, mask) in self.masks(panel).enumerate() {
            n[step / 8 % 2] += u64::from(mask.count_ones());
        }
        match self.format().value() {
            Value::Bf16 => 2 * (n[0] + n[1]),
            Value::Int8 => n[0] + n[1],
            Value::Int4 => n[0].max(n[1]),
        }
    }

    /// Starts ascend by the counts of the bitmap, and end where the values end.
    fn check_starts(&self, values: usize) -> Result<(), FormatError> {
        let mut at = 0;
        for panel in 0..self.layout.panels {
            if self.start(panel) != at {
                return Err(FormatError(format!(
                    "its values of rows {}.. start at byte {}, but its bitmap says {at}",
                    panel * PANEL_ROWS,
                    self.start(panel)
                )));
            }
            at += self.value_bytes(panel);
        }
        if self.start(self.layout.panels) != at || values as u64 != at {
            return Err(FormatError(format!("it has {values} bytes of values, but its bitmap needs {at}")));
        }
        if self.bytes[self.bytes.len() - VALUES_PADDING..].iter().any(|&b| b != 0) {
            return Err(FormatError("the padding behind its values is not zero".to_owned()));
        }
        Ok(())
    }

    /// Values and scales are finite.
    fn check_numbers(&self) -> Result<(), FormatError> {
        let layout = self.layout;
        let bf16_finite = |bytes: &[u8]| {
            bytes
                .as_chunks::<2>()
                .0
                .iter()
                .fold(true, |ok, b| ok & (u16::from_le_bytes(*b) & 0x7f80 != 0x7f80))
        };
        let scales_fit = |bytes: &[u8]| {
            bytes.as_chunks::<2>().0.iter().all(|b| usable_scale(bf16::from_le_bytes(*b).to_f32()))
        };
        let values = &self.bytes[layout.values..];
        let ok = match layout.format {
            WeightFormat::Bf16 | WeightFormat::SparseBf16 => bf16_finite(values),
            WeightFormat::Int8 | WeightFormat::SparseInt8 => self.bytes[layout.scales..layout.index]
                .as_chunks::<4>()
                .0
                .iter()
                .all(|b| usable_scale(f32::from_le_bytes(*b))),
            WeightFormat::Int4 => values.chunks_exact(INT4_BLOCK).all(|block| scales_fit(&block[..32])),
            WeightFormat::SparseInt4 => self.bytes[layout.index..][..layout.panels * layout.index_bytes]
                .chunks_exact(INT4_INDEX)
                .all(|block| scales_fit(&block[..32])),
        };
        if ok {
            Ok(())
        } else {
            Err(FormatError("it holds a NaN, an infinity or an absurd scale".to_owned()))
        }
    }

    /// The weights as f32, row-major: the definition of the format.
    pub fn to_dense_f32(&self) -> Vec<f32> {
        let layout = self.layout;
        let mut out = vec![0.0; layout.rows * layout.cols];
        for panel in 0..layout.panels {
            self.decode_panel(panel, |row, col, w| {
                let row = panel * PANEL_ROWS + row;
                if row < layout.rows && col < layout.cols {
                    out[row * layout.cols + col] = w;
                }
            });
        }
        out
    }

    /// Calls `put(row of the panel, column, weight)` for every stored weight of a panel, padding included.
    pub(crate) fn decode_panel(&self, panel: usize, mut put: impl FnMut(usize, usize, f32)) {
        let layout = self.layout;
        let value = layout.format.value();
        let half = |b: &[u8], at: usize| bf16::from_le_bytes([b[2 * at], b[2 * at + 1]]).to_f32();
        let row_scale = |row: usize| {
            let scales = &self.bytes[layout.scales_of(panel)];
            f32::from_le_bytes(scales[4 * row..4 * row + 4].try_into().expect("4 bytes"))
        };
        if layout.format == WeightFormat::Int4 {
            for (g, block) in self.bytes[layout.dense_panel(panel)].chunks_exact(INT4_BLOCK).enumerate() {
                for (i, q) in block[32..].iter().enumerate() {
                    let (row, col) = (i % 64 / 4, GROUP * g + 4 * (i / 64) + i % 4);
                    let scale = half(block, row);
                    put(row, col, scale * (f32::from(q & 15) - 8.0));
                    put(row, col + 16, scale * (f32::from(q >> 4) - 8.0));
                }
            }
            return;
        }
        let width = value.step_cols();
        let one = |step: usize, i: usize, bytes: &[u8], n: usize| {
            let row = i / width;
            let w = match value {
                Value::Bf16 => half(bytes, n),
                Value::Int8 => row_scale(row) * (f32::from(bytes[n]) - 128.0),
                Value::Int4 => {
                    let block = &self.bytes[layout.index_of(panel)][step / 8 * INT4_INDEX..];
                    half(block, row) * (f32::from(bytes[n] >> (4 * (step / 8 % 2)) & 15) - 8.0)
                }
            };
            (row, step * width + i % width, w)
        };
        if !layout.format.is_sparse() {
            for (step, bytes) in self.bytes[layout.dense_panel(panel)].chunks_exact(64).enumerate() {
                for i in 0..PANEL_ROWS * width {
                    let (row, col, w) = one(step, i, bytes, i);
                    put(row, col, w);
                }
            }
            return;
        }
        let first = layout.values + self.start(panel) as usize;
        // 4-bit values of even and odd groups are in the same bytes.
        let mut at = [first; 2];
        for (step, mask) in self.masks(panel).enumerate() {
            let at = &mut at[if value == Value::Int4 { step / 8 % 2 } else { 0 }];
            let bytes = &self.bytes[*at..];
            for (n, i) in (0..64).filter(|i| mask >> i & 1 != 0).enumerate() {
                let (row, col, w) = one(step, i, bytes, n);
                put(row, col, w);
            }
            *at += mask.count_ones() as usize * if value == Value::Bf16 { 2 } else { 1 };
        }
    }
}
