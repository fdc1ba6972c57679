//! Activations as the linear kernels read them: 8-bit groups of 32 with a scale each, f32, or both.
//!
//! ```text
//! q = round(x / scale),  scale = max |x| / 127          half to even; per group of 32, or per token (`int8` weights)
//!
//! 8 bits    [token tiles][columns / 32][tokens of the tile] groups
//! floats    [token tiles][columns][tokens of the tile] f32
//! bf16      [token tiles][columns / 2][tokens of the tile] pairs
//! bytes     [token tiles][columns / 4][tokens of the tile] 4 bytes, and a scale per token
//! AMX       bf16 and bytes in AMX tiles (`ActivationLayout`)
//! ```
//! A kernel reads a token tile from front to back. Groups and sums have the form of the level that stored them, so
//! products must run at that level.
//!
//! Numeric contract, for every level and batch: a group that holds a NaN or an infinity has the scale NaN, and exactly
//! its products are NaN. A group whose largest magnitude is below 1e-30 counts as zero. Where a token has one scale,
//! the same holds for the whole token.

use super::{
    amx_packed::FEW_TOKENS,
    plan::ActivationLayout,
    quantize::{Quantize, QuantizeRow, RoundRow},
};
use crate::{
    arch::SimdLevel,
    exec::{DisjointSliceMut, Exec},
    quant::{GROUP, QuantGroup},
};

/// The forms of the activations that a set of weights needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Block-quantized weights read 8-bit groups.
    pub quantized: bool,
    /// Float weights read f32.
    pub float: bool,
    /// `bf16` and `sparse-bf16` weights read pairs of bf16.
    pub bf16: bool,
    /// `int8` and `sparse-int8` weights read 8 bits with one scale per token.
    pub row_int8: bool,
}

impl Needs {
    /// What either needs.
    pub const fn and(self, other: Self) -> Self {
        Self {
            quantized: self.quantized || other.quantized,
            float: self.float || other.float,
            bf16: self.bf16 || other.bf16,
            row_int8: self.row_int8 || other.row_int8,
        }
    }
}

/// The size of a batch, and the forms that it is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationShape {
    /// Tokens in the batch.
    pub n_tokens: usize,
    /// Features per token.
    pub cols: usize,
    /// The forms that the weights read.
    pub needs: Needs,
}

/// The sizes of several batches of the same width, and the forms that they are stored in.
#[derive(Clone, Copy, Debug)]
pub struct BatchShapes<'a> {
    /// Tokens of each batch.
    pub n_tokens: &'a [usize],
    /// Features per token.
    pub cols: usize,
    /// The forms that the weights read.
    pub needs: Needs,
}

/// Input of a linear layer for a batch of tokens, `[n_tokens][cols]`.
#[derive(Debug, Default)]
pub struct Activations {
    n_tokens: usize,
    cols: usize,
    needs: Needs,
    /// The level that they were stored for.
    level: Option<SimdLevel>,
    /// `None` before the first batch.
    layout: Option<ActivationLayout>,
    groups: Vec<QuantGroup>,
    floats: Vec<f32>,
    /// Tiles of `[cols / 2][tokens]`, columns padded to 32.
    pairs: Vec<u32>,
    /// Tiles of `[cols / 4][tokens]`, 4 signed bytes each, columns padded to 64.
    bytes: Vec<i32>,
    rows: Vec<RowScale>,
    scratch: Vec<f32>,
}

/// What belongs to the 8-bit row of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct RowScale {
    pub(crate) scale: f32,
    /// The sum of the quants.
    pub(crate) sum: i32,
}

/// Whether AMX kernels compute this batch. Products of bf16 differ from those of AVX-512 by rounding, so an exact level
/// has none in AMX tiles.
pub(super) fn uses_amx(level: SimdLevel, n_tokens: usize, needs: Needs) -> bool {
    level.has_amx() && n_tokens > FEW_TOKENS && !(level.is_exact() && needs.bf16)
}

/// Tiles of tokens for which expanding packed weights anew is faster than a panel.
const FEW_TILES: usize = 3;

/// Widths that kernels are compiled for; a last tile with fewer tokens is padded to the next one.
pub(crate) const TILE_WIDTHS: [usize; 5] = [1, 2, 4, 8, 12];

/// Stored tokens of a tile of `n` tokens.
pub(crate) fn padded(n: usize) -> usize {
    TILE_WIDTHS.into_iter().find(|&w| w >= n).unwrap_or(n)
}

