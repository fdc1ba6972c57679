//! Information about the server, and tokenization.

use super::{
    error::ApiError,
    fields::Fields,
    input::Input,
    messages,
    models::Entry,
    reasoning::ReasoningOptions,
    state::{Language, State, rfc3339},
    tools::Tools,
};
use crate::metrics::{Gauge, label};
use axum::{
    Json,
    extract::State as Shared,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::sync::{Arc, atomic::Ordering};

/// `/v1/models`, in the form of OpenAI's and of Anthropic's clients.
pub(crate) fn models(state: &State) -> Value {
    let one = |entry: &Entry<'_>| {
        let id = entry.name;
        json!({
            "id": id,
            "object": "model",
            "created": state.created,
            "owned_by": "scrimp",
            "type": "model",
            "display_name": id,
            "created_at": rfc3339(state.created),
            "lifecycle": "active",
            "task": entry.kind.task(),
            "max_model_len": entry.max_tokens,
            "loaded": entry.is_loaded,
        })
    };
    let entries = state.entries();
    let data: Vec<Value> = entries.iter().map(one).collect();
    let id = |entry: Option<&Entry<'_>>| entry.map(|entry| entry.name.to_owned());
    json!({
        "object": "list", "data": data, "has_more": false, "first_id": id(entries.first()), "last_id": id(entries.last()),
    })
}

/// `/v1/models/{id}`.
///
/// # Errors
/// 404: unknown model.
pub(crate) fn model(state: &State, id: &str) -> Result<Value, ApiError> {
    let Value::Array(all) = models(state)["data"].take() else { return Ok(Value::Null) };
    all.into_iter()
        .find(|model| model["id"] == id)
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "there is no such model").code("model_not_found"))
}

/// `/ready`: 200 while the server accepts requests. (`/health`: 200 while the process runs.)
pub(crate) fn ready(state: &State) -> Response {
    if state.draining.load(Ordering::SeqCst) {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response();
    }
    "ready\n".into_response()
}

/// `/metrics`.
pub(crate) fn metrics(state: &State) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, state.metrics.render(&gauges(state))).into_response()
}

/// The gauges of the process, and the weights of the models.
fn gauges(state: &State) -> Vec<Gauge> {
    let of_process = |name, help, value: Option<f64>| Gauge {
        name,
        help,
        samples: value.map(|value| (String::new(), value)).into_iter().collect(),
    };
    let rss = scrimp_kernels::system::rss_bytes().map(|bytes| bytes as f64);
    let mut weights = Vec::new();
    for (index, (names, profile)) in state.languages.profiles().enumerate() {
        let bytes = if state.languages.is_loaded(index) { profile.facts.weight_bytes } else { 0 };
        weights.push((names, bytes));
    }
    let texts = [
        state.embedder.as_ref().map(|m| (m.names.as_slice(), m.facts.as_ref())),
        state.reranker.as_ref().map(|m| (m.names.as_slice(), m.facts.as_ref())),
    ];
    weights.extend(
        texts.into_iter().flatten().map(|(names, facts)| (names, facts.map_or(0, |f| f.weight_bytes))),
    );
    weights.extend(state.recommender.as_ref().map(|m| (m.names.as_slice(), m.embedding_bytes)));
    let sample = |(names, bytes): (&[String], u64)| (label(names), bytes as f64);
    vec![
        of_process("process_resident_memory_bytes", "Resident memory.", rss),
        of_process("process_start_time_seconds", "Start, seconds since 1970.", Some(state.created as f64)),
        Gauge {
            name: "scrimp:model_weight_bytes",
            help: "Bytes of the weights of a loaded model.",
            samples: weights.into_iter().map(sample).collect(),
        },
    ]
}

/// `/tokenizer_info`: the begin- and end-of-text tokens, in vLLM's form. Evaluation harnesses read it.
///
/// # Errors
/// The server has no language model.
pub(crate) async fn tokenizer(state: &State) -> Result<Value, ApiError> {
    let tokenizer = &state.language(None).await?.tokenizer;
    let text = |id: Option<u32>| {
        id.and_then(|id| tokenizer.token_bytes(id)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(json!({
        "tokenizer_class": "scrimp",
        "bos_token": text(tokenizer.bos()),
        "eos_token": text(tokenizer.eos()),
        "add_bos_token": tokenizer.adds_bos(),
    }))
}

/// `/tokenize`: the tokens of a prompt or of messages.
///
/// # Errors
/// Neither is given.
pub(crate) async fn tokenize(Shared(state): Shared<Arc<State>>, input: Input) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = &*state.language(fields.string("model")?.as_deref()).await?;
    let special = fields.boolean("add_special_tokens")?.unwrap_or(true);
    // llama-server's fields.
    let (adds, parses) = (fields.boolean("add_special")?, fields.boolean("parse_special")?);
    let with_pieces = fields.boolean("with_pieces")?.unwrap_or(false);
    let (text, content) = (fields.string("prompt")?, fields.string("content")?);
    let tokens = match (text, content) {
        (Some(text), _) => language.tokenizer.encode(&text, special, true)?,
        (None, Some(text)) => {
            language.tokenizer.encode(&text, adds.unwrap_or(false), parses.unwrap_or(true))?
        }
        (None, None) => {
            let messages = messages::take(&mut fields)?;
            let tools = Tools::take(&mut fields)?;
            let options = messages::PromptOptions::take(&mut fields)?;
            let reasoning = ReasoningOptions::take(&mut fields)?;
            messages::prompt(language, &messages, &tools, &options, reasoning.or(&language.reasoning))?.tokens
        }
    };
    fields.finish()?;
    let limit = language.context_length.min(state.options.max_model_len);
    let count = tokens.len();
    let tokens = match with_pieces {
        false => json!(tokens),
        true => tokens.iter().map(|&id| json!({ "id": id, "piece": piece(language, id) })).collect(),
    };
    Ok(Json(json!({ "count": count, "max_model_len": limit, "tokens": tokens })).into_response())
}

/// `/detokenize`: the text of tokens.
///
/// # Errors
/// No tokens are given.
pub(crate) async fn detokenize(
    Shared(state): Shared<Arc<State>>,
    input: Input,
) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = &*state.language(fields.string("model")?.as_deref()).await?;
    let ids: Option<Vec<u32>> = fields.take("tokens").and_then(|value| serde_json::from_value(value).ok());
    fields.finish()?;
    let ids = ids.ok_or_else(|| ApiError::field("tokens", "tokens must be a list of token ids"))?;
    // The fields of vLLM and of llama-server.
    let text = language.tokenizer.decode_with(&ids, false);
    Ok(Json(json!({ "prompt": text, "content": text })).into_response())
}

/// The text of a token, or its bytes if they are part of a character.
fn piece(language: &Language, id: u32) -> Value {
    match String::from_utf8(language.tokenizer.token_bytes(id).unwrap_or_default()) {
        Ok(text) => text.into(),
        Err(e) => json!(e.as_bytes()),
    }
}
