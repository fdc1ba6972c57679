//! Ollama's API: `/api/chat`, `/api/generate`, `/api/embed`, `/api/tags`, `/api/show`, `/api/ps` and `/api/version`.
//!
//! Streams are lines of JSON, and are the default. As in Ollama, unknown fields have no effect. The server cannot load,
//! create or delete models.

use super::{
    super::{
        completions::infill,
        embeddings,
        error::ApiError,
        fields::Fields,
        input::Untyped,
        messages::{self, PromptOptions},
        params::{KV_FIELDS, MAX_STOPS, Params, ResponseFormat},
        part_stream::PartChunks,
        parts::{AnswerParser, Block, Part},
        reasoning::ReasoningOptions,
        state::{Language, State, rfc3339},
        stream::{Frames, Usage},
        tools::{Choice, Tools},
        turn::{Answers, Turn},
    },
    Api,
};
use crate::engine::{FinishReason, KvOptions, Summary, Token};
use axum::{
    Json,
    extract::State as Shared,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Instant};

pub(in super::super) const API: Api = Api {
    routes: |router| {
        router
            .route("/api/chat", post(chat))
            .route("/api/generate", post(generate))
            .route("/api/embed", post(embed))
            .route("/api/embeddings", post(embed_one))
            .route("/api/show", post(show))
            .route("/api/tags", get(|Shared(s): Shared<Arc<State>>| async move { Json(tags(&s)) }))
            .route("/api/ps", get(|Shared(s): Shared<Arc<State>>| async move { Json(ps(&s)) }))
            .route("/api/version", get(|| async { Json(json!({ "version": VERSION })) }))
    },
    owns: |path| path.starts_with("/api/"),
    error,
};

/// The version of Ollama with this API. Clients compare it.
const VERSION: &str = "0.12.6";
/// Ollama's defaults of sampling parameters.
const DEFAULTS: [(&str, f64); 3] = [("temperature", 0.8), ("top_k", 40.0), ("top_p", 0.9)];
/// Names of options that differ from those of the other APIs.
const RENAMED: [(&str, &str); 1] = [("repeat_penalty", "repetition_penalty")];

/// The body of an error.
fn error(e: &ApiError) -> Value {
    json!({ "error": e.message })
}

/// The model of a request. Ollama's clients add a tag to its name.
fn language<'a>(state: &'a State, fields: &mut Fields) -> Result<&'a Language, ApiError> {
    let mut name = None;
    for field in ["model", "name"] {
        name = name.or(fields.string(field)?);
    }
    let name = name.ok_or_else(|| ApiError::field("model", "model is required"))?;
    let is_known = state.names.contains(&name);
    let plain = name.strip_suffix(":latest").filter(|_| !is_known);
    state.language(Some(plain.unwrap_or(&name)))
}

/// Handles a request for the next message of a conversation.
async fn chat(Shared(state): Shared<Arc<State>>, Untyped(input): Untyped) -> Result<Response, ApiError> {
    let start = Instant::now();
    let mut fields = Fields::parse(&input.body)?;
    let language = language(&state, &mut fields)?;
    if matches!(fields.get("messages"), None | Some(Value::Array(_)))
        && fields.get("messages").and_then(Value::as_array).is_none_or(Vec::is_empty)
    {
        return Ok(Json(loaded(&state, "message")).into_response());
    }
    let turn = take(&mut fields, &language.kv)?;
    fields.log_rest("/api/chat");
    let streams = turn.params.stream;
    let answers = turn.submit(&state, language, input.client)?;
    respond(Reply::new(&state, "message", start), answers, streams).await
}

/// Handles a request for the answer to a prompt.
async fn generate(Shared(state): Shared<Arc<State>>, Untyped(input): Untyped) -> Result<Response, ApiError> {
    let start = Instant::now();
    let mut fields = Fields::parse(&input.body)?;
    let language = language(&state, &mut fields)?;
    let prompt = fields.string("prompt")?.unwrap_or_default();
    let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
    let raw = fields.boolean("raw")?.unwrap_or(false) || language.template.is_none();
    if prompt.is_empty() && suffix.is_none() {
        return Ok(Json(loaded(&state, "response")).into_response());
    }
    let mut messages = Vec::new();
    if let Some(system) = fields.string("system")?.filter(|system| !system.is_empty()) {
        messages.push(json!({ "role": "system", "content": system }));
    }
    messages.push(json!({ "role": "user", "content": prompt }));
    let turn = take_turn(&mut fields, &language.kv, messages)?;
    fields.log_rest("/api/generate");
    let streams = turn.params.stream;
    let answers = match suffix {
        Some(suffix) => {
            let prompt = infill(language, &prompt, &suffix)?;
            turn.submit_prompt(&state, language, input.client, prompt, None)?
        }
        None if raw => {
            let prompt = language.tokenizer.encode(&prompt, true, true)?;
            turn.submit_prompt(&state, language, input.client, prompt, None)?
        }
        None => turn.submit(&state, language, input.client)?,
    };
    respond(Reply::new(&state, "response", start), answers, streams).await
}

