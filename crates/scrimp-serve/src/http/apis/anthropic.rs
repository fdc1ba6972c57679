//! Anthropic's `/v1/messages` and `/v1/messages/count_tokens`.
//!
//! Messages are lists of blocks. Adapters of OpenAI's form have a message per result of a tool, and calls as fields of a
//! message: the translation keeps the order of the blocks.

use super::{
    super::{
        error::ApiError,
        fields::Fields,
        input::Input,
        messages::{MAX_MESSAGES, PromptOptions},
        models::Served as _,
        params::{MAX_STOPS, Params, ResponseFormat},
        part_stream::PartChunks,
        parts::{AnswerParser, Block, Part},
        reasoning::ReasoningOptions,
        state::{State, unique},
        stream::{Frames, Usage},
        tools::{Choice, Tools},
        turn::Turn,
    },
    Api,
};
use crate::engine::{FinishReason, KvOptions, Summary, Token};
use axum::{
    Json,
    extract::State as Shared,
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

pub(in super::super) const API: Api = Api {
    routes: |router| {
        router.route("/v1/messages", post(messages)).route("/v1/messages/count_tokens", post(count_tokens))
    },
    owns: |path| path.starts_with("/v1/messages"),
    error,
};

/// Fields without an effect on the answer.
const HARMLESS: [&str; 9] = [
    "cache_control",
    "container",
    "context_management",
    "diagnostics",
    "inference_geo",
    "service_tier",
    "speed",
    "user_profile_id",
    "workspace_id",
];
/// Reasoning cannot be verified: every block has this signature.
const SIGNATURE: &str = "scrimp";

/// The body of an error.
fn error(e: &ApiError) -> Value {
    let kind = match e.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 => "timeout_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..500 => "invalid_request_error",
        503 => "overloaded_error",
        _ => "api_error",
    };
    json!({ "type": "error", "error": { "type": kind, "message": e.message }, "request_id": null })
}

/// Handles a request for a message.
async fn messages(Shared(state): Shared<Arc<State>>, input: Input) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = &*state.language(fields.string("model")?.as_deref()).await?;
    let turn = take(&mut fields, &language.kv)?;
    fields.finish()?;
    let streams = turn.params.stream;
    let answers = turn.submit(&state, language, input.client)?;
    let (id, model) = (format!("msg_{:016x}", unique()), language.name().to_owned());
    let is_cut = answers.is_cut;
    if streams {
        let prompt_tokens = answers.prompt_tokens;
        let chunks = Message { id, model, prompt_tokens, is_cut, open: None, blocks: 0, end: None };
        return answers.stream(chunks).await;
    }
    let (answer, usage) = answers.collect_one().await?;
    let has_calls =
        !answer.has_cut_call && answer.blocks.iter().any(|block| matches!(block, Block::Call { .. }));
    let content: Vec<Value> = answer.blocks.into_iter().map(block).collect();
    let complete = answer.complete;
    let mut response = envelope(&id, &model, content, usage_json(&usage));
    response["stop_reason"] = reason(complete.reason, complete.stop.as_deref(), has_calls, is_cut).into();
    response["stop_sequence"] = complete.stop.into();
    Ok(Json(response).into_response())
}

/// Handles a request for the number of tokens of a prompt.
async fn count_tokens(Shared(state): Shared<Arc<State>>, input: Input) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = &*state.language(fields.string("model")?.as_deref()).await?;
    let turn = take_prompt(&mut fields, &language.kv)?;
    fields.finish()?;
    let (prompt, _) = turn.encode(language)?;
    Ok(Json(json!({ "input_tokens": prompt.len() })).into_response())
}

/// Takes all fields but `model`. `kv`: the default KV options.
pub(in super::super) fn take(fields: &mut Fields, kv: &KvOptions) -> Result<Turn, ApiError> {
    let max_tokens = fields.integer("max_tokens", 1..=i64::MAX)?;
    let max_tokens = max_tokens.ok_or_else(|| ApiError::field("max_tokens", "max_tokens: Field required"))?;
    let mut turn = take_prompt(fields, kv)?;
    let mut metadata = Fields::of(fields.object("metadata")?.unwrap_or_default());
    let format = turn.params.format;
    turn.params = Params {
        max_tokens: Some(max_tokens as usize),
        stop: fields.strings("stop_sequences", MAX_STOPS)?,
        user: metadata.string("user_id")?,
        ..Params::take_common(fields, kv)?
    }
    .with_format(format)
    .checked()?;
    Ok(turn)
}

