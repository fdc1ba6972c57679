//! Threads that another library started, as those of a [`Pool`](super::Pool).
//!
//! A process that runs two thread pools on the same cores loses most of one: a thread that waits for its next region
//! spins on a core that the other needs. OpenMP's threads spin for milliseconds, so kernels that are called between an
//! OpenMP program's own regions (layers of a PyTorch model) borrow its threads instead.

use super::{
    pool::{Body, Panic, take_tasks},
    sync::{AtomicUsize, Mutex},
    tasks::Chunks,
};
use std::{
    ffi::{c_uint, c_void},
    panic::resume_unwind,
    sync::{PoisonError, atomic::Ordering},
};

/// `GOMP_parallel` of the GNU OpenMP runtime, which LLVM's and Intel's export too: calls `work(data)` on the calling
/// thread and on up to `threads - 1` others, and returns when all calls have returned.
pub type StartTeam = unsafe extern "C" fn(
    work: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
    threads: c_uint,
    flags: c_uint,
);

/// Threads of an OpenMP runtime.
#[derive(Debug, Clone, Copy)]
pub struct Team {
    start: StartTeam,
    threads: usize,
}

/// What the threads of a team see of a region.
struct Region<'a> {
    body: &'a Body<'a>,
    tasks: usize,
    chunks: Chunks,
    /// Threads that have come.
    came: AtomicUsize,
    panic: Panic,
}

impl Team {
    /// Teams of `threads` threads (at least 1), the calling one included.
    ///
    /// # Safety
    /// `start` must do what [`StartTeam`] says, for as long as the process lives; not in a process that was forked from
    /// one in which it was called.
    pub const unsafe fn new(start: StartTeam, threads: usize) -> Self {
        Self { start, threads: if threads == 0 { 1 } else { threads } }
    }

    /// Threads of a region.
    pub(super) const fn threads(&self) -> usize {
        self.threads
    }

    /// As [`Pool::run`](super::Pool::run). Fewer threads may come than the team has, as inside of another OpenMP
    /// region.
    pub(super) fn run(&self, tasks: usize, body: &Body<'_>) {
        let region = Region {
            body,
            tasks,
            chunks: Chunks::new(self.threads),
            came: AtomicUsize::new(0),
            panic: Mutex::new(None),
        };
        region.chunks.fill(tasks);
        let data = std::ptr::from_ref(&region).cast_mut().cast::<c_void>();
        // SAFETY: `start` is as `new` wants it, so that `region` outlives all calls of `work`, which only share it.
        unsafe { (self.start)(work, data, self.threads as c_uint, 0) };
        let panic = region.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// The function that each thread runs: takes tasks until none is left. Panics stay inside.
unsafe extern "C" fn work(data: *mut c_void) {
    // SAFETY: `run` passes a region that is alive until all threads have left.
    let region = unsafe { &*data.cast::<Region<'_>>() };
    let worker = region.came.fetch_add(1, Ordering::Relaxed);
    take_tasks(&region.chunks, region.tasks, region.body, worker, &region.panic);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{super::pool::Pool, *};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// As an OpenMP runtime that starts all threads of a region anew.
    unsafe extern "C" fn start(
        work: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
        threads: c_uint,
        _flags: c_uint,
    ) {
        let data = data as usize;
        // SAFETY: as the caller promises.
        let enter = move || unsafe { work(data as *mut c_void) };
        std::thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(enter)));
            enter();
        });
    }

    /// As one that grants no other thread.
    unsafe extern "C" fn alone(
        work: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
        _threads: c_uint,
        _flags: c_uint,
    ) {
        // SAFETY: as the caller promises.
        unsafe { work(data) };
    }

    #[test]
    fn every_unit_runs_once() {
        for (how, threads) in [(start as StartTeam, 1), (start, 2), (start, 5), (alone, 3)] {
            // SAFETY: both do what `StartTeam` says.
            let pool = Pool::of_team(unsafe { Team::new(how, threads) });
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                let count = |task: usize, worker: usize| {
                    assert!(worker < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                };
                pool.run(tasks, count);
                pool.run_with(tasks, || (), |(), task, worker| count(task, worker));
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        // SAFETY: it does what `StartTeam` says.
        let pool = Pool::of_team(unsafe { Team::new(start, 3) });
        let fail = || pool.run(10, |task, _| assert!(task != 5, "task five"));
        assert!(catch_unwind(AssertUnwindSafe(fail)).is_err());
        let count = AtomicUsize::new(0);
        pool.run(10, |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 10);
    }
}
