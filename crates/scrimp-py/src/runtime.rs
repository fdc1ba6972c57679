//! The threads and the SIMD level that all calls of this process share.

use crate::openmp::OpenMp;
use pyo3::{exceptions::PyRuntimeError, exceptions::PyValueError, prelude::*};
use scrimp_kernels::{Pool, SimdLevel, exec::available_threads};
use std::{
    mem::ManuallyDrop,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// A pool and a SIMD level.
#[derive(Clone)]
pub(crate) struct Runtime {
    pub(crate) pool: Arc<Pool>,
    pub(crate) level: SimdLevel,
}

/// The configured threads and the pools, which start on first use. The lock is only taken with the GIL held, so that no
/// other thread holds it when the process forks.
struct State {
    threads: Option<usize>,
    openmp: Option<OpenMp>,
    /// A pool on PyTorch's threads, in use while PyTorch has as many as this module: two pools would spin on the same
    /// cores.
    borrowed: Option<Arc<Pool>>,
    own: Option<Arc<Pool>>,
}

static STATE: Mutex<State> = Mutex::new(State { threads: None, openmp: None, borrowed: None, own: None });
static LEVEL: OnceLock<Result<SimdLevel, String>> = OnceLock::new();

/// An upper limit, so that a typing error does not start a million threads.
const MAX_THREADS: usize = 1024;

impl State {
    fn threads(&self) -> usize {
        self.threads.or(self.openmp.map(OpenMp::threads)).unwrap_or_else(available_threads)
    }

    /// The pool, which starts on first use.
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
    let level = LEVEL.get_or_init(|| SimdLevel::from_env().map_err(|e| format!("SCRIMP_TIER: {e}")));
    level.clone().map_err(PyValueError::new_err)
}

/// The pool and the SIMD level for a call from Python.
pub(crate) fn runtime(_: Python<'_>) -> PyResult<Runtime> {
    let level = found_level()?;
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = state
        .pool()
        .map_err(|e| PyRuntimeError::new_err(format!("cannot start {} threads: {e}", state.threads())))?;
    Ok(Runtime { pool, level })
}

/// Sets the number of threads of scrimp's kernels, the calling one included. `None`: as many as PyTorch has, or one for
/// each CPU of the process. Running calls keep their threads.
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
    // Dropping a pool waits for its threads.
    py.detach(|| drop(old));
    Ok(())
}

/// The number of threads of scrimp's kernels.
#[pyfunction]
pub(crate) fn get_num_threads() -> usize {
    STATE.lock().unwrap_or_else(PoisonError::into_inner).threads()
}

/// Makes kernels run on the threads of the OpenMP runtime that the loaded library at `path` links to, and sets the
/// default number of threads to that runtime's. Returns false if the library has no supported runtime.
#[pyfunction]
pub(crate) fn use_threads_of(path: &str) -> bool {
    let openmp = OpenMp::of_library(path);
    STATE.lock().unwrap_or_else(PoisonError::into_inner).openmp = openmp;
    openmp.is_some()
}

/// Whether the next call runs on the threads of another library.
#[pyfunction]
pub(crate) fn borrows_threads() -> bool {
    let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.openmp.is_some_and(|openmp| openmp.threads() == state.threads())
}

/// Drops the pools of the parent process without joining their threads, which a child of `fork` does not have.
#[pyfunction]
pub(crate) fn after_fork() {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.openmp = None;
    // Dropping them would wait for threads that do not exist.
    let _ = ManuallyDrop::new((state.own.take(), state.borrowed.take()));
}

/// The instruction set of the kernels: `scalar`, `avx2`, `avx512` or `amx`, on ARM `neon`, `dotprod` or `i8mm`.
#[pyfunction]
pub(crate) fn simd_level() -> PyResult<&'static str> {
    Ok(found_level()?.name())
}

/// Raises the exception of a signal that came meanwhile, such as Ctrl-C. The caller does not hold the GIL.
pub(crate) fn check_signals() -> PyResult<()> {
    #[allow(
        clippy::redundant_closure_for_method_calls,
        reason = "the method is for one lifetime, the closure for all"
    )]
    Python::attach(|py| py.check_signals())
}