/// How tokens are cut into tiles.
#[derive(Clone, Copy)]
struct Tiles {
    n_tokens: usize,
    tile: usize,
    /// The last tile is stored as wide as a tile.
    whole: bool,
}

impl Tiles {
    /// First token, number of tokens and stored width of a tile.
    fn get(self, i: usize) -> (usize, usize, usize) {
        let first = i * self.tile;
        let n = self.tile.min(self.n_tokens - first);
        (first, n, if self.whole || n == self.tile { self.tile } else { padded(n) })
    }
}

impl Activations {
    /// Empty; memory grows on first use and is kept.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tokens in the batch.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Features per token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.groups.capacity() * size_of::<QuantGroup>()
            + (self.floats.capacity() + self.scratch.capacity()) * 4
            + (self.pairs.capacity() + self.bytes.capacity()) * 4
            + self.rows.capacity() * size_of::<RowScale>()
    }

    /// Fills the batch: `fill(token, x)` writes the `cols` features of a token, which are then stored as `shape.needs`
    /// says. Tokens are spread over the pool.
    pub fn fill(&mut self, exec: Exec<'_>, shape: ActivationShape, fill: impl Fn(usize, &mut [f32]) + Sync) {
        let amx = uses_amx(exec.level, shape.n_tokens, shape.needs);
        self.fill_as(exec, shape, amx, fill);
    }

    /// [`Activations::fill`] for AMX kernels if `amx`, in any level.
    pub(crate) fn fill_as(
        &mut self,
        exec: Exec<'_>,
        shape: ActivationShape,
        amx: bool,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let Exec { pool, level } = exec;
        let mut scratch = std::mem::take(&mut self.scratch);
        let rows = ScratchRows::new(&mut scratch, shape.cols, pool.threads());
        let filling = self.begin(level, shape, amx);
        pool.run(filling.tasks(), |task, thread| filling.run(task, rows.of(thread), &fill));
        self.scratch = scratch;
    }

    /// Fills several batches of the same width in one parallel region: batch `i` gets `n_tokens[i]` tokens, and
    /// `fill(i, token, x)` writes the features of one.
    ///
    /// # Panics
    /// When there are fewer batches than numbers.
    pub fn fill_each(
        exec: Exec<'_>,
        batches: &mut [Self],
        shapes: BatchShapes<'_>,
        fill: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) {
        let Exec { pool, level } = exec;
        let BatchShapes { n_tokens, cols, needs } = shapes;
        let batches = &mut batches[..n_tokens.len()];
        let Some(first) = batches.first_mut() else { return };
        let mut scratch = std::mem::take(&mut first.scratch);
        let rows = ScratchRows::new(&mut scratch, cols, pool.threads());
        let (mut fillings, mut ends, mut tasks) = (Vec::with_capacity(n_tokens.len()), Vec::new(), 0);
        for (batch, &n_tokens) in batches.iter_mut().zip(n_tokens) {
            let amx = uses_amx(level, n_tokens, needs);
            fillings.push(batch.begin(level, ActivationShape { n_tokens, cols, needs }, amx));
            tasks += fillings.last().map_or(0, Filling::tasks);
            ends.push(tasks);
        }
        pool.run(tasks, |task, thread| {
            let i = ends.partition_point(|&end| end <= task);
            let filling = &fillings[i];
            let task = task + filling.tasks() - ends[i];
            filling.run(task, rows.of(thread), &|token, x: &mut [f32]| fill(i, token, x));
        });
        drop(fillings);
        batches[0].scratch = scratch;
    }

    /// Makes room for a batch, which [`Filling::run`] then stores.
    fn begin(&mut self, level: SimdLevel, shape: ActivationShape, amx: bool) -> Filling<'_> {
        let ActivationShape { n_tokens, cols, needs } = shape;
        let layout = ActivationLayout::new(level, n_tokens, needs, amx);
        let needs = layout.forms(needs);
        (self.n_tokens, self.cols, self.needs) = (n_tokens, cols, needs);
        (self.level, self.layout) = (Some(level), Some(layout));
        let sizes = Sizes::new(cols);
        self.make_room(sizes);
        let tiles = self.tiles();
        // A tile is a multiple of 4 tokens, whose groups are whole cache lines; the other forms are written through
        // slices of a tile.
        let only_groups = needs == Needs { quantized: true, ..Needs::default() };
        let in_parts = only_groups || matches!(layout, ActivationLayout::AmxInt8 { .. });
        let store = Store {
            level,
            needs,
            sizes,
            amx_rows: layout.amx_rows(),
            groups: DisjointSliceMut::new(&mut self.groups),
            floats: DisjointSliceMut::new(&mut self.floats),
            pairs: DisjointSliceMut::new(&mut self.pairs),
            bytes: DisjointSliceMut::new(&mut self.bytes),
            rows: DisjointSliceMut::new(&mut self.rows),
        };
        Filling { store, tiles, per_task: if in_parts { 4 } else { tiles.tile } }
    }

    /// Lengthens the stored forms to the batch.
    fn make_room(&mut self, sizes: Sizes) {
        let (needs, n_tokens) = (self.needs, self.n_tokens);
        let (first, _, width) = self.token_tile(self.n_token_tiles().saturating_sub(1));
        let in_amx_tiles = self.layout().amx_rows().map_or(0, |rows| n_tokens.next_multiple_of(rows));
        let stored = (first + width).max(in_amx_tiles);
        if needs.quantized {
            self.groups.resize(stored * sizes.groups, QuantGroup::default());
        }
        if needs.float {
            self.floats.resize(stored * sizes.cols, 0.0);
        }
        if needs.bf16 {
            self.pairs.resize(stored * sizes.pairs, 0);
        }
        if needs.row_int8 {
            self.bytes.resize(stored * sizes.bytes, 0);
            self.rows.resize(stored, RowScale::default());
        }
    }

    /// How the batch is stored.
    ///
    /// # Panics
    /// Before the first [`Activations::fill`].
    pub(crate) fn layout(&self) -> ActivationLayout {
        self.layout.expect("activations were filled")
    }

    /// Whether kernels of `level` can read them.
    pub(crate) fn stored_for(&self, level: SimdLevel) -> bool {
        self.level == Some(level)
    }

    /// Number of token tiles.
    pub(crate) fn n_token_tiles(&self) -> usize {
        self.n_tokens.div_ceil(self.layout().tile())
    }

    /// Whether packed weights are expanded for each tile of tokens, and not once into a panel: always with one tile;
    /// with AVX-512 up to [`FEW_TILES`], because it expands the next step while it multiplies the last one with 12
    /// tokens.
    pub(crate) fn expands_each(&self) -> bool {
        let few = if self.level.is_some_and(|level| level.token_tile() == 12) { FEW_TILES } else { 1 };
        self.n_token_tiles() <= few
    }

    /// First token, number of tokens and stored width of a tile.
    pub(crate) fn token_tile(&self, i: usize) -> (usize, usize, usize) {
        self.tiles().get(i)
    }

    fn tiles(&self) -> Tiles {
        let whole = matches!(self.layout(), ActivationLayout::AmxInt8 { .. });
        Tiles { n_tokens: self.n_tokens, tile: self.layout().tile(), whole }
    }

    /// The 8-bit groups of a tile, `[cols / 32][width]`.
    pub(crate) fn groups(&self, i: usize) -> &[QuantGroup] {
        assert!(self.needs.quantized, "activations were not quantized");
        let (first, _, width) = self.token_tile(i);
        let n = self.cols.div_ceil(GROUP);
        &self.groups[first * n..(first + width) * n]
    }

    /// The bf16 pairs of a tile, `[steps][width]`.
    pub(crate) fn pairs(&self, i: usize) -> &[u32] {
        assert!(
            self.needs.bf16 && self.layout().amx_rows().is_none(),
            "activations were not stored as tiles of bf16"
        );
        let (first, _, width) = self.token_tile(i);
        let n = self.cols.div_ceil(GROUP) * GROUP / 2;
        &self.pairs[first * n..(first + width) * n]
    }

    /// The 8-bit rows of a tile, `[steps][width]`, and their scales.
    pub(crate) fn row_bytes(&self, i: usize) -> (&[i32], &[RowScale]) {
        assert!(
            self.needs.row_int8 && self.layout().amx_rows().is_none(),
            "activations were not quantized by rows, in tiles"
        );
        let (first, _, width) = self.token_tile(i);
        let n = self.cols.div_ceil(64) * 16;
        (&self.bytes[first * n..(first + width) * n], &self.rows[first..first + width])
    }

    /// For AMX: the bytes of bf16 pairs, or of 8-bit rows, `[AMX tiles][steps of 64 bytes][tokens of a tile][64]`, and
    /// the number of steps.
    pub(crate) fn amx_tiles(&self, int8: bool) -> (&[u8], usize) {
        assert!(self.layout().amx_rows().is_some(), "activations were not stored in AMX tiles");
        if int8 {
            assert!(self.needs.row_int8, "activations were not quantized by rows");
            (bytemuck::cast_slice(&self.bytes), self.cols.div_ceil(64))
        } else {
            assert!(self.needs.bf16, "activations were not stored as bf16");
            (bytemuck::cast_slice(&self.pairs), self.cols.div_ceil(GROUP))
        }
    }

    /// The scales of 8-bit rows.
    pub(crate) fn row_scales(&self) -> &[RowScale] {
        &self.rows
    }

    /// The floats of a tile, `[cols][width]`.
    pub(crate) fn floats(&self, i: usize) -> &[f32] {
        assert!(self.needs.float, "activations were not kept as floats");
        let (first, _, width) = self.token_tile(i);
        &self.floats[first * self.cols..(first + width) * self.cols]
    }
}

