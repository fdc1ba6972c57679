//! A weight matrix in the kernels' layout.
//!
//! ```text
//! data   | panel 0 | panel 1 | ...      a panel: 16 rows, all columns; rows beyond the matrix are zero
//! ```
//! Panels of stored types are repacked from the rows of a file without a change of values ([`quant`](crate::quant)).
//! Packed formats are copied as they are ([`packed`](crate::quant::packed)).

use super::activations::Needs;
use crate::{
    DType,
    exec::{DisjointSliceMut, Pool},
    mem::{Arena, ArenaBox},
    quant::{
        BlockFormat, GROUP, PANEL_ROWS,
        float::{self, FloatFormat},
        packed::{Layout, PackedView, Value},
        with_format,
    },
};
use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

/// Weights of a linear layer, `[rows][cols]` (out features × in features), repacked into panels of 16 rows.
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    kind: Kind,
    data: ArenaBox,
}

/// Rows of a matrix as a file stores them.
#[derive(Debug, Clone, Copy)]
pub struct StoredRows<'a> {
    /// The type of the weights.
    pub dtype: DType,
    /// Out features.
    pub rows: usize,
    /// In features.
    pub cols: usize,
    /// The rows, one after another, [`DType::row_bytes`] each.
    pub data: &'a [u8],
}

/// The format of a matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Panels of a stored type.
    Stored(DType),
    /// A packed matrix that has been checked.
    Packed(Layout),
}

/// Bytes that a thread copies at once.
const COPY_BYTES: usize = 1 << 20;
/// Stored bytes of a piece, which can be released once it is packed.
const PIECE_BYTES: usize = 16 << 20;

/// Bytes of one panel of 16 rows.
fn panel_bytes(dtype: DType, cols: usize) -> Option<usize> {
    fn block<F: BlockFormat>(cols: usize) -> Option<usize> {
        let len = F::GROUPS * GROUP;
        cols.is_multiple_of(len).then_some(cols / len)?.checked_mul(size_of::<F::Block>())
    }
    fn float<F: FloatFormat>(cols: usize) -> Option<usize> {
        cols.checked_mul(PANEL_ROWS * size_of::<F::Element>())
    }
    with_format!(dtype, block, float, (cols))
}

impl Matrix {
    /// Bytes of a packed matrix in an [`Arena`]; `None` when `cols` does not fit the type's blocks, or on overflow.
    pub fn packed_bytes(dtype: DType, rows: usize, cols: usize) -> Option<usize> {
        panel_bytes(dtype, cols)?.checked_mul(rows.div_ceil(PANEL_ROWS)).map(Arena::size_of)
    }

    /// Repacks stored rows into memory of `arena`.
    ///
    /// # Errors
    /// When the arena is full, or the weights hold a NaN or an infinity.
    ///
    /// # Panics
    /// When `data` is not as long as the shape says.
    pub fn pack(pool: &Pool, arena: &mut Arena, stored: StoredRows<'_>) -> std::io::Result<Self> {
        Self::pack_in_pieces(pool, arena, stored, &mut |_| ())
    }

