//! The threads and the tier that all calls of this process share.

use crate::openmp::OpenMp;
use pyo3::{exceptions::PyRuntimeError, exceptions::PyValueError, prelude::*};
use scrimp_kernels::{Pool, SimdLevel, exec::available_threads};
use std::{
    mem::ManuallyDrop,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// A pool and a tier.
#[derive(Clone)]
pub(crate) struct Runtime {
    pub(crate) pool: Arc<Pool>,
    pub(crate) level: SimdLevel,
}

/// Threads that were asked for, and pools once they were needed. Locked only while the GIL is held, so no thread can hold it
/// when the process forks.
struct State {
    threads: Option<usize>,
    openmp: Option<OpenMp>,
    /// Threads of PyTorch's, borrowed while it has as many as are wanted here: two pools would spin on the same cores.
    borrowed: Option<Arc<Pool>>,
    own: Option<Arc<Pool>>,
}

static STATE: Mutex<State> = Mutex::new(State { threads: None, openmp: None, borrowed: None, own: None });
static TIER: OnceLock<Result<SimdLevel, String>> = OnceLock::new();

/// More than any machine here has; a typing error should not start a million threads.
const MAX_THREADS: usize = 1024;

impl State {
    fn threads(&self) -> usize {
        self.threads.or(self.openmp.map(OpenMp::threads)).unwrap_or_else(available_threads)
    }

    /// The pool, which is started when it is first needed.
    fn pool(&mut self) -> std::io::Result<Arc<Pool>> {
        let threads = self.threads();
        let openmp = self.openmp.filter(|openmp| openmp.threads() == threads);
        let pool = if openmp.is_some() { &mut self.borrowed } else { &mut self.own };
        if let Some(pool) = pool.as_ref().filter(|pool| pool.threads() == threads) {
            return Ok(Arc::clone(pool));
        }
        let new = match openmp {
            Some(openmp) => Pool::of_team(openmp.team(threads)),
            None => Pool::new(threads)?,
        };
        Ok(Arc::clone(pool.insert(Arc::new(new))))
    }
}

fn found_level() -> PyResult<SimdLevel> {
    let level = TIER.get_or_init(|| SimdLevel::from_env().map_err(|e| format!("SCRIMP_TIER: {e}")));
    level.clone().map_err(PyValueError::new_err)
}

/// The pool and the tier for a call from Python.
pub(crate) fn runtime(_: Python<'_>) -> PyResult<Runtime> {
    let level = found_level()?;
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = state
        .pool()
        .map_err(|e| PyRuntimeError::new_err(format!("cannot start {} threads: {e}", state.threads())))?;
    Ok(Runtime { pool, level })
}

/// Threads of scrimp's kernels from now on, the calling one included; none: as many as PyTorch has, or as the process may use.
/// Calls that are under way end with those that they have.
#[pyfunction]
pub(crate) fn set_num_threads(py: Python<'_>, threads: Option<usize>) -> PyResult<()> {
    if let Some(threads) = threads.filter(|n| !(1..=MAX_THREADS).contains(n)) {
        return Err(PyValueError::new_err(format!("threads must be from 1 to {MAX_THREADS}, not {threads}")));
    }
    let old = {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        state.threads = threads;
        let threads = state.threads();
        state.own.take_if(|pool| pool.threads() != threads)
    };
    // Waits for its threads to end.
    py.detach(|| drop(old));
    Ok(())
}

/// Threads of scrimp's kernels.
#[pyfunction]
pub(crate) fn get_num_threads() -> usize {
    STATE.lock().unwrap_or_else(PoisonError::into_inner).threads()
}

/// From now on kernels run on the threads of the OpenMP runtime that a loaded library (a path) is linked with, and unless
/// `set_num_threads` says otherwise on as many; false: it has none that could be used.
#[pyfunction]
pub(crate) fn use_threads_of(path: &str) -> bool {
    let openmp = OpenMp::of_library(path);
    STATE.lock().unwrap_or_else(PoisonError::into_inner).openmp = openmp;
    openmp.is_some()
}

/// Whether the next call will run on borrowed threads.
#[pyfunction]
pub(crate) fn borrows_threads() -> bool {
    let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.openmp.is_some_and(|openmp| openmp.threads() == state.threads())
}

/// Forgets the threads of the parent process, its own and borrowed ones: a child of `fork` does not have them.
#[pyfunction]
pub(crate) fn after_fork() {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.openmp = None;
    // Not dropped: that would wait for threads that do not exist.
    let _ = ManuallyDrop::new((state.own.take(), state.borrowed.take()));
}

/// The instructions that kernels use here: `scalar`, `avx2`, `avx512` or `amx`.
#[pyfunction]
pub(crate) fn level() -> PyResult<&'static str> {
    Ok(found_level()?.name())
}
