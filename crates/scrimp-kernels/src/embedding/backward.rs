//! The backward pass of embedding bags: sparse gradients, summed per row, and the optimizers that apply them.
//!
//! ```text
//! G[row(p)] += w(p) scale(l, b) * signs(l) * grad[bag(l)][b * block_dim ..][..block_dim]   for all indices p of lookup l
//! ```
//!
//! Each thread owns some rows. It finds the indices of these rows in the whole batch, sums their gradients in the order
//! of the lookups, and updates the rows. Threads share nothing, so the bits are the same for every number of threads
//! and level. A sum has a slot for each row that the batch touches, so memory is bounded by the batch.

use super::{
    lookup::Bags,
    signs::{SIGN_WIDTH, flip},
};
use crate::{
    arch::{Kernel, Level},
    exec::{DisjointSliceMut, Exec},
};

/// How a gradient changes a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Optimizer {
    /// `state += g^2; value -= lr * g / (sqrt(state) + eps)`, a state for each value (Duchi et al., 2011).
    Adagrad {
        /// Learning rate.
        lr: f32,
        /// Keeps the division finite.
        eps: f32,
    },
    /// The same with one state for each row, which grows by the mean of `g^2`.
    RowWiseAdagrad {
        /// Learning rate.
        lr: f32,
        /// Keeps the division finite.
        eps: f32,
    },
    /// `value -= lr * g`.
    Sgd {
        /// Learning rate.
        lr: f32,
    },
}

impl Optimizer {
    /// Numbers of state for `values` values in rows of `block_dim`.
    pub const fn states(&self, values: usize, block_dim: usize) -> usize {
        match self {
            Self::Adagrad { .. } => values,
            Self::RowWiseAdagrad { .. } => values / block_dim,
            Self::Sgd { .. } => 0,
        }
    }

    /// Applies the gradients `g` of neighboring values. `state` is one number for each value, for all, or none.
    #[inline(always)]
    fn apply(&self, values: &mut [f32], state: &mut [f32], g: &[f32]) {
        match *self {
            Self::Adagrad { lr, eps } => {
                for ((v, a), &g) in values.iter_mut().zip(state).zip(g) {
                    *a += g * g;
                    *v -= lr * g / (a.sqrt() + eps);
                }
            }
            Self::RowWiseAdagrad { lr, eps } => {
                let mut sum = 0.0;
                for &g in g {
                    sum += g * g;
                }
                state[0] += sum / g.len() as f32;
                let step = lr / (state[0].sqrt() + eps);
                for (v, &g) in values.iter_mut().zip(g) {
                    *v -= step * g;
                }
            }
            Self::Sgd { lr } => {
                for (v, &g) in values.iter_mut().zip(g) {
                    *v -= lr * g;
                }
            }
        }
    }
}

/// What a batch of lookups read, and the gradients of its outputs.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// `per_lookup` for each lookup, as the forward pass had them.
    pub indices: &'a [u32],
    /// Indices of a lookup.
    pub per_lookup: usize,
    /// Rows per block.
    pub num_hashes: usize,
    /// As many as indices, or none.
    pub weights: &'a [f32],
    /// Those of [`hash_indices`](super::hash_indices), or none.
    pub signs: &'a [u64],
    /// `groups` for each lookup, or one for all.
    pub scales: &'a [f32],
    /// Scales of a lookup; 0 where one is for all.
    pub groups: usize,
    /// How lookups were added up.
    pub bags: Bags<'a>,
    /// Gradients of the outputs, bag after bag.
    pub grad: &'a [f32],
}

impl<'a> Backward<'a> {
    /// What [`Batch::given`](super::Batch::given) read.
    pub fn given(indices: &'a [u32], per_lookup: usize, num_hashes: usize, grad: &'a [f32]) -> Self {
        Self {
            indices,
            per_lookup,
            num_hashes,
            weights: &[],
            signs: &[],
            scales: &[1.0],
            groups: 0,
            bags: Bags::Fixed(1),
            grad,
        }
    }

    /// The scale of block `b` of lookup `l`.
    #[inline(always)]
    fn scale(&self, l: usize, b: usize) -> f32 {
        match self.groups {
            0 => self.scales[0],
            1 => self.scales[l],
            groups => self.scales[l * groups + b * groups / (self.per_lookup / self.num_hashes)],
        }
    }

