//! `/v1/embeddings`: the vectors of an embedding model, or the mean of a language model's final states, scaled to length 1.

use super::{
    completions::tokens,
    error::ApiError,
    fields::Fields,
    input::Input,
    models::{EmbeddingModel, TextService},
    state::{EngineRequests, Language, State},
};
use crate::engine::{EngineOutput, Failure, KvOptions};
use axum::{
    Json,
    extract::State as Shared,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use scrimp_llm::{Embedder, embedding::normalized};
use serde_json::{Value, json};
use std::sync::Arc;

/// Maximum number of texts per request to an embedding model, as in OpenAI's API.
const MAX_TEXTS: usize = 2048;
/// Maximum number of texts per request to a language model: each one is a request of the engine.
const MAX_ENGINE_TEXTS: usize = 256;

/// Handles a request.
///
/// # Errors
/// Invalid fields, or a failure of the model.
pub(crate) async fn embeddings(
    Shared(state): Shared<Arc<State>>,
    input: Input,
) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let model = &state.embedding_model(fields.string("model")?.as_deref()).await?;
    let inputs = inputs(fields.take("input").unwrap_or_default(), model)?;
    let base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "encoding_format must be float or base64")),
    };
    let options = EmbedOptions::take(&mut fields, model, false)?;
    fields.ignore(&["user", "metadata", "safety_identifier", "priority"]);
    fields.finish()?;
    let (found, total) = embed(&state, model, input.client, inputs, &options).await?;
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
    let response = json!({ "object": "list", "data": data, "model": model.name(), "usage": usage });
    Ok(Json(response).into_response())
}

/// Options of a request.
#[derive(Debug)]
pub(super) struct EmbedOptions {
    /// Elements of each embedding; `None`: all.
    dimensions: Option<usize>,
    /// Name of the model's prompt before each text; `None`: its default.
    prompt: Option<String>,
    /// The end of texts that are too long is left out; otherwise they are errors.
    truncates: bool,
}

impl EmbedOptions {
    /// Takes `dimensions`, `prompt_name` and `truncate`, whose default is `truncates`.
    ///
    /// # Errors
    /// A value is invalid.
    pub(super) fn take(
        fields: &mut Fields,
        model: &EmbeddingModel<'_>,
        truncates: bool,
    ) -> Result<Self, ApiError> {
        let dimensions = fields.integer("dimensions", 1..=model.width() as i64)?.map(|n| n as usize);
        let prompt = fields.string("prompt_name")?;
        if prompt.is_some() && matches!(model, EmbeddingModel::Language(_)) {
            let what = "prompt_name needs an embedding model; this is a language model, which has no prompts";
            return Err(ApiError::field("prompt_name", what));
        }
        Ok(Self { dimensions, prompt, truncates: fields.boolean("truncate")?.unwrap_or(truncates) })
    }

    /// The first elements of an embedding, scaled to length 1.
    /// Source: "Matryoshka Representation Learning" (Kusupati et al. 2022), section 3.
    fn shorten(&self, mut embedding: Vec<f32>) -> Vec<f32> {
        match self.dimensions {
            Some(n) if n < embedding.len() => {
                embedding.truncate(n);
                normalized(embedding)
            }
            _ => embedding,
        }
    }
}

fn wrong(most: usize) -> ApiError {
    let what = format!("input must be a text, a list of token ids, or up to {most} of them");
    ApiError::field("input", what)
}

/// The inputs of a request: one, or a list of them.
///
/// # Errors
/// There are none, or too many.
pub(super) fn inputs(value: Value, model: &EmbeddingModel<'_>) -> Result<Vec<Value>, ApiError> {
    let most = match model {
        EmbeddingModel::Embedder(_) => MAX_TEXTS,
        EmbeddingModel::Language(_) => MAX_ENGINE_TEXTS,
    };
    let inputs = match value {
        Value::Null => return Err(wrong(most)),
        Value::Array(list) if list.first().is_none_or(|v| !v.is_number()) => list,
        value => vec![value],
    };
    if inputs.is_empty() || inputs.len() > most {
        return Err(wrong(most));
    }
    Ok(inputs)
}

/// The embeddings of inputs, and the number of their tokens.
///
/// # Errors
/// An input is neither text nor tokens or too long, or the model fails.
pub(super) async fn embed(
    state: &State,
    model: &EmbeddingModel<'_>,
    client: u64,
    inputs: Vec<Value>,
    options: &EmbedOptions,
) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let (found, total) = match model {
        EmbeddingModel::Embedder(embedder) => by_embedder(state, embedder, inputs, options).await?,
        EmbeddingModel::Language(language) => by_language(state, language, client, inputs, options).await?,
    };
    Ok((found.into_iter().map(|embedding| options.shorten(embedding)).collect(), total))
}

async fn by_embedder(
    state: &State,
    embedder: &TextService<Embedder>,
    inputs: Vec<Value>,
    options: &EmbedOptions,
) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let text = |input| match input {
        Value::String(text) => Ok(text),
        Value::Array(_) | Value::Number(_) => {
            let what =
                "input must be text: this embedding model has its own tokenizer and reads no token ids";
            Err(ApiError::field("input", what))
        }
        _ => Err(wrong(MAX_TEXTS)),
    };
    let texts = inputs.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let found = embedder.run(state, options.prompt.clone(), texts).await?;
    if let Some(at) = found.iter().position(|embedding| embedding.truncated && !options.truncates) {
        let what = format!(
            "input {at} is longer than the model's context length of {} tokens; with truncate: true, its end is left out",
            embedder.max_tokens
        );
        return Err(ApiError::field("input", what).code("context_length_exceeded"));
    }
    let total = found.iter().map(|embedding| embedding.tokens).sum();
    Ok((found.into_iter().map(|embedding| embedding.vector).collect(), total))
}

async fn by_language(
    state: &State,
    language: &Language,
    client: u64,
    inputs: Vec<Value>,
    options: &EmbedOptions,
) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let (mut requests, mut outputs) = EngineRequests::new(state, language, client);
    let (n, mut total) = (inputs.len(), 0);
    let most = language.context_length.min(state.options.max_model_len).saturating_sub(1);
    for input in inputs {
        let mut prompt = tokens(language, input, true).ok_or_else(|| wrong(MAX_ENGINE_TEXTS))??;
        if options.truncates {
            prompt.truncate(most);
        }
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
