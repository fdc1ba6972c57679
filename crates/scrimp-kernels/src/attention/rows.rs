//! One task of attention: a block of query rows of one KV head against a range of keys.
//!
//! ```text
//! for each segment of keys, in order:
//!     s  = scores of all rows (qk), masked         m' = max(m, max s)
//!     p  = exp(s - m')                             l  = l exp(m - m') + sum p
//!     o  = o exp(m - m') + p V (pv)
//! out = o / l, or (m, l, o) for the merge of segments
//! ```
//! Source: the online softmax of Milakov and Gimelshein 2018 (arXiv 1805.02867), section 3. The order of additions
//! depends on shapes only, so the bits are the same for every number of threads.

use super::{
    AttentionArgs, MOST_ROWS, PageGeometry, PageView, UNIT_ROWS, amx,
    format::ElementPlace,
    packed_page::{PackedPage, PackedPvArgs, PackedQkArgs},
    qk_pv::{ExpSumArgs, FinishArgs, PvArgs, QkArgs, RowMaxArgs, Values},
    score_sums::{Adder, Columns, inverse},
    scratch::ThreadScratch,
    storage::{StorageKind, TILE, packing::PackedKind, sparse::Layout},
    tables::{Kernels, RowKernels},
    unpack::{self, UnpackArgs},
};
use crate::{
    arch::{L2, SimdLevel, prefetch},
    exec::DisjointSliceMut,
};
use std::ops::Range;

/// A block of rows of a KV head, and the keys that it is scored against.
pub(crate) struct BlockTask<'a> {
    pub(crate) args: &'a AttentionArgs<'a>,
    pub(crate) level: SimdLevel,
    pub(crate) kernels: TaskKernels,
    pub(crate) head: usize,
    /// Rows `token * group + member`, at most [`TaskKernels::task_rows`].
    pub(crate) rows: Range<usize>,
    /// Keys to score at once; segments start at multiples of it.
    pub(crate) segment: usize,
    /// The range of keys to use, unless all.
    pub(crate) only: Option<Range<usize>>,
}

/// The kernels that tasks of a call choose from.
#[derive(Clone, Copy)]
pub(crate) struct TaskKernels {
    plain: Kernels,
    /// With tile registers, where no page is sparse.
    in_tiles: Option<Kernels>,
}

impl TaskKernels {
    /// Those of the level; tile registers are for prompts, which have more rows than a task.
    pub(crate) fn new(level: SimdLevel, args: &AttentionArgs<'_>) -> Self {
        let many = args.n_tokens * (args.n_heads / args.n_kv_heads) > UNIT_ROWS;
        let in_tiles = Kernels::in_tiles(level, args.storage, args.geometry).filter(|_| many);
        Self { plain: Kernels::new(level, args.storage), in_tiles }
    }

    /// Query rows of a task.
    pub(crate) fn task_rows(self) -> usize {
        if self.in_tiles.is_some() { amx::ROWS } else { UNIT_ROWS }
    }
}

/// A task's rows, cut into blocks for the kernels that were chosen, and the sizes that these work with.
struct Cut {
    kernels: Kernels,
    blocks: Vec<RowBlock>,
    /// Floats of all blocks: queries as elements and in f32, scores of a segment, and outputs.
    q: usize,
    plain_q: usize,
    scores: usize,
    acc: usize,
    sizes: Sizes,
}

/// Sizes of pages as the kernels read them.
#[derive(Clone, Copy)]
struct Sizes {
    /// Steps of a tile of keys.
    steps: usize,
    /// Blocks of 16 dims.
    dim_blocks: usize,
    /// Bytes of a tile of keys, of a block of values, and of a page of either.
    tile_bytes: usize,
    block_bytes: usize,
    page_bytes: usize,
}

impl Sizes {
    fn new(g: PageGeometry, k: &Kernels) -> Self {
        let steps = g.padded_dim() / k.pair;
        let tile_bytes = steps * k.step_bytes;
        Self {
            steps,
            dim_blocks: g.padded_dim() / TILE,
            tile_bytes,
            block_bytes: g.page_tokens / k.pair * k.step_bytes,
            page_bytes: g.page_tokens / TILE * tile_bytes,
        }
    }
}

