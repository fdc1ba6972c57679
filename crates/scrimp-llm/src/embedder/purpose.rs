//! The purpose of a model, as its files state it.
//!
//! ```text
//! directory   modules.json: a Pooling module embeds, LogitScore ranks
//!             config.json of an encoder: architectures *ForSequenceClassification ranks, others embed
//! GGUF        pooling_type 1 to 3 (mean, first, last) embeds, 4 (rank) ranks
//! both        attention in both directions embeds; "reranker" in the name ranks
//! ```
//! Qwen3-Reranker is a language model; without `modules.json`, only its name states its purpose.

use crate::{checkpoint::Checkpoint, encoder::MODEL_TYPES, error::Result, load::hf_dir::read_json};
use serde_json::Value;
use std::path::Path;

/// Maximum size of one of the JSON files.
const MAX_JSON: u64 = 4 << 20;

/// The purpose of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Text: [`Llm`](crate::Llm).
    Generate,
    /// Embeddings: [`Embedder`](super::Embedder).
    Embed,
    /// Scores of documents for a query: [`Reranker`](super::Reranker).
    Rank,
}

impl Purpose {
    /// The purpose of the model at `path`, which the user knows as `name`.
    ///
    /// # Errors
    /// When files are missing or damaged.
    pub fn of(path: &Path, name: &str) -> Result<Self> {
        let known = if path.is_dir() { Self::of_dir(path)? } else { None };
        if let Some(purpose) = known {
            return Ok(purpose);
        }
        let stem = path.file_name().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
        if [stem, name.to_lowercase()].iter().any(|name| name.contains("reranker")) {
            return Ok(Self::Rank);
        }
        let checkpoint = Checkpoint::open(path)?;
        let key = format!("{}.pooling_type", checkpoint.config().family);
        let pooling = checkpoint.gguf_metadata().map(|metadata| metadata.u64(&key)).transpose()?.flatten();
        Ok(match pooling {
            Some(1..=3) => Self::Embed,
            Some(4) => Self::Rank,
            _ if checkpoint.config().bidirectional => Self::Embed,
            _ => Self::Generate,
        })
    }

    /// The purpose that the JSON files of a directory state.
    fn of_dir(dir: &Path) -> Result<Option<Self>> {
        let modules = dir.join("modules.json");
        if modules.is_file() {
            let modules: Value = read_json(&modules, MAX_JSON)?;
            let has = |kind: &str| {
                let mut kinds = modules.as_array().into_iter().flatten().filter_map(|m| m["type"].as_str());
                kinds.any(|name| name.rsplit('.').next() == Some(kind))
            };
            if has("LogitScore") {
                return Ok(Some(Self::Rank));
            }
            if has("Pooling") {
                return Ok(Some(Self::Embed));
            }
        }
        let config = dir.join("config.json");
        if !config.is_file() {
            return Ok(None);
        }
        let config: Value = read_json(&config, MAX_JSON)?;
        let is_encoder = config["model_type"].as_str().is_some_and(|kind| MODEL_TYPES.contains(&kind));
        let mut architectures = config["architectures"].as_array().into_iter().flatten();
        let classifies =
            architectures.any(|name| name.as_str().is_some_and(|n| n.ends_with("ForSequenceClassification")));
        Ok(is_encoder.then_some(if classifies { Self::Rank } else { Self::Embed }))
    }
}
