//! One unit of work: a block of query rows of one KV head against a range of keys.

use super::{
    AttentionArgs, MOST_ROWS, PageGeometry, PageView, UNIT_ROWS, amx as tiles,
    codes::PackedPage,
    column_sums::{Columns, inverse},
    dispatch::{Kernels, RowKernels},
    qk_pv::Values,
    scratch::ThreadScratch,
    storage::{StorageKind, TILE, packing::PackedKind, sparse::Layout},
    unpack,
};
use crate::exec::DisjointSliceMut;
use std::ops::Range;

/// A block of rows of a KV head and what it is scored against.
pub(crate) struct BlockTask<'a> {
    pub(crate) args: &'a AttentionArgs<'a>,
    pub(crate) kernels: UnitKernels,
    pub(crate) head: usize,
    /// Rows `token * group + member`, at most [`UnitKernels::unit_rows`].
    pub(crate) rows: Range<usize>,
    /// Keys to score at once; segments start at multiples of it.
    pub(crate) segment: usize,
    /// Keys to look at, where not all.
    pub(crate) only: Option<Range<usize>>,
}

/// The kernels that units of a call choose from.
#[derive(Clone, Copy)]
pub(crate) struct UnitKernels {
    plain: Kernels,
    /// With tile registers, where no page is sparse.
    in_tiles: Option<Kernels>,
}

impl UnitKernels {
    /// Those of the tier; tile registers are for prompts, which have more rows than a unit.
    pub(crate) fn new(args: &AttentionArgs<'_>) -> Self {
        let many = args.n_tokens * (args.n_heads / args.n_kv_heads) > UNIT_ROWS;
        let in_tiles = Kernels::in_tiles(args.level, args.storage, args.geometry).filter(|_| many);
        Self { plain: Kernels::new(args.level, args.storage), in_tiles }
    }

    /// Query rows of a unit.
    pub(crate) fn unit_rows(self) -> usize {
        if self.in_tiles.is_some() { tiles::ROWS } else { UNIT_ROWS }
    }
}

/// A unit's rows, cut into blocks for the kernels that were chosen.
struct Cut {
    kernels: Kernels,
    blocks: Vec<RowBlock>,
}

/// Where results go.
pub(crate) enum Sink<'a> {
    /// Normalized rows into the output, except those that nobody wants.
    Rows(DisjointSliceMut<'a, f32>),
    /// `[rows]` maxima, `[rows]` sums, `[rows][head_dim]` outputs that are not normalized.
    Partial(&'a mut [f32]),
}

/// A part of the block's rows that one register block covers, and where its data stand in the scratch.
pub(crate) struct RowBlock {
    kernels: &'static RowKernels,
    /// Which of the tier's kernels these are.
    kind: usize,
    /// First row (of the layer), and how many of the kernel's rows are real.
    pub(crate) first: usize,
    pub(crate) n: usize,
    /// Offsets of `q`, `scores` and `acc`, and of the queries for packed pages.
    q: usize,
    plain_q: usize,
    pub(crate) scores: usize,
    acc: usize,
}

impl RowBlock {
    /// Rows that it has room for.
    pub(crate) fn rows(&self) -> usize {
        self.kernels.rows
    }
}

/// The queries of a unit, and room for what packed pages make of them.
struct Queries<'a> {
    /// As elements.
    q: &'a [f32],
    /// In f32.
    plain_q: &'a [f32],
    work: &'a mut [f32],
    /// Room for as many unpacked pages as are read at a time.
    pages: &'a mut [f32],
}

/// What pages hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contents {
    Plain,
    Codes,
    Sparse,
}