    pub(super) fn check(&self, block_dim: usize) -> (usize, usize) {
        assert!(
            self.per_lookup > 0 && self.num_hashes > 0 && self.per_lookup.is_multiple_of(self.num_hashes)
        );
        let lookups = self.indices.len() / self.per_lookup;
        let dim = self.per_lookup / self.num_hashes * block_dim;
        assert!(self.weights.is_empty() || self.weights.len() == self.indices.len());
        assert!(self.signs.is_empty() || self.signs.len() == lookups);
        assert_eq!(self.scales.len(), (lookups * self.groups).max(1));
        assert_eq!(self.grad.len(), self.bags.count(lookups) * dim);
        (lookups, dim)
    }
}

/// Values in training: rows of f32 with their optimizer's state.
#[derive(Debug)]
pub struct TableMut<'a> {
    /// The values.
    pub values: &'a mut [f32],
    /// As [`Optimizer::states`] asks.
    pub state: &'a mut [f32],
    /// Values of a row.
    pub block_dim: usize,
    /// Values from row to row: `block_dim`, or 1 for rows that overlap.
    pub stride: usize,
}

/// Scratch memory of [`Gradients::step`], kept from batch to batch.
#[derive(Debug, Default)]
pub struct Gradients {
    /// For each block of `block_dim` values its slot plus one, or 0.
    slot_of: Vec<u32>,
    shares: Vec<Share>,
}

/// What one thread works with.
#[derive(Debug, Default)]
struct Share {
    touched: Vec<u32>,
    sums: Vec<f32>,
    /// Indices of some lookups that hit rows of this thread.
    mine: Vec<u32>,
    /// The block that each index of a lookup belongs to.
    block_of: Vec<usize>,
    /// The gradient of a block with its signs.
    signed: Vec<f32>,
}

/// Where [`Gradients::collect`] writes the gradients of a table.
#[derive(Debug)]
pub struct SparseGradients<'a> {
    /// Row numbers.
    pub rows: &'a mut [i64],
    /// `block_dim` values for each of the rows.
    pub values: &'a mut [f32],
}

/// Indices that are sorted out at once.
const SIFT: usize = 4096;

impl Gradients {
    /// Adds up the gradients of a batch and lets `optimizer` update the rows that it touched.
    ///
    /// # Panics
    /// When sizes do not fit each other, or an index lies outside the table.
    pub fn step(&mut self, exec: Exec<'_>, optimizer: Optimizer, table: TableMut<'_>, batch: &Backward<'_>) {
        assert!(table.stride == table.block_dim || table.stride == 1);
        let TableMut { values, state, block_dim, stride } = table;
        assert!(state.len() >= optimizer.states(values.len(), block_dim));
        let len = values.len();
        let shared = (DisjointSliceMut::new(values), DisjointSliceMut::new(state));
        self.add_up(exec, Some(optimizer), (len, block_dim, stride), shared, batch);
    }

    /// The blocks of `block_dim` values that the last [`Gradients::step`] changed, each once.
    pub fn touched(&self) -> impl Iterator<Item = &u32> {
        self.shares.iter().flat_map(|share| &share.touched)
    }

    /// Adds up the gradients of a batch in a table of `len` values in rows of `block_dim`, for another optimizer: the
    /// rows that it touched, each once, go to the front of `rows`, and their gradients to the front of `values`.
    /// Returns their number, or `None` where they do not fit.
    ///
    /// # Panics
    /// When sizes do not fit each other, or an index lies outside the table.
    pub fn collect(
        &mut self,
        exec: Exec<'_>,
        (len, block_dim): (usize, usize),
        batch: &Backward<'_>,
        SparseGradients { rows, values }: SparseGradients<'_>,
    ) -> Option<usize> {
        let nothing = (DisjointSliceMut::new(&mut []), DisjointSliceMut::new(&mut []));
        self.add_up(exec, None, (len, block_dim, block_dim), nothing, batch);
        let n = self.shares.iter().map(|share| share.touched.len()).sum();
        let (mut rows, mut values) = (rows.get_mut(..n)?, values.get_mut(..n.checked_mul(block_dim)?)?);
        for share in &self.shares {
            let of_share = rows.split_off_mut(..share.touched.len())?;
            of_share.iter_mut().zip(&share.touched).for_each(|(to, &row)| *to = i64::from(row));
            let of_share = values.split_off_mut(..share.touched.len() * block_dim)?;
            of_share.copy_from_slice(&share.sums[..of_share.len()]);
        }
        Some(n)
    }

