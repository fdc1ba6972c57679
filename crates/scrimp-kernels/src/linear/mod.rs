//! Linear layers: `y = W x (+ bias) (+ y)` for one token or many, any weight format, any tier.
//!
//! Decode (one token) unpacks weights in registers ([`gemv`]); batches unpack a tile once into a panel and use it for all
//! tokens ([`gemm`]), a few columns at a time where tokens are few. CPUs with tile registers multiply batches there ([`amx_packed`]). Several
//! matrices that share their input run in one parallel region.

pub(crate) mod activations;
mod amx_bf16;
#[cfg(test)]
mod amx_bf16_tests;
mod amx_int8;
#[cfg(test)]
mod amx_int8_tests;
mod amx_packed;
#[cfg(test)]
mod amx_packed_tests;
pub mod bench;
mod gemm;
mod gemv;
mod matrix;
mod packed;
#[cfg(test)]
mod packed_tests;
mod quantize;
#[cfg(test)]
mod tests;
mod thread_tiles;

pub use activations::{ActivationShape, Activations, Needs};
pub use matrix::{Matrix, StoredRows};

use crate::{
    arch::{
        Kernel, Level, Simd, SimdLevel,
        amx::{Configured, Tile},
    },
    exec::{DisjointSliceMut, Exec, part},
    quant::{BlockFormat, GROUP, TILE_ROWS, float::FloatFormat, packed::Value, with_format},
};
use gemm::PanelGroup;
use matrix::Kind;
use packed::{PackedUnit, panel_groups};
use std::ops::Range;
use thread_tiles::{ThreadTiles, thread_tiles};

/// Weight bytes per unit of work when decoding. Threads take runs of units, so this only bounds how much later than the
/// others the last one ends; large regions can afford larger units, whose beginnings and ends cost less.
const GEMV_UNIT_BYTES: std::ops::RangeInclusive<usize> = 64 << 10..=256 << 10;
/// Units per thread that a large region is cut into.
const GEMV_UNITS_PER_THREAD: usize = 64;
/// Unpacked bytes per unit of work in a batch: they stay in the second-level cache while all tokens pass by.
const PANEL_BYTES: usize = 400 << 10;
/// Least tokens for which weights are unpacked by each of several threads, which then have tokens of their own.
const BLOCK_TOKENS: usize = 24;

/// One matrix product of a region.
#[derive(Debug)]
pub struct Linear<'a> {
    /// The weights, `[rows][cols]`.
    pub weight: &'a Matrix,
    /// Added to each row's result.
    pub bias: Option<&'a [f32]>,
    /// Result, `[n_tokens][stride]` of which the first `rows` of each token are written.
    pub out: &'a mut [f32],
    /// Elements from one token's results to the next's.
    pub stride: usize,
    /// Adds to `out` (a residual connection) instead of overwriting it.
    pub accumulate: bool,
}

/// Memory that batches need for unpacked weights; kept between calls.
#[derive(Debug, Default)]
pub struct LinearScratch {
    panels: Vec<PanelGroup>,
}

impl LinearScratch {
    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.panels.capacity() * size_of::<PanelGroup>()
    }
}

/// A product as workers see it.
struct Job<'a> {
    weight: &'a Matrix,
    bias: Option<&'a [f32]>,
    out: DisjointSliceMut<'a, f32>,
    stride: usize,
    accumulate: bool,
    split: Split,
    first_unit: usize,
    /// Few tokens of a block format (see [`gemm::few`]).
    few: bool,
    registers: TileRegisters,
}

/// How the tiles of a matrix are cut into units.
enum Split {
    /// As many tiles in each.
    Tiles(usize),
    /// As many bytes in each of so many units: sparse matrices may have rows of very different lengths.
    Bytes(usize),
}

