//! Histograms of durations and of numbers of tokens.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Number of buckets with an upper bound.
const BUCKETS: usize = 16;
/// Upper bounds of durations in seconds.
const SECONDS: [f64; BUCKETS] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Upper bounds of numbers of tokens.
const TOKENS: [f64; BUCKETS] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5];

/// A histogram. Its sum is stored in millionths.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    count: AtomicU64,
    millionths: AtomicU64,
}

impl Histogram {
    fn observe(&self, bounds: &[f64; BUCKETS], value: f64, millionths: u64) {
        if let Some(bucket) = bounds.iter().position(|&end| value <= end) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.millionths.fetch_add(millionths, Ordering::Relaxed);
    }

    fn write(&self, bounds: &[f64; BUCKETS], out: &mut String, name: &str, labels: &str) {
        let mut sum = 0;
        for (end, bucket) in bounds.iter().zip(&self.buckets) {
            sum += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{end}\"}} {sum}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let total = self.millionths.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {total}\n{name}_count{{{labels}}} {count}");
    }
}

/// A histogram of durations.
#[derive(Debug, Default)]
pub(crate) struct Durations(Histogram);

impl Durations {
    /// Adds a duration.
    pub(crate) fn observe(&self, duration: Duration) {
        self.0.observe(&SECONDS, duration.as_secs_f64(), duration.as_micros() as u64);
    }

    /// Writes the samples.
    pub(super) fn write(&self, out: &mut String, name: &str, labels: &str) {
        self.0.write(&SECONDS, out, name, labels);
    }
}

/// A histogram of numbers of tokens.
#[derive(Debug, Default)]
pub(crate) struct TokenCounts(Histogram);

impl TokenCounts {
    /// Adds a number of tokens.
    pub(crate) fn observe(&self, tokens: usize) {
        self.0.observe(&TOKENS, tokens as f64, tokens as u64 * 1_000_000);
    }

    /// Writes the samples.
    pub(super) fn write(&self, out: &mut String, name: &str, labels: &str) {
        self.0.write(&TOKENS, out, name, labels);
    }
}