/// Elements of a token in each form.
#[derive(Clone, Copy)]
struct Sizes {
    cols: usize,
    /// Of scratch rows: quantization reads whole groups.
    padded_cols: usize,
    groups: usize,
    pairs: usize,
    bytes: usize,
}

impl Sizes {
    fn new(cols: usize) -> Self {
        let groups = cols.div_ceil(GROUP);
        let padded_cols = cols.next_multiple_of(2 * GROUP);
        Self { cols, padded_cols, groups, pairs: groups * GROUP / 2, bytes: cols.div_ceil(64) * 16 }
    }
}

/// Two rows of each thread: the features of a token, and rounded numbers.
struct ScratchRows<'a> {
    rows: DisjointSliceMut<'a, f32>,
    padded_cols: usize,
}

impl<'a> ScratchRows<'a> {
    fn new(scratch: &'a mut Vec<f32>, cols: usize, threads: usize) -> Self {
        let padded_cols = Sizes::new(cols).padded_cols;
        if scratch.len() < threads * 2 * padded_cols {
            scratch.resize(threads * 2 * padded_cols, 0.0);
        }
        Self { rows: DisjointSliceMut::new(scratch), padded_cols }
    }

    /// The rows of `thread`.
    fn of(&self, thread: usize) -> &'a mut [f32] {
        // SAFETY: each thread has a range of its own, and a thread fills one batch at a time.
        unsafe { self.rows.slice(2 * thread * self.padded_cols..2 * (thread + 1) * self.padded_cols) }
    }
}

