//! Where a computation runs: its threads and its instructions.

use crate::{SimdLevel, threads::Pool};

/// The threads and the instruction set of a computation: the first argument of every parallel kernel.
#[derive(Debug, Clone, Copy)]
pub struct Exec<'a> {
    /// The threads.
    pub pool: &'a Pool,
    /// The instructions. A value of it proves that the CPU has them.
    pub level: SimdLevel,
}