/// Takes the fields that determine the prompt.
fn take_prompt(fields: &mut Fields, kv: &KvOptions) -> Result<Turn, ApiError> {
    let mut conversation = Vec::new();
    if let Some(system) = fields.take("system") {
        let text = text(system).ok_or_else(|| {
            ApiError::field("system", "system must be a string or a list of blocks of type text")
        })?;
        conversation.push(json!({ "role": "system", "content": text }));
    }
    let wrong =
        || ApiError::field("messages", format!("messages must be a list of 1 to {MAX_MESSAGES} messages"));
    match fields.take("messages") {
        Some(Value::Array(list)) if !list.is_empty() && list.len() <= MAX_MESSAGES => {
            for (i, message) in list.into_iter().enumerate() {
                take_message(message, &mut conversation)
                    .map_err(|what| ApiError::field("messages", format!("messages.{i}{what}")))?;
            }
        }
        _ => return Err(wrong()),
    }
    let mut reasoning = take_thinking(fields)?;
    let mut params = Params::new(kv);
    let mut output = Fields::of(fields.object("output_config")?.unwrap_or_default());
    if let Some(effort) = output.string("effort")? {
        let of_effort = ReasoningOptions::of_effort("output_config.effort", &effort)?;
        reasoning.effort = of_effort.effort;
        if reasoning.wanted == Some(true) && reasoning.limit.is_none() {
            reasoning.limit = of_effort.limit;
        }
    }
    let format = match output.object("format")? {
        None => fields.object("output_format")?,
        format => format,
    };
    output.finish()?;
    if let Some(format) = format {
        params.format = take_format(format)?;
    }
    fields.ignore(&HARMLESS);
    let tools = take_tools(fields)?;
    Ok(Turn {
        messages: conversation,
        tools,
        options: PromptOptions::default(),
        reasoning,
        params,
        logprobs: None,
    })
}

/// `{"type": "json_schema", "schema": {...}}`.
fn take_format(format: Map<String, Value>) -> Result<ResponseFormat, ApiError> {
    let mut fields = Fields::of(format);
    match (fields.string("type")?.as_deref(), fields.object("schema")?) {
        (Some("json_schema"), Some(schema)) => Ok(ResponseFormat::Schema(Value::Object(schema), true)),
        _ => {
            let what = "output_config.format must have the type json_schema and a schema";
            Err(ApiError::field("output_config", what))
        }
    }
}

/// `thinking`: `enabled` with `budget_tokens`, `adaptive`, or `disabled`, the default.
fn take_thinking(fields: &mut Fields) -> Result<ReasoningOptions, ApiError> {
    let Some(map) = fields.object("thinking")? else { return Ok(ReasoningOptions::switched(false)) };
    let mut thinking = Fields::of(map);
    thinking.ignore(&["display"]);
    let kind = thinking.string("type")?;
    let budget = thinking.integer("budget_tokens", 1..=i64::MAX)?;
    let options = match (kind.as_deref(), budget) {
        (Some("enabled"), Some(budget)) => ReasoningOptions::limited(budget as usize),
        (Some("enabled" | "adaptive" | "between_tools"), None) => ReasoningOptions::switched(true),
        (Some("disabled"), None) => ReasoningOptions::switched(false),
        _ => {
            let what = "thinking.type must be enabled (with budget_tokens), adaptive or disabled";
            return Err(ApiError::field("thinking", what));
        }
    };
    thinking.finish()?;
    Ok(options)
}

/// `tools` and `tool_choice`.
fn take_tools(fields: &mut Fields) -> Result<Tools, ApiError> {
    let wrong = |what: String| ApiError::field("tools", what);
    let mut tools = Vec::new();
    match fields.take("tools") {
        None => {}
        Some(Value::Array(list)) => {
            for (i, tool) in list.into_iter().enumerate() {
                if let Some(kind) = tool["type"].as_str().filter(|kind| *kind != "custom") {
                    let kind: String = kind.chars().take(100).collect();
                    return Err(wrong(format!("tools.{i}: this server has no tools of type {kind:?}")));
                }
                let (Some(name), Some(schema)) = (tool["name"].as_str(), tool.get("input_schema")) else {
                    return Err(wrong(format!("tools.{i} must have a name and an input_schema")));
                };
                tools.push(json!({ "type": "function", "function": {
                    "name": name, "description": tool["description"].as_str().unwrap_or_default(),
                    "parameters": schema, "strict": tool["strict"] == true,
                } }));
            }
        }
        Some(_) => return Err(wrong("tools must be a list".into())),
    }
    let mut choice = Fields::of(fields.object("tool_choice")?.unwrap_or_default());
    let single = choice.boolean("disable_parallel_tool_use")? == Some(true);
    let name = choice.string("name")?;
    let kind = choice.string("type")?;
    choice.finish()?;
    let choice = match (kind.as_deref(), name) {
        (None | Some("auto"), None) => Choice::Auto,
        (Some("none"), None) => Choice::Never,
        (Some("any"), None) => Choice::Required,
        (Some("tool"), Some(name)) => Choice::Named(name),
        _ => {
            let what = "tool_choice.type must be auto, any, none, or tool (with a name)";
            return Err(ApiError::field("tool_choice", what));
        }
    };
    Tools::new(tools, choice, single)
}