/// A batch that is being filled, in tasks of some tokens each.
struct Filling<'a> {
    store: Store<'a>,
    tiles: Tiles,
    /// Tokens per task.
    per_task: usize,
}

impl Filling<'_> {
    fn tasks(&self) -> usize {
        self.tiles.n_tokens.div_ceil(self.per_task)
    }

    /// Stores the tokens of `task`. `rows` are the two scratch rows of the thread.
    fn run(&self, task: usize, rows: &mut [f32], fill: &(impl Fn(usize, &mut [f32]) + Sync)) {
        let Self { store, tiles, per_task } = self;
        let (first, n, width) = tiles.get(task * per_task / tiles.tile);
        let start = task * per_task - first;
        let (row, rounded) = rows.split_at_mut(store.sizes.padded_cols);
        let cols = store.sizes.cols;
        row[cols..].fill(0.0);
        for t in start..n.min(start + per_task) {
            fill(first + t, &mut row[..cols]);
            // SAFETY: each task has tokens of its own. Where tasks share a token tile, only forms that are not
            // written through slices of a tile are stored: 8-bit groups, and what is in AMX tiles.
            unsafe { store.token(row, rounded, TilePlace { first, t, width }) };
        }
    }
}

/// Token `first + t`, which is token `t` of a tile that is stored `width` tokens wide.
#[derive(Clone, Copy)]
struct TilePlace {
    first: usize,
    t: usize,
    width: usize,
}

/// The memory that tokens are stored in.
struct Store<'a> {
    level: SimdLevel,
    needs: Needs,
    sizes: Sizes,
    /// Tokens of an AMX tile, where pairs and bytes are stored so.
    amx_rows: Option<usize>,
    groups: DisjointSliceMut<'a, QuantGroup>,
    floats: DisjointSliceMut<'a, f32>,
    pairs: DisjointSliceMut<'a, u32>,
    bytes: DisjointSliceMut<'a, i32>,
    rows: DisjointSliceMut<'a, RowScale>,
}