/// Computes all of `products` from the same activations, in one parallel region.
///
/// # Panics
/// When shapes do not fit each other, or `x` was not stored for this tier or in the form that a weight needs.
pub fn linear(exec: Exec<'_>, scratch: &mut LinearScratch, x: &Activations, products: &mut [Linear<'_>]) {
    let Exec { pool, level } = exec;
    let n_tokens = x.n_tokens();
    if n_tokens == 0 {
        return;
    }
    assert!(x.stored_for(level), "tier of the activations");
    // Few tokens: weights are unpacked in registers, so the work is what they take in memory.
    let packed = |p: &Linear<'_>| matches!(p.weight.kind(), Kind::Packed(_));
    let stored = |p: &Linear<'_>| matches!(p.weight.kind(), Kind::Stored(dtype) if dtype.block_len() > 1);
    let few =
        n_tokens > 1 && n_tokens <= gemm::FEW && !x.expanded() && !x.exact() && products.iter().all(stored);
    let exact = |p: &Linear<'_>| tile_registers(x, p.weight) == TileRegisters::Exact;
    let decode = n_tokens == 1
        || few
        || x.expands_each() && x.block() == 0 && products.iter().all(packed)
        || products.iter().all(exact);
    let blocks = match decode || products.iter().any(|p| tile_registers(x, p.weight) != TileRegisters::None) {
        true => 1,
        false => token_blocks(x, pool.threads()),
    };
    let groups = x.cols().div_ceil(GROUP);
    let region_bytes: usize = products.iter().map(|p| p.weight.bytes()).sum();
    let unit_bytes = (region_bytes / (GEMV_UNITS_PER_THREAD * pool.threads()))
        .clamp(*GEMV_UNIT_BYTES.start(), *GEMV_UNIT_BYTES.end());
    let mut units = 0;
    let mut panel_len = 0;
    let mut jobs = Vec::with_capacity(products.len());
    for product in products {
        let weight = product.weight;
        assert_eq!(weight.cols(), x.cols(), "in features");
        assert!(product.stride >= weight.rows(), "row stride");
        assert!(product.out.len() >= (n_tokens - 1) * product.stride + weight.rows(), "length of the output");
        assert!(product.bias.is_none_or(|b| b.len() == weight.rows()), "length of the bias");
        let n_tiles = weight.n_tiles();
        if n_tiles == 0 {
            continue;
        }
        let per_tile = match weight.kind() {
            Kind::Stored(_) => groups,
            Kind::Packed(layout) => panel_groups(layout),
        };
        let registers = tile_registers(x, weight);
        let per_unit = if decode || registers == TileRegisters::Exact {
            unit_bytes / (weight.bytes() / n_tiles).max(1)
        } else {
            // Never so many that threads run out of units.
            (PANEL_BYTES / (per_tile * size_of::<PanelGroup>()).max(1))
                .min(n_tiles * blocks / (8 * pool.threads()))
        };
        // Most use tile registers for two tiles of rows at a time.
        let pairs = |units: usize, most| ((n_tiles / (units * pool.threads())) & !1).clamp(2, most);
        let tiles_per_unit = match registers {
            TileRegisters::None | TileRegisters::Exact => per_unit,
            TileRegisters::Packed => pairs(4, amx_packed::UNIT_TILES),
            TileRegisters::Expanded => amx_bf16::unit_tiles(n_tiles, pool.threads()),
        }
        .clamp(1, n_tiles);
        panel_len = panel_len.max(match registers {
            TileRegisters::None => per_tile * tiles_per_unit,
            TileRegisters::Packed => per_tile * 2,
            TileRegisters::Exact => amx_int8::PANEL_GROUPS,
            TileRegisters::Expanded => amx_bf16::panel_groups(tiles_per_unit, n_tokens.div_ceil(x.block())),
        });
        let n_units = n_tiles.div_ceil(tiles_per_unit);
        let split = match weight.kind() {
            Kind::Packed(layout) if decode && layout.format.is_sparse() => Split::Bytes(n_units),
            _ => Split::Tiles(tiles_per_unit),
        };
        jobs.push(Job {
            weight,
            bias: product.bias,
            out: DisjointSliceMut::new(product.out),
            stride: product.stride,
            accumulate: product.accumulate,
            split,
            first_unit: units,
            few,
            registers,
        });
        units += n_units;
    }
    let panel_len = match decode {
        true if few => gemm::FEW_GROUPS,
        true if !x.exact() => 0,
        _ => panel_len,
    };
    if scratch.panels.len() < panel_len * pool.threads() {
        scratch.panels.resize(panel_len * pool.threads(), PanelGroup::ZERO);
    }
    let panels = DisjointSliceMut::new(&mut scratch.panels);
    let body = |tiles_of_thread: &mut ThreadTiles, unit: usize, worker: usize| {
        let (block, unit) = (unit / units, unit % units);
        let x_tiles = part(x.n_tiles(), block, blocks);
        let job = jobs.iter().rev().find(|job| job.first_unit <= unit).expect("units start at 0");
        let tiles = match (&job.split, job.weight.kind()) {
            (&Split::Bytes(units), Kind::Packed(layout)) => {
                Job::by_bytes(layout, job.weight.data(), unit - job.first_unit, units)
            }
            (&(Split::Tiles(n) | Split::Bytes(n)), _) => {
                let first = (unit - job.first_unit) * n;
                first..(first + n).min(job.weight.n_tiles())
            }
        };
        // SAFETY: every worker has a part of its own.
        let panel = unsafe { panels.slice(worker * panel_len..(worker + 1) * panel_len) };
        let unit = Unit { job, x, x_tiles, tiles, panel };
        match job.weight.kind() {
            Kind::Stored(dtype) => with_format!(dtype, run_block, run_float, (level, unit, tiles_of_thread)),
            Kind::Packed(layout) => {
                packed::run(level, PackedUnit { unit, layout, data: job.weight.data() }, tiles_of_thread);
            }
        }
    };
    pool.run_with(units * blocks, || thread_tiles(level, x), body);
}

