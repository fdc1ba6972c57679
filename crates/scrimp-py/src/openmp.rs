//! PyTorch's OpenMP runtime, whose threads can run kernels.

use scrimp_kernels::{
    exec::{StartTeam, Team},
    system::loaded_symbol,
};
use std::{
    ffi::{c_int, c_void},
    ptr::NonNull,
};

/// The functions of an OpenMP runtime that a pool needs.
#[derive(Clone, Copy)]
pub(crate) struct OpenMp {
    parallel: StartTeam,
    max_threads: unsafe extern "C" fn() -> c_int,
}

impl OpenMp {
    /// The runtime that a loaded library links to; `None` if the library is not loaded or its runtime lacks the GNU
    /// entry point.
    pub(crate) fn of_library(path: &str) -> Option<Self> {
        let find = |name| loaded_symbol(path, name);
        let (parallel, max_threads) = (find(c"GOMP_parallel")?, find(c"omp_get_max_threads")?);
        // SAFETY: every runtime that exports these names gives them these types: `GOMP_parallel` is part of the GNU ABI
        // since GCC 4.9, `omp_get_max_threads` of the OpenMP standard.
        unsafe {
            Some(Self {
                parallel: std::mem::transmute::<NonNull<c_void>, StartTeam>(parallel),
                max_threads: std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn() -> c_int>(
                    max_threads,
                ),
            })
        }
    }

    /// The number of threads of a parallel region of this thread, which `torch.set_num_threads` sets.
    pub(crate) fn threads(self) -> usize {
        // SAFETY: `of_library` found the function; the OpenMP standard allows the call at any time.
        unsafe { (self.max_threads)() }.max(1) as usize
    }

    /// A team of `threads` threads. A forked child must not use it.
    pub(crate) fn team(self, threads: usize) -> Team {
        // SAFETY: `GOMP_parallel` runs a function once on each thread of a team, as `Team::new` requires, and
        // `runtime::after_fork` drops the team in a forked child.
        unsafe { Team::new(self.parallel, threads) }
    }
}