impl Store<'_> {
    /// Stores the padded `row` of a token in all forms that are needed; `rounded` is scratch memory of the same length.
    ///
    /// # Safety
    /// No other thread stores this token, and where floats, or pairs and bytes outside of AMX tiles are needed, none of
    /// its tile.
    unsafe fn token(&self, row: &[f32], rounded: &mut [f32], place: TilePlace) {
        let Self { level, needs, sizes, .. } = *self;
        let TilePlace { first, t, width } = place;
        if needs.quantized {
            let row = &row[..sizes.groups * GROUP];
            // SAFETY: the groups `first * groups + t + i * width` are those of this token, which no other thread
            // stores.
            level.run(unsafe { Quantize::new(row, &self.groups, first * sizes.groups + t, width) });
        }
        if needs.float {
            // SAFETY: no other thread stores tokens of this tile.
            let out = unsafe { self.floats.slice(first * sizes.cols..(first + width) * sizes.cols) };
            for (out, &x) in out[t..].iter_mut().step_by(width).zip(&row[..sizes.cols]) {
                *out = x;
            }
        }
        // Floats and groups stay in token tiles: no AMX kernel reads the former, and int8 AMX reads the latter there.
        if needs.bf16 {
            let rounded: &mut [u32] = &mut bytemuck::cast_slice_mut(rounded)[..sizes.pairs];
            level.run(RoundRow { row, out: bytemuck::cast_slice_mut(rounded) });
            if let Some(rows) = self.amx_rows {
                // SAFETY: no other thread stores this token.
                unsafe { store_in_amx_tile(&self.pairs, rows, first + t, rounded) };
            } else {
                // SAFETY: no other thread stores tokens of this tile.
                let out = unsafe { self.pairs.slice(first * sizes.pairs..(first + width) * sizes.pairs) };
                out[t..].iter_mut().step_by(width).zip(&*rounded).for_each(|(out, x)| *out = *x);
            }
        }
        if needs.row_int8 {
            // SAFETY: no other thread stores this token.
            let scale = unsafe { self.rows.slice(first + t..first + t + 1) };
            if let Some(rows) = self.amx_rows {
                let quants: &mut [i32] = &mut bytemuck::cast_slice_mut(rounded)[..sizes.bytes];
                scale[0] = level.run(QuantizeRow { row, out: quants, width: 1 });
                // SAFETY: no other thread stores this token.
                unsafe { store_in_amx_tile(&self.bytes, rows, first + t, quants) };
            } else {
                // SAFETY: no other thread stores tokens of this tile.
                let out = unsafe { self.bytes.slice(first * sizes.bytes..(first + width) * sizes.bytes) };
                scale[0] = level.run(QuantizeRow { row, out: &mut out[t..], width });
            }
        }
    }
}

/// Stores the words of a token in its AMX tile of `rows` tokens, 64 bytes after 64 bytes.
///
/// # Safety
/// No other thread uses the words of this token.
unsafe fn store_in_amx_tile<T: Copy>(to: &DisjointSliceMut<'_, T>, rows: usize, token: usize, words: &[T]) {
    const STEP: usize = 16;
    let start = token / rows * rows * words.len() + token % rows * STEP;
    for (step, words) in words.as_chunks::<STEP>().0.iter().enumerate() {
        let at = start + step * rows * STEP;
        // SAFETY: these 16 words are the token's, which no other thread uses.
        unsafe { to.slice(at..at + STEP) }.copy_from_slice(words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Pool;

    /// Weights that tile registers do not multiply read the batch as they always do.
    #[test]
    fn storing_in_blocks_changes_pairs_and_bytes_only() {
        let pool = Pool::new(2).unwrap();
        let needs = Needs { quantized: true, float: true, bf16: true, row_int8: true };
        let (n, cols) = (15, 70);
        for level in SimdLevel::supported() {
            let [tiles, blocks] = [false, true].map(|blocks| {
                let mut x = Activations::new();
                let shape = ActivationShape { n_tokens: n, cols, needs };
                x.fill_as(Exec { pool: &pool, level }, shape, blocks, |t, out| {
                    out.iter_mut().enumerate().for_each(|(i, x)| *x = (t * cols + i) as f32);
                });
                x
            });
            assert_eq!(tiles.floats, blocks.floats, "{level}");
            assert_eq!(tiles.groups, blocks.groups, "{level}");
            for i in 0..n {
                assert_eq!(tiles.rows[i], blocks.rows[i], "{level}");
            }
            assert_ne!(tiles.pairs, blocks.pairs, "{level}");
        }
    }
}
