//! A fork-join pool for short parallel regions: about 150 per decoded token, each some microseconds long.
//!
//! Workers live as long as the pool. Between regions they spin for a bounded time and then sleep, so a region that
//! follows soon costs well under a microsecond to start and an idle pool costs nothing. How threads share the tasks of
//! a region: see [`tasks`](super::tasks). A worker that the machine slows down takes fewer tasks, and a worker without
//! a core does not delay the region, which ends when its tasks are done and the workers that *entered* it have left.
//!
//! Or the threads are those of another library ([`Team`]).

use super::{
    disjoint::DisjointSliceMut,
    sync::{
        Arc, AtomicBool, AtomicU64, AtomicUsize, Builder, Condvar, JoinHandle, Mutex, UnsafeCell, spin_loop,
        yield_now,
    },
    tasks::{Chunks, Tasks},
    team::Team,
};
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{PoisonError, atomic::Ordering},
};

/// Rounds of [`std::hint::spin_loop`] before a waiting worker goes to sleep (some hundred microseconds). The model
/// checker needs no more than one: it interleaves the threads as it likes.
const SPINS_BEFORE_SLEEP: u32 = if cfg!(all(loom, test)) { 1 } else { 20_000 };
/// Rounds before the caller, waiting for the last worker, starts to yield its core.
const SPINS_BEFORE_YIELD: u32 = 2_000;

/// Set in [`Shared::state`] when no worker may enter the region any more.
const CLOSED: u64 = 1 << 31;
/// The workers inside, in [`Shared::state`].
const INSIDE: u64 = CLOSED - 1;

/// The number of the region in a [`Shared::state`].
const fn epoch(state: u64) -> u64 {
    state >> 32
}

/// The body of a region as each thread calls it: `(the tasks that it takes, worker)`.
pub(super) type Body<'a> = dyn Fn(Tasks<'_>, usize) + Sync + 'a;

/// What a body panicked with.
pub(super) type Panic = Mutex<Option<Box<dyn Any + Send>>>;

/// A region as workers see it.
#[derive(Clone, Copy)]
struct Region {
    /// Valid while a worker is inside the region; `run` does not return before all have left.
    body: *const Body<'static>,
    tasks: usize,
}