    /// Every thread adds up the gradients of its rows, and applies them where there is an optimizer.
    fn add_up(
        &mut self,
        Exec { pool, level }: Exec<'_>,
        optimizer: Option<Optimizer>,
        (values_len, block_dim, stride): (usize, usize, usize),
        (values, state): (DisjointSliceMut<'_, f32>, DisjointSliceMut<'_, f32>),
        batch: &Backward<'_>,
    ) {
        let (_, dim) = batch.check(block_dim);
        let blocks = values_len.div_ceil(block_dim);
        assert!(blocks < u32::MAX as usize);
        let threads = pool.threads();
        self.slot_of.resize(blocks, 0);
        self.shares.resize_with(threads, Share::default);
        let slot_of = DisjointSliceMut::new(&mut self.slot_of);
        pool.chunks(&mut self.shares, 1, |owner, share| {
            let share = &mut share[0];
            // A row that overlaps lies in two blocks, and is wanted by one thread the more often, the longer a thread's
            // parts are.
            let together = if stride == block_dim { 0 } else { 3 };
            let owners = threads;
            let part = Part { owner, owners, together, slot_of, values, state, values_len, block_dim, dim };
            level.run(Step { part, stride, batch, share, optimizer });
        });
    }
}

/// One thread's part of the table.
#[derive(Clone, Copy)]
struct Part<'a> {
    owner: usize,
    owners: usize,
    /// `2^together` neighboring blocks have the same owner.
    together: u32,
    slot_of: DisjointSliceMut<'a, u32>,
    values: DisjointSliceMut<'a, f32>,
    state: DisjointSliceMut<'a, f32>,
    values_len: usize,
    block_dim: usize,
    dim: usize,
}

impl Part<'_> {
    #[inline(always)]
    fn owns(&self, block: u32) -> bool {
        let mixed = (block >> self.together).wrapping_mul(0x9e37_79b1);
        (u64::from(mixed) * self.owners as u64) >> 32 == self.owner as u64
    }
}

struct Step<'a, 'b> {
    part: Part<'a>,
    stride: usize,
    batch: &'a Backward<'b>,
    share: &'a mut Share,
    optimizer: Option<Optimizer>,
}

impl Kernel for Step<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, _: S) {
        match self.part.block_dim {
            1 => self.with_block_dim::<1>(),
            2 => self.with_block_dim::<2>(),
            4 => self.with_block_dim::<4>(),
            8 => self.with_block_dim::<8>(),
            16 => self.with_block_dim::<16>(),
            _ => self.with_block_dim::<0>(),
        }
    }
}

impl Step<'_, '_> {
    /// `W` is `block_dim`, or 0 for one that is known at run time only.
    #[inline(always)]
    fn with_block_dim<const W: usize>(self) {
        let Step { part, stride, batch, share, optimizer } = self;
        let block_dim = if W == 0 { part.block_dim } else { W };
        let Share { touched, sums, mine, block_of, signed } = share;
        signed.resize(block_dim, 0.0);
        touched.clear();
        block_of.clear();
        block_of.extend((0..batch.per_lookup).map(|p| p / batch.num_hashes));
        let lookups = batch.indices.len() / batch.per_lookup;
        let at_once = (SIFT / batch.per_lookup).max(1);
        mine.resize(at_once * batch.per_lookup, 0);
        let bags = batch.bags.count(lookups);
        let (mut bag, mut bag_range) = (0, if bags > 0 { batch.bags.range(0, lookups) } else { 0..0 });
        let end = if bags > 0 { batch.bags.range(bags - 1, lookups).end } else { 0 };
        let mut first = bag_range.start;
        while first < end {
            let last = end.min(first + at_once);
            let indices = &batch.indices[first * batch.per_lookup..last * batch.per_lookup];
            let count = part.sift(indices, stride, block_dim, mine);
            let (mut l, mut next) = (first, batch.per_lookup);
            for &p in &mine[..count] {
                let p = p as usize;
                while p >= next {
                    l += 1;
                    next += batch.per_lookup;
                }
                while l >= bag_range.end {
                    bag += 1;
                    bag_range = batch.bags.range(bag, lookups);
                }
                let (index, b) = (indices[p], block_of[p + batch.per_lookup - next]);
                let mut factor = batch.scale(l, b);
                if !batch.weights.is_empty() {
                    factor *= batch.weights[first * batch.per_lookup + p];
                }
                let at = bag * part.dim + b * block_dim;
                let mut grad = &batch.grad[at..at + block_dim];
                if let Some(&signs) = batch.signs.get(l) {
                    if SIGN_WIDTH.is_multiple_of(block_dim) {
                        factor = flip(factor, signs, b * block_dim);
                    } else {
                        with_signs(grad, signs, b * block_dim, signed);
                        grad = signed;
                    }
                }
                let start = index as usize * stride;
                assert!(start + block_dim <= part.values_len, "an index outside the table");
                if stride == block_dim {
                    add(factor, grad, slot::<W>(&part, index as usize, touched, sums));
                    continue;
                }
                // A row over two blocks, or exactly one.
                let (block, offset) = (start / block_dim, start % block_dim);
                let (low, high) = grad.split_at(block_dim - offset);
                if part.owns(block as u32) {
                    add(factor, low, &mut slot::<W>(&part, block, touched, sums)[offset..]);
                }
                if offset > 0 && part.owns(block as u32 + 1) {
                    add(factor, high, &mut slot::<W>(&part, block + 1, touched, sums)[..offset]);
                }
            }
            first = last;
        }
        part.finish(touched, sums, block_dim, optimizer);
    }
}