/// A string, or a list of blocks with text.
fn text(content: Value) -> Option<String> {
    super::super::messages::text(Some(content))
}

/// Adds the messages of a message: one per result of a tool, and one for the rest. An error continues `messages.I`.
fn take_message(message: Value, out: &mut Vec<Value>) -> Result<(), String> {
    let Value::Object(mut message) = message else {
        return Err(" must be an object with role and content".into());
    };
    let role = match message.get("role").and_then(Value::as_str) {
        Some(role @ ("user" | "assistant" | "system")) => role.to_owned(),
        _ => return Err(".role must be user or assistant".into()),
    };
    let blocks = match message.remove("content") {
        Some(Value::String(text)) => vec![json!({ "type": "text", "text": text })],
        Some(Value::Array(blocks)) => blocks,
        _ => return Err(".content must be a string or a list of blocks".into()),
    };
    let (mut texts, mut calls, mut thoughts) = (Vec::new(), Vec::new(), Vec::new());
    for (i, mut block) in blocks.into_iter().enumerate() {
        let kind = block["type"].as_str().unwrap_or_default().to_owned();
        let missing = |name: &str| format!(".content.{i}.{name} is missing or has another type");
        let string = |name: &str| block[name].as_str().map(str::to_owned).ok_or_else(|| missing(name));
        match (role.as_str(), kind.as_str()) {
            (_, "text") => texts.push(string("text")?),
            ("user", "document") if block["source"]["type"] == "text" => {
                let source = &block["source"];
                texts.push(source["data"].as_str().ok_or_else(|| missing("source.data"))?.to_owned());
            }
            ("user", "tool_result") => {
                let id = string("tool_use_id")?;
                let content = block.get_mut("content").map(Value::take);
                let content = super::super::messages::text(content).ok_or_else(|| {
                    format!(".content.{i}.content must be text, the only input of this model")
                })?;
                flush(&role, &mut texts, out);
                out.push(json!({ "role": "tool", "tool_call_id": id, "content": content }));
            }
            ("assistant", "tool_use") => {
                let (id, name) = (string("id")?, string("name")?);
                let input = block.get_mut("input").map(Value::take).filter(Value::is_object);
                let input = input.ok_or_else(|| missing("input"))?;
                calls.push(json!({
                    "id": id, "type": "function", "function": { "name": name, "arguments": input },
                }));
            }
            ("assistant", "thinking") => thoughts.push(string("thinking")?),
            ("assistant", "redacted_thinking") => {}
            _ => {
                let kind: String = kind.chars().take(100).collect();
                return Err(format!(".content.{i}: {role} messages cannot have blocks of type {kind:?}"));
            }
        }
    }
    if role == "assistant" {
        let mut message = json!({ "role": role, "content": texts.join("\n") });
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        if !thoughts.is_empty() {
            message["reasoning_content"] = thoughts.join("\n").into();
        }
        out.push(message);
    } else {
        flush(&role, &mut texts, out);
    }
    Ok(())
}

/// Moves the texts to a message.
fn flush(role: &str, texts: &mut Vec<String>, out: &mut Vec<Value>) {
    if !texts.is_empty() {
        out.push(json!({ "role": role, "content": std::mem::take(texts).join("\n") }));
    }
}

/// The message without its end.
fn envelope(id: &str, model: &str, content: Vec<Value>, usage: Value) -> Value {
    json!({
        "id": id, "type": "message", "role": "assistant", "model": model, "content": content,
        "stop_reason": null, "stop_sequence": null, "usage": usage,
    })
}

/// The arguments of a call as an object.
fn object(arguments: &str) -> Value {
    serde_json::from_str(arguments).ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
}