/// Into how many blocks the tokens of a large batch are cut, for as many groups of `threads` threads. Then what a thread has
/// written of the activations and results of its tokens stays in its caches from one layer to the next, and only weights, which
/// nobody writes, are read by all.
fn token_blocks(x: &Activations, threads: usize) -> usize {
    let most = (x.n_tokens() / BLOCK_TOKENS).min(x.n_tiles());
    (1..=threads).rev().find(|blocks| threads.is_multiple_of(*blocks) && *blocks <= most).unwrap_or(1)
}

/// How products of a matrix use tile registers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TileRegisters {
    None,
    /// Packed weights are loaded as they are, or expanded.
    Packed,
    /// Groups of weights in blocks are multiplied as integers.
    Exact,
    /// Weights in blocks are dequantized to bf16.
    Expanded,
}

/// How products of this weight with these activations use tile registers.
fn tile_registers(x: &Activations, weight: &Matrix) -> TileRegisters {
    match weight.kind() {
        Kind::Packed(layout) if x.block() > 0 && layout.format.value() != Value::Int4 => {
            TileRegisters::Packed
        }
        Kind::Stored(dtype) if dtype.block_len() == 1 => TileRegisters::None,
        _ if x.expanded() => TileRegisters::Expanded,
        _ if x.exact() => TileRegisters::Exact,
        _ => TileRegisters::None,
    }
}

/// One product over the given tile registers.
#[cfg(test)]
fn linear_over(
    level: SimdLevel,
    x: &Activations,
    product: Linear<'_>,
    tile: &mut crate::arch::amx::soft::Soft,
) {
    let weight = product.weight;
    let mut tiles = Configured::new(tile);
    let job = Job {
        weight,
        bias: product.bias,
        out: DisjointSliceMut::new(product.out),
        stride: product.stride,
        accumulate: product.accumulate,
        split: Split::Tiles(weight.n_tiles()),
        first_unit: 0,
        few: false,
        registers: tile_registers(x, weight),
    };
    let panel = match (job.registers, weight.kind()) {
        (TileRegisters::Packed, Kind::Packed(layout)) => 2 * panel_groups(layout),
        (TileRegisters::Exact, _) => amx_int8::PANEL_GROUPS,
        _ => amx_bf16::panel_groups(weight.n_tiles(), x.n_tokens().div_ceil(x.block())),
    };
    let mut panel = vec![PanelGroup::ZERO; panel];
    let unit = Unit { job: &job, x, x_tiles: 0..x.n_tiles(), tiles: 0..weight.n_tiles(), panel: &mut panel };
    match weight.kind() {
        Kind::Packed(layout) => {
            packed::run_over_tiles(level, PackedUnit { unit, layout, data: weight.data() }, &mut tiles);
        }
        Kind::Stored(dtype) => {
            fn float<F: FloatFormat>(_: SimdLevel, _: Unit<'_>, _: &mut Configured<impl Tile>) {
                unreachable!("floats take no tile registers");
            }
            with_format!(dtype, run_rows, float, (level, unit, &mut tiles));
        }
    }
}

