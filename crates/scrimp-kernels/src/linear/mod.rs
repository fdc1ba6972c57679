//! Linear layers: `y = W x (+ bias) (+ y)` for one token or many, any weight format, any level.
//!
//! For one token, weights are unpacked in registers ([`gemv`]). For batches, a panel of 16 rows is unpacked once and
//! multiplied with all tokens ([`gemm`]); for small batches, some columns at a time. CPUs with AMX multiply batches in
//! tile registers ([`amx_packed`]). Several matrices with the same input run in one parallel region, and so do several
//! inputs with matrices of their own (the experts of a layer, [`linear_groups`]). [`plan`] chooses
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
mod packed_task;
#[cfg(test)]
mod packed_tests;
mod plan;
mod quantize;
#[cfg(test)]
mod tests;
mod thread_tiles;
mod width;

pub use activations::{ActivationShape, Activations, BatchShapes, Needs};
pub use matrix::{Matrix, StoredRows};

use crate::exec::{self, DisjointSliceMut, Exec};
use gemm::PanelGroup;
use job::{Job, Task};
use plan::{Region, RegionPlan};
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

/// Products of one input.
#[derive(Debug)]
pub struct LinearGroup<'a, 'p> {
    /// The input.
    pub x: &'a Activations,
    /// Its products.
    pub products: &'p mut [Linear<'a>],
}

/// Computes all of `products` from the same activations, in one parallel region.
///
/// # Panics
/// When shapes do not fit each other, or `x` was not stored for this level or in the form that a weight needs.
pub fn linear<'a>(
    exec: Exec<'_>,
    scratch: &mut LinearScratch,
    x: &'a Activations,
    products: &mut [Linear<'a>],
) {
    linear_groups(exec, scratch, &mut [LinearGroup { x, products }]);
}

/// The tasks of one [`LinearGroup`] in a parallel region.
struct GroupTasks<'a> {
    x: &'a Activations,
    jobs: Vec<Job<'a>>,
    /// The first task of the group in the region.
    first: usize,
    /// Tasks per token block.
    tasks: usize,
    token_blocks: usize,
}

/// Computes the products of all `groups`, each from its own activations, in one parallel region.
///
/// # Panics
/// As [`linear`].
pub fn linear_groups(exec: Exec<'_>, scratch: &mut LinearScratch, groups: &mut [LinearGroup<'_, '_>]) {
    let Exec { pool, level } = exec;
    let weights = groups.iter().flat_map(|group| group.products.iter().map(|product| product.weight.bytes()));
    let region = Region { threads: pool.threads(), bytes: weights.sum(), groups: groups.len() };
    let (mut parts, mut panel_groups, mut total) = (Vec::with_capacity(groups.len()), 0, 0);
    for LinearGroup { x, products } in groups.iter_mut().filter(|group| group.x.n_tokens() > 0) {
        assert!(x.stored_for(level), "level of the activations");
        let plan = RegionPlan::new(x, products, region);
        let (mut jobs, mut plans) = (Vec::with_capacity(products.len()), Vec::with_capacity(products.len()));
        let mut tasks = 0;
        for product in products.iter_mut() {
            let mut job = Job::new(product, x.n_tokens(), x.cols());
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
        panel_groups = panel_groups.max(plan.panel_groups(plans.into_iter()));
        parts.push(GroupTasks { x, jobs, first: total, tasks, token_blocks: plan.token_blocks });
        total += tasks * plan.token_blocks;
    }
    if scratch.panels.len() < panel_groups * pool.threads() {
        scratch.panels.resize(panel_groups * pool.threads(), PanelGroup::ZERO);
    }
    let panels = DisjointSliceMut::new(&mut scratch.panels);
    let body = |tiles: &mut ThreadTiles, task: usize, thread: usize| {
        // A group without tasks begins where the next one does.
        let part = parts.partition_point(|part| part.first <= task) - 1;
        let GroupTasks { x, jobs, first, tasks, token_blocks } = &parts[part];
        let (block, task) = ((task - first) / tasks, (task - first) % tasks);
        let token_tiles = exec::part(x.n_token_tiles(), block, *token_blocks);
        let job = jobs.iter().rev().find(|job| job.first_task <= task).expect("tasks start at 0");
        // SAFETY: each thread has a range of its own.
        let scratch = unsafe { panels.slice(thread * panel_groups..(thread + 1) * panel_groups) };
        Task { job, x, token_tiles, panels: job.panels(task - job.first_task), scratch }.run(level, tiles);
    };
    pool.run_with(total, || thread_tiles(level, parts.iter().map(|part| part.x)), body);
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
        (plan::Engine::AmxPacked, matrix::Kind::Packed(layout)) => 2 * packed_task::panel_groups(layout),
        (plan::Engine::AmxInt8, _) => amx_int8::PANEL_GROUPS,
        _ => amx_bf16::panel_groups(n_panels, x.n_tokens().div_ceil(rows)),
    };
    let scratch = &mut vec![PanelGroup::ZERO; groups][..];
    let task = Task { job: &job, x, token_tiles: 0..x.n_token_tiles(), panels: 0..n_panels, scratch };
    task.run_over(level, &mut crate::arch::amx::Configured::new(tile));
}