impl Queries<'_> {
    /// Where kernels `k` read a page of `n` minima and scales and `runs` runs, and how: a packed one that they cannot read is
    /// unpacked into place `at`.
    fn readable(
        &mut self,
        k: &Kernels,
        page: &[u8],
        packed: Option<PackedKind>,
        (n, runs): (usize, usize),
        at: usize,
    ) -> (*const u8, Option<PackedKind>) {
        let (Some(kind), Some(unpack)) = (packed, k.unpack) else { return (page.as_ptr(), packed) };
        let floats = unpacked_floats(n * runs * TILE);
        let to = &mut self.pages[at * floats..][..floats];
        // SAFETY: the page was checked to have the length of its packing, and `to` has room for it in bf16.
        unsafe { unpack(kind, page.as_ptr(), n, runs, to.as_mut_ptr().cast()) };
        (to.as_ptr().cast(), None)
    }

    /// Tiles of a packed page for its kernel.
    fn page(
        &mut self,
        page: &[u8],
        ahead: *const u8,
        g: PageGeometry,
        first: usize,
        tiles: usize,
    ) -> PackedPage {
        let layout = Layout::new(g, 0);
        PackedPage {
            page: page.as_ptr(),
            ahead,
            page_tokens: g.page_tokens,
            dim_blocks: g.padded_dim() / TILE,
            bitmaps: layout.bitmaps,
            center: layout.center,
            values: layout.values,
            first,
            tiles,
            work: self.work.as_mut_ptr().cast(),
        }
    }
}

/// Floats of memory that an unpacked page of so many elements takes.
fn unpacked_floats(elements: usize) -> usize {
    (2 * elements + unpack::SLACK).next_multiple_of(64) / 4
}

/// Softmax state of a row: maximum and sum so far.
#[derive(Clone, Copy)]
pub(crate) struct RowState {
    max: f32,
    pub(crate) sum: f32,
}

/// The keys that some token of `tokens` sees.
pub(crate) fn union_of_visible(args: &AttentionArgs<'_>, head: usize, tokens: Range<usize>) -> Range<usize> {
    let n_keys = args.kv.n_keys(head);
    let (mut start, mut end) = (usize::MAX, 0);
    for token in tokens {
        let keys = args.kv.visible(head, token);
        if keys.start < keys.end {
            start = start.min(keys.start);
            end = end.max(keys.end.min(n_keys));
        }
    }
    start.min(end)..end
}

