//! Information about the server, and tokenization.

use super::{error::ApiError, fields::Fields, messages, state::State, tools::Tools};
use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::sync::{Arc, atomic::Ordering};

/// `/v1/models`.
pub(crate) fn models(state: &State) -> Value {
    let one = |id: &String| {
        json!({
            "id": id,
            "object": "model",
            "created": state.created,
            "owned_by": "scrimp",
            "max_model_len": state.language.as_ref().map(|l| l.context_length.min(state.options.max_model_len)),
        })
    };
    json!({ "object": "list", "data": state.names.iter().map(one).collect::<Vec<_>>() })
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
    (kind, state.metrics.render(state.name())).into_response()
}

/// `/tokenizer_info`: the begin- and end-of-text tokens, in vLLM's form. Evaluation harnesses read it.
///
/// # Errors
/// The server has no language model.
pub(crate) fn tokenizer(state: &State) -> Result<Value, ApiError> {
    let tokenizer = &state.language(None)?.tokenizer;
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
pub(crate) fn tokenize(state: &Arc<State>, body: &[u8]) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(body)?;
    let language = state.language(fields.string("model")?.as_deref())?;
    let special = fields.boolean("add_special_tokens")?.unwrap_or(true);
    let tokens = match fields.string("prompt")? {
        Some(text) => language.tokenizer.encode(&text, special, true)?,
        None => {
            let messages = messages::take(&mut fields)?;
            let tools = Tools::take(&mut fields)?;
            let options = messages::PromptOptions::take(&mut fields)?;
            messages::prompt(language, messages, &tools, options)?
        }
    };
    fields.finish()?;
    let limit = language.context_length.min(state.options.max_model_len);
    Ok(Json(json!({ "count": tokens.len(), "max_model_len": limit, "tokens": tokens })).into_response())
}

/// `/detokenize`: the text of tokens.
///
/// # Errors
/// No tokens are given.
pub(crate) fn detokenize(state: &Arc<State>, body: &[u8]) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(body)?;
    let language = state.language(fields.string("model")?.as_deref())?;
    let ids: Option<Vec<u32>> = fields.take("tokens").and_then(|value| serde_json::from_value(value).ok());
    fields.finish()?;
    let ids = ids.ok_or_else(|| ApiError::field("tokens", "tokens must be a list of token ids"))?;
    Ok(Json(json!({ "prompt": language.tokenizer.decode_with(&ids, false) })).into_response())
}
