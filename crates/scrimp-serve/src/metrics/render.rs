//! Prometheus' text format: all samples of a name together, one for each model of its kinds.

use super::{Durations, Labeled, Metrics, ModelMetrics, TokenCounts, lock};
use crate::http::Kind;
use std::fmt::Write as _;

use Kind::{Embedder, Language, Recommender, Reranker};

/// A counter or a gauge of the models of some kinds.
struct NumberOf {
    name: &'static str,
    help: &'static str,
    kinds: &'static [Kind],
    value: fn(&ModelMetrics) -> f64,
}

const fn number(
    name: &'static str,
    help: &'static str,
    kinds: &'static [Kind],
    value: fn(&ModelMetrics) -> f64,
) -> NumberOf {
    NumberOf { name, help, kinds, value }
}

/// Models that compute texts.
const TEXT: &[Kind] = &[Language, Embedder, Reranker];
const CHAT: &[Kind] = &[Language];

/// A name that ends with `_total` is a counter.
const NUMBERS: [NumberOf; 18] = [
    number("num_requests_running", "Running requests.", TEXT, |m| m.running.get() as f64),
    number("num_requests_waiting", "Waiting requests.", TEXT, |m| m.waiting.get() as f64),
    number("kv_cache_usage_perc", "Fraction of the KV memory in use.", CHAT, |m| {
        m.kv_bytes.get() as f64 / m.kv_limit.get().max(1) as f64
    }),
    number("kv_cache_bytes", "Bytes of KV pages in use.", CHAT, |m| m.kv_bytes.get() as f64),
    number("prefix_store_bytes", "Bytes of prefixes on disk.", CHAT, |m| m.store_bytes.get() as f64),
    number("prompt_tokens_total", "Computed prompt tokens.", TEXT, |m| m.prompt_tokens.get() as f64),
    number("generation_tokens_total", "Generated tokens.", CHAT, |m| m.generated_tokens.get() as f64),
    number("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", CHAT, |m| {
        m.prefix_queries.get() as f64
    }),
    number("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", CHAT, |m| {
        m.prefix_hits.get() as f64
    }),
    number("prefix_store_hits_total", "Prompt tokens loaded from prefixes on disk.", CHAT, |m| {
        m.store_hits.get() as f64
    }),
    number("num_preemptions_total", "Preempted requests.", CHAT, |m| m.preemptions.get() as f64),
    number("kv_compressions_total", "KV caches compressed under memory pressure.", CHAT, |m| {
        m.compressions.get() as f64
    }),
    number("spec_decode_num_drafts_total", "Passes that verified a draft.", CHAT, |m| m.drafts.get() as f64),
    number("spec_decode_num_draft_tokens_total", "Tokens of drafts.", CHAT, |m| {
        m.drafted_tokens.get() as f64
    }),
    number("spec_decode_num_accepted_tokens_total", "Accepted tokens of drafts.", CHAT, |m| {
        m.accepted_tokens.get() as f64
    }),
    number("scored_rows_total", "Rows scored by the recommender.", &[Recommender], |m| {
        m.scored_rows.get() as f64
    }),
    number("embedded_texts_total", "Texts embedded by the embedding model.", &[Embedder], |m| {
        m.embedded_texts.get() as f64
    }),
    number("ranked_documents_total", "Documents scored by the reranker.", &[Reranker], |m| {
        m.ranked_documents.get() as f64
    }),
];