struct Shared {
    region: UnsafeCell<Option<Region>>,
    /// The current region: `epoch << 32 | CLOSED | workers inside`.
    state: AtomicU64,
    /// The region's tasks that no thread has taken.
    chunks: Chunks,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    panic: Panic,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `region` is written only by the one caller of `run` (which holds the pool's `busy` lock) while the state is
// closed and nobody is inside, and read by workers only after they have entered; the body it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer is dereferenced inside a region only, by workers that have entered it.
unsafe impl Send for Shared {}

/// Long-lived workers that run parallel regions together with the calling thread.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Others do the work, where there are no workers of our own.
    team: Option<Team>,
    /// Held by the thread that runs a region: regions of one pool do not overlap.
    busy: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

/// Threads that this process may use: its affinity mask and its cgroup's CPU quota.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Pool {
    /// A pool of `threads` threads, the caller's own included (at least 1).
    ///
    /// # Errors
    /// When the system refuses to start a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let mut pool = Self::of_threads(threads, None);
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = Builder::new().name(format!("scrimp-{worker}"));
            pool.workers.push(builder.spawn(move || shared.work(worker))?);
        }
        Ok(pool)
    }

    /// A pool that runs its regions on the threads of another library.
    pub fn of_team(team: Team) -> Self {
        Self::of_threads(1, Some(team))
    }

    /// Without its workers.
    fn of_threads(threads: usize, team: Option<Team>) -> Self {
        let shared = Arc::new(Shared {
            region: UnsafeCell::new(None),
            state: AtomicU64::new(CLOSED),
            chunks: Chunks::new(threads),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        Self { shared, workers: Vec::new(), team, busy: Mutex::new(()) }
    }

    /// Threads that take part in a region.
    pub fn threads(&self) -> usize {
        self.team.map_or(self.workers.len() + 1, |team| team.threads())
    }

    /// Calls `body(task, worker)` once for every `task < tasks`, on all threads; returns when all calls have returned.
    ///
    /// `worker < self.threads()` names the thread, so that bodies can use scratch memory of their own. A panic in a
    /// body is raised again here. A region must not start another one on the same pool.
    ///
    /// A thread starts on consecutive tasks, in every region on the same part of all tasks.
    pub fn run(&self, tasks: usize, body: impl Fn(usize, usize) + Sync) {
        self.run_with(tasks, || (), |(), task, worker| body(task, worker));
    }

    /// [`Pool::run`] with something that each thread makes when it takes its first task, and drops after its last one.
    pub fn run_with<T>(
        &self,
        tasks: usize,
        enter: impl Fn() -> T + Sync,
        body: impl Fn(&mut T, usize, usize) + Sync,
    ) {
        if self.threads() == 1 || tasks <= 1 {
            if tasks > 0 {
                let mut own = enter();
                (0..tasks).for_each(|task| body(&mut own, task, 0));
            }
            return;
        }
        self.region(tasks, &|tasks, worker| {
            let mut own = None;
            for task in tasks {
                body(own.get_or_insert_with(&enter), task, worker);
            }
        });
    }

    fn region(&self, tasks: usize, body: &Body<'_>) {
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(team) = self.team {
            return team.run(tasks, body);
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is followed by workers inside the region only, and this
        // function does not return (nor unwind: `work_on` catches panics) before all of them have left it.
        let body: *const Body<'static> =
            unsafe { std::mem::transmute::<*const Body<'_>, *const Body<'static>>(body) };
        let region = Region { body, tasks };
        let state = shared.state.load(Ordering::Relaxed);
        // SAFETY: the state is closed with nobody inside, and `busy` keeps other callers out.
        shared.region.with_mut(|to| unsafe { *to = Some(region) });
        shared.chunks.fill(tasks);
        // Opens the region (the epoch wraps around after 2^32 of them).
        shared.state.store(epoch(state).wrapping_add(1) << 32, Ordering::Release);
        // Reading by a read-modify-write: see `wait_for_change`.
        if shared.sleepers.fetch_add(0, Ordering::AcqRel) > 0 {
            let _lock = shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
            shared.wake.notify_all();
        }
        shared.work_on(region, 0);
        let mut spins = 0;
        let mut state = shared.state.fetch_or(CLOSED, Ordering::AcqRel);
        while state & INSIDE > 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                spin_loop();
            } else {
                yield_now();
            }
            state = shared.state.load(Ordering::Acquire);
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Pool {
    /// Calls `body(index, chunk)` once for every `len` elements of `data` (the last chunk may be shorter), on all
    /// threads.
    ///
    /// # Panics
    /// When `len` is 0.
    pub fn chunks<T: Send>(&self, data: &mut [T], len: usize, body: impl Fn(usize, &mut [T]) + Sync) {
        let (n, total) = (data.len().div_ceil(len), data.len());
        let data = DisjointSliceMut::new(data);
        self.run(n, |task, _| {
            // SAFETY: `run` calls the body once per task, and tasks have disjoint elements.
            body(task, unsafe { data.slice(task * len..((task + 1) * len).min(total)) });
        });
    }

    /// What `of` gives for each of `0..n`, in order, computed on all threads.
    pub fn map<T: Send>(&self, n: usize, of: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let mut results: Vec<Option<T>> = (0..n).map(|_| None).collect();
        self.chunks(&mut results, 1, |i, result| result[0] = Some(of(i)));
        results.into_iter().flatten().collect()
    }
}

/// Calls `body` with the tasks that `worker` gets. Its panic is stored in `panic`.
pub(super) fn take_tasks(chunks: &Chunks, tasks: usize, body: &Body<'_>, worker: usize, panic: &Panic) {
    if let Err(with) = catch_unwind(AssertUnwindSafe(|| body(chunks.tasks(tasks, worker), worker))) {
        *panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(with);
    }
}

impl Shared {
    /// Takes tasks until none is left.
    fn work_on(&self, region: Region, worker: usize) {
        // SAFETY: the caller is inside the region, so the body is alive.
        let body = unsafe { &*region.body };
        take_tasks(&self.chunks, region.tasks, body, worker, &self.panic);
    }

    /// A worker's life: wait for a region, enter it while it is open, work, leave.
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            let state = self.wait_for_change(seen);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if state & CLOSED == 0 {
                if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err()
                {
                    continue;
                }
                // SAFETY: this worker is inside, so the region is not written before it leaves; it was written before
                // the state that the exchange has read.
                if let Some(region) = self.region.with(|region| unsafe { *region }) {
                    self.work_on(region, worker);
                }
                self.state.fetch_sub(1, Ordering::Release);
            }
            seen = epoch(state);
        }
    }

    /// The first state of another region than `seen`.
    fn wait_for_change(&self, seen: u64) -> u64 {
        for _ in 0..SPINS_BEFORE_SLEEP {
            let state = self.state.load(Ordering::Acquire);
            if epoch(state) != seen {
                return state;
            }
            spin_loop();
        }
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Announced before the last look at the state; `run` looks at `sleepers` after it has changed the state. Both
        // do so by a read-modify-write, and of two such the later one synchronizes with the earlier: either `run` sees
        // the sleeper, or the sleeper sees the new state.
        self.sleepers.fetch_add(1, Ordering::AcqRel);
        let state = loop {
            let state = self.state.load(Ordering::Acquire);
            if epoch(state) != seen {
                break state;
            }
            lock = self.wake.wait(lock).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::AcqRel);
        state
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Another epoch, closed: workers wake up and see `stop`.
        self.shared.state.fetch_add(1 << 32, Ordering::Release);
        {
            let _lock = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// All interleavings of a caller with its worker, as far as two or three preemptions reach (`--cfg loom`).
#[cfg(all(loom, test))]
mod model {
    use super::*;

    fn check(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(body);
    }

    /// Memory of one task; loom notices accesses that nothing puts in order.
    struct Slot(UnsafeCell<usize>);

    // SAFETY: tasks are handed out once, and the test reads when the region is over; this is what loom checks.
    unsafe impl Sync for Slot {}

    fn slots(n: usize) -> Vec<Slot> {
        (0..n).map(|_| Slot(UnsafeCell::new(0))).collect()
    }

    /// Runs a region that adds `amount` to every slot.
    fn add(pool: &Pool, slots: &[Slot], amount: usize) {
        pool.run(slots.len(), |task, _| {
            // SAFETY: see `Slot`.
            slots[task].0.with_mut(|x| unsafe { *x += amount });
        });
    }

    fn expect(slots: &[Slot], value: usize) {
        for slot in slots {
            // SAFETY: see `Slot`.
            assert_eq!(slot.0.with(|x| unsafe { *x }), value);
        }
    }

    #[test]
    fn one_region() {
        check(3, || {
            let pool = Pool::new(2).unwrap();
            let slots = slots(2);
            add(&pool, &slots, 1);
            expect(&slots, 1);
        });
    }

    #[test]
    fn regions_follow_each_other() {
        check(2, || {
            let pool = Pool::new(2).unwrap();
            let slots = slots(2);
            add(&pool, &slots, 1);
            expect(&slots, 1);
            add(&pool, &slots, 10);
            expect(&slots, 11);
        });
    }

    #[test]
    fn two_workers() {
        check(2, || {
            let pool = Pool::new(3).unwrap();
            let slots = slots(2);
            add(&pool, &slots, 1);
            expect(&slots, 1);
        });
    }

    #[test]
    fn a_pool_that_is_never_used_ends() {
        check(3, || drop(Pool::new(2).unwrap()));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_unit_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |task, worker| {
                    assert!(worker < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                pool.run_with(tasks, Vec::new, |own: &mut Vec<usize>, task, worker| {
                    assert!(worker < threads && own.iter().all(|&before| before != task));
                    own.push(task);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2));
            }
        }
    }

    #[test]
    fn many_short_regions_and_sleeps() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        for round in 0..2000 {
            pool.run(4, |task, _| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            if round % 500 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        assert_eq!(sum.load(Ordering::Relaxed), 2000 * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        let panicked =
            catch_unwind(AssertUnwindSafe(|| pool.run(10, |task, _| assert!(task != 5, "task five"))));
        assert!(panicked.is_err());
        let count = AtomicUsize::new(0);
        pool.run(10, |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 10);
    }
}