/// The response to a request without a prompt, which loads a model in Ollama.
fn loaded(state: &State, key: &str) -> Value {
    let mut response = json!({
        "model": state.name(), "created_at": rfc3339(super::super::now()), "done": true, "done_reason": "load",
    });
    response[key] =
        if key == "message" { json!({ "role": "assistant", "content": "" }) } else { Value::from("") };
    response
}

/// Takes the fields of a chat.
pub(in super::super) fn take(fields: &mut Fields, kv: &KvOptions) -> Result<Turn, ApiError> {
    if let Some(list) = fields.get_mut("messages").and_then(Value::as_array_mut) {
        for message in list.iter_mut().filter_map(Value::as_object_mut) {
            if let Some(thinking) = message.remove("thinking") {
                message.insert("reasoning_content".into(), thinking);
            }
            let images = message.remove("images");
            if images.is_some_and(|images| images.as_array().is_some_and(|images| !images.is_empty())) {
                let what = "this model has no images: its only input is text";
                return Err(ApiError::field("messages", what));
            }
        }
    }
    let messages = messages::take(fields)?;
    take_turn(fields, kv, messages)
}

/// Takes the fields of chats and prompts.
fn take_turn(fields: &mut Fields, kv: &KvOptions, messages: Vec<Value>) -> Result<Turn, ApiError> {
    let tools = match fields.take("tools") {
        None => Tools::default(),
        Some(Value::Array(tools)) => Tools::new(tools, Choice::Auto, false)?,
        Some(_) => return Err(ApiError::field("tools", "tools must be a list")),
    };
    let reasoning = match fields.take("think") {
        None => ReasoningOptions::default(),
        Some(Value::Bool(wanted)) => ReasoningOptions::switched(wanted),
        Some(Value::String(effort)) => ReasoningOptions::of_effort("think", &effort)?,
        Some(_) => return Err(ApiError::field("think", "think must be true, false or an effort")),
    };
    let format = match fields.take("format") {
        None => ResponseFormat::Text,
        Some(Value::String(text)) if text.is_empty() => ResponseFormat::Text,
        Some(Value::String(text)) if text == "json" => ResponseFormat::JsonObject,
        Some(schema @ Value::Object(_)) => ResponseFormat::Schema(schema, false),
        Some(_) => return Err(ApiError::field("format", "format must be json or a JSON schema")),
    };
    let stream = fields.boolean("stream")?.unwrap_or(true);
    // The model stays loaded.
    fields.ignore(&["keep_alive"]);
    let mut options = options(fields)?;
    // Negative: until the context is full.
    let most = options.integer("num_predict", i64::MIN..=i64::MAX)?;
    let max_tokens = most.and_then(|most| usize::try_from(most).ok()).map(|most| most.max(1));
    let stop = options.strings("stop", MAX_STOPS)?;
    let params = Params { stream, max_tokens, stop, ..Params::take_common(&mut options, kv)? };
    let params = params.with_format(format);
    options.log_rest("options of /api");
    let options = PromptOptions::default();
    Ok(Turn { messages, tools, options, reasoning, params: params.checked()?, logprobs: None })
}

/// `options` with the names and defaults of the other APIs. The KV cache fields may be beside `options` or inside.
fn options(fields: &mut Fields) -> Result<Fields, ApiError> {
    let mut options: Map<String, Value> = fields.object("options")?.unwrap_or_default();
    for name in KV_FIELDS {
        if let Some(value) = fields.take(name) {
            options.insert(name.to_owned(), value);
        }
    }
    for (name, other) in RENAMED {
        if let Some(value) = options.remove(name) {
            options.insert(other.to_owned(), value);
        }
    }
    for (name, value) in DEFAULTS {
        if options.get(name).is_none_or(Value::is_null) {
            options.insert(name.to_owned(), json!(value));
        }
    }
    Ok(Fields::of(options))
}