/// Tiles of one matrix for some tokens.
struct Unit<'a> {
    job: &'a Job<'a>,
    x: &'a Activations,
    /// Tiles of tokens (all of them where they are few, or in tile registers).
    x_tiles: Range<usize>,
    tiles: Range<usize>,
    panel: &'a mut [PanelGroup],
}

struct BlockUnit<'a, F>(Unit<'a>, std::marker::PhantomData<F>);
struct FloatUnit<'a, F>(Unit<'a>, std::marker::PhantomData<F>);

fn run_block<F: BlockFormat>(level: SimdLevel, unit: Unit<'_>, tiles: &mut ThreadTiles) {
    if let Some(tiles) = tiles
        && unit.job.registers != TileRegisters::None
    {
        return run_rows::<F>(level, unit, tiles);
    }
    level.run(BlockUnit::<F>(unit, std::marker::PhantomData));
}

/// Multiplies the blocks of a matrix in tile registers.
fn run_rows<F: BlockFormat>(level: SimdLevel, unit: Unit<'_>, tiles: &mut Configured<impl Tile>) {
    let weight = unit.job.weight;
    let rows = move |tile| amx_bf16::Blocks::<F>::new(weight.blocks::<F>(tile));
    amx_packed::run_rows(level, unit, rows, tiles);
}

fn run_float<F: FloatFormat>(level: SimdLevel, unit: Unit<'_>, _: &mut ThreadTiles) {
    level.run(FloatUnit::<F>(unit, std::marker::PhantomData));
}

/// Calls `$kernel::<S, F, T>($args)` and stores the results of `T` tokens, for the width `T` of a token tile.
macro_rules! for_width {
    ($s:ident, $job:expr, $row_tile:expr, $first:expr, $n:expr, $width:expr, $kernel:ident, ($($arg:expr),*)) => {
        match $width {
            1 => $job.store($s, &$kernel::<S, F, 1>($s, $($arg),*), $row_tile, $first, $n),
            2 => $job.store($s, &$kernel::<S, F, 2>($s, $($arg),*), $row_tile, $first, $n),
            4 => $job.store($s, &$kernel::<S, F, 4>($s, $($arg),*), $row_tile, $first, $n),
            8 if S::TOKEN_TILE >= 8 => $job.store($s, &$kernel::<S, F, 8>($s, $($arg),*), $row_tile, $first, $n),
            12 if S::TOKEN_TILE >= 12 => $job.store($s, &$kernel::<S, F, 12>($s, $($arg),*), $row_tile, $first, $n),
            width => unreachable!("no kernel for {width} tokens"),
        }
    };
}

impl<F: BlockFormat> Kernel for BlockUnit<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Unit { job, x, x_tiles, tiles, panel } = self.0;
        if x.n_tokens() == 1 {
            for tile in tiles {
                let y = gemv::tile::<S, F>(s, job.weight.blocks::<F>(tile), x.groups(0));
                job.store(s, &[y], tile, 0, 1);
            }
            return;
        }
        if job.few {
            let mut acc = [s.splat(0.0); gemm::FEW_SUMS];
            for tile in tiles {
                gemm::few::<S, F>(s, job.weight.blocks::<F>(tile), x, panel, &mut acc);
                job.store(s, &acc, tile, 0, x.n_tokens());
            }
            return;
        }
        let groups = x.cols() / GROUP;
        for (tile, panel) in tiles.clone().zip(panel.chunks_exact_mut(groups)) {
            gemm::unpack::<S, F>(s, job.weight.blocks::<F>(tile), panel);
        }
        for i in x_tiles {
            let (first, n, width) = x.tile(i);
            let x = x.groups(i);
            for (tile, panel) in tiles.clone().zip(panel.chunks_exact(groups)) {
                use gemm::tile as kernel;
                for_width!(s, job, tile, first, n, width, kernel, (panel, x));
            }
        }
    }
}