fn block(block: Block) -> Value {
    match block {
        Block::Reasoning(text) => json!({ "type": "thinking", "thinking": text, "signature": SIGNATURE }),
        Block::Text(text) => json!({ "type": "text", "text": text }),
        Block::Call { id, name, arguments } => {
            json!({ "type": "tool_use", "id": id, "name": name, "input": object(&arguments) })
        }
    }
}

fn reason(reason: FinishReason, stop: Option<&str>, has_calls: bool, is_cut: bool) -> &'static str {
    match (reason, stop) {
        (FinishReason::Length, _) if is_cut => "model_context_window_exceeded",
        (FinishReason::Length, _) => "max_tokens",
        (FinishReason::Stop, _) if has_calls => "tool_use",
        (FinishReason::Stop, Some(_)) => "stop_sequence",
        (FinishReason::Stop, None) => "end_turn",
    }
}

fn usage_json(usage: &Usage) -> Value {
    usage.with_kv(json!({
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.generated,
        "output_tokens_details": { "thinking_tokens": usage.reasoning },
    }))
}

/// A streamed message.
struct Message {
    id: String,
    model: String,
    prompt_tokens: usize,
    is_cut: bool,
    /// The type of the block that has begun.
    open: Option<&'static str>,
    /// Number of blocks.
    blocks: usize,
    /// The data of `message_delta`, without the usage.
    end: Option<Value>,
}

impl Message {
    /// Writes the beginning of the message, once.
    fn begin(&mut self, out: &mut Frames) {
        if self.prompt_tokens == 0 {
            return;
        }
        let usage = json!({
            "input_tokens": std::mem::take(&mut self.prompt_tokens), "output_tokens": 0,
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
        });
        let message = envelope(&self.id, &self.model, Vec::new(), usage);
        out.event("message_start", &json!({ "type": "message_start", "message": message }));
    }

    /// Ends the open block, if there is one.
    fn close(&mut self, out: &mut Frames) {
        let Some(kind) = self.open.take() else { return };
        if kind == "thinking" {
            self.delta(json!({ "type": "signature_delta", "signature": SIGNATURE }), out);
        }
        let stop = json!({ "type": "content_block_stop", "index": self.blocks - 1 });
        out.event("content_block_stop", &stop);
    }

    /// Begins a block, unless one of its kind is open.
    fn open(&mut self, kind: &'static str, block: Value, out: &mut Frames) {
        if self.open == Some(kind) && kind != "tool_use" {
            return;
        }
        self.close(out);
        let start = json!({ "type": "content_block_start", "index": self.blocks, "content_block": block });
        out.event("content_block_start", &start);
        self.open = Some(kind);
        self.blocks += 1;
    }

    fn delta(&self, delta: Value, out: &mut Frames) {
        let index = self.blocks.saturating_sub(1);
        let data = json!({ "type": "content_block_delta", "index": index, "delta": delta });
        out.event("content_block_delta", &data);
    }
}

impl PartChunks for Message {
    fn parts(&mut self, _: usize, parts: Vec<Part>, _: Option<&Token>, out: &mut Frames) {
        self.begin(out);
        for part in parts {
            match part {
                Part::Reasoning(text) => {
                    let block = json!({ "type": "thinking", "thinking": "", "signature": "" });
                    self.open("thinking", block, out);
                    self.delta(json!({ "type": "thinking_delta", "thinking": text }), out);
                }
                Part::Text(text) => {
                    self.open("text", json!({ "type": "text", "text": "" }), out);
                    self.delta(json!({ "type": "text_delta", "text": text }), out);
                }
                Part::Call { id, name } => {
                    let block = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
                    self.open("tool_use", block, out);
                }
                Part::Arguments(text) => {
                    self.delta(json!({ "type": "input_json_delta", "partial_json": text }), out);
                }
            }
        }
    }

    fn end(&mut self, _: usize, parser: &AnswerParser, summary: &Summary, out: &mut Frames) {
        self.close(out);
        let has_calls = parser.has_calls() && !parser.has_cut_call();
        let reason = reason(summary.reason, summary.stop.as_deref(), has_calls, self.is_cut);
        let delta = json!({ "stop_reason": reason, "stop_sequence": summary.stop });
        self.end = Some(json!({ "type": "message_delta", "delta": delta }));
    }

    fn finish(&mut self, usage: &Usage, out: &mut Frames) {
        let Some(mut end) = self.end.take() else { return };
        end["usage"] = usage_json(usage);
        out.event("message_delta", &end);
        out.event("message_stop", &json!({ "type": "message_stop" }));
    }

    fn fail(&mut self, e: &ApiError, out: &mut Frames) {
        out.event("error", &error(e));
    }
}
