//! Panels of a packed matrix times all tokens: which kernel multiplies a panel, and where its weights come from.
//!
//! ```text
//! dense formats                 the file
//! sparse formats, few tokens    the file, expanded in registers
//! sparse formats, more tokens   the file, expanded once to memory; then as dense, for each token tile
//! ```

use super::{
    Activations, ThreadTiles, amx_packed,
    gemm::PanelGroup,
    job::{Job, Task},
    packed::{
        Bytes, Dense, DenseGroups, Groups, InTurn, Panel, SparseGroups, Steps, Words, bf16_panel,
        int4_expanded, int4_panel, int8_panel,
    },
    plan::Engine,
    width::with_width,
};
use crate::{
    arch::{
        EntryKernel, Kernel, Level, Simd, SimdLevel,
        amx::{Configured, Tile},
    },
    quant::{
        GROUP,
        packed::{Layout, Value},
    },
};
use std::{marker::PhantomData, ops::Range};

/// [`PanelGroup`]s of an expanded panel.
pub(super) fn panel_groups(layout: &Layout) -> usize {
    match layout.format.value() {
        Value::Int4 => layout.cols.div_ceil(GROUP),
        _ => (layout.steps * 64).div_ceil(size_of::<PanelGroup>()),
    }
}

/// A panel, a token tile, and the job that they belong to.
#[derive(Clone, Copy)]
struct Place<'a> {
    job: &'a Job<'a>,
    x: &'a Activations,
    panel: Panel<'a>,
    token_tile: usize,
}

/// The weights of a panel.
trait Weights {
    /// The results of `T` tokens.
    ///
    /// # Safety
    /// The panel has as many columns as the activations, both padded alike.
    unsafe fn products<S: Simd, const T: usize>(self, s: S, place: Place<'_>) -> [S::F; T];
}

/// `bf16` in steps.
struct Bf16<W>(W);
/// `int8` in steps.
struct Int8<W>(W);
/// `int4` in groups.
struct Int4<W>(W);
/// `int4` in the groups of an expanded panel, and their number.
struct ExpandedInt4(*const PanelGroup, usize);

macro_rules! weights {
    ($($weights:ty: |$s:ident, $w:ident, $at:ident| $products:expr;)+) => {$(
        impl Weights for $weights {
            #[inline(always)]
            unsafe fn products<S: Simd, const T: usize>(self, $s: S, $at: Place<'_>) -> [S::F; T] {
                let $w = self;
                // SAFETY: the caller guarantees as many columns as the activations have.
                unsafe { $products }
            }
        }
    )+};
}
weights! {
    Bf16<Dense>: |s, w, at| bf16_panel(s, w.0, at.x.pairs(at.token_tile));
    Bf16<Words>: |s, w, at| bf16_panel(s, w.0, at.x.pairs(at.token_tile));
    Int8<Dense>: |s, w, at| int8_panel(s, w.0, at.panel.scale(), at.x.row_bytes(at.token_tile));
    Int8<Bytes>: |s, w, at| int8_panel(s, w.0, at.panel.scale(), at.x.row_bytes(at.token_tile));
    Int4<DenseGroups>: |s, w, at| int4_panel(s, w.0, at.x.groups(at.token_tile));
    Int4<SparseGroups>: |s, w, at| int4_panel(s, w.0, at.x.groups(at.token_tile));
    ExpandedInt4: |s, w, at| int4_expanded(s, std::slice::from_raw_parts(w.0, w.1), at.x.groups(at.token_tile));
}

/// Products of a panel with a token tile. Compiled once for each kind of weights, and called: a call takes some
/// nanoseconds, and expanded panels share the code of dense formats.
struct Products<W>(PhantomData<W>);

impl<W: Weights> EntryKernel for Products<W> {
    type Args<'a> = (W, Place<'a>);

    /// # Safety
    /// The panel has as many columns as the activations, both padded alike.
    #[inline(always)]
    unsafe fn run<S: Level>(s: S, (weights, place): (W, Place<'_>)) {
        let (first, n, width) = place.x.token_tile(place.token_tile);
        with_width!(S, width, T => {
            // SAFETY: the caller guarantees as many columns as the activations have.
            let y = unsafe { weights.products::<S, T>(s, place) };
            place.job.store(s, &y, place.panel.panel, first, n);
        });
    }
}

/// Panels of one packed matrix for all tokens.
pub(super) struct PackedTask<'a> {
    pub(super) task: Task<'a>,
    pub(super) layout: &'a Layout,
    pub(super) data: &'a [u8],
}

pub(super) fn run(level: SimdLevel, task: PackedTask<'_>, tiles: &mut ThreadTiles) {
    if let Some(tiles) = tiles
        && task.task.job.engine != Engine::Vectors
    {
        return run_in_tiles(level, task, tiles);
    }
    level.run(task);
}

/// Runs a task in tile registers.
pub(super) fn run_in_tiles<X: Tile>(level: SimdLevel, task: PackedTask<'_>, tiles: &mut Configured<X>) {
    let (layout, data) = (task.layout, task.data);
    let panel = move |panel| Panel { layout, data, panel };
    match (layout.format.value(), layout.format.is_sparse()) {
        (Value::Int4, false) => {
            amx_packed::run_groups(level, task.task, move |i| panel(i).dense_groups(), tiles);
        }
        (Value::Int4, true) => {
            let rows = move |i| InTurn { groups: panel(i).sparse_groups(), odd: false };
            amx_packed::run_groups(level, task.task, rows, tiles);
        }
        _ => X::run(level, amx_packed::AmxTask { task, tiles }),
    }
}