impl Part<'_> {
    /// Writes to `mine` the positions of the `indices` whose rows lie in blocks of this thread; returns their number.
    #[inline(always)]
    fn sift(&self, indices: &[u32], stride: usize, block_dim: usize, mine: &mut [u32]) -> usize {
        // Without branches: half of them would be mispredicted.
        let mut count = 0;
        for (p, &index) in indices.iter().enumerate() {
            let owned = if stride == block_dim {
                self.owns(index)
            } else {
                let block = (index as usize * stride / block_dim) as u32;
                self.owns(block) | self.owns(block + 1)
            };
            mine[count] = p as u32;
            count += usize::from(owned);
        }
        count
    }

    /// Applies the gradients of the touched blocks where there is an optimizer, and frees their slots.
    #[inline(always)]
    fn finish(&self, touched: &[u32], sums: &[f32], block_dim: usize, optimizer: Option<Optimizer>) {
        for (slot, &block) in touched.iter().enumerate() {
            let range = block as usize * block_dim..((block as usize + 1) * block_dim).min(self.values_len);
            let Some(optimizer) = optimizer else {
                // SAFETY: this thread alone owns the block.
                unsafe { self.slot_of.slice(block as usize..block as usize + 1)[0] = 0 };
                continue;
            };
            let state = match optimizer {
                Optimizer::Adagrad { .. } => range.clone(),
                Optimizer::RowWiseAdagrad { .. } => block as usize..block as usize + 1,
                Optimizer::Sgd { .. } => 0..0,
            };
            let g = &sums[slot * block_dim..(slot + 1) * block_dim][..range.len()];
            // SAFETY: this thread alone owns the block, and with it these values, their state and its slot number.
            unsafe {
                optimizer.apply(self.values.slice(range), self.state.slice(state), g);
                self.slot_of.slice(block as usize..block as usize + 1)[0] = 0;
            }
        }
    }
}

/// `to = signs * grad`, whose first value is value `at` of its lookup.
#[inline(always)]
fn with_signs(grad: &[f32], signs: u64, at: usize, to: &mut [f32]) {
    let mut i = 0;
    while i < grad.len() {
        let end = grad.len().min(i + SIGN_WIDTH - (at + i) % SIGN_WIDTH);
        for (to, &g) in to[i..end].iter_mut().zip(&grad[i..end]) {
            *to = flip(g, signs, at + i);
        }
        i = end;
    }
}

/// `to += factor * grad`
#[inline(always)]
fn add(factor: f32, grad: &[f32], to: &mut [f32]) {
    for (to, &g) in to.iter_mut().zip(grad) {
        *to += factor * g;
    }
}

/// The sums of `block`, zero at first.
#[inline(always)]
fn slot<'s, const W: usize>(
    part: &Part<'_>,
    block: usize,
    touched: &mut Vec<u32>,
    sums: &'s mut Vec<f32>,
) -> &'s mut [f32] {
    let block_dim = if W == 0 { part.block_dim } else { W };
    // SAFETY: this thread alone owns the block.
    let number = &mut unsafe { part.slot_of.slice(block..block + 1) }[0];
    if *number == 0 {
        touched.push(block as u32);
        *number = touched.len() as u32;
        let end = touched.len() * block_dim;
        if sums.len() < end {
            sums.resize(end.next_power_of_two(), 0.0);
        }
        sums[end - block_dim..end].fill(0.0);
    }
    &mut sums[(*number as usize - 1) * block_dim..*number as usize * block_dim]
}
