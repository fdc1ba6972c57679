//! Linear layers: `y = W x (+ bias) (+ y)` for one token or many, any weight format, any level.
//!
//! For one token, weights are unpacked in registers ([`gemv`]). For batches, a panel of 16 rows is unpacked once and
//! multiplied with all tokens ([`gemm`]); for small batches, some columns at a time. CPUs with AMX multiply batches in
//! tile registers ([`amx_packed`]). Several matrices with the same input run in one parallel region. [`plan`] chooses
//! the kernel, and its header has the table.
//!
//! Equality: integer formats give the same bits at every level, batch size and number of threads; `bf16` and batches in
//! AMX differ by rounding, within the bounds in the headers of [`packed`] and [`amx_bf16`].

mod activations;
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
mod job;
mod matrix;
mod packed;
#[cfg(test)]
mod packed_tests;
mod plan;
mod quantize;
#[cfg(test)]
mod tests;
mod thread_tiles;

pub use activations::{ActivationShape, Activations, Needs};
pub use matrix::{Matrix, StoredRows};

use crate::exec::{DisjointSliceMut, Exec, part};
use gemm::PanelGroup;
use job::{Job, Task};
use plan::RegionPlan;
use thread_tiles::{ThreadTiles, thread_tiles};

/// One matrix product of a parallel region.
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

/// Computes all of `products` from the same activations, in one parallel region.
///
/// # Panics
/// When shapes do not fit each other, or `x` was not stored for this level or in the form that a weight needs.
pub fn linear(exec: Exec<'_>, scratch: &mut LinearScratch, x: &Activations, products: &mut [Linear<'_>]) {
    let Exec { pool, level } = exec;
    let n_tokens = x.n_tokens();
    if n_tokens == 0 {
        return;
    }
    assert!(x.stored_for(level), "level of the activations");
    let plan = RegionPlan::new(x, products, pool.threads());
    let (mut jobs, mut plans) = (Vec::with_capacity(products.len()), Vec::with_capacity(products.len()));
    let mut tasks = 0;
    for product in products {
        let mut job = Job::new(product, n_tokens, x.cols());
        if job.weight.n_panels() == 0 {
            continue;
        }
        let product = plan.product(job.weight);
        (job.split, job.engine, job.small_batch) = (product.split, product.engine, plan.small_batch);
        job.first_task = tasks;
        jobs.push(job);
        tasks += product.n_tasks;
        plans.push(product);
    }
    let groups = plan.panel_groups(plans.into_iter());
    if scratch.panels.len() < groups * pool.threads() {
        scratch.panels.resize(groups * pool.threads(), PanelGroup::ZERO);
    }
    let panels = DisjointSliceMut::new(&mut scratch.panels);
    let body = |tiles: &mut ThreadTiles, task: usize, thread: usize| {
        let (block, task) = (task / tasks, task % tasks);
        let token_tiles = part(x.n_token_tiles(), block, plan.token_blocks);
        let job = jobs.iter().rev().find(|job| job.first_task <= task).expect("tasks start at 0");
        // SAFETY: each thread has a range of its own.
        let scratch = unsafe { panels.slice(thread * groups..(thread + 1) * groups) };
        Task { job, x, token_tiles, panels: job.panels(task - job.first_task), scratch }.run(level, tiles);
    };
    pool.run_with(tasks * plan.token_blocks, || thread_tiles(level, x), body);
}

/// One product over the given tile registers.
#[cfg(test)]
fn linear_over(
    level: crate::SimdLevel,
    x: &Activations,
    mut product: Linear<'_>,
    tile: &mut crate::arch::amx::soft::Soft,
) {
    let n_panels = product.weight.n_panels();
    let mut job = Job::new(&mut product, x.n_tokens(), x.cols());
    job.engine = plan::Engine::new(x.layout(), job.weight.kind());
    let rows = x.layout().amx_rows().expect("activations for AMX");
    let groups = match (job.engine, job.weight.kind()) {
        (plan::Engine::AmxPacked, matrix::Kind::Packed(layout)) => 2 * packed::panel_groups(layout),
        (plan::Engine::AmxInt8, _) => amx_int8::PANEL_GROUPS,
        _ => amx_bf16::panel_groups(n_panels, x.n_tokens().div_ceil(rows)),
    };
    let scratch = &mut vec![PanelGroup::ZERO; groups][..];
    let task = Task { job: &job, x, token_tiles: 0..x.n_token_tiles(), panels: 0..n_panels, scratch };
    task.run_over(level, &mut crate::arch::amx::Configured::new(tile));
}
