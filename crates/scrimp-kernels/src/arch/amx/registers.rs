//! Tile registers: what kernels do with them, and how a thread holds them.

use super::TILE_STEPS;
use crate::arch::{Kernel, SimdLevel};

/// Shapes of the tile registers. Rows of C and B have 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Rows of C and A: tokens.
    pub(crate) rows: usize,
    /// Bytes of A's rows.
    pub(crate) width: usize,
    /// Rows of B: a quarter of that.
    pub(crate) steps: usize,
}

impl Shape {
    /// Whole tiles, for `rows` tokens.
    pub(crate) fn whole(rows: usize) -> Self {
        Self { rows, width: 64, steps: TILE_STEPS }
    }

    /// Bytes of a row and rows of each register.
    #[cfg(any(test, target_arch = "x86_64"))]
    pub(super) fn registers(self) -> [(u8, u8); 8] {
        let [c, a, b] = [(64, self.rows), (self.width, self.rows), (64, self.steps)];
        [c, c, c, c, a, a, b, b].map(|(width, rows)| (width as u8, rows as u8))
    }
}

/// The eight tile registers of a thread.
pub(crate) trait Tile {
    /// Runs a kernel that uses them.
    fn run<K: Kernel>(level: SimdLevel, kernel: K) -> K::Output;
    /// Gives the registers a shape; everything is zeroed.
    fn configure(&mut self, shape: Shape);
    /// Gives the registers back: their state need no longer be saved.
    fn release(&mut self);
    /// `T = 0`
    fn zero<const T: u8>(&mut self);
    /// Loads the rows of a tile.
    ///
    /// # Safety
    /// A row can be read at `from`, `from + stride` and so on, for each row of the tile.
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize);
    /// Stores the rows of a tile.
    ///
    /// # Safety
    /// A row can be written at `to`, `to + stride` and so on, for each row of the tile.
    unsafe fn store<const T: u8>(&mut self, to: *mut u8, stride: usize);
    /// `C += A B` for bf16 pairs (`tdpbf16ps`).
    fn dot_bf16<const C: u8, const A: u8, const B: u8>(&mut self);
    /// `C += A B` for signed bytes of A and unsigned ones of B (`tdpbsud`).
    fn dot_i8u8<const C: u8, const A: u8, const B: u8>(&mut self);
    /// `C += A B` for signed bytes (`tdpbssd`).
    fn dot_i8<const C: u8, const A: u8, const B: u8>(&mut self);
}

/// A thread's tile registers, configured as they are used, until they are dropped.
pub(crate) struct Configured<X: Tile> {
    pub(crate) tile: X,
    shape: Option<Shape>,
}

impl<X: Tile> Configured<X> {
    pub(crate) fn new(tile: X) -> Self {
        Self { tile, shape: None }
    }

    /// The registers in this shape.
    #[inline(always)]
    pub(crate) fn shaped(&mut self, shape: Shape) -> &mut X {
        if self.shape != Some(shape) {
            self.tile.configure(shape);
            self.shape = Some(shape);
        }
        &mut self.tile
    }
}

impl<X: Tile> Drop for Configured<X> {
    fn drop(&mut self) {
        if self.shape.is_some() {
            self.tile.release();
        }
    }
}

/// Zeroes the C tiles.
#[inline(always)]
pub(crate) fn clear<X: Tile, const NA: usize, const NB: usize>(tile: &mut X) {
    tile.zero::<0>();
    if NB == 2 {
        tile.zero::<1>();
    }
    if NA == 2 {
        tile.zero::<2>();
        if NB == 2 {
            tile.zero::<3>();
        }
    }
}
