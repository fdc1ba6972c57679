//! The OpenMP runtime that PyTorch uses, where kernels can run on its threads.

use scrimp_kernels::exec::{StartTeam, Team};
use std::ffi::{CStr, CString, c_int, c_void};

/// The two functions of an OpenMP runtime that are wanted here.
#[derive(Clone, Copy)]
pub(crate) struct OpenMp {
    parallel: StartTeam,
    max_threads: unsafe extern "C" fn() -> c_int,
}

impl OpenMp {
    /// The runtime that a library of this process is linked with; `None` where the library is not loaded, or its runtime speaks
    /// another dialect.
    pub(crate) fn of_library(path: &str) -> Option<Self> {
        let path = CString::new(path).ok()?;
        // SAFETY: a string that ends in 0. Nothing is loaded or run: with RTLD_NOLOAD only what is there is found.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        if library.is_null() {
            return None;
        }
        let find = |name: &CStr| -> Option<*mut c_void> {
            // SAFETY: an open library, which is never closed. What it depends on is searched too.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        let (parallel, max_threads) = (find(c"GOMP_parallel")?, find(c"omp_get_max_threads")?);
        // SAFETY: functions of these names have these types in every runtime that exports them: the first is part of the GNU
        // ABI since GCC 4.9, the second of the OpenMP standard.
        unsafe {
            Some(Self {
                parallel: std::mem::transmute::<*mut c_void, StartTeam>(parallel),
                max_threads: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(max_threads),
            })
        }
    }

    /// Threads of a region that the calling thread starts, as `torch.set_num_threads` has set them.
    pub(crate) fn threads(self) -> usize {
        // SAFETY: it may be called at any time.
        unsafe { (self.max_threads)() }.max(1) as usize
    }

    /// Teams of `threads` threads. Not for a process that was forked from this one.
    pub(crate) fn team(self, threads: usize) -> Team {
        // SAFETY: `GOMP_parallel` does what is wanted, and `runtime::after_fork` lets no child use it.
        unsafe { Team::new(self.parallel, threads) }
    }
}
