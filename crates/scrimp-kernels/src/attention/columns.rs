//! Adding a block's probabilities to column sums, page by page, while they are in the cache for the values anyway.

use super::{
    AttentionArgs, UNIT_ROWS,
    dispatch::Kernels,
    stats::{KINDS, LaneLayout, StatsRequest},
    storage::TILE,
    unit::{RowBlock, RowState},
};
use std::ops::Range;

/// The column sums that a unit adds to.
pub(crate) struct Columns<'a> {
    pub(crate) request: StatsRequest,
    pub(crate) layout: &'a LaneLayout,
    pub(crate) lane: usize,
    /// Those of the lane.
    pub(crate) sums: &'a mut [f32],
}

/// Rows of one query head in a register block: `first`, `first + group`, ..., `n` of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strand {
    pub(crate) first: usize,
    pub(crate) n: usize,
    /// Where the head's sums start in those of the lane.
    pub(crate) columns: usize,
}

/// What a block adds where.
pub(crate) struct Adder<'a> {
    kernels: Kernels,
    group: usize,
    strands: Vec<Strand>,
    /// The strands of each register block.
    of_blocks: Vec<Range<usize>>,
    /// `1 / sum` of the rows.
    weights: [f32; UNIT_ROWS],
    /// Sums of a head.
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
        states: &[RowState; UNIT_ROWS],
    ) -> Option<Adder<'a>> {
        if !self.request.wants_row(args, rows) {
            return None;
        }
        let group = self.layout.group();
        let mut strands = Vec::with_capacity(2 * UNIT_ROWS);
        let mut of_blocks = Vec::with_capacity(4);
        for block in blocks {
            let start = strands.len();
            for kind in 0..KINDS {
                let counts = |&r: &usize| self.request.counts(kind, (block.first + r) / group, args.n_tokens);
                // If a token counts, so do all later ones.
                let Some(from) = (0..block.n).find(counts) else { continue };
                for first in from..block.n.min(from + group) {
                    let member = (block.first + first) % group;
                    let Some(columns) = self.layout.columns(head, self.lane, kind, member) else { continue };
                    assert!(columns.end <= self.sums.len());
                    let n = (block.n - first).div_ceil(group);
                    strands.push(Strand { first, n, columns: columns.start });
                }
            }
            of_blocks.push(start..strands.len());
        }
        let weights = states.map(|state| inverse(state.sum));
        let padded = self.layout.padded(head);
        Some(Adder { kernels, group, strands, of_blocks, weights, padded, sums: self.sums })
    }
}

impl Adder<'_> {
    /// Adds the probabilities `p` (`[tile][rows][16]`) of block `index`, whose first row is the unit's `row`, to the keys from `key` on.
    pub(crate) fn add(&mut self, index: usize, row: usize, rows: usize, p: &[f32], key: usize) {
        let tiles = p.len() / (rows * TILE);
        assert!(key + tiles * TILE <= self.padded);
        let strands = &self.strands[self.of_blocks[index].clone()];
        // SAFETY: `p` has the tiles of `rows` rows, strands stay inside the block's rows, which have weights, and their
        // columns plus `padded` inside the sums (both checked above).
        unsafe {
            (self.kernels.add_columns)(
                (p.as_ptr(), tiles, rows),
                self.group,
                self.weights[row..].as_ptr(),
                strands,
                self.sums.as_mut_ptr().add(key),
            );
        }
    }
}

/// `1 / sum`, or 0 for a row that saw nothing.
pub(crate) fn inverse(sum: f32) -> f32 {
    if sum == 0.0 { 0.0 } else { 1.0 / sum }
}
