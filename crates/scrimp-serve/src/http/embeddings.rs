//! `/v1/embeddings`: the mean of a text's hidden states after the last layer, scaled to length 1.

use super::{
    completions::tokens,
    error::ApiError,
    fields::Fields,
    input::Input,
    state::{EngineRequests, Language, State},
};
use crate::engine::{EngineOutput, Failure, KvOptions};
use axum::{
    Json,
    extract::State as Shared,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use scrimp_llm::embedding::normalized;
use serde_json::{Value, json};
use std::sync::Arc;

/// Maximum number of texts per request.
const MAX_TEXTS: usize = 256;

/// Handles a request.
///
/// # Errors
/// Invalid fields, or a failure of the engine.
pub(crate) async fn embeddings(
    Shared(state): Shared<Arc<State>>,
    input: Input,
) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = state.language(fields.string("model")?.as_deref())?;
    let inputs = inputs(fields.take("input").unwrap_or_default())?;
    let base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "encoding_format must be float or base64")),
    };
    let size = fields.integer("dimensions", 1..=i64::MAX)?.map(|n| n as usize);
    if size.is_some_and(|size| size != language.embedding_size) {
        let what = format!(
            "dimensions must be {}: the embeddings of this model have a fixed size",
            language.embedding_size
        );
        return Err(ApiError::field("dimensions", what));
    }
    fields.ignore(&["user", "metadata", "safety_identifier", "priority"]);
    fields.finish()?;
    let (found, total) = embed(&state, language, input.client, inputs).await?;
    let data: Vec<Value> = found
        .into_iter()
        .enumerate()
        .map(|(index, embedding)| {
            let embedding = if base64 {
                let bytes: Vec<u8> = embedding.iter().flat_map(|x| x.to_le_bytes()).collect();
                Value::String(STANDARD.encode(bytes))
            } else {
                json!(embedding)
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    let usage = json!({ "prompt_tokens": total, "total_tokens": total });
    let response = json!({ "object": "list", "data": data, "model": state.name(), "usage": usage });
    Ok(Json(response).into_response())
}

fn wrong() -> ApiError {
    ApiError::field(
        "input",
        format!("input must be a text, a list of token ids, or up to {MAX_TEXTS} of them"),
    )
}

/// The inputs of a request: one, or a list of them.
///
/// # Errors
/// There are none, or too many.
pub(super) fn inputs(value: Value) -> Result<Vec<Value>, ApiError> {
    let inputs = match value {
        Value::Null => return Err(wrong()),
        Value::Array(list) if list.first().is_none_or(|v| !v.is_number()) => list,
        value => vec![value],
    };
    if inputs.is_empty() || inputs.len() > MAX_TEXTS {
        return Err(wrong());
    }
    Ok(inputs)
}

/// The embeddings of inputs, and the number of their tokens.
///
/// # Errors
/// An input is neither text nor tokens or too long, or the engine fails.
pub(super) async fn embed(
    state: &State,
    language: &Language,
    client: u64,
    inputs: Vec<Value>,
) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let (mut requests, mut outputs) = EngineRequests::new(state, client);
    let (n, mut total) = (inputs.len(), 0);
    for input in inputs {
        let prompt = tokens(language, input, true).ok_or_else(wrong)??;
        language.room(&prompt, state.options.max_model_len)?;
        total += prompt.len();
        // The text is prefilled once, so compression of its KV cache has no use.
        requests.embed(prompt, KvOptions { compression: None, ..language.kv.clone() });
    }
    language.submit(requests.finish())?;
    let mut found: Vec<Vec<f32>> = vec![Vec::new(); n];
    let mut left = n;
    while left > 0 {
        match outputs.recv().await {
            Some((index, EngineOutput::Embedding(embedding))) => found[index] = normalized(embedding),
            Some((_, EngineOutput::Finished(_))) => left -= 1,
            Some((_, EngineOutput::Failed(failure))) => return Err(failure.into()),
            Some((_, EngineOutput::Token(_) | EngineOutput::Prompt(_))) => {}
            None => return Err(Failure::ShuttingDown.into()),
        }
    }
    Ok((found, total))
}
