//! OpenAI's `/v1/responses`.
//!
//! A conversation is a list of items: messages, calls, results and reasoning. Consecutive items of the assistant become one
//! message with the calls and the reasoning as fields. Stored responses are conversations in memory; the prefix cache keeps
//! their computed prompts.

use super::{
    super::{
        error::ApiError,
        fields::Fields,
        history::History,
        input::{self, Input},
        messages::{self, MAX_MESSAGES, PromptOptions},
        params::{Params, ResponseFormat},
        parts::{AnswerParser, Block, Part},
        reasoning::ReasoningOptions,
        state::{State, now, unique},
        stream::{Chunks, Frames, Usage, stream},
        tools::{Choice, Tools},
        turn::Turn,
    },
    Api,
};
use crate::engine::{FinishReason, KvOptions, Summary, Token};
use axum::{
    Json,
    extract::{Path, State as Shared},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

pub(in super::super) const API: Api = Api {
    routes: |router| {
        router.route("/v1/responses", post(responses)).route("/v1/responses/{id}", get(read).delete(delete))
    },
    owns: |path| path.starts_with("/v1/responses"),
    error: ApiError::body,
};

/// Fields without an effect on the answer.
const HARMLESS: [&str; 10] = [
    "include",
    "max_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "stream_options",
    "truncation",
    "verbosity",
];
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

/// A request.
#[derive(Debug)]
pub(in super::super) struct Request {
    /// The conversation without the earlier one.
    pub(in super::super) turn: Turn,
    instructions: Option<String>,
    previous: Option<String>,
    /// Keep the conversation.
    stores: bool,
    /// Names of tools whose argument is a text.
    custom: Vec<String>,
}

/// Handles a request for a response.
async fn responses(Shared(state): Shared<Arc<State>>, input: Input) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = state.language(fields.string("model")?.as_deref())?;
    let mut base = json!({
        "id": History::id("resp"), "object": "response", "created_at": now(), "model": state.name(),
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
    let mut answers = turn.submit(&state, language, input.client)?;
    let owner = input.owner;
    let mut reply =
        Reply { state: Arc::clone(&state), owner, stores, custom, history, base, blocks: Vec::new() };
    if streams {
        let Some(parser) = answers.parsers.pop() else { return Err(ApiError::bad_request("no answer")) };
        let chunks =
            Events { reply, parser, number: 0, open: None, items: Vec::new(), end: FinishReason::Stop };
        return stream(answers.outputs, 1, chunks).await;
    }
    let (answers, usage) = answers.collect().await?;
    let Some(answer) = answers.into_iter().next() else { return Err(ApiError::bad_request("no answer")) };
    let items = answer.blocks.iter().map(|block| Item::new(block, &reply.custom).json("completed")).collect();
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

/// Takes all fields but `model`. `kv`: the default KV options.
pub(in super::super) fn take(fields: &mut Fields, kv: &KvOptions) -> Result<Request, ApiError> {
    if fields.boolean("background")? == Some(true) {
        return Err(ApiError::field("background", "this server has no responses in the background"));
    }
    if fields.integer("top_logprobs", 0..=20)?.is_some_and(|top| top > 0) {
        let what = "top_logprobs is not available here: use /v1/chat/completions";
        return Err(ApiError::field("top_logprobs", what));
    }
    let messages = take_input(fields)?;
    let instructions = fields.string("instructions")?;
    let mut reasoning = ReasoningOptions::default();
    if let Some(map) = fields.object("reasoning")? {
        reasoning.take_object(Fields::of(map))?;
    }
    let mut format = ResponseFormat::Text;
    if let Some(map) = fields.object("text")? {
        let mut text = Fields::of(map);
        if let Some(map) = text.object("format")? {
            format = ResponseFormat::take("text.format", map)?;
        }
        text.ignore(&["verbosity"]);
        text.finish()?;
    }
    let (tools, custom) = take_tools(fields)?;
    let max_tokens = fields.integer("max_output_tokens", 1..=i64::MAX)?.map(|n| n as usize);
    let user = fields.string("user")?;
    fields.object("metadata")?;
    let params = Params { max_tokens, user, ..Params::take_common(fields, kv)? };
    let params = params.with_format(format).checked()?;
    let previous = fields.string("previous_response_id")?;
    let stores = fields.boolean("store")?.unwrap_or(true);
    fields.ignore(&HARMLESS);
    let options = PromptOptions::default();
    let turn = Turn { messages, tools, options, reasoning, params, logprobs: None };
    Ok(Request { turn, instructions, previous, stores, custom })
}

/// `input`: a text or a list of items, as messages.
fn take_input(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let wrong = |what: String| ApiError::field("input", what);
    let items = match fields.take("input") {
        Some(Value::String(text)) => return Ok(vec![json!({ "role": "user", "content": text })]),
        Some(Value::Array(items)) if !items.is_empty() && items.len() <= MAX_MESSAGES => items,
        _ => return Err(wrong(format!("input must be a text or a list of 1 to {MAX_MESSAGES} items"))),
    };
    let mut out = Vec::new();
    for (i, item) in items.into_iter().enumerate() {
        take_item(item, &mut out).map_err(|what| wrong(format!("input[{i}]{what}")))?;
    }
    Ok(out)
}

/// The assistant's message at the end of `out`, which further items of the assistant extend.
fn assistant(out: &mut Vec<Value>) -> Option<&mut Map<String, Value>> {
    if out.last().is_none_or(|last| last["role"] != "assistant") {
        out.push(json!({ "role": "assistant", "content": "" }));
    }
    out.last_mut()?.as_object_mut()
}

/// Adds an item to the messages. An error continues `input[I]`.
fn take_item(mut item: Value, out: &mut Vec<Value>) -> Result<(), String> {
    let kind = item["type"].as_str().unwrap_or("message").to_owned();
    let content = item.get_mut("content").map(Value::take);
    let string = |name: &str| {
        item[name].as_str().map(str::to_owned).ok_or_else(|| format!(".{name} must be a string"))
    };
    match kind.as_str() {
        "message" => {
            let role = string("role")?;
            let text =
                messages::text(content).ok_or(".content must be text, the only input of this model")?;
            match assistant_text(&role, out) {
                Some(message) => {
                    message.insert("content".into(), text.into());
                }
                None => out.push(json!({ "role": role, "content": text })),
            }
        }
        "function_call" | "custom_tool_call" => {
            let (id, name) = (string("call_id")?, string("name")?);
            let arguments = match kind.as_str() {
                "function_call" => string("arguments")?,
                _ => json!({ "input": string("input")? }).to_string(),
            };
            let call =
                json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
            let Some(message) = assistant(out) else { return Ok(()) };
            match message.entry("tool_calls").or_insert_with(|| json!([])) {
                Value::Array(calls) => calls.push(call),
                _ => return Err(".type follows an invalid message".into()),
            }
        }
        "function_call_output" | "custom_tool_call_output" => {
            let id = string("call_id")?;
            let text = messages::text(item.get_mut("output").map(Value::take))
                .ok_or(".output must be text, the only input of this model")?;
            out.push(json!({ "role": "tool", "tool_call_id": id, "content": text }));
        }
        "reasoning" => {
            let full = messages::text(content).unwrap_or_default();
            let summary = messages::text(item.get_mut("summary").map(Value::take)).unwrap_or_default();
            let text = if full.is_empty() { summary } else { full };
            if !text.is_empty() {
                out.push(json!({ "role": "assistant", "content": "", "reasoning_content": text }));
            }
        }
        other => {
            let other: String = other.chars().take(100).collect();
            return Err(format!(": this server has no items of type {other:?}"));
        }
    }
    Ok(())
}

/// The assistant's last message, if it has reasoning and no text or call yet.
fn assistant_text<'a>(role: &str, out: &'a mut [Value]) -> Option<&'a mut Map<String, Value>> {
    let last = out.last_mut()?;
    let is_begun = role == "assistant"
        && last["role"] == "assistant"
        && last["content"] == ""
        && last.get("tool_calls").is_none();
    if is_begun { last.as_object_mut() } else { None }
}

/// `tools` and `tool_choice`, and the names of custom tools, whose argument is a text.
fn take_tools(fields: &mut Fields) -> Result<(Tools, Vec<String>), ApiError> {
    let wrong = |what: String| ApiError::field("tools", what);
    let (mut tools, mut custom) = (Vec::new(), Vec::new());
    match fields.take("tools") {
        None => {}
        Some(Value::Array(list)) => {
            for (i, tool) in list.into_iter().enumerate() {
                let Some(name) = tool["name"].as_str() else {
                    return Err(wrong(format!("tools[{i}].name must be a string")));
                };
                let parameters = match tool["type"].as_str() {
                    Some("function") => tool["parameters"].clone(),
                    Some("custom") => {
                        custom.push(name.to_owned());
                        json!({
                            "type": "object", "properties": { "input": { "type": "string" } },
                            "required": ["input"], "additionalProperties": false,
                        })
                    }
                    other => {
                        let other: String = other.unwrap_or_default().chars().take(100).collect();
                        let what = format!("tools[{i}].type is {other:?}; it must be function or custom");
                        return Err(wrong(what));
                    }
                };
                tools.push(json!({ "type": "function", "function": {
                    "name": name, "description": tool["description"].as_str().unwrap_or_default(),
                    "parameters": parameters, "strict": tool["strict"] == true,
                } }));
            }
        }
        Some(_) => return Err(wrong("tools must be a list".into())),
    }
    let single = fields.boolean("parallel_tool_calls")? == Some(false);
    let choice = take_choice(fields, &mut tools)?;
    Ok((Tools::new(tools, choice, single)?, custom))
}

/// `tool_choice`. `allowed_tools` removes the other tools.
fn take_choice(fields: &mut Fields, tools: &mut Vec<Value>) -> Result<Choice, ApiError> {
    let wrong = || {
        let what = "tool_choice must be auto, none, required, allowed_tools, or name one of the tools";
        ApiError::field("tool_choice", what)
    };
    let mode = |mode: Option<&str>| match mode {
        Some("auto") => Some(Choice::Auto),
        Some("none") => Some(Choice::Never),
        Some("required") => Some(Choice::Required),
        _ => None,
    };
    let choice = match fields.take("tool_choice") {
        None => Some(Choice::Auto),
        Some(Value::String(text)) => mode(Some(&text)),
        Some(choice) => match choice["type"].as_str() {
            Some("function" | "custom") => choice["name"].as_str().map(|name| Choice::Named(name.to_owned())),
            Some("allowed_tools") => {
                let allowed = choice["tools"].as_array().ok_or_else(wrong)?;
                tools.retain(|tool| allowed.iter().any(|other| other["name"] == tool["function"]["name"]));
                mode(choice["mode"].as_str())
            }
            _ => None,
        },
    };
    choice.ok_or_else(wrong)
}

/// An item of the output.
#[derive(Debug)]
struct Item {
    id: String,
    block: Block,
    is_custom: bool,
}

impl Item {
    fn new(block: &Block, custom: &[String]) -> Self {
        let is_custom = matches!(block, Block::Call { name, .. } if custom.contains(name));
        let prefix = match block {
            Block::Reasoning(_) => "rs",
            Block::Text(_) => "msg",
            Block::Call { .. } if is_custom => "ctc",
            Block::Call { .. } => "fc",
        };
        Self { id: format!("{prefix}_{:016x}", unique()), block: block.clone(), is_custom }
    }

    /// The content part of a message or of reasoning.
    fn part(&self) -> Option<Value> {
        match &self.block {
            Block::Reasoning(text) => Some(json!({ "type": "reasoning_text", "text": text })),
            Block::Text(text) => Some(text_part(text)),
            Block::Call { .. } => None,
        }
    }

    /// The text of a custom tool's call.
    fn custom_input(arguments: &str) -> String {
        let parsed: Value = serde_json::from_str(arguments).unwrap_or_default();
        parsed["input"].as_str().map_or_else(|| arguments.to_owned(), str::to_owned)
    }

    fn json(&self, status: &str) -> Value {
        let content: Vec<Value> = self.part().into_iter().collect();
        match &self.block {
            Block::Reasoning(_) => json!({
                "id": self.id, "type": "reasoning", "summary": [], "content": content, "status": status,
            }),
            Block::Text(_) => json!({
                "id": self.id, "type": "message", "role": "assistant", "content": content, "status": status,
            }),
            Block::Call { id, name, arguments } if self.is_custom => json!({
                "id": self.id, "type": "custom_tool_call", "call_id": id, "name": name,
                "input": Self::custom_input(arguments), "status": status,
            }),
            Block::Call { id, name, arguments } => json!({
                "id": self.id, "type": "function_call", "call_id": id, "name": name, "arguments": arguments,
                "status": status,
            }),
        }
    }
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
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

/// The answer as a message.
fn answer_message(blocks: &[Block]) -> Value {
    let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for block in blocks {
        match block {
            Block::Reasoning(more) => reasoning += more,
            Block::Text(more) => text += more,
            Block::Call { id, name, arguments } => calls.push(json!({
                "id": id, "type": "function", "function": { "name": name, "arguments": arguments },
            })),
        }
    }
    let mut message = json!({ "role": "assistant", "content": text });
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    if !reasoning.is_empty() {
        message["reasoning_content"] = reasoning.into();
    }
    message
}

/// A streamed response.
struct Events {
    reply: Reply,
    parser: AnswerParser,
    /// Number of events.
    number: u64,
    /// The item that has begun.
    open: Option<Item>,
    /// The complete items.
    items: Vec<Value>,
    end: FinishReason,
}

impl Events {
    fn send(&mut self, kind: &str, mut data: Value, out: &mut Frames) {
        data["type"] = kind.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        out.event(kind, &data);
    }

    /// An event of the open item.
    fn send_in_item(&mut self, kind: &str, mut data: Value, out: &mut Frames) {
        data["item_id"] = self.open.as_ref().map(|item| item.id.as_str()).into();
        data["output_index"] = self.items.len().into();
        self.send(kind, data, out);
    }

    fn begin(&mut self, out: &mut Frames) {
        if self.number == 0 {
            for kind in ["response.created", "response.in_progress"] {
                self.send(kind, json!({ "response": self.reply.base }), out);
            }
        }
    }

    /// Begins an item for this empty block.
    fn open(&mut self, block: &Block, out: &mut Frames) {
        self.close(out);
        let item = Item::new(block, &self.reply.custom);
        let mut value = item.json("in_progress");
        if value.get("content").is_some() {
            value["content"] = json!([]);
        }
        let part = item.part();
        self.open = Some(item);
        let index = self.items.len();
        self.send("response.output_item.added", json!({ "output_index": index, "item": value }), out);
        if let Some(part) = part {
            let data = json!({ "content_index": 0, "part": part });
            self.send_in_item("response.content_part.added", data, out);
        }
    }

    /// Ends the open item.
    fn close(&mut self, out: &mut Frames) {
        let Some(item) = self.open.take() else { return };
        let (part, value) = (item.part(), item.json("completed"));
        let (block, is_custom) = (item.block.clone(), item.is_custom);
        self.open = Some(item);
        match &block {
            Block::Reasoning(text) => {
                let data = json!({ "content_index": 0, "text": text });
                self.send_in_item("response.reasoning_text.done", data, out);
            }
            Block::Text(text) => {
                let data = json!({ "content_index": 0, "text": text, "logprobs": [] });
                self.send_in_item("response.output_text.done", data, out);
            }
            Block::Call { arguments, .. } if is_custom => {
                let input = Item::custom_input(arguments);
                let delta = json!({ "delta": input });
                self.send_in_item("response.custom_tool_call_input.delta", delta, out);
                self.send_in_item("response.custom_tool_call_input.done", json!({ "input": input }), out);
            }
            Block::Call { name, arguments, .. } => {
                let data = json!({ "name": name, "arguments": arguments });
                self.send_in_item("response.function_call_arguments.done", data, out);
            }
        }
        if let Some(part) = part {
            let data = json!({ "content_index": 0, "part": part });
            self.send_in_item("response.content_part.done", data, out);
        }
        let data = json!({ "output_index": self.items.len(), "item": value });
        self.send("response.output_item.done", data, out);
        self.open = None;
        self.items.push(value);
        self.reply.blocks.push(block);
    }

    /// Adds text to the open item. `name`: the event.
    fn add(&mut self, more: &str, name: &str, mut data: Value, out: &mut Frames) {
        let Some(item) = &mut self.open else { return };
        match &mut item.block {
            Block::Reasoning(text) | Block::Text(text) | Block::Call { arguments: text, .. } => {
                text.push_str(more);
            }
        }
        if !item.is_custom {
            data["delta"] = more.into();
            self.send_in_item(name, data, out);
        }
    }

    fn parts(&mut self, parts: Vec<Part>, out: &mut Frames) {
        self.begin(out);
        for part in parts {
            let open = self.open.as_ref().map(|item| &item.block);
            match part {
                Part::Reasoning(text) => {
                    if !matches!(open, Some(Block::Reasoning(_))) {
                        self.open(&Block::Reasoning(String::new()), out);
                    }
                    let data = json!({ "content_index": 0 });
                    self.add(&text, "response.reasoning_text.delta", data, out);
                }
                Part::Text(text) => {
                    if !matches!(open, Some(Block::Text(_))) {
                        self.open(&Block::Text(String::new()), out);
                    }
                    let data = json!({ "content_index": 0, "logprobs": [] });
                    self.add(&text, "response.output_text.delta", data, out);
                }
                Part::Call { id, name } => {
                    self.open(&Block::Call { id, name, arguments: String::new() }, out);
                }
                Part::Arguments(text) => {
                    self.add(&text, "response.function_call_arguments.delta", json!({}), out);
                }
            }
        }
    }
}

impl Chunks for Events {
    fn token(&mut self, _: usize, token: Token, out: &mut Frames) {
        let parts = self.parser.push(&token.text);
        self.parts(parts, out);
    }

    fn end(&mut self, _: usize, summary: &Summary, out: &mut Frames) {
        let parts = self.parser.finish(&summary.text);
        self.parts(parts, out);
        self.close(out);
        self.end = summary.reason;
    }

    fn finish(&mut self, usage: &Usage, out: &mut Frames) {
        let items = std::mem::take(&mut self.items);
        let response = self.reply.complete(items, self.end, usage);
        let is_complete = self.end == FinishReason::Stop;
        let kind = if is_complete { "response.completed" } else { "response.incomplete" };
        self.send(kind, json!({ "response": response }), out);
    }

    fn fail(&mut self, e: &ApiError, out: &mut Frames) {
        self.begin(out);
        let mut response = self.reply.base.take();
        response["status"] = "failed".into();
        response["error"] = json!({ "code": e.code.unwrap_or("server_error"), "message": e.message });
        self.send("response.failed", json!({ "response": response }), out);
    }
}