/// Waits for an answer, or streams it.
async fn respond(mut reply: Reply, answers: Answers, streams: bool) -> Result<Response, ApiError> {
    if streams {
        return answers.stream(Lines { reply, call: None }).await;
    }
    let (answer, usage) = answers.collect_one().await?;
    let (mut text, mut thinking, mut calls) = (String::new(), String::new(), Vec::new());
    for block in answer.blocks {
        match block {
            Block::Text(more) => text += &more,
            Block::Reasoning(more) => thinking += &more,
            Block::Call { name, arguments, .. } => calls.push(call(&name, &arguments)),
        }
    }
    let mut line = reply.line(&text, &thinking, calls);
    reply.end(&mut line, answer.complete.reason, &usage);
    Ok(Json(line).into_response())
}

fn call(name: &str, arguments: &str) -> Value {
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
    json!({ "function": { "name": name, "arguments": arguments } })
}

/// The common fields of the lines of an answer.
struct Reply {
    model: String,
    /// The field with the answer: `message` or `response`.
    key: &'static str,
    start: Instant,
    /// The time of the first token.
    first: Option<Instant>,
}

impl Reply {
    fn new(state: &State, key: &'static str, start: Instant) -> Self {
        Self { model: state.name().to_owned(), key, start, first: None }
    }

    fn line(&self, text: &str, thinking: &str, calls: Vec<Value>) -> Value {
        let created = rfc3339(super::super::now());
        let mut line = json!({ "model": self.model, "created_at": created, "done": false });
        if self.key == "response" {
            line["response"] = text.into();
            if !thinking.is_empty() {
                line["thinking"] = thinking.into();
            }
            return line;
        }
        let mut message = json!({ "role": "assistant", "content": text });
        if !thinking.is_empty() {
            message["thinking"] = thinking.into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        line["message"] = message;
        line
    }

    /// Adds the end to the last line. Durations are nanoseconds.
    fn end(&mut self, line: &mut Value, reason: FinishReason, usage: &Usage) {
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        let fields = json!({
            "done": true, "done_reason": reason.name(),
            "total_duration": (now - self.start).as_nanos() as u64, "load_duration": 0,
            "prompt_eval_count": usage.prompt, "prompt_eval_duration": (first - self.start).as_nanos() as u64,
            "eval_count": usage.generated, "eval_duration": (now - first).as_nanos() as u64,
        });
        if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), usage.with_kv(fields)) {
            line.extend(fields);
        }
    }
}

/// A streamed answer.
struct Lines {
    reply: Reply,
    /// Name and arguments of the call that has begun.
    call: Option<(String, String)>,
}

impl Lines {
    /// Writes the call that has begun: calls are whole.
    fn flush(&mut self, out: &mut Frames) {
        if let Some((name, arguments)) = self.call.take() {
            out.line(&self.reply.line("", "", vec![call(&name, &arguments)]));
        }
    }
}

impl PartChunks for Lines {
    const MEDIA_TYPE: &'static str = "application/x-ndjson";

    fn parts(&mut self, _: usize, parts: Vec<Part>, _: Option<&Token>, out: &mut Frames) {
        self.reply.first.get_or_insert_with(Instant::now);
        for part in parts {
            match part {
                Part::Arguments(more) => {
                    if let Some((_, arguments)) = &mut self.call {
                        arguments.push_str(&more);
                    }
                }
                Part::Text(text) => {
                    self.flush(out);
                    out.line(&self.reply.line(&text, "", Vec::new()));
                }
                Part::Reasoning(text) => {
                    self.flush(out);
                    out.line(&self.reply.line("", &text, Vec::new()));
                }
                Part::Call { name, .. } => {
                    self.flush(out);
                    self.call = Some((name, String::new()));
                }
            }
        }
    }

    fn end(&mut self, _: usize, _: &AnswerParser, summary: &Summary, out: &mut Frames) {
        self.flush(out);
        let mut usage = Usage::default();
        usage.add(summary);
        let mut line = self.reply.line("", "", Vec::new());
        self.reply.end(&mut line, summary.reason, &usage);
        out.line(&line);
    }

    fn finish(&mut self, _: &Usage, _: &mut Frames) {}

    fn fail(&mut self, e: &ApiError, out: &mut Frames) {
        out.line(&error(e));
    }
}