/// Name, help, kinds and histogram. vLLM renamed `time_per_output_token_seconds` to `inter_token_latency_seconds`.
type Times = (&'static str, &'static str, &'static [Kind], fn(&ModelMetrics) -> &Durations);
const DURATIONS: [Times; 7] = [
    ("time_to_first_token_seconds", "Time from arrival to the first token.", CHAT, |m| {
        &m.time_to_first_token
    }),
    ("time_per_output_token_seconds", "Time between consecutive tokens.", CHAT, |m| &m.time_per_token),
    ("inter_token_latency_seconds", "Time between consecutive tokens.", CHAT, |m| &m.time_per_token),
    ("request_queue_time_seconds", "Time from arrival to the first step.", CHAT, |m| &m.queue_time),
    ("request_prefill_time_seconds", "Time from the first step to the first token.", CHAT, |m| {
        &m.prefill_time
    }),
    ("request_decode_time_seconds", "Time from the first token to the end.", CHAT, |m| &m.decode_time),
    ("e2e_request_latency_seconds", "Time from arrival to the end.", TEXT, |m| &m.latency),
];

type Counts = (&'static str, &'static str, fn(&ModelMetrics) -> &TokenCounts);
const TOKENS: [Counts; 3] = [
    ("iteration_tokens_total", "Tokens of a step.", |m| &m.step_tokens),
    ("request_prompt_tokens", "Prompt tokens of a finished request.", |m| &m.request_prompt),
    ("request_generation_tokens", "Generated tokens of a finished request.", |m| &m.request_generated),
];

/// A gauge that the caller knows.
pub(crate) struct Gauge {
    /// Name, with a prefix.
    pub(crate) name: &'static str,
    /// Description.
    pub(crate) help: &'static str,
    /// Name of the model (empty: of the server), and value.
    pub(crate) samples: Vec<(String, f64)>,
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

impl Metrics {
    /// All metrics, and those of the caller, in Prometheus' text format.
    pub(crate) fn render(&self, gauges: &[Gauge]) -> String {
        let (mut out, models) = (String::new(), lock(&self.models));
        let out = &mut out;
        for gauge in gauges {
            head(out, gauge.name, "gauge", gauge.help);
            for (model, value) in &gauge.samples {
                let label =
                    if model.is_empty() { String::new() } else { format!("{{model_name=\"{model}\"}}") };
                let _ = writeln!(out, "{}{label} {value}", gauge.name);
            }
        }
        let of = |kinds: &'static [Kind]| models.iter().filter(move |model| kinds.contains(&model.kind));
        for NumberOf { name, help, kinds, value } in &NUMBERS {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            for (i, Labeled { name: model, metrics, .. }) in of(kinds).enumerate() {
                if i == 0 {
                    head(out, &format!("scrimp:{name}"), kind, help);
                }
                let _ = writeln!(out, "scrimp:{name}{{model_name=\"{model}\"}} {}", value(metrics));
            }
        }
        for (name, help, kinds, histogram) in &DURATIONS {
            for (i, Labeled { name: model, metrics, .. }) in of(kinds).enumerate() {
                if i == 0 {
                    head(out, &format!("scrimp:{name}"), "histogram", help);
                }
                let label = format!("model_name=\"{model}\"");
                histogram(metrics).write(out, &format!("scrimp:{name}"), &label);
            }
        }
        for (name, help, histogram) in &TOKENS {
            for (i, Labeled { name: model, metrics, .. }) in of(CHAT).enumerate() {
                if i == 0 {
                    head(out, &format!("scrimp:{name}"), "histogram", help);
                }
                let label = format!("model_name=\"{model}\"");
                histogram(metrics).write(out, &format!("scrimp:{name}"), &label);
            }
        }
        head(out, "scrimp:request_success_total", "counter", "Finished requests by reason.");
        for Labeled { name, metrics, .. } in of(TEXT) {
            for (reason, n) in &*lock(&metrics.finished) {
                let _ = writeln!(
                    out,
                    "scrimp:request_success_total{{model_name=\"{name}\",finished_reason=\"{reason}\"}} {n}"
                );
            }
        }
        head(out, "scrimp:http_responses_total", "counter", "HTTP responses by status.");
        for (status, n) in &*lock(&self.responses) {
            let _ = writeln!(out, "scrimp:http_responses_total{{status=\"{status}\"}} {n}");
        }
        std::mem::take(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_model_has_its_numbers() {
        let all = Metrics::default();
        let one = all.model(&["a\"b".into()], Language);
        let two = all.model(&["second".into()], Language);
        let texts = all.model(&["texts".into()], Embedder);
        for ms in [1, 3, 300, 1_000_000] {
            one.time_to_first_token.observe(Duration::from_millis(ms));
        }
        one.finished("stop", Duration::from_secs(1));
        two.generated_tokens.add(7);
        two.step_tokens.observe(30);
        texts.embedded_texts.add(2);
        all.response(200);
        let gauge = Gauge { name: "g", help: "A gauge.", samples: vec![(String::new(), 1.5)] };
        let text = all.render(&[gauge]);
        for line in [
            "g 1.5",
            "scrimp:time_to_first_token_seconds_bucket{model_name=\"a_b\",le=\"0.005\"} 2",
            "scrimp:time_to_first_token_seconds_bucket{model_name=\"a_b\",le=\"+Inf\"} 4",
            "scrimp:time_to_first_token_seconds_count{model_name=\"a_b\"} 4",
            "scrimp:request_success_total{model_name=\"a_b\",finished_reason=\"stop\"} 1",
            "scrimp:generation_tokens_total{model_name=\"a_b\"} 0",
            "scrimp:generation_tokens_total{model_name=\"second\"} 7",
            "scrimp:iteration_tokens_total_bucket{model_name=\"second\",le=\"50\"} 1",
            "scrimp:iteration_tokens_total_sum{model_name=\"second\"} 30",
            "scrimp:embedded_texts_total{model_name=\"texts\"} 2",
            "scrimp:http_responses_total{status=\"200\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("ranked_documents") && !text.contains("kv_cache_bytes{model_name=\"texts\"}"));
        // The samples of a name are together.
        let mut names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let n = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n);
    }
}