impl<'a> PackedTask<'a> {
    pub(super) fn new(task: Task<'a>, layout: &'a Layout) -> Self {
        let data = task.job.weight.data();
        Self { task, layout, data }
    }

    pub(super) fn panel(&self, panel: usize) -> Panel<'a> {
        Panel { layout: self.layout, data: self.data, panel }
    }

    /// Expands as many panels as the scratch memory holds. Returns these panels and the number of [`PanelGroup`]s of
    /// each.
    #[inline(always)]
    pub(super) fn expand<S: Simd>(&mut self, s: S, panels: Range<usize>) -> (Range<usize>, usize) {
        let per_panel = panel_groups(self.layout);
        let n = panels.len().min(self.task.scratch.len() / per_panel.max(1));
        let panels = panels.start..panels.start + n;
        for panel in panels.clone() {
            let from = self.panel(panel);
            let out = &mut self.task.scratch[(panel - panels.start) * per_panel..][..per_panel];
            match self.layout.format.value() {
                Value::Bf16 => expand(s, from.words(), out, self.layout.steps),
                Value::Int8 => expand(s, from.bytes(), out, self.layout.steps),
                Value::Int4 => {
                    if !self.layout.format.is_sparse() {
                        let mut groups = from.dense_groups();
                        for out in out {
                            // SAFETY: `out` has as many groups as the panel.
                            out.fill(s, unsafe { groups.even(s) });
                        }
                        continue;
                    }
                    let mut groups = from.sparse_groups();
                    for (g, out) in out.iter_mut().enumerate() {
                        // SAFETY: `out` has as many groups as the panel.
                        out.fill(s, unsafe { if g % 2 == 0 { groups.even(s) } else { groups.odd(s) } });
                    }
                }
            }
        }
        (panels, per_panel)
    }
}

#[inline(always)]
fn expand<S: Simd, W: Steps<S>>(s: S, mut steps: W, to: &mut [PanelGroup], n: usize) {
    let lines = bytemuck::cast_slice_mut::<PanelGroup, [u8; 64]>(to);
    for out in lines.as_chunks_mut::<2>().0.iter_mut().take(n / 2) {
        // SAFETY: a panel has `n` steps, a multiple of 16.
        let [first, second] = unsafe { steps.next_pair(s) };
        s.store_b(first, &mut out[0]);
        s.store_b(second, &mut out[1]);
    }
}

impl Kernel for PackedTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let (sparse, value) = (self.layout.format.is_sparse(), self.layout.format.value());
        if sparse && !self.task.x.expands_each() {
            return self.expanded(s);
        }
        match (value, sparse) {
            (Value::Bf16, false) => self.as_stored::<S, _>(|panel| Bf16(panel.dense())),
            (Value::Bf16, true) => self.as_stored::<S, _>(|panel| Bf16(panel.words())),
            (Value::Int8, false) => self.as_stored::<S, _>(|panel| Int8(panel.dense())),
            (Value::Int8, true) => self.as_stored::<S, _>(|panel| Int8(panel.bytes())),
            (Value::Int4, false) => self.as_stored::<S, _>(|panel| Int4(panel.dense_groups())),
            (Value::Int4, true) => self.as_stored::<S, _>(|panel| Int4(panel.sparse_groups())),
        }
    }
}

impl PackedTask<'_> {
    fn place(&self, panel: usize, token_tile: usize) -> Place<'_> {
        Place { job: self.task.job, x: self.task.x, panel: self.panel(panel), token_tile }
    }

    /// Multiplies panels as they are in the file.
    fn as_stored<S: Level, W: Weights>(&self, weights: impl Fn(Panel<'_>) -> W) {
        for panel in self.task.panels.clone() {
            for token_tile in self.task.token_tiles.clone() {
                let place = self.place(panel, token_tile);
                // SAFETY: the level exists, so the CPU has its features; the matrix has as many columns as the
                // activations, both padded alike.
                unsafe { S::call::<Products<W>>((weights(place.panel), place)) };
            }
        }
    }

    /// Expands panels to memory, and multiplies them from there.
    #[inline(always)]
    fn expanded<S: Level>(mut self, s: S) {
        let (steps, value) = (self.layout.steps, self.layout.format.value());
        let mut left = self.task.panels.clone();
        while !left.is_empty() {
            let (panels, per_panel) = self.expand(s, left.clone());
            left.start = panels.end;
            for i in self.task.token_tiles.clone() {
                for (panel, groups) in panels.clone().zip(self.task.scratch.chunks_exact(per_panel)) {
                    let place = self.place(panel, i);
                    let dense = || Dense::expanded(bytemuck::cast_slice(groups)[..steps].as_ptr());
                    // SAFETY: the level exists, so the CPU has its features; the matrix has as many columns as the
                    // activations, both padded alike.
                    unsafe {
                        match value {
                            Value::Bf16 => S::call::<Products<_>>((Bf16(dense()), place)),
                            Value::Int8 => S::call::<Products<_>>((Int8(dense()), place)),
                            Value::Int4 => {
                                let weights = ExpandedInt4(groups.as_ptr(), groups.len());
                                S::call::<Products<_>>((weights, place));
                            }
                        }
                    }
                }
            }
        }
    }
}
