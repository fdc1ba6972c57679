//! How the units of a region are handed out: each thread has a run of consecutive units of its own, and helps with the runs of
//! others when that is done.
//!
//! The hardware's prefetchers follow a thread through its run, where units that alternate between threads make them start
//! again at each one. And in every region a thread has the same part of all units: what it has written in one, it finds in its own
//! caches in the next. A line that one core has written reaches another in 30 ns where they share a cache and in 170 where they do
//! not; if units go to whoever comes first, a prompt's linear layers lose a tenth to nearly half of their time to that.

use super::sync::AtomicUsize;
use std::{ops::Range, sync::atomic::Ordering};

/// A counter that shares its cache line with no other.
#[derive(Debug)]
#[repr(align(128))]
struct OwnLine(AtomicUsize);

/// The next unit of each thread's run.
#[derive(Debug)]
pub(super) struct Runs(Box<[OwnLine]>);

impl Runs {
    /// Runs of up to `threads` threads.
    pub(super) fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| OwnLine(AtomicUsize::new(0))).collect())
    }

    /// How many of the runs are used: of few units, each run has one.
    fn used(&self, units: usize) -> usize {
        self.0.len().min(units)
    }

    /// Makes `units` units to be had, while nobody takes any.
    pub(super) fn fill(&self, units: usize) {
        let runs = self.used(units);
        for (run, next) in self.0[..runs].iter().enumerate() {
            next.0.store(part(units, run, runs).start, Ordering::Relaxed);
        }
    }

    /// The units that `worker` gets, of those that [`Runs::fill`] was called with.
    pub(super) fn units(&self, units: usize, worker: usize) -> Units<'_> {
        Units { runs: self, units, own: worker, done: 0 }
    }
}

/// Part `i` of `parts` equal ones (but for rounding) of `0..n`: what thread `i` of so many starts with.
pub(crate) fn part(n: usize, i: usize, parts: usize) -> Range<usize> {
    n * i / parts..n * (i + 1) / parts
}

/// Takes units until none is left.
pub(super) struct Units<'a> {
    runs: &'a Runs,
    units: usize,
    own: usize,
    /// Runs that have none left, the thread's own first.
    done: usize,
}

impl Iterator for Units<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let runs = self.runs.used(self.units);
        while self.done < runs {
            let run = (self.own + self.done) % runs;
            let unit = self.runs.0[run].0.fetch_add(1, Ordering::Relaxed);
            if unit < part(self.units, run, runs).end {
                return Some(unit);
            }
            self.done += 1;
        }
        None
    }
}
