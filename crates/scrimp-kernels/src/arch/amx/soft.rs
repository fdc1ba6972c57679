//! Tile registers in plain Rust, as the manual describes them (Intel SDM, volume 2: `LDTILECFG`, `TILELOADD`,
//! `TDPBF16PS`, `TDPBSSD` and its siblings). The kernels run over them on every machine, and the emulator executes with
//! them.

use super::{Shape, Tile};
use crate::arch::{Kernel, SimdLevel};

/// One tile register.
#[derive(Clone, Copy)]
struct Register {
    rows: usize,
    /// Bytes of a row.
    width: usize,
    data: [[u8; 64]; 16],
}

/// All of them.
#[derive(Clone, Copy)]
pub(crate) struct Soft {
    tiles: [Register; 8],
    /// Instructions of [`Tile`] that were executed.
    pub(crate) executed: usize,
}

impl Soft {
    pub(crate) const fn new() -> Self {
        Self { tiles: [Register { rows: 0, width: 0, data: [[0; 64]; 16] }; 8], executed: 0 }
    }

    /// `LDTILECFG` from its 64 bytes.
    ///
    /// # Panics
    /// Where the CPU would raise #GP.
    pub(crate) fn load_config(&mut self, config: &[u8; 64]) {
        self.tiles = Self::new().tiles;
        if config[0] == 0 {
            return;
        }
        assert!(config[0] == 1 && config[1] == 0 && config[2..16].iter().all(|&b| b == 0), "palette 1");
        assert!(config[32..48].iter().chain(&config[56..]).all(|&b| b == 0), "eight tiles");
        for (t, tile) in self.tiles.iter_mut().enumerate() {
            tile.width = usize::from(u16::from_le_bytes([config[16 + 2 * t], config[17 + 2 * t]]));
            tile.rows = usize::from(config[48 + t]);
            assert!(
                tile.width <= 64 && tile.rows <= 16 && (tile.width == 0) == (tile.rows == 0),
                "shape of tile {t}"
            );
        }
    }

    pub(crate) fn clear(&mut self, t: usize) {
        self.tiles[t].data = [[0; 64]; 16];
    }

    /// `TILELOADD`; rows and bytes beyond the configured ones become zero.
    ///
    /// # Safety
    /// The rows can be read.
    pub(crate) unsafe fn read(&mut self, t: usize, from: *const u8, stride: usize) {
        self.clear(t);
        let tile = &mut self.tiles[t];
        assert!(tile.rows > 0, "tile {t} is not configured");
        for (r, row) in tile.data.iter_mut().take(tile.rows).enumerate() {
            // SAFETY: the caller guarantees that row `r` can be read, and it has `tile.width` bytes.
            unsafe { from.wrapping_add(r.wrapping_mul(stride)).copy_to(row.as_mut_ptr(), tile.width) };
        }
    }

    /// `TILESTORED`.
    ///
    /// # Safety
    /// The rows can be written.
    pub(crate) unsafe fn write(&self, t: usize, to: *mut u8, stride: usize) {
        let tile = &self.tiles[t];
        assert!(tile.rows > 0, "tile {t} is not configured");
        for (r, row) in tile.data.iter().take(tile.rows).enumerate() {
            // SAFETY: the caller guarantees that row `r` can be written, and it has `tile.width` bytes.
            unsafe { to.wrapping_add(r.wrapping_mul(stride)).copy_from(row.as_ptr(), tile.width) };
        }
    }

    /// Whether C, A and B fit each other, and how many 4-byte columns A has.
    fn inner(&self, c: usize, a: usize, b: usize) -> usize {
        let [tc, ta, tb] = [c, a, b].map(|t| &self.tiles[t]);
        assert!(c != a && c != b && a != b, "three different tiles");
        assert!(
            tc.rows == ta.rows && ta.width == 4 * tb.rows && tb.width == tc.width,
            "shapes of {c}, {a}, {b}"
        );
        ta.width / 4
    }

