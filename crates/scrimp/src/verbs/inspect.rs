//! `scrimp inspect`.

use crate::{App, cli::InspectArgs, format, verbs::pull};
use scrimp_llm::{
    checkpoint::Checkpoint,
    config::{Activation, ModelConfig},
};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    path: &'a Path,
    name: &'a str,
    family: &'a str,
    context_length: usize,
    layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    /// Experts of each layer, and those that a token passes.
    experts: Option<usize>,
    experts_per_token: Option<usize>,
    /// Width of the expert that every token passes.
    shared_expert: Option<usize>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// KV heads of layers with a sliding window and their dimension, where they differ from those of the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    window_kv_heads: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_head_dim: Option<usize>,
    /// Number of layers that read the keys and values of earlier layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_kv_layers: Option<usize>,
    vocab_size: usize,
    activation: &'static str,
    /// Number of sliding-window layers, and their window in tokens.
    sliding_layers: usize,
    sliding_window: Option<usize>,
    /// The output matrix is the embedding.
    tied_embeddings: bool,
    chat_template: bool,
    tensors: usize,
    parameters: u64,
    /// Bytes of all tensors.
    bytes: u64,
    file_bytes: u64,
    bits_per_weight: f64,
    /// Bytes of keys and values per token in bf16, all layers.
    kv_bytes_per_token: usize,
    /// Number of layers with a recurrent state instead of keys and values, and bytes of their states in a conversation.
    recurrent_layers: usize,
    state_bytes: usize,
    types: Vec<TypeRow>,
}

#[derive(Serialize)]
struct TypeRow {
    #[serde(rename = "type")]
    name: &'static str,
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

/// Shows a model's configuration and tensors.
pub(crate) fn run(app: &App, args: &InspectArgs) -> anyhow::Result<()> {
    let path = pull::fetch(app, &args.model)?;
    let checkpoint = Checkpoint::open(&path)?;
    app.printer.result(&report(&args.model, &path, &checkpoint), human)
}

fn report<'a>(model: &'a str, path: &'a Path, checkpoint: &'a Checkpoint) -> Report<'a> {
    let config: &ModelConfig = checkpoint.config();
    let mut types: Vec<TypeRow> = Vec::new();
    for (_, tensor) in checkpoint.tensors() {
        let name = tensor.encoding.name();
        let parameters = tensor.shape.iter().map(|&d| d as u64).product::<u64>();
        let bytes = tensor.data.len() as u64;
        match types.iter_mut().find(|t| t.name == name) {
            Some(row) => {
                row.tensors += 1;
                row.parameters += parameters;
                row.bytes += bytes;
            }
            None => types.push(TypeRow { name, tensors: 1, parameters, bytes }),
        }
    }
    types.sort_by_key(|t| std::cmp::Reverse(t.bytes));
    let sum = |f: fn(&TypeRow) -> u64| types.iter().map(f).sum::<u64>();
    let (parameters, bytes) = (sum(|t| t.parameters), sum(|t| t.bytes));
    let windows: Vec<usize> = config.sliding_window.iter().flatten().copied().collect();
    Report {
        model,
        path,
        name: &config.name,
        family: config.family,
        context_length: config.context_length,
        layers: config.n_layers,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        experts: config.experts.map(|experts| experts.count),
        experts_per_token: config.experts.map(|experts| experts.per_token),
        shared_expert: config.experts.and_then(|experts| experts.shared),
        heads: config.n_heads,
        kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        window_kv_heads: config.window_heads.map(|heads| heads.count),
        window_head_dim: config.window_heads.map(|heads| heads.dim),
        shared_kv_layers: config.shared_kv.map(|shared| config.n_layers - shared.first),
        vocab_size: config.vocab_size,
        activation: match config.activation {
            Activation::Silu => "SwiGLU",
            Activation::GeluTanh => "GeGLU",
            Activation::ClampedSilu => "clamped SwiGLU",
        },
        sliding_layers: windows.len(),
        sliding_window: windows.iter().copied().min(),
        tied_embeddings: checkpoint.try_tensor("output.weight").is_none(),
        chat_template: has_chat_template(checkpoint),
        tensors: checkpoint.tensors().len(),
        parameters,
        bytes,
        file_bytes: checkpoint.file_bytes(),
        bits_per_weight: if parameters == 0 { 0.0 } else { bytes as f64 * 8.0 / parameters as f64 },
        kv_bytes_per_token: config.kv_bytes_per_token(),
        recurrent_layers: (0..config.n_layers).filter(|&layer| config.is_recurrent(layer)).count(),
        state_bytes: config.state_bytes(),
        types,
    }
}

