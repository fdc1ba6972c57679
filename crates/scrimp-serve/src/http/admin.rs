//! `/admin`: the holders of memory. Weights, KV caches of requests, cached prefixes, recurrent states, draft models,
//! recommender.

use super::{
    models::{Kind, ModelFacts},
    state::State,
};
use crate::engine::MemoryReport;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;

/// Maximum time until an engine has finished its step.
const PATIENCE: Duration = Duration::from_secs(2);

/// The holders of memory, in bytes.
pub(crate) async fn admin(state: &State) -> Value {
    let mut models = Vec::new();
    for (index, (names, profile)) in state.languages.profiles().enumerate() {
        let report = match state.languages.report(index) {
            // `None`: the engine computes a long step, or is being unloaded.
            Some(report) => timeout(PATIENCE, report).await.ok().and_then(Result::ok),
            None => None,
        };
        let is_loaded = state.languages.is_loaded(index);
        let mut entry = holder(names, Kind::Language, is_loaded, Some(&profile.facts));
        entry["accounted_bytes"] = json!(if is_loaded { state.languages.accounted(index) } else { 0 });
        entry["draft_bytes"] = json!(if is_loaded { profile.draft_bytes } else { 0 });
        entry["requests"] = json!(report.map(|r| json!({ "running": r.running, "waiting": r.waiting })));
        entry["kv"] = report.map_or(Value::Null, caches);
        models.push(entry);
    }
    if let Some(m) = &state.embedder {
        models.push(holder(&m.names, Kind::Embedder, true, m.facts.as_ref()));
    }
    if let Some(m) = &state.reranker {
        models.push(holder(&m.names, Kind::Reranker, true, m.facts.as_ref()));
    }
    if let Some(m) = &state.recommender {
        let mut entry = holder(&m.names, Kind::Recommender, true, None);
        entry["weight_bytes"] = json!(m.embedding_bytes);
        models.push(entry);
    }
    json!({
        "process": {
            "rss_bytes": scrimp_kernels::system::rss_bytes(),
            "peak_rss_bytes": scrimp_kernels::system::peak_rss_bytes(),
        },
        "memory_limit_bytes": state.options.memory,
        "conversation_bytes": state.history.bytes(),
        "models": models,
    })
}

fn holder(names: &[String], kind: Kind, is_loaded: bool, facts: Option<&ModelFacts>) -> Value {
    json!({
        "names": names,
        "task": kind.task(),
        "loaded": is_loaded,
        "weight_bytes": if is_loaded { facts.map_or(0, |facts| facts.weight_bytes) } else { 0 },
        "file_bytes": facts.map(|facts| facts.file_bytes),
    })
}

fn caches(report: MemoryReport) -> Value {
    json!({
        "bytes": report.kv_bytes,
        "limit_bytes": report.kv_limit,
        "request_bytes": report.request_bytes,
        "whole_bytes": report.whole_bytes,
        "state_bytes": report.state_bytes,
        "prefixes": report.prefixes,
        "prefix_bytes": report.kv_bytes.saturating_sub(report.request_bytes),
        "stored_prefix_bytes": report.store_bytes,
    })
}
