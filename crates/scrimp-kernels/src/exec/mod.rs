//! Threads: the pool, and [`Exec`], which pairs it with an instruction set.

mod disjoint;
mod pool;
mod sync;
mod tasks;
mod team;

pub(crate) use disjoint::DisjointSliceMut;
pub use pool::{Pool, available_threads};
pub(crate) use tasks::part;
pub use team::{StartTeam, Team};

use crate::SimdLevel;

/// The threads and the instruction set of a computation: the first argument of every parallel kernel.
#[derive(Debug, Clone, Copy)]
pub struct Exec<'a> {
    /// The threads.
    pub pool: &'a Pool,
    /// The instructions. A value of it proves that the CPU has them.
    pub level: SimdLevel,
}