fn has_chat_template(checkpoint: &Checkpoint) -> bool {
    if let Some(metadata) = checkpoint.gguf_metadata() {
        return metadata.contains("tokenizer.chat_template");
    }
    let Some(side) = checkpoint.side_files() else { return false };
    if ["chat_template.jinja", "chat_template.json"].iter().any(|f| side.has(f)) {
        return true;
    }
    let config = side.read("tokenizer_config.json").ok().flatten();
    let config: Option<serde_json::Value> = config.and_then(|b| serde_json::from_slice(&b).ok());
    config.is_some_and(|c| c.get("chat_template").is_some_and(|t| !t.is_null()))
}

fn human(r: &Report<'_>) -> String {
    let yes = |b: bool| if b { "yes" } else { "no" }.to_owned();
    let attention = match r.sliding_window {
        Some(w) => {
            format!(
                "{} of {} layers attend to the last {w} tokens, the others to all",
                r.sliding_layers, r.layers
            )
        }
        None if r.recurrent_layers > 0 => {
            format!(
                "{} of {} layers; the others have a recurrent state",
                r.layers - r.recurrent_layers,
                r.layers
            )
        }
        None => "all layers attend to all tokens".to_owned(),
    };
    let mut heads = format!("{} with dimension {} (KV heads: {})", r.heads, r.head_dim, r.kv_heads);
    if let (Some(count), Some(dim)) = (r.window_kv_heads, r.window_head_dim) {
        heads += &format!("; with a window: dimension {dim} (KV heads: {count})");
    }
    let attention = match r.shared_kv_layers {
        Some(n) => format!("{attention}; the last {n} read keys and values of earlier ones"),
        None => attention,
    };
    let states = match r.state_bytes {
        0 => String::new(),
        bytes => format!(", and {} of recurrent states", format::bytes(bytes as u64)),
    };
    let cache = format!("{} per token in bf16{states}", format::bytes(r.kv_bytes_per_token as u64));
    let experts = match (r.experts, r.experts_per_token) {
        (Some(count), Some(per_token)) => {
            let shared = r.shared_expert.map(|width| format!(" and a shared one of width {width}"));
            format!("{count} per layer; a token passes {per_token}{}", shared.unwrap_or_default())
        }
        _ => "none".to_owned(),
    };
    let facts = [
        ("name", r.name.to_owned()),
        ("file", r.path.display().to_string()),
        ("family", r.family.to_owned()),
        ("context", format!("{} tokens", r.context_length)),
        ("layers", r.layers.to_string()),
        ("width", format!("{} ({} in the {} block)", r.hidden_size, r.intermediate_size, r.activation)),
        ("experts", experts),
        ("heads", heads),
        ("attention", attention),
        ("vocabulary", format!("{} (separate output matrix: {})", r.vocab_size, yes(!r.tied_embeddings))),
        ("chat template", yes(r.chat_template)),
        ("parameters", format!("{:.1} M", r.parameters as f64 / 1e6)),
        ("weights", format!("{}, {:.2} bits per weight", format::bytes(r.bytes), r.bits_per_weight)),
        ("KV cache", cache),
    ];
    let mut text: String = facts.iter().map(|(k, v)| format!("{k:<14} {v}\n")).collect();
    let rows: Vec<Vec<String>> = r
        .types
        .iter()
        .map(|t| {
            let share = 100.0 * t.bytes as f64 / r.bytes.max(1) as f64;
            vec![
                t.name.to_owned(),
                t.tensors.to_string(),
                format!("{:.1} M", t.parameters as f64 / 1e6),
                format::bytes(t.bytes),
                format!("{share:.1}%"),
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&format::table(&["TYPE", "TENSORS", "PARAMETERS", "SIZE", "SHARE"], &rows));
    text
}
