//! Counters, gauges and histograms, written as Prometheus reads them. Names are those of vLLM with `scrimp:` in front.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A number that only grows, or is set.
#[derive(Debug, Default)]
pub(crate) struct Number(AtomicU64);

impl Number {
    /// Adds `n`.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets it.
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Its value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper ends of a histogram's buckets, seconds.
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Durations, in buckets.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    /// Counts a duration.
    pub(crate) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|&end| seconds <= end) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut sum = 0;
        for (end, bucket) in BUCKETS.iter().zip(&self.buckets) {
            sum += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{end}\"}} {sum}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let seconds = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {count}");
    }
}

/// All that the server counts.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Requests that run.
    pub(crate) running: Number,
    /// Requests that wait.
    pub(crate) waiting: Number,
    /// Bytes of KV pages.
    pub(crate) kv_bytes: Number,
    /// Most bytes of KV pages.
    pub(crate) kv_limit: Number,
    /// Prompt tokens that were computed.
    pub(crate) prompt_tokens: Number,
    /// Tokens that were generated.
    pub(crate) generated_tokens: Number,
    /// Prompt tokens that were looked for in kept caches.
    pub(crate) prefix_queries: Number,
    /// Prompt tokens that were found there.
    pub(crate) prefix_hits: Number,
    /// Requests that lost their pages and start over.
    pub(crate) preemptions: Number,
    /// Caches that were made smaller because memory ran short.
    pub(crate) compressions: Number,
    /// Rows that the recommender scored.
    pub(crate) scored_rows: Number,
    /// From a request's arrival to its first token.
    pub(crate) time_to_first_token: Histogram,
    /// Between two tokens.
    pub(crate) time_per_token: Histogram,
    latency: Histogram,
    finished: Mutex<BTreeMap<String, u64>>,
    responses: Mutex<BTreeMap<u16, u64>>,
}

impl Metrics {
    /// A request ended.
    pub(crate) fn finished(&self, reason: &str, duration: Duration) {
        self.latency.observe(duration);
        *self
            .finished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(reason.to_owned())
            .or_default() += 1;
    }

    /// A response was sent.
    pub(crate) fn response(&self, status: u16) {
        *self.responses.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
    }

    /// The text that Prometheus reads.
    pub(crate) fn render(&self, model: &str) -> String {
        let label = format!("model_name=\"{}\"", model.replace(['"', '\\', '\n'], "_"));
        let mut out = String::new();
        let usage = self.kv_bytes.get() as f64 / self.kv_limit.get().max(1) as f64;
        let mut one = |name: &str, kind: &str, help: &str, value: f64| {
            let _ = writeln!(
                out,
                "# HELP scrimp:{name} {help}\n# TYPE scrimp:{name} {kind}\nscrimp:{name}{{{label}}} {value}"
            );
        };
        one("num_requests_running", "gauge", "Requests that run.", self.running.get() as f64);
        one("num_requests_waiting", "gauge", "Requests that wait.", self.waiting.get() as f64);
        one("kv_cache_usage_perc", "gauge", "Share of the KV cache in use; 1 is all of it.", usage);
        one("kv_cache_bytes", "gauge", "Bytes of KV pages in use.", self.kv_bytes.get() as f64);
        for (name, help, number) in [
            ("prompt_tokens_total", "Prompt tokens that were computed.", &self.prompt_tokens),
            ("generation_tokens_total", "Tokens that were generated.", &self.generated_tokens),
            ("prefix_cache_queries_total", "Prompt tokens looked for in kept caches.", &self.prefix_queries),
            ("prefix_cache_hits_total", "Prompt tokens found there.", &self.prefix_hits),
            ("num_preemptions_total", "Requests that started over for want of memory.", &self.preemptions),
            ("kv_compressions_total", "Caches made smaller for want of memory.", &self.compressions),
            ("scored_rows_total", "Rows that the recommender scored.", &self.scored_rows),
        ] {
            one(name, "counter", help, number.get() as f64);
        }
        for (name, help, histogram) in [
            ("time_to_first_token_seconds", "From arrival to the first token.", &self.time_to_first_token),
            ("time_per_output_token_seconds", "Between two tokens.", &self.time_per_token),
            ("e2e_request_latency_seconds", "From arrival to the end.", &self.latency),
        ] {
            let _ = writeln!(out, "# HELP scrimp:{name} {help}\n# TYPE scrimp:{name} histogram");
            histogram.write(&mut out, &format!("scrimp:{name}"), &label);
        }
        out += "# HELP scrimp:request_success_total Requests that ended, by reason.\n\
                # TYPE scrimp:request_success_total counter\n";
        for (reason, n) in &*self.finished.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = writeln!(out, "scrimp:request_success_total{{{label},finished_reason=\"{reason}\"}} {n}");
        }
        out += "# HELP scrimp:http_responses_total Responses by status.\n\
                # TYPE scrimp:http_responses_total counter\n";
        for (status, n) in &*self.responses.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = writeln!(out, "scrimp:http_responses_total{{status=\"{status}\"}} {n}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_add_up() {
        let metrics = Metrics::default();
        for ms in [1, 3, 300, 1_000_000] {
            metrics.time_to_first_token.observe(Duration::from_millis(ms));
        }
        metrics.finished("stop", Duration::from_secs(1));
        let text = metrics.render("a\"b");
        for line in [
            "scrimp:time_to_first_token_seconds_bucket{model_name=\"a_b\",le=\"0.005\"} 2",
            "scrimp:time_to_first_token_seconds_bucket{model_name=\"a_b\",le=\"+Inf\"} 4",
            "scrimp:time_to_first_token_seconds_count{model_name=\"a_b\"} 4",
            "scrimp:request_success_total{model_name=\"a_b\",finished_reason=\"stop\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
