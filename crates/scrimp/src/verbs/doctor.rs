//! `scrimp doctor`.

use crate::{App, cli::DoctorArgs, format, machine};
use scrimp_hub::{ALIASES, Hub, ModelRef};
use scrimp_kernels::{SimdLevel, cpu_features, cpu_name, system};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Serialize)]
struct Report {
    version: &'static str,
    cpu: String,
    features: Vec<&'static str>,
    tier: &'static str,
    supported_tiers: Vec<&'static str>,
    online_cpus: Option<usize>,
    cpu_quota: Option<f64>,
    threads: usize,
    memory_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    memory_limit_bytes: Option<u64>,
    last_level_cache_bytes: Option<u64>,
    huge_pages: Option<String>,
    read_gb_per_s: Option<f64>,
    read_gb_per_s_huge_pages: Option<f64>,
    read_gb_per_s_ordinary_pages: Option<f64>,
    cache: Option<PathBuf>,
    models: Vec<Expectation>,
    advice: Vec<String>,
}

/// The speed to expect of a model.
#[derive(Serialize)]
struct Expectation {
    model: &'static str,
    cached: bool,
    bytes: u64,
    bytes_per_token: u64,
    /// Upper bound: memory bandwidth divided by bytes per token.
    decode_tok_s_ceiling: Option<f64>,
}

/// Prints facts about this machine and the speed to expect.
pub(crate) fn run(app: &App, _args: &DoctorArgs) -> anyhow::Result<()> {
    let level = SimdLevel::from_env()?;
    let threads = app.threads();
    let memory = system::memory();
    let hub = Hub::from_env().ok();
    app.printer.note("measuring memory bandwidth ...");
    let bandwidth = machine::Bandwidth::measure(threads);
    let best = bandwidth.best();
    let models = ALIASES
        .iter()
        .map(|a| Expectation {
            model: a.name,
            cached: hub.as_ref().is_some_and(|h| h.cached(&ModelRef::Alias(a)).is_some()),
            bytes: a.size,
            bytes_per_token: a.bytes_per_token,
            decode_tok_s_ceiling: best.map(|b| round(b / a.bytes_per_token as f64)),
        })
        .collect();
    let gb = |speed: Option<f64>| speed.map(|s| round(s / 1e9));
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        cpu: cpu_name().unwrap_or_else(|| "unknown".to_owned()),
        features: cpu_features(),
        tier: level.name(),
        supported_tiers: SimdLevel::supported().into_iter().map(SimdLevel::name).collect(),
        online_cpus: system::online_cpus(),
        cpu_quota: system::cpu_quota(),
        threads,
        memory_bytes: memory.total,
        memory_available_bytes: memory.available,
        memory_limit_bytes: memory.limit,
        last_level_cache_bytes: system::last_level_cache(),
        huge_pages: system::huge_page_mode(),
        read_gb_per_s: gb(best),
        read_gb_per_s_huge_pages: gb(bandwidth.huge),
        read_gb_per_s_ordinary_pages: gb(bandwidth.ordinary),
        cache: hub.map(|h| h.cache),
        models,
        advice: Vec::new(),
    };
    report.advice = advice(&report);
    app.printer.result(&report, human)
}

fn round(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

fn advice(r: &Report) -> Vec<String> {
    let mut advice = Vec::new();
    if r.huge_pages.as_deref() == Some("never") {
        advice.push(
            "huge pages are off; they increase memory bandwidth by 20% to 30%: \
             echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
                .to_owned(),
        );
    }
    if let Some(quota) = r.cpu_quota.filter(|&q| q < r.threads as f64) {
        advice.push(format!(
            "{} threads share a quota of {quota:.1} CPUs: try --threads {:.0}",
            r.threads,
            quota.ceil()
        ));
    }
    if let Some(cpus) = r.online_cpus.filter(|&n| n < r.threads) {
        advice.push(format!("{} threads on {cpus} CPUs: use at most one thread per CPU", r.threads));
    }
    if r.supported_tiers.last().is_some_and(|&best| best != r.tier) {
        advice.push(format!(
            "SCRIMP_TIER selects {}; this CPU supports a faster SIMD level: unset the variable",
            r.tier
        ));
    }
    if r.tier == "scalar" && r.supported_tiers.len() == 1 {
        advice.push("scrimp has no fast kernels for this CPU's instruction set; expect low speed".to_owned());
    }
    advice
}

fn human(r: &Report) -> String {
    let size = |n: Option<u64>| n.map_or_else(|| "unknown".to_owned(), format::bytes);
    let speed = |s: Option<f64>| s.map_or_else(|| "not measured".to_owned(), |s| format!("{s:.1} GB/s"));
    let quota = r.cpu_quota.map_or_else(String::new, |q| format!(", quota {q:.1}"));
    let online = r.online_cpus.map_or_else(String::new, |n| format!(" of {n} CPUs{quota}"));
    let limit =
        r.memory_limit_bytes.map_or_else(String::new, |l| format!(", limited to {}", format::bytes(l)));
    let facts = [
        ("version", r.version.to_owned()),
        ("CPU", r.cpu.clone()),
        ("features", r.features.join(" ")),
        ("kernels", format!("{} (this CPU supports {})", r.tier, r.supported_tiers.join(", "))),
        ("threads", format!("{}{online}", r.threads)),
        ("memory", format!("{}, {} available{limit}", size(r.memory_bytes), size(r.memory_available_bytes))),
        ("last-level cache", size(r.last_level_cache_bytes)),
        ("huge pages", r.huge_pages.clone().unwrap_or_else(|| "unknown".to_owned())),
        (
            "read bandwidth",
            format!(
                "{} with huge pages, {} with ordinary ones",
                speed(r.read_gb_per_s_huge_pages),
                speed(r.read_gb_per_s_ordinary_pages)
            ),
        ),
        (
            "model cache",
            r.cache.as_ref().map_or_else(|| "none: set SCRIMP_CACHE".to_owned(), |c| c.display().to_string()),
        ),
    ];
    let mut text: String = facts.iter().map(|(k, v)| format!("{k:<17} {v}\n")).collect();
    let rows: Vec<Vec<String>> = r
        .models
        .iter()
        .map(|m| {
            vec![
                m.model.to_owned(),
                if m.cached { "yes" } else { "no" }.to_owned(),
                format::bytes(m.bytes_per_token),
                m.decode_tok_s_ceiling.map_or_else(|| "?".to_owned(), |t| format!("{t:.0}")),
            ]
        })
        .collect();
    text.push_str("\nDecoding reads all weights for each token, so memory bandwidth limits its speed:\n\n");
    text.push_str(&format::table(&["MODEL", "CACHED", "BYTES/TOKEN", "AT MOST TOKENS/S"], &rows));
    for line in &r.advice {
        text.push_str(&format!("\nadvice: {line}"));
    }
    text
}