impl<F: FloatFormat> Kernel for FloatUnit<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Unit { job, x, x_tiles, tiles, .. } = self.0;
        for i in x_tiles {
            let (first, n, width) = x.tile(i);
            let x = x.floats(i);
            for tile in tiles.clone() {
                use gemm::float_tile as kernel;
                let columns = job.weight.columns::<F>(tile);
                if n == 1 {
                    job.store(s, &[gemv::float_tile::<S, F>(s, columns, x)], tile, first, n);
                } else {
                    for_width!(s, job, tile, first, n, width, kernel, (columns, x));
                }
            }
        }
    }
}

impl Job<'_> {
    /// Writes the results of a token for the rows of `tiles`, tile `tiles.start + i` being `y(i)`.
    #[inline(always)]
    fn store_row<S: Simd>(&self, s: S, token: usize, tiles: Range<usize>, y: impl Fn(usize) -> S::F) {
        let first = tiles.start * TILE_ROWS;
        let rows = first..(tiles.end * TILE_ROWS).min(self.weight.rows());
        let at = token * self.stride + first;
        // SAFETY: units have tiles of their own, and tiles have rows of their own.
        let out = unsafe { self.out.slice(at..at + rows.len()) };
        let bias = self.bias.map(|bias| &bias[rows]);
        let (whole, rest) = out.as_chunks_mut::<TILE_ROWS>();
        let whole_bias = bias.map(|bias| bias.as_chunks::<TILE_ROWS>().0);
        for (i, out) in whole.iter_mut().enumerate() {
            let mut y = y(i);
            if let Some(bias) = whole_bias {
                y = s.add(y, s.load(&bias[i]));
            }
            if self.accumulate {
                y = s.add(y, s.load(out));
            }
            s.store(y, out);
        }
        if !rest.is_empty() {
            let mut lanes = [0.0; TILE_ROWS];
            s.store(y(whole.len()), &mut lanes);
            let bias = bias.map(|bias| &bias[whole.len() * TILE_ROWS..]);
            for (i, (out, y)) in rest.iter_mut().zip(lanes).enumerate() {
                let y = y + bias.map_or(0.0, |bias| bias[i]);
                *out = if self.accumulate { *out + y } else { y };
            }
        }
    }

    /// Writes the results of 16 rows for tokens `first .. first + n`.
    #[inline(always)]
    fn store<S: Simd>(&self, s: S, y: &[S::F], row_tile: usize, first: usize, n: usize) {
        for (t, &y) in y.iter().take(n).enumerate() {
            self.store_row(s, first + t, row_tile..row_tile + 1, |_| y);
        }
    }
}

struct Row<'a, F>(&'a Matrix, usize, &'a mut [f32], std::marker::PhantomData<F>);

impl Matrix {
    /// Writes row `row` (an embedding) into `out`, as f32.
    ///
    /// # Panics
    /// When the row does not exist or `out` is not `cols` long.
    pub fn row(&self, level: SimdLevel, row: usize, out: &mut [f32]) {
        assert!(row < self.rows() && out.len() == self.cols(), "row {row} of {}", self.rows());
        match self.kind() {
            Kind::Stored(dtype) => with_format!(dtype, block_row, float_row, (level, self, row, out)),
            Kind::Packed(layout) => layout.row(self.data(), row, out),
        }
    }
}

fn block_row<F: BlockFormat>(level: SimdLevel, weight: &Matrix, row: usize, out: &mut [f32]) {
    level.run(Row::<F>(weight, row, out, std::marker::PhantomData));
}

fn float_row<F: FloatFormat>(_: SimdLevel, weight: &Matrix, row: usize, out: &mut [f32]) {
    for (column, out) in weight.columns::<F>(row / TILE_ROWS).iter().zip(out) {
        *out = F::load(crate::arch::Scalar, column)[row % TILE_ROWS];
    }
}

impl<F: BlockFormat> Kernel for Row<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Row(weight, row, out, _) = self;
        let mut panel = [PanelGroup::ZERO; 8];
        let blocks = weight.blocks::<F>(row / TILE_ROWS);
        for (block, out) in blocks.chunks(1).zip(out.chunks_mut(F::GROUPS * GROUP)) {
            gemm::unpack::<S, F>(s, block, &mut panel);
            for (group, out) in panel.iter().zip(out.chunks_mut(GROUP)) {
                group.dequantize::<F>(row % TILE_ROWS, out);
            }
        }
    }
}
