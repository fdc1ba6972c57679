//! Counters, gauges and histograms in Prometheus' text format. The names are vLLM's, with the prefix `scrimp:`. The metrics
//! of a model have the label `model_name`.

mod histogram;
mod render;

pub(crate) use histogram::{Durations, TokenCounts};
pub(crate) use render::Gauge;

use crate::http::Kind;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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

    /// Subtracts `n`.
    pub(crate) fn subtract(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
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

/// Metrics of one model. A model of another kind than [`Kind::Language`] uses a few of them.
#[derive(Debug, Default)]
pub(crate) struct ModelMetrics {
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
    pub(crate) time_to_first_token: Durations,
    /// Time between consecutive tokens.
    pub(crate) time_per_token: Durations,
    /// Time from a request's arrival to its first step.
    pub(crate) queue_time: Durations,
    /// Time from a request's first step to its first token.
    pub(crate) prefill_time: Durations,
    /// Time from a request's first token to its end.
    pub(crate) decode_time: Durations,
    /// Tokens of a step.
    pub(crate) step_tokens: TokenCounts,
    /// Prompt tokens of a finished request.
    pub(crate) request_prompt: TokenCounts,
    /// Generated tokens of a finished request.
    pub(crate) request_generated: TokenCounts,
    latency: Durations,
    finished: Mutex<BTreeMap<String, u64>>,
}

impl ModelMetrics {
    /// Counts a finished or failed request.
    pub(crate) fn finished(&self, reason: &str, duration: Duration) {
        self.latency.observe(duration);
        *lock(&self.finished).entry(reason.to_owned()).or_default() += 1;
    }
}

/// A model with metrics.
#[derive(Debug)]
struct Labeled {
    name: String,
    kind: Kind,
    metrics: Arc<ModelMetrics>,
}

/// All metrics of a server.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    models: Mutex<Vec<Labeled>>,
    responses: Mutex<BTreeMap<u16, u64>>,
}

impl Metrics {
    /// The metrics of a new model.
    pub(crate) fn model(&self, names: &[String], kind: Kind) -> Arc<ModelMetrics> {
        let metrics = Arc::new(ModelMetrics::default());
        let name = label(names);
        lock(&self.models).push(Labeled { name, kind, metrics: Arc::clone(&metrics) });
        metrics
    }

    /// Counts a response.
    pub(crate) fn response(&self, status: u16) {
        *lock(&self.responses).entry(status).or_default() += 1;
    }
}

/// The label of a model: its first name.
pub(crate) fn label(names: &[String]) -> String {
    names.first().map_or("", String::as_str).replace(['"', '\\', '\n'], "_")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