impl BlockTask<'_> {
    fn group(&self) -> usize {
        self.args.n_heads / self.args.n_kv_heads
    }

    fn visible(&self, row: usize) -> Range<usize> {
        self.args.kv.visible(self.head, row / self.group())
    }

    /// Whether the output of some row is wanted.
    fn wanted(&self) -> bool {
        (self.rows.end - 1) / self.group() >= self.args.wanted_from
    }

    /// Computes the block. Column sums take a segment that holds all keys.
    pub(crate) fn run(
        &self,
        scratch: &mut ThreadScratch,
        sink: &mut Sink<'_>,
        mut columns: Option<Columns<'_>>,
    ) {
        let args = self.args;
        let group = self.group();
        let tokens = self.rows.start / group..(self.rows.end - 1) / group + 1;
        let mut keys = union_of_visible(args, self.head, tokens);
        if let Some(only) = &self.only {
            keys = keys.start.max(only.start)..keys.end.min(only.end);
        }
        let contents = self.contents(&keys);
        let in_tiles = self.kernels.in_tiles.filter(|_| contents != Contents::Sparse);
        let kernels = in_tiles.unwrap_or(self.kernels.plain);
        let packed = contents != Contents::Plain && kernels.unpack.is_none();
        // Whole tiles; what they hold beyond the visible keys is masked.
        let whole = if kernels.in_tiles { 2 * TILE } else { TILE };
        let keys = keys.start / whole * whole..keys.end;
        let n_keys = keys.end.saturating_sub(keys.start);

        let steps = args.geometry.padded_dim() / kernels.pair;
        let dim_blocks = args.geometry.padded_dim() / TILE;
        let tiles = n_keys.min(self.segment).div_ceil(TILE);
        let mut blocks: Vec<RowBlock> = Vec::with_capacity(4);
        let (mut q, mut plain_q, mut scores, mut acc) = (0, 0, 0, 0);
        let mut first = self.rows.start;
        while first < self.rows.end {
            let left = self.rows.end - first;
            let kind = kernels.blocks.iter().position(|k| k.rows >= left);
            let kind = kind.unwrap_or(kernels.blocks.len() - 1);
            let of_block = &kernels.blocks[kind];
            let rows = of_block.rows;
            let n = left.min(rows);
            blocks.push(RowBlock { kernels: of_block, kind, first, n, q, plain_q, scores, acc });
            q += (steps * rows * kernels.slots).next_multiple_of(TILE);
            plain_q += if packed { args.geometry.padded_dim() * rows } else { 0 };
            scores += tiles * rows * TILE;
            acc += dim_blocks * rows * TILE;
            first += rows;
        }
        let cut = Cut { kernels, blocks };
        if self.only.is_some() && n_keys > 0 {
            let page = args.kv.page(self.head, keys.start / args.geometry.page_tokens);
            prefetch(page.k);
        }
        let q = scratch.q.at_least(q);
        let scores = scratch.scores.at_least(scores);
        let acc = scratch.acc.at_least(acc);
        let plain_q = scratch.plain_q.at_least(plain_q);
        acc.fill(0.0);
        for block in &cut.blocks {
            for r in 0..block.rows() {
                (kernels.elements)(self.query(block, r), steps, r, block.rows(), &mut q[block.q..]);
            }
            if packed {
                self.write_plain(block, &mut plain_q[block.plain_q..]);
            }
        }
        let tiles = dim_blocks.max(args.geometry.page_tokens / TILE);
        let work = scratch.work.at_least(if packed { MOST_ROWS * tiles * TILE / 2 } else { 0 });
        let unpacks = contents != Contents::Plain && kernels.unpack.is_some();
        let elements = args.geometry.page_tokens * args.geometry.padded_dim();
        let pages = if unpacks { kernels.run_pages * unpacked_floats(elements) } else { 0 };
        let pages = scratch.pages.at_least(pages);
        let mut queries = Queries { q, plain_q, work, pages };

        let mut states = [RowState { max: f32::NEG_INFINITY, sum: 0.0 }; MOST_ROWS];
        let mut start = keys.start;
        let _registers = kernels.in_tiles.then(tiles::registers);
        while start < keys.end {
            let end = keys.end.min((start / self.segment + 1).saturating_mul(self.segment));
            self.segment(start..end, &cut, &mut queries, scores, acc, &mut states, columns.take());
            start = end;
        }
        if self.wanted() {
            self.write(&cut.blocks, acc, &states, sink);
        }
    }

    /// What the pages of `keys` hold; the most that one of them does.
    fn contents(&self, keys: &Range<usize>) -> Contents {
        let page_tokens = self.args.geometry.page_tokens;
        let pages = keys.start / page_tokens..keys.end.div_ceil(page_tokens);
        let contents = pages.map(|page| match self.args.kv.page(self.head, page).packed {
            None => Contents::Plain,
            Some(PackedKind::Int8 | PackedKind::Int4) => Contents::Codes,
            Some(PackedKind::Sparse(_)) => Contents::Sparse,
        });
        let contents = contents.max().unwrap_or(Contents::Plain);
        assert!(
            contents == Contents::Plain || self.args.storage == StorageKind::Bf16,
            "packed pages stand among bf16 pages"
        );
        contents
    }

    /// The query of a row of a block; nothing for rows that only fill it up.
    fn query(&self, block: &RowBlock, r: usize) -> &[f32] {
        let (args, group, dim) = (self.args, self.group(), self.args.geometry.head_dim);
        if r >= block.n {
            return &[];
        }
        let (token, member) = ((block.first + r) / group, (block.first + r) % group);
        &args.q[(token * args.n_heads + self.head * group + member) * dim..][..dim]
    }

    /// The rows' queries in f32, `[R][dims]`, the padding zero.
    fn write_plain(&self, block: &RowBlock, to: &mut [f32]) {
        for (r, to) in to.chunks_exact_mut(self.args.geometry.padded_dim()).take(block.rows()).enumerate() {
            let row = self.query(block, r);
            to[..row.len()].copy_from_slice(row);
            to[row.len()..].fill(0.0);
        }
    }

    /// Calls `visit(page, first tile in it, tiles, tiles before it)` for the pages of `keys`, with the next page.
    fn pages(&self, keys: &Range<usize>, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let page_tokens = self.args.geometry.page_tokens;
        let mut start = keys.start;
        while start < keys.end {
            let page = start / page_tokens;
            let end = keys.end.min((page + 1) * page_tokens);
            let (tile, tiles) = (start % page_tokens / TILE, (end - start).div_ceil(TILE));
            visit(page, tile, tiles, (start - keys.start) / TILE);
            start = end;
        }
    }

    /// Scores, softmax and values of `keys`, on top of what earlier segments have given.
    fn segment(
        &self,
        keys: Range<usize>,
        Cut { kernels: k, blocks }: &Cut,
        queries: &mut Queries<'_>,
        scores: &mut [f32],
        acc: &mut [f32],
        states: &mut [RowState; MOST_ROWS],
        columns: Option<Columns<'_>>,
    ) {
        let args = self.args;
        let g = args.geometry;
        let (steps, dim_blocks) = (g.padded_dim() / k.pair, g.padded_dim() / TILE);
        let tile_bytes = steps * k.step_bytes;
        let block_bytes = g.page_tokens / k.pair * k.step_bytes;
        let page_bytes = g.page_tokens / TILE * tile_bytes;
        let cap = args.softcap.unwrap_or(0.0);
        let (finished, c) = score_factor(args, self.head);

        let last_page = (keys.end - 1) / g.page_tokens;
        self.pages(&keys, |page, tile, tiles, before| {
            let view = args.kv.page(self.head, page);
            check_page(&view, page_bytes, g);
            // What is read next is asked for now.
            let ahead = if page < last_page {
                args.kv.page(self.head, page + 1).k.as_ptr()
            } else {
                args.kv.page(self.head, keys.start / g.page_tokens).v.as_ptr()
            };
            let shape = (g.padded_dim(), g.page_tokens / TILE);
            let (at, packed) = queries.readable(k, view.k, view.packed, shape, 0);
            for block in blocks {
                let rows = block.kernels.rows;
                let out = &mut scores[block.scores + before * rows * TILE..][..tiles * rows * TILE];
                let q = &queries.q[block.q..][..steps * rows * k.slots];
                // SAFETY: the page holds tiles `tile..tile + tiles` (checked above, and `pages` stays inside a page), `q`,
                // `plain_q`, `work` and `out` have the lengths that the kernel asks for, and the table is that of a tier
                // that the CPU has.
                unsafe {
                    match packed {
                        None => (block.kernels.qk)(
                            at.add(tile * tile_bytes),
                            tiles,
                            steps,
                            q.as_ptr(),
                            out.as_mut_ptr(),
                            ahead.wrapping_add(tile * tile_bytes),
                        ),
                        Some(kind) => {
                            let page = queries.page(view.k, ahead, g, tile, tiles);
                            let kernel = &k.packed(kind)[block.kind];
                            let plain_q = &queries.plain_q[block.plain_q..][..g.padded_dim() * rows];
                            let q = if kernel.plain_q { plain_q } else { q };
                            (kernel.qk)(&page, q.as_ptr(), out.as_mut_ptr());
                        }
                    }
                }
                if finished {
                    let bias =
                        view.bias.map_or(std::ptr::null(), |b| b[tile * TILE..][..tiles * TILE].as_ptr());
                    // SAFETY: as above; the bias was cut to the tiles' keys.
                    unsafe { (block.kernels.finish)(out.as_mut_ptr(), tiles, args.scale, cap, bias) };
                }
            }
        });

        let tiles = (keys.end - keys.start).div_ceil(TILE);
        for block in blocks {
            let rows = block.kernels.rows;
            let scores = &mut scores[block.scores..][..tiles * rows * TILE];
            for r in 0..block.n {
                mask(scores, rows, r, &keys, &self.visible(block.first + r));
            }
            let (mut max, mut sum) = ([0.0; MOST_ROWS], [0.0; MOST_ROWS]);
            let states = &mut states[block.first - self.rows.start..][..block.n];
            // SAFETY: `scores` has `tiles * rows * 16` floats, and `MOST_ROWS` is not below any kernel's `rows`.
            unsafe { (block.kernels.row_max)(scores.as_ptr(), tiles, max.as_mut_ptr()) };
            for r in 0..rows {
                if let Some(state) = states.get(r) {
                    max[r] = max[r].max(state.max);
                }
                if max[r] == f32::NEG_INFINITY {
                    max[r] = 0.0;
                }
            }
            // SAFETY: as above.
            unsafe { (block.kernels.exp_sum)(scores.as_mut_ptr(), tiles, c, max.as_ptr(), sum.as_mut_ptr()) };
            let acc = &mut acc[block.acc..][..dim_blocks * rows * TILE];
            for (r, state) in states.iter_mut().enumerate() {
                if state.sum != 0.0 && state.max != max[r] {
                    let factor = ((state.max - max[r]) * c).exp2();
                    state.sum *= factor;
                    for b in 0..dim_blocks {
                        acc[(b * rows + r) * TILE..][..TILE].iter_mut().for_each(|x| *x *= factor);
                    }
                }
                state.max = max[r];
                state.sum += sum[r];
            }
        }

        let mut adder = columns.and_then(|c| c.adder(args, *k, (self.head, &self.rows), blocks, states));
        let wanted = self.wanted();
        let mut run = Vec::with_capacity(k.run_pages);
        self.pages(&keys, |page, tile, tiles, before| {
            let view = args.kv.page(self.head, page);
            check_page(&view, page_bytes, g);
            let next = if page < last_page { page + 1 } else { page };
            let offset = tile * TILE / k.pair * k.step_bytes;
            let ahead = args.kv.page(self.head, next).v.as_ptr();
            let shape = (g.page_tokens, dim_blocks);
            let (at, packed) = match wanted {
                true => queries.readable(k, view.v, view.packed, shape, run.len()),
                false => (view.v.as_ptr(), None),
            };
            run.push(Values { at: at.wrapping_add(offset), tiles });
            if run.len() < k.run_pages && page < last_page {
                return;
            }
            let end = before + tiles;
            let tiles = run.iter().map(|page| page.tiles).sum::<usize>();
            let before = end - tiles;
            for block in blocks.iter().filter(|_| wanted) {
                let rows = block.kernels.rows;
                let scores = &scores[block.scores..][..end * rows * TILE];
                let p = &scores[(k.place_p)(before, rows * TILE)..];
                let acc = &mut acc[block.acc..][..dim_blocks * rows * TILE];
                // SAFETY: as for the scores: the probabilities of `tiles` tiles start at `p`. (Where kernels read packed
                // pages, a run is one page.)
                unsafe {
                    match packed {
                        None => (block.kernels.pv)(
                            &run,
                            block_bytes,
                            dim_blocks,
                            p.as_ptr(),
                            acc.as_mut_ptr(),
                            ahead.wrapping_add(offset),
                        ),
                        Some(kind) => {
                            let page = queries.page(view.v, ahead, g, tile, tiles);
                            (k.packed(kind)[block.kind].pv)(&page, p.as_ptr(), acc.as_mut_ptr());
                        }
                    }
                }
            }
            // After the values: now the probabilities are in the first cache.
            if let Some(adder) = &mut adder {
                adder.add(scores, before, tiles, keys.start + before * TILE);
            }
            run.clear();
        });
    }

    fn write(&self, blocks: &[RowBlock], acc: &[f32], states: &[RowState; MOST_ROWS], sink: &mut Sink<'_>) {
        let (args, group, dim) = (self.args, self.group(), self.args.geometry.head_dim);
        let n_rows = self.rows.len();
        for block in blocks {
            let rows = block.kernels.rows;
            for r in 0..block.n {
                let row = block.first + r;
                let local = row - self.rows.start;
                let state = states[local];
                let (to, factor): (&mut [f32], f32) = match sink {
                    Sink::Partial(part) => {
                        part[local] = state.max;
                        part[n_rows + local] = state.sum;
                        (&mut part[2 * n_rows + local * dim..][..dim], 1.0)
                    }
                    Sink::Rows(out) => {
                        let at = (row / group * args.n_heads + self.head * group + row % group) * dim;
                        // SAFETY: rows of the layer belong to one unit each, and every unit runs once.
                        (unsafe { out.slice(at..at + dim) }, inverse(state.sum))
                    }
                };
                for (b, to) in to.chunks_mut(TILE).enumerate() {
                    let from = &acc[block.acc + (b * rows + r) * TILE..][..TILE];
                    to.iter_mut().zip(from).for_each(|(to, x)| *to = x * factor);
                }
            }
        }
    }
}

