//! Counters, gauges and histograms in Prometheus' text format. The names are vLLM's, with the prefix `scrimp:`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A counter or gauge.
#[derive(Debug, Default)]
pub(crate) struct Number(AtomicU64);

impl Number {
    /// Adds `n`.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Replaces the share `old` of one engine by `new`.
    pub(crate) fn replace(&self, old: &mut u64, new: u64) {
        self.0.fetch_add(new.wrapping_sub(*old), Ordering::Relaxed);
        *old = new;
    }

    /// Its value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of a histogram's buckets in seconds.
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// A histogram of durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    /// Adds a duration.
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

/// All metrics of the server.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Number of running requests.
    pub(crate) running: Number,
    /// Number of waiting requests.
    pub(crate) waiting: Number,
    /// Bytes of KV pages in use.
    pub(crate) kv_bytes: Number,
    /// Maximum bytes of KV pages.
    pub(crate) kv_limit: Number,
    /// Computed prompt tokens.
    pub(crate) prompt_tokens: Number,
    /// Generated tokens.
    pub(crate) generated_tokens: Number,
    /// Prompt tokens looked up in the prefix cache.
    pub(crate) prefix_queries: Number,
    /// Prompt tokens found in the prefix cache.
    pub(crate) prefix_hits: Number,
    /// Prompt tokens loaded from stored prefixes.
    pub(crate) store_hits: Number,
    /// Bytes of stored prefixes.
    pub(crate) store_bytes: Number,
    /// Number of preemptions.
    pub(crate) preemptions: Number,
    /// Number of compressions under memory pressure.
    pub(crate) compressions: Number,
    /// Passes that verified a draft.
    pub(crate) drafts: Number,
    /// Tokens of drafts.
    pub(crate) drafted_tokens: Number,
    /// Tokens of drafts that became tokens of answers.
    pub(crate) accepted_tokens: Number,
    /// Rows scored by the recommender.
    pub(crate) scored_rows: Number,
    /// Texts with an embedding of the embedding model.
    pub(crate) embedded_texts: Number,
    /// Documents scored by the reranker.
    pub(crate) ranked_documents: Number,
    /// Time from a request's arrival to its first token.
    pub(crate) time_to_first_token: Histogram,
    /// Time between consecutive tokens.
    pub(crate) time_per_token: Histogram,
    latency: Histogram,
    finished: Mutex<BTreeMap<String, u64>>,
    responses: Mutex<BTreeMap<u16, u64>>,
}

impl Metrics {
    /// Counts a finished or failed request.
    pub(crate) fn finished(&self, reason: &str, duration: Duration) {
        self.latency.observe(duration);
        *self
            .finished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(reason.to_owned())
            .or_default() += 1;
    }

    /// Counts a response.
    pub(crate) fn response(&self, status: u16) {
        *self.responses.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
    }

    /// All metrics in Prometheus' text format.
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
        one("num_requests_running", "gauge", "Running requests.", self.running.get() as f64);
        one("num_requests_waiting", "gauge", "Waiting requests.", self.waiting.get() as f64);
        one("kv_cache_usage_perc", "gauge", "Fraction of the KV memory in use.", usage);
        one("kv_cache_bytes", "gauge", "Bytes of KV pages in use.", self.kv_bytes.get() as f64);
        one("prefix_store_bytes", "gauge", "Bytes of prefixes on disk.", self.store_bytes.get() as f64);
        for (name, help, number) in [
            ("prompt_tokens_total", "Computed prompt tokens.", &self.prompt_tokens),
            ("generation_tokens_total", "Generated tokens.", &self.generated_tokens),
            (
                "prefix_cache_queries_total",
                "Prompt tokens looked up in the prefix cache.",
                &self.prefix_queries,
            ),
            ("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", &self.prefix_hits),
            ("prefix_store_hits_total", "Prompt tokens loaded from prefixes on disk.", &self.store_hits),
            ("num_preemptions_total", "Preempted requests.", &self.preemptions),
            ("kv_compressions_total", "KV caches compressed under memory pressure.", &self.compressions),
            ("spec_decode_num_drafts_total", "Passes that verified a draft.", &self.drafts),
            ("spec_decode_num_draft_tokens_total", "Tokens of drafts.", &self.drafted_tokens),
            ("spec_decode_num_accepted_tokens_total", "Accepted tokens of drafts.", &self.accepted_tokens),
            ("scored_rows_total", "Rows scored by the recommender.", &self.scored_rows),
            ("embedded_texts_total", "Texts embedded by the embedding model.", &self.embedded_texts),
            ("ranked_documents_total", "Documents scored by the reranker.", &self.ranked_documents),
        ] {
            one(name, "counter", help, number.get() as f64);
        }
        for (name, help, histogram) in [
            (
                "time_to_first_token_seconds",
                "Time from arrival to the first token.",
                &self.time_to_first_token,
            ),
            ("time_per_output_token_seconds", "Time between consecutive tokens.", &self.time_per_token),
            ("e2e_request_latency_seconds", "Time from arrival to the end.", &self.latency),
        ] {
            let _ = writeln!(out, "# HELP scrimp:{name} {help}\n# TYPE scrimp:{name} histogram");
            histogram.write(&mut out, &format!("scrimp:{name}"), &label);
        }
        out += "# HELP scrimp:request_success_total Finished requests by reason.\n\
                # TYPE scrimp:request_success_total counter\n";
        for (reason, n) in &*self.finished.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = writeln!(out, "scrimp:request_success_total{{{label},finished_reason=\"{reason}\"}} {n}");
        }
        out += "# HELP scrimp:http_responses_total HTTP responses by status.\n\
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
