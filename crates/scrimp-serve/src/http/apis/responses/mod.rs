//! OpenAI's `/v1/responses`.
//!
//! A conversation is a list of items: messages, calls, results and reasoning. Consecutive items of the assistant become one
//! message with the calls and the reasoning as fields. Stored responses are conversations in memory; the prefix cache keeps
//! their computed prompts.

mod events;
mod items;
mod request;

pub(crate) use request::take;

use super::{
    super::{
        error::ApiError,
        fields::Fields,
        history::History,
        input::{self, Input},
        models::Served as _,
        parts::Block,
        state::{State, now},
        stream::Usage,
    },
    Api,
};
use crate::engine::FinishReason;
use axum::{
    Json,
    extract::{Path, State as Shared},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use events::Events;
use items::{Item, answer_message, last_status};
use request::Request;
use serde_json::{Value, json};
use std::sync::Arc;

pub(in super::super) const API: Api = Api {
    routes: |router| {
        router.route("/v1/responses", post(responses)).route("/v1/responses/{id}", get(read).delete(delete))
    },
    owns: |path| path.starts_with("/v1/responses"),
    error: ApiError::body,
};

/// Fields of a request that its response repeats, with their defaults.
const REPEATED: [(&str, &str); 11] = [
    ("instructions", "null"),
    ("max_output_tokens", "null"),
    ("metadata", "{}"),
    ("parallel_tool_calls", "true"),
    ("previous_response_id", "null"),
    ("reasoning", r#"{"effort": null, "summary": null}"#),
    ("temperature", "1.0"),
    ("text", r#"{"format": {"type": "text"}}"#),
    ("tool_choice", r#""auto""#),
    ("tools", "[]"),
    ("top_p", "1.0"),
];

/// Handles a request for a response.
async fn responses(Shared(state): Shared<Arc<State>>, input: Input) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = &*state.language(fields.string("model")?.as_deref()).await?;
    let mut base = json!({
        "id": History::id("resp"), "object": "response", "created_at": now(), "model": language.name(),
        "status": "in_progress", "background": false, "error": null, "incomplete_details": null, "output": [],
        "truncation": "disabled", "usage": null,
    });
    for (name, default) in REPEATED {
        let default = || serde_json::from_str(default).unwrap_or_default();
        base[name] = fields.get(name).cloned().unwrap_or_else(default);
    }
    let Request { mut turn, instructions, previous, stores, custom } = take(&mut fields, &language.kv)?;
    fields.finish()?;
    base["store"] = stores.into();
    let mut history = Vec::new();
    if let Some(id) = previous {
        let (messages, _) = state.history.read(&id, input.owner).ok_or_else(|| {
            let id: String = id.chars().take(100).collect();
            let e = ApiError::field("previous_response_id", format!("there is no stored response {id:?}"));
            e.code("previous_response_not_found")
        })?;
        history = messages;
    }
    history.append(&mut turn.messages);
    turn.messages =
        instructions.map(|text| json!({ "role": "system", "content": text })).into_iter().collect();
    turn.messages.extend(history.iter().cloned());
    let streams = turn.params.stream;
    let answers = turn.submit(&state, language, input.client)?;
    let owner = input.owner;
    let mut reply =
        Reply { state: Arc::clone(&state), owner, stores, custom, history, base, blocks: Vec::new() };
    if streams {
        return answers.stream(Events::new(reply)).await;
    }
    let (answer, usage) = answers.collect_one().await?;
    let n = answer.blocks.len();
    let item =
        |(i, block)| Item::new(block, &reply.custom).json(last_status(answer.has_cut_call && i + 1 == n));
    let items = answer.blocks.iter().enumerate().map(item).collect();
    reply.blocks = answer.blocks;
    Ok(Json(reply.complete(items, answer.complete.reason, &usage)).into_response())
}

/// Handles a request for a stored response.
async fn read(
    Shared(state): Shared<Arc<State>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let found = state.history.read(&id, input::owner(&headers));
    let (_, response) = found.ok_or_else(not_found)?;
    Ok(Json(response).into_response())
}

/// Handles a request to delete a stored response.
async fn delete(
    Shared(state): Shared<Arc<State>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if !state.history.delete(&id, input::owner(&headers)) {
        return Err(not_found());
    }
    Ok(Json(json!({ "id": id, "object": "response", "deleted": true })).into_response())
}

fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "there is no such stored response")
}

/// A response before its end.
struct Reply {
    state: Arc<State>,
    owner: u64,
    stores: bool,
    custom: Vec<String>,
    /// The messages before the answer, without the instructions.
    history: Vec<Value>,
    /// The response object.
    base: Value,
    /// The answer.
    blocks: Vec<Block>,
}

impl Reply {
    /// The complete response. It is stored if the request demands that.
    fn complete(&mut self, items: Vec<Value>, reason: FinishReason, usage: &Usage) -> Value {
        let mut response = self.base.take();
        response["output"] = items.into();
        response["status"] = "completed".into();
        if reason == FinishReason::Length {
            response["status"] = "incomplete".into();
            response["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        }
        response["usage"] = usage.with_kv(json!({
            "input_tokens": usage.prompt,
            "input_tokens_details": { "cached_tokens": usage.cached },
            "output_tokens": usage.generated,
            "output_tokens_details": { "reasoning_tokens": usage.reasoning },
            "total_tokens": usage.prompt + usage.generated,
        }));
        if self.stores {
            self.history.push(answer_message(&self.blocks));
            let id = response["id"].as_str().unwrap_or_default();
            self.state.history.store(id, self.owner, &self.history, &response);
        }
        response
    }
}