/// Handles a request for embeddings.
async fn embed(Shared(state): Shared<Arc<State>>, Untyped(input): Untyped) -> Result<Response, ApiError> {
    let start = Instant::now();
    let mut fields = Fields::parse(&input.body)?;
    let language = language(&state, &mut fields)?;
    let texts = fields.take("input").map(embeddings::inputs).transpose()?;
    let texts = texts.ok_or_else(|| ApiError::field("input", "input is required"))?;
    fields.ignore(&["dimensions", "keep_alive", "options", "truncate"]);
    fields.log_rest("/api/embed");
    let (found, tokens) = embeddings::embed(&state, language, input.client, texts).await?;
    Ok(Json(json!({
        "model": state.name(), "embeddings": found, "total_duration": start.elapsed().as_nanos() as u64,
        "load_duration": 0, "prompt_eval_count": tokens,
    }))
    .into_response())
}

/// Handles a request for one embedding, the earlier form.
async fn embed_one(Shared(state): Shared<Arc<State>>, Untyped(input): Untyped) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = language(&state, &mut fields)?;
    let text = fields.string("prompt")?.ok_or_else(|| ApiError::field("prompt", "prompt is required"))?;
    fields.ignore(&["keep_alive", "options"]);
    fields.log_rest("/api/embeddings");
    let (mut found, _) = embeddings::embed(&state, language, input.client, vec![text.into()]).await?;
    Ok(Json(json!({ "embedding": found.pop() })).into_response())
}

/// `details` of a model.
fn details(language: &Language) -> Value {
    let facts = &language.facts;
    json!({
        "parent_model": "", "format": facts.container, "family": facts.family, "families": [facts.family],
        "parameter_size": parameter_size(facts.parameters), "quantization_level": facts.weights.to_uppercase(),
    })
}

/// `1.5B`, `134.5M`.
fn parameter_size(parameters: u64) -> String {
    match parameters as f64 {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n => format!("{:.1}K", n / 1e3),
    }
}

/// Identifies a model to clients. It is not the digest of its file.
fn digest(name: &str, language: &Language) -> String {
    let facts = &language.facts;
    let text = format!("{name} {} {} {}", facts.family, facts.parameters, facts.file_bytes);
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names of the language model with their common fields.
fn entries(state: &State) -> Vec<Value> {
    let Some(language) = &state.language else { return Vec::new() };
    let one = |name: &String| {
        json!({
            "name": name, "model": name, "size": language.facts.file_bytes, "digest": digest(name, language),
            "details": details(language), "modified_at": rfc3339(state.created),
        })
    };
    state.names.iter().map(one).collect()
}

/// `/api/tags`: the models.
fn tags(state: &State) -> Value {
    json!({ "models": entries(state) })
}

/// `/api/ps`: the loaded models.
fn ps(state: &State) -> Value {
    let mut models = entries(state);
    models.truncate(1);
    if let (Some(model), Some(language)) = (models.first_mut(), &state.language) {
        // The model stays loaded.
        model["expires_at"] = rfc3339(super::super::now() + (1 << 30)).into();
        model["size"] = language.facts.weight_bytes.into();
        model["size_vram"] = 0.into();
        model["context_length"] = language.context_length.min(state.options.max_model_len).into();
    }
    json!({ "models": models })
}

/// Handles a request for the properties of a model.
async fn show(Shared(state): Shared<Arc<State>>, Untyped(input): Untyped) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = language(&state, &mut fields)?;
    fields.ignore(&["system", "template", "options", "verbose"]);
    fields.log_rest("/api/show");
    let facts = &language.facts;
    let mut capabilities = vec!["completion"];
    if let Some(template) = &language.template {
        capabilities.push("tools");
        if template.reasoning().is_some() {
            capabilities.push("thinking");
        }
    }
    if language.tokenizer.infill_marks().is_some() {
        capabilities.push("insert");
    }
    let family = facts.family;
    let mut info = json!({ "general.architecture": family, "general.parameter_count": facts.parameters });
    info[format!("{family}.context_length")] = language.context_length.into();
    info[format!("{family}.embedding_length")] = language.embedding_size.into();
    info[format!("{family}.block_count")] = facts.layers.into();
    Ok(Json(json!({
        "modelfile": format!("# served by scrimp\nFROM {}\n", state.name()), "parameters": "", "license": "",
        "template": language.template.as_ref().map_or("{{ .Prompt }}", |template| template.source()),
        "details": details(language), "model_info": info, "capabilities": capabilities,
        "modified_at": rfc3339(state.created),
    }))
    .into_response())
}
