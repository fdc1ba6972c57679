//! One product as the threads of a parallel region compute it: some panels of a matrix for some tokens.
//!
//! ```text
//! out[token * stride + row] = y[token][row] (+ bias[row]) (+ out)       y from the kernel that `plan.rs` chose
//! ```
//! A task owns its panels and tokens, so no two threads write to the same element.

use super::{
    Activations, Linear, Matrix, amx_bf16, amx_packed,
    gemm::{self, PanelGroup},
    gemv,
    matrix::Kind,
    packed_task::{self, PackedTask},
    plan::{Engine, Split},
    thread_tiles::ThreadTiles,
    width::with_width,
};
use crate::{
    arch::{
        Kernel, Level, Scalar, Simd, SimdLevel,
        amx::{Configured, Tile},
    },
    exec::DisjointSliceMut,
    quant::{BlockFormat, GROUP, PANEL_ROWS, float::FloatFormat, with_format},
};
use std::{marker::PhantomData, ops::Range};

/// A product as the threads see it.
pub(super) struct Job<'a> {
    pub(super) weight: &'a Matrix,
    bias: Option<&'a [f32]>,
    out: DisjointSliceMut<'a, f32>,
    stride: usize,
    accumulate: bool,
    pub(super) split: Split,
    /// The first task of this product among those of the region.
    pub(super) first_task: usize,
    /// Block formats take the kernels of small batches.
    pub(super) small_batch: bool,
    pub(super) engine: Engine,
}

impl<'a> Job<'a> {
    /// The job of `product` for `n_tokens` tokens of `cols` features, with one task.
    ///
    /// # Panics
    /// When shapes do not fit each other.
    pub(super) fn new(product: &'a mut Linear<'_>, n_tokens: usize, cols: usize) -> Self {
        let weight = product.weight;
        assert_eq!(weight.cols(), cols, "in features");
        assert!(product.stride >= weight.rows(), "row stride");
        assert!(product.out.len() >= (n_tokens - 1) * product.stride + weight.rows(), "length of the output");
        assert!(product.bias.is_none_or(|b| b.len() == weight.rows()), "length of the bias");
        Self {
            weight,
            bias: product.bias,
            out: DisjointSliceMut::new(product.out),
            stride: product.stride,
            accumulate: product.accumulate,
            split: Split::Panels(weight.n_panels()),
            first_task: 0,
            small_batch: false,
            engine: Engine::Vectors,
        }
    }

    /// The panels of task `task` of this job.
    pub(super) fn panels(&self, task: usize) -> Range<usize> {
        match (self.split, self.weight.kind()) {
            (Split::Bytes(tasks), Kind::Packed(layout)) => {
                layout.panels_by_bytes(self.weight.data(), task, tasks)
            }
            (Split::Panels(n) | Split::Bytes(n), _) => task * n..(task * n + n).min(self.weight.n_panels()),
        }
    }

    /// Writes the results of a token for the rows of `panels`, panel `panels.start + i` being `y(i)`.
    #[inline(always)]
    pub(super) fn store_row<S: Simd>(
        &self,
        s: S,
        token: usize,
        panels: Range<usize>,
        y: impl Fn(usize) -> S::F,
    ) {
        let first = panels.start * PANEL_ROWS;
        let rows = first..(panels.end * PANEL_ROWS).min(self.weight.rows());
        let at = token * self.stride + first;
        // SAFETY: each task has panels and tokens of its own, so no other thread has these elements.
        let out = unsafe { self.out.slice(at..at + rows.len()) };
        let bias = self.bias.map(|bias| &bias[rows]);
        let (whole, rest) = out.as_chunks_mut::<PANEL_ROWS>();
        let whole_bias = bias.map(|bias| bias.as_chunks::<PANEL_ROWS>().0);
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
            let mut lanes = [0.0; PANEL_ROWS];
            s.store(y(whole.len()), &mut lanes);
            let bias = bias.map(|bias| &bias[whole.len() * PANEL_ROWS..]);
            for (i, (out, y)) in rest.iter_mut().zip(lanes).enumerate() {
                let y = y + bias.map_or(0.0, |bias| bias[i]);
                *out = if self.accumulate { *out + y } else { y };
            }
        }
    }

    /// Writes the results of 16 rows for the tokens from `first` on.
    #[inline(always)]
    fn store_sums<S: Simd>(&self, s: S, sums: &[gemm::Sums], panel: usize, first: usize) {
        for (t, sums) in sums.iter().enumerate() {
            self.store_row(s, first + t, panel..panel + 1, |_| s.load(&sums.0));
        }
    }

    /// Writes the results of 16 rows for tokens `first .. first + n`.
    #[inline(always)]
    pub(super) fn store<S: Simd>(&self, s: S, y: &[S::F], panel: usize, first: usize, n: usize) {
        for (t, &y) in y.iter().take(n).enumerate() {
            self.store_row(s, first + t, panel..panel + 1, |_| y);
        }
    }
}

/// Panels of one matrix for some tokens.
pub(super) struct Task<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) x: &'a Activations,
    /// Token tiles (all of them in small batches, and for AMX).
    pub(super) token_tiles: Range<usize>,
    pub(super) panels: Range<usize>,
    /// The thread's scratch memory for unpacked weights.
    pub(super) scratch: &'a mut [PanelGroup],
}