    /// As [`Matrix::pack`]; `done` is told of pieces of `data` that are not needed any more, so that a matrix need not
    /// be in memory twice.
    ///
    /// # Errors
    /// As [`Matrix::pack`].
    ///
    /// # Panics
    /// As [`Matrix::pack`].
    pub fn pack_in_pieces(
        pool: &Pool,
        arena: &mut Arena,
        stored: StoredRows<'_>,
        done: &mut dyn FnMut(&[u8]),
    ) -> std::io::Result<Self> {
        let StoredRows { dtype, rows, cols, data } = stored;
        let row_bytes = dtype.row_bytes(cols).expect("columns fit the block size");
        assert_eq!(data.len(), rows * row_bytes, "matrix data");
        let panel_bytes = panel_bytes(dtype, cols).expect("checked by row_bytes");
        let n_panels = rows.div_ceil(PANEL_ROWS);
        let mut packed = arena.alloc(panel_bytes * n_panels)?;
        let zero = vec![0; if rows.is_multiple_of(PANEL_ROWS) { 0 } else { row_bytes }];
        let out = DisjointSliceMut::new(&mut packed);
        let finite = AtomicBool::new(true);
        let rows_of = |panels: Range<usize>| {
            &data[panels.start * PANEL_ROWS * row_bytes..(panels.end * PANEL_ROWS).min(rows) * row_bytes]
        };
        let piece = (PIECE_BYTES / (PANEL_ROWS * row_bytes).max(1)).max(1);
        for first in (0..n_panels).step_by(piece) {
            let panels = first..(first + piece).min(n_panels);
            pool.run(panels.len(), |i, _| {
                let panel = first + i;
                let stored: [&[u8]; PANEL_ROWS] = std::array::from_fn(|r| {
                    let row = panel * PANEL_ROWS + r;
                    if row < rows { &data[row * row_bytes..(row + 1) * row_bytes] } else { &zero[..] }
                });
                if !dtype.all_finite(rows_of(panel..panel + 1)) {
                    finite.store(false, Ordering::Relaxed);
                }
                // SAFETY: panels do not overlap.
                let out = unsafe { out.slice(panel * panel_bytes..(panel + 1) * panel_bytes) };
                with_format!(dtype, pack_blocks, pack_floats, (dtype, &stored, out));
            });
            done(rows_of(panels));
        }
        if !finite.into_inner() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "it holds a NaN or an infinity",
            ));
        }
        Ok(Self { rows, cols, kind: Kind::Stored(dtype), data: packed })
    }

    /// Copies a packed matrix into memory of `arena`, of which it takes [`Arena::size_of`] its bytes.
    ///
    /// # Errors
    /// When the arena is full.
    pub fn from_packed(pool: &Pool, arena: &mut Arena, packed: &PackedView<'_>) -> std::io::Result<Self> {
        Self::from_packed_in_pieces(pool, arena, packed, &mut |_| ())
    }

    /// As [`Matrix::from_packed`], with `done` as in [`Matrix::pack_in_pieces`].
    ///
    /// # Errors
    /// When the arena is full.
    pub fn from_packed_in_pieces(
        pool: &Pool,
        arena: &mut Arena,
        packed: &PackedView<'_>,
        done: &mut dyn FnMut(&[u8]),
    ) -> std::io::Result<Self> {
        let bytes = packed.bytes();
        let mut data = arena.alloc(bytes.len())?;
        let out = DisjointSliceMut::new(&mut data);
        for first in (0..bytes.len()).step_by(PIECE_BYTES) {
            let piece = first..(first + PIECE_BYTES).min(bytes.len());
            pool.run(piece.len().div_ceil(COPY_BYTES), |task, _| {
                let start = first + task * COPY_BYTES;
                let range = start..(start + COPY_BYTES).min(piece.end);
                // SAFETY: tasks have ranges of their own.
                unsafe { out.slice(range.clone()) }.copy_from_slice(&bytes[range]);
            });
            done(&bytes[piece]);
        }
        Ok(Self { rows: packed.rows(), cols: packed.cols(), kind: Kind::Packed(packed.layout()), data })
    }

    /// Out features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// In features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The name of the weights' format.
    pub fn format_name(&self) -> &'static str {
        match self.kind {
            Kind::Stored(dtype) => dtype.name(),
            Kind::Packed(layout) => layout.format.name(),
        }
    }

    /// The packed bytes of one of scrimp's own formats; `None` for types of other files.
    pub fn packed(&self) -> Option<PackedView<'_>> {
        match self.kind {
            Kind::Packed(layout) => Some(PackedView::of_checked(layout, &self.data)),
            Kind::Stored(_) => None,
        }
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }

    /// Bytes of memory that the weights take.
    pub fn bytes(&self) -> usize {
        Arena::size_of(self.data.len())
    }

    /// The form of activations that this format multiplies.
    pub fn needs(&self) -> Needs {
        let none = Needs::default();
        match self.kind {
            Kind::Stored(dtype) if dtype.block_len() == 1 => Needs { float: true, ..none },
            Kind::Stored(_) => Needs { quantized: true, ..none },
            Kind::Packed(layout) => match layout.format.value() {
                Value::Bf16 => Needs { bf16: true, ..none },
                Value::Int8 => Needs { row_int8: true, ..none },
                Value::Int4 => Needs { quantized: true, ..none },
            },
        }
    }

    pub(crate) fn n_panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    pub(crate) fn panel(&self, i: usize) -> &[u8] {
        let bytes = self.data.len() / self.n_panels();
        &self.data[i * bytes..(i + 1) * bytes]
    }

    /// The packed blocks of a panel.
    pub(crate) fn blocks<F: BlockFormat>(&self, panel: usize) -> &[F::Block] {
        bytemuck::cast_slice(self.panel(panel))
    }

    /// The columns of a panel of floats.
    pub(crate) fn columns<F: FloatFormat>(&self, panel: usize) -> &[[F::Element; PANEL_ROWS]] {
        bytemuck::cast_slice::<u8, F::Element>(self.panel(panel)).as_chunks().0
    }
}

fn pack_blocks<F: BlockFormat>(dtype: DType, rows: &[&[u8]; PANEL_ROWS], out: &mut [u8]) {
    let bytes = dtype.block_bytes();
    for (i, block) in bytemuck::cast_slice_mut::<u8, F::Block>(out).iter_mut().enumerate() {
        F::pack(dtype, &rows.map(|row| &row[i * bytes..(i + 1) * bytes]), block);
    }
}

fn pack_floats<F: FloatFormat>(_: DType, rows: &[&[u8]; PANEL_ROWS], out: &mut [u8]) {
    if size_of::<F::Element>() == 4 {
        float::pack::<4>(rows, out);
    } else {
        float::pack::<2>(rows, out);
    }
}