/// Where results go.
pub(crate) enum Sink<'a> {
    /// Normalized rows into the output.
    Rows(DisjointSliceMut<'a, f32>),
    /// `[rows]` maxima, `[rows]` sums, `[rows][head_dim]` outputs that are not normalized.
    Partial(&'a mut [f32]),
}

/// A part of the block's rows that one register block covers, and the offsets of its data in the scratch memory.
pub(crate) struct RowBlock {
    kernels: RowKernels,
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

/// The queries, scores and outputs of a task.
struct Buffers<'a> {
    /// Queries as elements.
    q: &'a [f32],
    /// Queries in f32, for packed pages.
    plain_q: &'a [f32],
    scores: &'a mut [f32],
    /// Outputs that are not normalized.
    acc: &'a mut [f32],
    packed: PackedScratch<'a>,
}

/// Scratch memory for packed pages.
struct PackedScratch<'a> {
    /// Factors of codes.
    work: &'a mut [f32],
    /// As many unpacked pages as are read at a time.
    pages: &'a mut [f32],
}

/// A page as kernels read it.
#[derive(Clone, Copy)]
struct ReadablePage {
    at: *const u8,
    /// How it is packed, where it is.
    packed: Option<PackedKind>,
}

/// The tiles of a page that belong to a segment.
#[derive(Clone, Copy)]
struct PageTiles {
    /// The page's index.
    page: usize,
    /// First tile in the page, and how many.
    tile: usize,
    tiles: usize,
    /// Tiles of the segment before these.
    before: usize,
}

/// What pages hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contents {
    Plain,
    Codes,
    Sparse,
}

