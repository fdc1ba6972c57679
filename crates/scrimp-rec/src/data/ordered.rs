//! A pipeline of blocks: threads take blocks in order and process them in parallel; the consumer gets the results in order.
//!
//! At most `window` blocks are in progress or waiting, which bounds the memory. Idle threads sleep.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

/// The source of blocks, and their processing.
pub(crate) trait Work: Send + Sync + 'static {
    /// The source of blocks, which one thread uses at a time.
    type Source: Send + 'static;
    /// A block.
    type Job: Send;
    /// The result of a block. Results are reused.
    type Out: Send + Default + 'static;

    /// The next block; `None` at the end.
    fn take(&self, source: &mut Self::Source) -> Option<Self::Job>;
    /// Processes a block. `out` is an old result or a new empty one.
    fn run(&self, job: Self::Job, out: &mut Self::Out);
}

/// Results of a [`Work`], in order.
pub(crate) struct Ordered<W: Work> {
    shared: Arc<Shared<W>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<W: Work> {
    work: W,
    source: Mutex<W::Source>,
    state: Mutex<State<W::Out>>,
    /// Signals a new result, a free slot, or the end.
    changed: Condvar,
    window: usize,
}

struct State<T> {
    /// Waiting results; the first has number `delivered`.
    waiting: VecDeque<Option<T>>,
    /// The number of the next block of the source.
    taken: u64,
    /// The number of the next result for the consumer.
    delivered: u64,
    /// The number of blocks, known at the end of the source.
    end: Option<u64>,
    stop: bool,
    panicked: bool,
    spare: Vec<T>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Work> Ordered<W> {
    /// Starts `threads` threads. With 0, [`Ordered::next`] processes a block itself.
    pub(crate) fn new(work: W, source: W::Source, threads: usize) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            taken: 0,
            delivered: 0,
            end: None,
            stop: false,
            panicked: false,
            spare: Vec::new(),
        };
        let shared = Arc::new(Shared {
            work,
            source: Mutex::new(source),
            state: Mutex::new(state),
            changed: Condvar::new(),
            window: threads + 2,
        });
        let spawn = |i| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("data-{i}")).spawn(move || shared.work_until_done()).ok()
        };
        // If the system refuses a thread, the started ones or the caller do the work.
        let threads = (0..threads).filter_map(spawn).collect();
        Self { shared, threads }
    }

    /// Calls `consume` with the next result; `None` at the end.
    ///
    /// # Panics
    /// A thread panicked.
    pub(crate) fn next<R>(&mut self, consume: impl FnOnce(&mut W::Out) -> R) -> Option<R> {
        let shared = &*self.shared;
        let mut out = if self.threads.is_empty() {
            let job = shared.work.take(&mut lock(&shared.source))?;
            let mut out = lock(&shared.state).spare.pop().unwrap_or_default();
            shared.work.run(job, &mut out);
            out
        } else {
            let mut state = lock(&shared.state);
            loop {
                assert!(!state.panicked, "a data thread panicked");
                if state.end.is_some_and(|end| end == state.delivered) {
                    return None;
                }
                if matches!(state.waiting.front(), Some(Some(_))) {
                    break;
                }
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let out = state.waiting.pop_front().flatten();
            state.delivered += 1;
            drop(state);
            shared.changed.notify_all();
            out?
        };
        let result = consume(&mut out);
        let mut state = lock(&shared.state);
        if state.spare.len() < shared.window {
            state.spare.push(out);
        }
        Some(result)
    }
}

impl<W: Work> Shared<W> {
    fn work_until_done(&self) {
        let mut guard = Guard { shared: self, done: false };
        while let Some((number, job, mut out)) = self.take() {
            self.work.run(job, &mut out);
            let mut state = lock(&self.state);
            // Later blocks may finish first.
            let at = usize::try_from(number - state.delivered).unwrap_or(0);
            while state.waiting.len() <= at {
                state.waiting.push_back(None);
            }
            state.waiting[at] = Some(out);
            drop(state);
            self.changed.notify_all();
        }
        guard.done = true;
    }

    /// Waits for a free slot and takes the next block, with its number.
    fn take(&self) -> Option<(u64, W::Job, W::Out)> {
        let mut source = lock(&self.source);
        let mut state = lock(&self.state);
        loop {
            if state.stop || state.panicked || state.end.is_some() {
                return None;
            }
            if state.taken < state.delivered + self.window as u64 {
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let number = state.taken;
        state.taken += 1;
        let out = state.spare.pop();
        drop(state);
        match self.work.take(&mut source) {
            Some(job) => Some((number, job, out.unwrap_or_default())),
            None => {
                lock(&self.state).end = Some(number);
                self.changed.notify_all();
                None
            }
        }
    }
}

/// Reports the panic of a thread to the consumer.
struct Guard<'a, W: Work> {
    shared: &'a Shared<W>,
    done: bool,
}

impl<W: Work> Drop for Guard<'_, W> {
    fn drop(&mut self) {
        if !self.done {
            lock(&self.shared.state).panicked = true;
            self.shared.changed.notify_all();
        }
    }
}

impl<W: Work> Drop for Ordered<W> {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Squares;

    impl Work for Squares {
        type Source = std::ops::Range<u64>;
        type Job = u64;
        type Out = Vec<u64>;
        fn take(&self, source: &mut Self::Source) -> Option<u64> {
            source.next()
        }
        fn run(&self, job: u64, out: &mut Vec<u64>) {
            assert_ne!(job, 1000, "a panic on purpose");
            std::thread::sleep(std::time::Duration::from_micros(job * 37 % 50));
            out.clear();
            out.push(job * job);
        }
    }

    #[test]
    fn results_come_in_order() {
        for threads in [0, 1, 3] {
            let mut all = Ordered::new(Squares, 0..500, threads);
            let mut got = Vec::new();
            while let Some(x) = all.next(|x| x[0]) {
                got.push(x);
            }
            assert_eq!(got, (0..500).map(|x| x * x).collect::<Vec<_>>(), "{threads} threads");
            assert!(all.next(|_| ()).is_none());
        }
    }

    #[test]
    fn it_can_be_dropped_half_way() {
        let mut all = Ordered::new(Squares, 0..500, 2);
        assert_eq!(all.next(|x| x[0]), Some(0));
    }

    #[test]
    #[should_panic(expected = "a data thread panicked")]
    fn a_panic_does_not_hang() {
        let mut all = Ordered::new(Squares, 990..1010, 2);
        while all.next(|_| ()).is_some() {}
    }
}