impl Task<'_> {
    /// Computes the task with the instructions of `level`.
    pub(super) fn run(self, level: SimdLevel, tiles: &mut ThreadTiles) {
        match self.job.weight.kind() {
            Kind::Stored(dtype) => with_format!(dtype, run_block, run_float, (level, self, tiles)),
            Kind::Packed(layout) => packed_task::run(level, PackedTask::new(self, layout), tiles),
        }
    }

    /// Computes the task, whose engine is not [`Engine::Vectors`], over the given tile registers.
    #[cfg(test)]
    pub(super) fn run_over(self, level: SimdLevel, tiles: &mut Configured<impl Tile>) {
        fn float<F: FloatFormat>(_: SimdLevel, _: Task<'_>, _: &mut Configured<impl Tile>) {
            unreachable!("floats take no tile registers");
        }
        match self.job.weight.kind() {
            Kind::Stored(dtype) => with_format!(dtype, run_block_in_tiles, float, (level, self, tiles)),
            Kind::Packed(layout) => packed_task::run_in_tiles(level, PackedTask::new(self, layout), tiles),
        }
    }
}

struct BlockTask<'a, F>(Task<'a>, PhantomData<F>);
struct FloatTask<'a, F>(Task<'a>, PhantomData<F>);

fn run_block<F: BlockFormat>(level: SimdLevel, task: Task<'_>, tiles: &mut ThreadTiles) {
    if let Some(tiles) = tiles
        && task.job.engine != Engine::Vectors
    {
        return run_block_in_tiles::<F>(level, task, tiles);
    }
    level.run(BlockTask::<F>(task, PhantomData));
}

/// Multiplies weights of a block format in AMX tiles.
fn run_block_in_tiles<F: BlockFormat>(level: SimdLevel, task: Task<'_>, tiles: &mut Configured<impl Tile>) {
    let weight = task.job.weight;
    let rows = move |panel| amx_bf16::Blocks::<F>::new(weight.blocks::<F>(panel));
    amx_packed::run_groups(level, task, rows, tiles);
}

fn run_float<F: FloatFormat>(level: SimdLevel, task: Task<'_>, _: &mut ThreadTiles) {
    level.run(FloatTask::<F>(task, PhantomData));
}

impl<F: BlockFormat> Kernel for BlockTask<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Task { job, x, token_tiles, panels, scratch } = self.0;
        if x.n_tokens() == 1 {
            for panel in panels {
                let y = gemv::panel::<S, F>(s, job.weight.blocks::<F>(panel), x.groups(0));
                job.store(s, &[y], panel, 0, 1);
            }
            return;
        }
        if job.small_batch && const { !S::FOUR_STEPS } {
            for panel in panels {
                let blocks = job.weight.blocks::<F>(panel);
                for i in 0..x.n_token_tiles() {
                    let (first, n, width) = x.token_tile(i);
                    with_width!(S, width, T => {
                        job.store(s, &gemv::tile::<S, F, T>(s, blocks, x.groups(i)), panel, first, n);
                    });
                }
            }
            return;
        }
        if job.small_batch {
            let mut sums = [gemm::Sums::ZERO; gemm::SMALL_BATCH_SUMS];
            for panel in panels {
                gemm::small_batch::<S, F>(s, job.weight.blocks::<F>(panel), x, scratch, &mut sums);
                job.store_sums(s, &sums[..x.n_tokens()], panel, 0);
            }
            return;
        }
        let groups = x.cols() / GROUP;
        for (panel, unpacked) in panels.clone().zip(scratch.chunks_exact_mut(groups)) {
            gemm::unpack::<S, F>(s, job.weight.blocks::<F>(panel), unpacked);
        }
        let mut sums = [gemm::Sums::ZERO; gemm::MOST_TOKENS];
        for i in token_tiles {
            let (first, n, width) = x.token_tile(i);
            let x = x.groups(i);
            for (panel, unpacked) in panels.clone().zip(scratch.chunks_exact(groups)) {
                gemm::panel::<S, F::Quants>(s, unpacked, x, width, &mut sums);
                job.store_sums(s, &sums[..n], panel, first);
            }
        }
    }
}

impl<F: FloatFormat> Kernel for FloatTask<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Task { job, x, token_tiles, panels, .. } = self.0;
        for i in token_tiles {
            let (first, n, width) = x.token_tile(i);
            let x = x.floats(i);
            for panel in panels.clone() {
                let columns = job.weight.columns::<F>(panel);
                if n == 1 {
                    job.store(s, &[gemv::float_panel::<S, F>(s, columns, x)], panel, first, n);
                } else {
                    with_width!(S, width, T => {
                        job.store(s, &gemm::float_panel::<S, F, T>(s, columns, x), panel, first, n);
                    });
                }
            }
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
    for (column, out) in weight.columns::<F>(row / PANEL_ROWS).iter().zip(out) {
        *out = F::load(Scalar, column)[row % PANEL_ROWS];
    }
}

impl<F: BlockFormat> Kernel for Row<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Row(weight, row, out, _) = self;
        let mut panel = [PanelGroup::ZERO; 8];
        let blocks = weight.blocks::<F>(row / PANEL_ROWS);
        for (block, out) in blocks.chunks(1).zip(out.chunks_mut(F::GROUPS * GROUP)) {
            gemm::unpack::<S, F>(s, block, &mut panel);
            for (group, out) in panel.iter().zip(out.chunks_mut(GROUP)) {
                group.dequantize::<S, F::Quants>(s, row % PANEL_ROWS, out);
            }
        }
    }
}