impl PackedScratch<'_> {
    /// A page of `n` minima and scales and `runs` runs as kernels `k` read it: a packed one that they cannot read is
    /// unpacked into place `at`.
    fn readable(
        &mut self,
        k: &Kernels,
        page: &[u8],
        packed: Option<PackedKind>,
        (n, runs): (usize, usize),
        at: usize,
    ) -> ReadablePage {
        let (Some(kind), Some(unpack)) = (packed, k.unpack) else {
            return ReadablePage { at: page.as_ptr(), packed };
        };
        let floats = unpacked_floats(n * runs * TILE);
        let to = &mut self.pages[at * floats..][..floats];
        let args = UnpackArgs { kind, page: page.as_ptr(), n, runs, to: to.as_mut_ptr().cast() };
        // SAFETY: `check_page` has compared the page with the length of its packing, and `to` has room for it in bf16.
        unsafe { unpack(args) };
        ReadablePage { at: to.as_ptr().cast(), packed: None }
    }

    /// Tiles of a packed page for its kernel.
    fn page(&mut self, page: &[u8], ahead: *const u8, g: PageGeometry, at: PageTiles) -> PackedPage {
        let layout = Layout::new(g, 0);
        PackedPage {
            page: page.as_ptr(),
            ahead,
            page_tokens: g.page_tokens,
            dim_blocks: g.padded_dim() / TILE,
            bitmaps: layout.bitmaps,
            center: layout.center,
            values: layout.values,
            first: at.tile,
            tiles: at.tiles,
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

        let cut = self.cut(kernels, n_keys, packed);
        if self.only.is_some() && n_keys > 0 {
            let page = args.kv.page(self.head, keys.start / args.geometry.page_tokens);
            page.k.chunks(64).for_each(|line| prefetch::<L2>(line.as_ptr()));
        }
        let q = scratch.q.at_least(cut.q);
        let plain_q = scratch.plain_q.at_least(cut.plain_q);
        self.write_queries(&cut, packed, q, plain_q);
        let acc = scratch.acc.at_least(cut.acc);
        acc.fill(0.0);
        let tiles = cut.sizes.dim_blocks.max(args.geometry.page_tokens / TILE);
        let work = scratch.work.at_least(if packed { MOST_ROWS * tiles * TILE / 2 } else { 0 });
        let unpacks = contents != Contents::Plain && kernels.unpack.is_some();
        let elements = args.geometry.page_tokens * args.geometry.padded_dim();
        let pages = if unpacks { kernels.run_pages * unpacked_floats(elements) } else { 0 };
        let packed = PackedScratch { work, pages: scratch.pages.at_least(pages) };
        let mut buffers = Buffers { q, plain_q, scores: scratch.scores.at_least(cut.scores), acc, packed };

        let mut states = [RowState { max: f32::NEG_INFINITY, sum: 0.0 }; MOST_ROWS];
        let (mut start, last) = (keys.start, keys.end);
        let _registers = kernels.in_tiles.then(|| amx::registers(self.level));
        while start < keys.end {
            let end = keys.end.min((start / self.segment + 1).saturating_mul(self.segment));
            let keys = start..end;
            self.score(&keys, &cut, &mut buffers);
            self.softmax(&keys, &cut, &mut buffers, &mut states);
            // Partial results get their sinks when they are merged.
            if end == last && matches!(sink, Sink::Rows(_)) {
                self.add_sinks(&mut states);
            }
            let columns = columns.take();
            let adder =
                columns.and_then(|c| c.adder(args, kernels, (self.head, &self.rows), &cut.blocks, &states));
            self.add_values(&keys, &cut, &mut buffers, adder);
            start = end;
        }
        if self.wanted() {
            self.write(&cut.blocks, buffers.acc, &states, sink);
        }
    }

    /// Cuts the rows into blocks; their scores are against at most `n_keys` keys.
    fn cut(&self, kernels: Kernels, n_keys: usize, packed: bool) -> Cut {
        let g = self.args.geometry;
        let sizes = Sizes::new(g, &kernels);
        let tiles = n_keys.min(self.segment).div_ceil(TILE);
        let mut cut =
            Cut { kernels, blocks: Vec::with_capacity(4), q: 0, plain_q: 0, scores: 0, acc: 0, sizes };
        let mut first = self.rows.start;
        while first < self.rows.end {
            let left = self.rows.end - first;
            let of_block = (kernels.row_kernels)(left);
            let rows = of_block.rows;
            let Cut { q, plain_q, scores, acc, .. } = cut;
            cut.blocks.push(RowBlock {
                kernels: of_block,
                first,
                n: left.min(rows),
                q,
                plain_q,
                scores,
                acc,
            });
            cut.q += (sizes.steps * rows * kernels.slots).next_multiple_of(TILE);
            cut.plain_q += if packed { g.padded_dim() * rows } else { 0 };
            cut.scores += tiles * rows * TILE;
            cut.acc += sizes.dim_blocks * rows * TILE;
            first += rows;
        }
        cut
    }

    /// Writes the queries of all blocks as elements, and where pages are packed, in f32.
    fn write_queries(&self, cut: &Cut, packed: bool, q: &mut [f32], plain_q: &mut [f32]) {
        for block in &cut.blocks {
            for r in 0..block.rows() {
                let place = ElementPlace { steps: cut.sizes.steps, r, rows: block.rows() };
                (cut.kernels.elements)(self.query(block, r), place, &mut q[block.q..]);
            }
            if packed {
                self.write_plain(block, &mut plain_q[block.plain_q..]);
            }
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

    /// Calls `visit` for the pages of `keys`, in order.
    fn pages(&self, keys: &Range<usize>, mut visit: impl FnMut(PageTiles)) {
        let page_tokens = self.args.geometry.page_tokens;
        let mut start = keys.start;
        while start < keys.end {
            let page = start / page_tokens;
            let end = keys.end.min((page + 1) * page_tokens);
            let (tile, tiles) = (start % page_tokens / TILE, (end - start).div_ceil(TILE));
            visit(PageTiles { page, tile, tiles, before: (start - keys.start) / TILE });
            start = end;
        }
    }

    /// The scores of `keys`, finished where there is a cap or a bias.
    fn score(
        &self,
        keys: &Range<usize>,
        Cut { kernels: k, blocks, sizes, .. }: &Cut,
        buffers: &mut Buffers<'_>,
    ) {
        let args = self.args;
        let g = args.geometry;
        let &Sizes { steps, tile_bytes, .. } = sizes;
        let cap = args.softcap.unwrap_or(0.0);
        let (finished, _) = score_factor(args, self.head);
        let last_page = (keys.end - 1) / g.page_tokens;
        let Buffers { q, plain_q, scores, packed: scratch, .. } = buffers;
        self.pages(keys, |at| {
            let PageTiles { page, tile, tiles, before } = at;
            let view = args.kv.page(self.head, page);
            check_page(&view, sizes.page_bytes, g);
            // The next page is prefetched: of keys, or the first one of values.
            let ahead = if page < last_page {
                args.kv.page(self.head, page + 1).k.as_ptr()
            } else {
                args.kv.page(self.head, keys.start / g.page_tokens).v.as_ptr()
            };
            let shape = (g.padded_dim(), g.page_tokens / TILE);
            let readable = scratch.readable(k, view.k, view.packed, shape, 0);
            for block in blocks {
                let rows = block.kernels.rows;
                let out = &mut scores[block.scores + before * rows * TILE..][..tiles * rows * TILE];
                let q = &q[block.q..][..steps * rows * k.slots];
                match readable.packed {
                    None => {
                        let args = QkArgs {
                            k: readable.at.wrapping_add(tile * tile_bytes),
                            tiles,
                            steps,
                            q: q.as_ptr(),
                            out: out.as_mut_ptr(),
                            ahead: ahead.wrapping_add(tile * tile_bytes),
                        };
                        // SAFETY: `check_page` has compared the page with its size, and `pages` stays inside a page, so
                        // it holds tiles `tile..tile + tiles`; `q` and `out` were cut to the kernel's lengths; the
                        // table is that of `self.level`, whose features the CPU has.
                        unsafe { (block.kernels.qk)(args) }
                    }
                    Some(kind) => {
                        let page = scratch.page(view.k, ahead, g, at);
                        let kernel = block.kernels.packed(kind);
                        let plain_q = &plain_q[block.plain_q..][..g.padded_dim() * rows];
                        let q = if kernel.plain_q { plain_q } else { q };
                        let args = PackedQkArgs { page: &page, q: q.as_ptr(), out: out.as_mut_ptr() };
                        // SAFETY: `check_page` has compared the page with its packing's size, and it holds tiles
                        // `tile..tile + tiles`; `q` and `out` were cut to the kernel's lengths; `work` has room for
                        // factors of `MOST_ROWS` rows; the table is that of `self.level`.
                        unsafe { (kernel.qk)(args) }
                    }
                }
                if finished {
                    let bias =
                        view.bias.map_or(std::ptr::null(), |b| b[tile * TILE..][..tiles * TILE].as_ptr());
                    let args = FinishArgs { scores: out.as_mut_ptr(), tiles, scale: args.scale, cap, bias };
                    // SAFETY: `out` and the bias were cut to `tiles` tiles; the table is that of `self.level`.
                    unsafe { (block.kernels.finish)(args) };
                }
            }
        });
    }

    /// Turns the scores of `keys` into probabilities, and scales what earlier segments have given to the new maxima.
    fn softmax(
        &self,
        keys: &Range<usize>,
        cut: &Cut,
        buffers: &mut Buffers<'_>,
        states: &mut [RowState; MOST_ROWS],
    ) {
        let (_, c) = score_factor(self.args, self.head);
        let tiles = (keys.end - keys.start).div_ceil(TILE);
        let dim_blocks = cut.sizes.dim_blocks;
        for block in &cut.blocks {
            let rows = block.kernels.rows;
            let scores = &mut buffers.scores[block.scores..][..tiles * rows * TILE];
            for r in 0..block.n {
                mask(scores, rows, r, keys, &self.visible(block.first + r));
            }
            let (mut max, mut sum) = ([0.0; MOST_ROWS], [0.0; MOST_ROWS]);
            let states = &mut states[block.first - self.rows.start..][..block.n];
            // SAFETY: `scores` has `tiles * rows * 16` floats, and `MOST_ROWS` is not below any kernel's `rows`.
            unsafe {
                (block.kernels.row_max)(RowMaxArgs { scores: scores.as_ptr(), tiles, max: max.as_mut_ptr() });
            };
            for r in 0..rows {
                if let Some(state) = states.get(r) {
                    max[r] = max[r].max(state.max);
                }
                if max[r] == f32::NEG_INFINITY {
                    max[r] = 0.0;
                }
            }
            let args = ExpSumArgs {
                scores: scores.as_mut_ptr(),
                tiles,
                c,
                max: max.as_ptr(),
                sum: sum.as_mut_ptr(),
            };
            // SAFETY: `scores` has `tiles * rows * 16` floats, and `MOST_ROWS` is not below any kernel's `rows`.
            unsafe { (block.kernels.exp_sum)(args) };
            let acc = &mut buffers.acc[block.acc..][..dim_blocks * rows * TILE];
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
    }

    /// Adds the sinks to the sums of rows that see keys.
    fn add_sinks(&self, states: &mut [RowState; MOST_ROWS]) {
        for (state, row) in states.iter_mut().zip(self.rows.clone()).filter(|(state, _)| state.sum != 0.0) {
            state.sum += sink_term(self.args, self.head, row, state.max);
        }
    }

    /// Adds the values of `keys`, weighed by their probabilities, to the outputs, and the probabilities to `adder`'s
    /// columns.
    fn add_values(
        &self,
        keys: &Range<usize>,
        Cut { kernels: k, blocks, sizes, .. }: &Cut,
        buffers: &mut Buffers<'_>,
        mut adder: Option<Adder<'_>>,
    ) {
        let args = self.args;
        let g = args.geometry;
        let dim_blocks = sizes.dim_blocks;
        let last_page = (keys.end - 1) / g.page_tokens;
        let wanted = self.wanted();
        let mut run = Vec::with_capacity(k.run_pages);
        let Buffers { scores, acc, packed: scratch, .. } = buffers;
        self.pages(keys, |at| {
            let PageTiles { page, tile, tiles, before } = at;
            let view = args.kv.page(self.head, page);
            check_page(&view, sizes.page_bytes, g);
            let next = if page < last_page { page + 1 } else { page };
            let offset = tile * TILE / k.pair * k.step_bytes;
            let ahead = args.kv.page(self.head, next).v.as_ptr();
            let readable = match wanted {
                true => scratch.readable(k, view.v, view.packed, (g.page_tokens, dim_blocks), run.len()),
                false => ReadablePage { at: view.v.as_ptr(), packed: None },
            };
            run.push(Values { at: readable.at.wrapping_add(offset), tiles });
            if run.len() < k.run_pages && page < last_page {
                return;
            }
            let end = before + tiles;
            let run_tiles = run.iter().map(|page| page.tiles).sum::<usize>();
            let before = end - run_tiles;
            for block in blocks.iter().filter(|_| wanted) {
                let rows = block.kernels.rows;
                let scores = &scores[block.scores..][..end * rows * TILE];
                let p = scores[(k.place_p)(before, rows * TILE)..].as_ptr();
                let acc = acc[block.acc..][..dim_blocks * rows * TILE].as_mut_ptr();
                match readable.packed {
                    None => {
                        let args = PvArgs {
                            pages: &run,
                            block_bytes: sizes.block_bytes,
                            blocks: dim_blocks,
                            p,
                            acc,
                            ahead: ahead.wrapping_add(offset),
                        };
                        // SAFETY: `check_page` has compared all pages of the run with their size, and `pages` stays
                        // inside a page; the probabilities of `run_tiles` tiles start at `p`, and `acc` was cut to the
                        // kernel's length; the table is that of `self.level`, whose features the CPU has.
                        unsafe { (block.kernels.pv)(args) }
                    }
                    Some(kind) => {
                        // Where kernels read packed pages, a run is one page.
                        let page = scratch.page(view.v, ahead, g, at);
                        // SAFETY: `check_page` has compared the page with its packing's size; `p` and `acc` were cut
                        // to the kernel's lengths; `work` has room for factors of `MOST_ROWS` rows; the table is
                        // that of `self.level`.
                        unsafe { (block.kernels.packed(kind).pv)(PackedPvArgs { page: &page, p, acc }) }
                    }
                }
            }
            // After the values: now the probabilities are in the first cache.
            if let Some(adder) = &mut adder {
                adder.add(scores, before, run_tiles, keys.start + before * TILE);
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
                        // SAFETY: rows of the layer belong to one task each, and every task runs once.
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

/// The sink of a row's query head as a term of a sum of probabilities relative to the score `max`.
fn sink_term(args: &AttentionArgs<'_>, head: usize, row: usize, max: f32) -> f32 {
    let Some(sinks) = args.sinks else { return 0.0 };
    let group = args.n_heads / args.n_kv_heads;
    let (_, c) = score_factor(args, head);
    (sinks[head * group + row % group] * std::f32::consts::LOG2_E - max * c).exp2()
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
        if sum != 0.0 {
            sum += sink_term(args, head, row, max);
        }
        let inverse = inverse(sum);
        to.iter_mut().for_each(|x| *x *= inverse);
    }
}
