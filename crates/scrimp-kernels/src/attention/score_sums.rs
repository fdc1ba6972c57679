//! Adds the probabilities of a block of rows to the accumulated scores, page by page, while they are in the cache for
//! the values.
//!
//! ```text
//! columns[j] += sum over pairs of rows (a, b) of  p[a][j] / l[a] + p[b][j] / l[b]        l: the row's sum of p
//! ```
//! Limit: one multiply-add per 16 scores.

use super::{
    AttentionArgs, MOST_ROWS,
    accumulated_scores::{KINDS, LaneLayout, PEAK, ScoresRequest},
    qk_pv::ColumnArgs,
    rows::{RowBlock, RowState},
    storage::TILE,
    tables::Kernels,
};
use crate::arch::attention::RowPair;
use std::ops::Range;

/// The column sums that a task adds to.
pub(crate) struct Columns<'a> {
    pub(crate) request: ScoresRequest,
    pub(crate) layout: &'a LaneLayout,
    pub(crate) lane: usize,
    /// Those of the lane.
    pub(crate) sums: &'a mut [f32],
}

/// Rows that add to the same sums, in register blocks of one size.
struct Strand {
    pairs: Range<usize>,
    /// The largest offset of a row.
    last: usize,
    /// Floats from tile to tile.
    stride: usize,
    /// Where these start in those of the lane.
    columns: usize,
    /// They are maxima.
    peak: bool,
}

/// What a task's rows add where.
pub(crate) struct Adder<'a> {
    kernels: Kernels,
    strands: Vec<Strand>,
    pairs: Vec<RowPair>,
    /// Sums of a row.
    padded: usize,
    sums: &'a mut [f32],
}

impl<'a> Columns<'a> {
    /// For the blocks that hold `rows` of `head`, whose softmax is known; `None` if none of the rows counts.
    pub(crate) fn adder(
        self,
        args: &AttentionArgs<'_>,
        kernels: Kernels,
        (head, rows): (usize, &Range<usize>),
        blocks: &[RowBlock],
        states: &[RowState; MOST_ROWS],
    ) -> Option<Adder<'a>> {
        if !self.request.wants_row(args, rows) {
            return None;
        }
        // Rows that add to the same sums are `step` apart.
        let (group, step) = (args.n_heads / args.n_kv_heads, self.layout.rows());
        // Where rows stand in the scores, and their weights.
        let mut places = [(0, 0.0); MOST_ROWS];
        for block in blocks {
            for r in 0..block.n {
                let row = block.first + r - rows.start;
                places[row] = (block.scores + r * TILE, inverse(states[row].sum));
            }
        }
        let place = |row: usize| places[row - rows.start];
        let mut strands = Vec::with_capacity(2 * group);
        let mut pairs = Vec::with_capacity(2 * MOST_ROWS);
        for blocks in blocks.chunk_by(|a, b| a.rows() == b.rows()) {
            let (size, start) = (blocks[0].rows(), blocks[0].first);
            let end = blocks.iter().map(|block| block.first + block.n).max().unwrap_or(start);
            for kind in 0..KINDS {
                let Some(from) = self.request.first(kind, args.n_tokens) else { continue };
                let from = from.saturating_mul(group).max(start);
                let peak = kind == PEAK;
                let share = if peak { 1.0 } else { step as f32 / group as f32 };
                for first in from..end.min(from.saturating_add(step)) {
                    let Some(columns) = self.layout.columns(head, self.lane, kind, first % step) else {
                        continue;
                    };
                    assert!(columns.end <= self.sums.len());
                    let before = pairs.len();
                    for a in (first..end).step_by(2 * step) {
                        let b = a + step;
                        let b = if b < end { place(b) } else { (place(a).0, 0.0) };
                        pairs.push(RowPair::new([place(a), b], share));
                    }
                    let last = pairs[before..].iter().flat_map(|p| p.rows).max().unwrap_or(0);
                    let (pairs, columns) = (before..pairs.len(), columns.start);
                    strands.push(Strand { pairs, last, stride: size * TILE, columns, peak });
                }
            }
        }
        let padded = self.layout.padded(head);
        Some(Adder { kernels, strands, pairs, padded, sums: self.sums })
    }
}

impl Adder<'_> {
    /// Adds the probabilities of `tiles` tiles from `tile` on, which are those of the keys from `key` on.
    pub(crate) fn add(&mut self, scores: &[f32], tile: usize, tiles: usize, key: usize) {
        assert!(key + tiles * TILE <= self.padded);
        for strand in &self.strands {
            assert!(strand.last + (tile + tiles - 1) * strand.stride + TILE <= scores.len());
            let add = if strand.peak { self.kernels.max_columns } else { self.kernels.add_columns };
            let args = ColumnArgs {
                p: scores[(self.kernels.place_p)(tile, strand.stride)..].as_ptr(),
                tiles,
                stride: strand.stride,
                pairs: &self.pairs[strand.pairs.clone()],
                columns: self.sums[strand.columns + key..].as_mut_ptr(),
            };
            // SAFETY: the tiles of all rows lie inside `scores`, and the keys inside the head's sums: asserted above,
            // and for the end of the strand's columns in `adder`.
            unsafe { add(args) };
        }
    }
}

/// `1 / sum`, or 0 for a row that saw nothing.
pub(crate) fn inverse(sum: f32) -> f32 {
    if sum == 0.0 { 0.0 } else { 1.0 / sum }
}
