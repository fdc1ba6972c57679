//! Scratch memory of attention, kept between calls. Buffers begin at cache lines and grow on demand; their contents are
//! undefined between tasks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// 16 floats on a cache line of their own.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; 16]);

/// Floats that start at a cache line.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// At least `n` floats of any value.
    pub(crate) fn at_least(&mut self, n: usize) -> &mut [f32] {
        let lines = n.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line::default());
        }
        // SAFETY: `Line` is 16 floats without padding, so the vector is 16 times as many floats in a row.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// What one thread needs for one block of rows.
#[derive(Debug, Default)]
pub(crate) struct ThreadScratch {
    pub(crate) q: Lines,
    pub(crate) scores: Lines,
    pub(crate) acc: Lines,
    /// Queries in f32 and factors of codes, for packed pages.
    pub(crate) plain_q: Lines,
    pub(crate) work: Lines,
    /// Packed pages as bf16.
    pub(crate) pages: Lines,
}

/// Working memory of [`attend`](super::attend): about 200 KB per thread in decode, 1 MB in prefill. It grows on demand
/// and is best kept for all calls of a sequence.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    threads: Vec<Mutex<ThreadScratch>>,
    pub(crate) partial: Vec<f32>,
    pub(crate) tasks: Vec<super::batch::Task>,
    pub(crate) sums: Lines,
}

impl AttentionScratch {
    /// Empty working memory.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn prepare(&mut self, threads: usize) {
        while self.threads.len() < threads {
            self.threads.push(Mutex::default());
        }
    }

    /// The memory of a thread of the pool.
    pub(crate) fn thread(&self, thread: usize) -> MutexGuard<'_, ThreadScratch> {
        self.threads[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
