//! The threads and the tier that all calls of this process share.

use pyo3::{exceptions::PyRuntimeError, exceptions::PyValueError, prelude::*};
use scrimp_kernels::{
    Tier,
    threads::{Pool, available_threads},
};
use std::{
    mem::ManuallyDrop,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// A pool and a tier.
#[derive(Clone)]
pub(crate) struct Runtime {
    pub(crate) pool: Arc<Pool>,
    pub(crate) tier: Tier,
}

/// Threads that were asked for, and the pool once it was needed. Locked only while the GIL is held, so no thread can hold
/// it when the process forks.
struct State {
    threads: Option<usize>,
    pool: Option<Arc<Pool>>,
}

static STATE: Mutex<State> = Mutex::new(State { threads: None, pool: None });
static TIER: OnceLock<Result<Tier, String>> = OnceLock::new();

/// More than any machine here has; a typing error should not start a million threads.
const MAX_THREADS: usize = 1024;

fn found_tier() -> PyResult<Tier> {
    let tier = TIER.get_or_init(|| Tier::from_env().map_err(|e| format!("SCRIMP_TIER: {e}")));
    tier.clone().map_err(PyValueError::new_err)
}

/// The pool, which is started when it is first needed.
pub(crate) fn runtime(_: Python<'_>) -> PyResult<Runtime> {
    let tier = found_tier()?;
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = match &state.pool {
        Some(pool) => Arc::clone(pool),
        None => {
            let threads = state.threads.unwrap_or_else(available_threads);
            let pool = Pool::new(threads)
                .map_err(|e| PyRuntimeError::new_err(format!("cannot start {threads} threads: {e}")))?;
            Arc::clone(state.pool.insert(Arc::new(pool)))
        }
    };
    Ok(Runtime { pool, tier })
}

/// Threads of scrimp's kernels from now on, the calling one included. Calls that are under way end with those that they have.
#[pyfunction]
pub(crate) fn set_num_threads(py: Python<'_>, threads: usize) -> PyResult<()> {
    if !(1..=MAX_THREADS).contains(&threads) {
        return Err(PyValueError::new_err(format!("threads must be from 1 to {MAX_THREADS}, not {threads}")));
    }
    let old = {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        state.threads = Some(threads);
        state.pool.take_if(|pool| pool.threads() != threads)
    };
    // Waits for its threads to end.
    py.detach(|| drop(old));
    Ok(())
}

/// Threads of scrimp's kernels.
#[pyfunction]
pub(crate) fn get_num_threads() -> usize {
    let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.pool.as_ref().map(|pool| pool.threads()).or(state.threads).unwrap_or_else(available_threads)
}

/// Forgets the threads of the parent process: a child of `fork` does not have them.
#[pyfunction]
pub(crate) fn after_fork() {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    // Not dropped: that would wait for threads that do not exist.
    let _ = ManuallyDrop::new(state.pool.take());
}

/// The instructions that kernels use here: `scalar`, `avx2`, `avx512` or `amx`.
#[pyfunction]
pub(crate) fn tier() -> PyResult<&'static str> {
    Ok(found_tier()?.name())
}
