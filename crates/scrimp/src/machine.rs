//! The measured memory bandwidth of the machine.

use scrimp_kernels::{SimdLevel, mem::Arena, mem::largest_word, system};
use std::time::{Duration, Instant};

/// Measured read bandwidth, bytes per second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bandwidth {
    /// Of memory with huge pages, which weights use.
    pub(crate) huge: Option<f64>,
    /// Of memory with ordinary pages.
    pub(crate) ordinary: Option<f64>,
}

impl Bandwidth {
    /// Reads memory with `threads` threads for about a second.
    pub(crate) fn measure(threads: usize) -> Self {
        // Larger than the CPU caches, and small enough for any machine.
        let size = system::last_level_cache().unwrap_or(0).saturating_mul(4).clamp(256 << 20, 1 << 30);
        let available = system::memory().available.unwrap_or(u64::MAX);
        let size = usize::try_from(size.min(available / 4)).unwrap_or(usize::MAX);
        let huge =
            Arena::new(Arena::size_of(size)).and_then(|mut arena| arena.alloc(size)).ok().map(|mut block| {
                block.fill(1);
                read_speed(&block, threads)
            });
        // The arena is freed, so there is room for a second buffer.
        let ordinary = huge.map(|_| read_speed(&vec![1; size], threads));
        Self { huge, ordinary }
    }

    /// The larger of both.
    pub(crate) fn best(self) -> Option<f64> {
        self.huge.into_iter().chain(self.ordinary).max_by(f64::total_cmp)
    }
}

/// Best read speed of several passes over `memory`, bytes per second.
fn read_speed(memory: &[u8], threads: usize) -> f64 {
    let level = SimdLevel::detect();
    let begin = Instant::now();
    let mut best = Duration::MAX;
    let mut passes = 0;
    while passes < 3 || begin.elapsed() < Duration::from_millis(400) {
        let pass = Instant::now();
        std::thread::scope(|scope| {
            for chunk in memory.chunks(memory.len().div_ceil(threads).max(1)) {
                scope.spawn(move || std::hint::black_box(largest_word(level, chunk)));
            }
        });
        best = best.min(pass.elapsed());
        passes += 1;
    }
    memory.len() as f64 / best.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_buffer_has_a_speed() {
        assert!(read_speed(&vec![1; 1 << 20], 2) > 1e6);
    }
}