/// Whether scores are finished (scaled, capped, biased) before the softmax, and the factor that it takes them times.
///
/// Without a cap or a bias the scale is folded into the exponent.
fn score_factor(args: &AttentionArgs<'_>, head: usize) -> (bool, f32) {
    let finished = args.softcap.is_some() || args.scale <= 0.0 || args.kv.has_bias(head);
    (finished, if finished { 1.0 } else { args.scale } * std::f32::consts::LOG2_E)
}

fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch reads nothing architecturally.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.as_ptr().cast());
        };
    }
}

fn check_page(view: &PageView<'_>, page_bytes: usize, g: PageGeometry) {
    let [k, v] = view.packed.map_or([page_bytes; 2], |kind| kind.packing().page_bytes(g));
    assert!(view.k.len() >= k && view.v.len() >= v, "a page is too short");
    assert!(
        (view.k.as_ptr() as usize | view.v.as_ptr() as usize).is_multiple_of(64),
        "a page is not aligned"
    );
    assert!(view.bias.is_none_or(|b| b.len() >= g.page_tokens), "a page's bias is too short");
}

/// Minus infinity for the keys of a row that it does not see. `scores` are those of `keys`, `[tile][rows][16]`.
fn mask(scores: &mut [f32], rows: usize, row: usize, keys: &Range<usize>, visible: &Range<usize>) {
    let end = (keys.end - keys.start).next_multiple_of(TILE);
    let from = visible.start.clamp(keys.start, keys.end) - keys.start;
    let to = visible.end.clamp(keys.start, keys.end) - keys.start;
    let mut fill = |mut keys: Range<usize>| {
        while keys.start < keys.end {
            let (tile, lane) = (keys.start / TILE, keys.start % TILE);
            let n = (TILE - lane).min(keys.end - keys.start);
            scores[(tile * rows + row) * TILE + lane..][..n].fill(f32::NEG_INFINITY);
            keys.start += n;
        }
    };
    fill(0..from.min(end));
    fill(to.max(from.min(end))..end);
}

/// Merges the partial results of a head's segments, in order, into the output.
pub(crate) fn merge(args: &AttentionArgs<'_>, head: usize, rows: usize, parts: &[f32], out: &mut [f32]) {
    let (group, dim) = (args.n_heads / args.n_kv_heads, args.geometry.head_dim);
    let stride = rows * (dim + 2);
    let (_, c) = score_factor(args, head);
    for row in 0..rows {
        let to = &mut out[(row / group * args.n_heads + head * group + row % group) * dim..][..dim];
        let seen = |part: &&[f32]| part[rows + row] != 0.0;
        let max = parts.chunks(stride).filter(seen).fold(f32::NEG_INFINITY, |m, part| m.max(part[row]));
        let mut sum = 0.0;
        to.fill(0.0);
        for part in parts.chunks(stride).filter(seen) {
            let factor = if part[row] == max { 1.0 } else { ((part[row] - max) * c).exp2() };
            sum += factor * part[rows + row];
            let from = &part[2 * rows + row * dim..][..dim];
            to.iter_mut().zip(from).for_each(|(to, x)| *to += factor * x);
        }
        let inverse = inverse(sum);
        to.iter_mut().for_each(|x| *x *= inverse);
    }
}