    /// `TDPBF16PS`.
    pub(crate) fn bf16(&mut self, c: usize, a: usize, b: usize) {
        let inner = self.inner(c, a, b);
        let (ta, tb) = (self.tiles[a], self.tiles[b]);
        let tile = &mut self.tiles[c];
        let bf16 = |row: &[u8; 64], i: usize| {
            flushed(f32::from_bits(u32::from(u16::from_le_bytes([row[2 * i], row[2 * i + 1]])) << 16))
        };
        for m in 0..16 {
            let mut row = [0; 64];
            if m < tile.rows {
                for n in 0..tile.width / 4 {
                    let mut sums = [0f32; 2];
                    for k in 0..inner {
                        for (j, sum) in sums.iter_mut().enumerate() {
                            let product =
                                bf16(&ta.data[m], 2 * k + j).mul_add(bf16(&tb.data[k], 2 * n + j), *sum);
                            *sum = flushed(product);
                        }
                    }
                    let sum = flushed(sums[0] + sums[1]);
                    let before = f32::from_bits(word(&tile.data[m], n));
                    let after = flushed(flushed(before) + sum);
                    row[4 * n..4 * n + 4].copy_from_slice(&after.to_le_bytes());
                }
            }
            tile.data[m] = row;
        }
    }

    /// `TDPBSUD`: signed bytes of A, unsigned ones of B; sums wrap around.
    pub(crate) fn i8u8(&mut self, c: usize, a: usize, b: usize) {
        self.bytes(c, a, b, i32::from);
    }

    /// `TDPBSSD`: signed bytes of both.
    pub(crate) fn i8(&mut self, c: usize, a: usize, b: usize) {
        self.bytes(c, a, b, |b| i32::from(b as i8));
    }

    fn bytes(&mut self, c: usize, a: usize, b: usize, of_b: impl Fn(u8) -> i32) {
        let inner = self.inner(c, a, b);
        let (ta, tb) = (self.tiles[a], self.tiles[b]);
        let tile = &mut self.tiles[c];
        for m in 0..16 {
            let mut row = [0; 64];
            if m < tile.rows {
                for n in 0..tile.width / 4 {
                    let mut sum = word(&tile.data[m], n) as i32;
                    for k in 0..inner {
                        for j in 0..4 {
                            let product =
                                i32::from(ta.data[m][4 * k + j] as i8) * of_b(tb.data[k][4 * n + j]);
                            sum = sum.wrapping_add(product);
                        }
                    }
                    row[4 * n..4 * n + 4].copy_from_slice(&sum.to_le_bytes());
                }
            }
            tile.data[m] = row;
        }
    }
}

fn word(row: &[u8; 64], n: usize) -> u32 {
    u32::from_le_bytes([row[4 * n], row[4 * n + 1], row[4 * n + 2], row[4 * n + 3]])
}

/// Denormals count as zero, before and after every operation.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

impl Tile for &mut Soft {
    fn run<K: Kernel>(level: SimdLevel, kernel: K) -> K::Output {
        level.run(kernel)
    }
    fn configure(&mut self, shape: Shape) {
        let mut config = [0; 64];
        config[0] = 1;
        for (t, (width, rows)) in shape.registers().into_iter().enumerate() {
            (config[16 + 2 * t], config[48 + t]) = (width, rows);
        }
        self.executed += 1;
        self.load_config(&config);
    }
    fn release(&mut self) {
        self.executed += 1;
        self.tiles = Soft::new().tiles;
    }
    fn zero<const T: u8>(&mut self) {
        self.executed += 1;
        self.clear(usize::from(T));
    }
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
        self.executed += 1;
        // SAFETY: the caller guarantees that the tile's rows can be read.
        unsafe { self.read(usize::from(T), from, stride) };
    }
    unsafe fn store<const T: u8>(&mut self, to: *mut u8, stride: usize) {
        self.executed += 1;
        // SAFETY: the caller guarantees that the tile's rows can be written.
        unsafe { self.write(usize::from(T), to, stride) };
    }
    fn dot_bf16<const C: u8, const A: u8, const B: u8>(&mut self) {
        self.executed += 1;
        self.bf16(C.into(), A.into(), B.into());
    }
    fn dot_i8u8<const C: u8, const A: u8, const B: u8>(&mut self) {
        self.executed += 1;
        self.i8u8(C.into(), A.into(), B.into());
    }
    fn dot_i8<const C: u8, const A: u8, const B: u8>(&mut self) {
        self.executed += 1;
        self.i8(C.into(), A.into(), B.into());
    }
}
