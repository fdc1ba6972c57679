//! Ollama's API: `/api/chat`, `/api/generate`, `/api/embed`, `/api/tags`, `/api/show`, `/api/ps` and `/api/version`.
//!
//! Streams are lines of JSON, and are the default. As in Ollama, unknown fields have no effect. The server cannot load,
//! create or delete models.

use super::{
    super::{
        completions::infill,
        embeddings::{self, EmbedOptions},
        error::ApiError,
        fields::Fields,
        input::Untyped,
        messages::{self, PromptOptions},
        models::{Entry, Kind, ModelFacts, Served as _},
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

/// The name of a request's model. Ollama's clients add a tag to it.
fn name(state: &State, fields: &mut Fields) -> Result<String, ApiError> {
    let mut name = None;
    for field in ["model", "name"] {
        name = name.or(fields.string(field)?);
    }
    let name = name.ok_or_else(|| ApiError::field("model", "model is required"))?;
    let is_known = state.entries().iter().any(|entry| entry.name == name);
    let plain = name.strip_suffix(":latest").filter(|_| !is_known);
    Ok(plain.map_or_else(|| name.clone(), str::to_owned))
}

/// The language model of a request.
async fn language(state: &State, fields: &mut Fields) -> Result<Arc<Language>, ApiError> {
    state.language(Some(&name(state, fields)?)).await
}

/// Handles a request for the next message of a conversation.
async fn chat(Shared(state): Shared<Arc<State>>, Untyped(input): Untyped) -> Result<Response, ApiError> {
    let start = Instant::now();
    let mut fields = Fields::parse(&input.body)?;
    let language = &*language(&state, &mut fields).await?;
    if matches!(fields.get("messages"), None | Some(Value::Array(_)))
        && fields.get("messages").and_then(Value::as_array).is_none_or(Vec::is_empty)
    {
        return Ok(Json(loaded(language, "message")).into_response());
    }
    let turn = take(&mut fields, &language.kv)?;
    fields.log_rest("/api/chat");
    let streams = turn.params.stream;
    let answers = turn.submit(&state, language, input.client)?;
    respond(Reply::new(language, "message", start), answers, streams).await
}

/// Handles a request for the answer to a prompt.
async fn generate(Shared(state): Shared<Arc<State>>, Untyped(input): Untyped) -> Result<Response, ApiError> {
    let start = Instant::now();
    let mut fields = Fields::parse(&input.body)?;
    let language = &*language(&state, &mut fields).await?;
    let prompt = fields.string("prompt")?.unwrap_or_default();
    let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
    let raw = fields.boolean("raw")?.unwrap_or(false) || language.template.is_none();
    if prompt.is_empty() && suffix.is_none() {
        return Ok(Json(loaded(language, "response")).into_response());
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
    respond(Reply::new(language, "response", start), answers, streams).await
}

/// The response to a request without a prompt, which loads a model in Ollama.
fn loaded(language: &Language, key: &str) -> Value {
    let mut response = json!({
        "model": language.name(), "created_at": rfc3339(super::super::now()), "done": true, "done_reason": "load",
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

/// `options` with the names and defaults of the other APIs. The KV cache fields and `speculate` may be beside
/// `options` or inside.
fn options(fields: &mut Fields) -> Result<Fields, ApiError> {
    let mut options: Map<String, Value> = fields.object("options")?.unwrap_or_default();
    for name in KV_FIELDS.into_iter().chain(["speculate"]) {
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
            Block::Call { name, arguments, .. } => match call(&name, &arguments) {
                Some(call) => calls.push(call),
                None => text += &arguments,
            },
        }
    }
    let mut line = reply.line(&text, &thinking, calls);
    reply.end(&mut line, answer.complete.reason, &usage);
    Ok(Json(line).into_response())
}

/// A call. `None`: the answer ends inside its arguments.
fn call(name: &str, arguments: &str) -> Option<Value> {
    let arguments: Value = serde_json::from_str(arguments).ok()?;
    Some(json!({ "function": { "name": name, "arguments": arguments } }))
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
    fn new(language: &Language, key: &'static str, start: Instant) -> Self {
        Self { model: language.name().to_owned(), key, start, first: None }
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
    /// Writes the call that has begun: calls are whole. Incomplete arguments are text.
    fn flush(&mut self, out: &mut Frames) {
        if let Some((name, arguments)) = self.call.take() {
            let line = match call(&name, &arguments) {
                Some(call) => self.reply.line("", "", vec![call]),
                None => self.reply.line(&arguments, "", Vec::new()),
            };
            out.line(&line);
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
    let model = name(&state, &mut fields)?;
    let model = &state.embedding_model(Some(&model)).await?;
    let texts = fields.take("input").map(|input| embeddings::inputs(input, model)).transpose()?;
    let texts = texts.ok_or_else(|| ApiError::field("input", "input is required"))?;
    let options = EmbedOptions::take(&mut fields, model, true)?;
    fields.ignore(&["keep_alive", "options"]);
    fields.log_rest("/api/embed");
    let (found, tokens) = embeddings::embed(&state, model, input.client, texts, &options).await?;
    Ok(Json(json!({
        "model": model.name(), "embeddings": found, "total_duration": start.elapsed().as_nanos() as u64,
        "load_duration": 0, "prompt_eval_count": tokens,
    }))
    .into_response())
}

/// Handles a request for one embedding, the earlier form.
async fn embed_one(Shared(state): Shared<Arc<State>>, Untyped(input): Untyped) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let model = name(&state, &mut fields)?;
    let model = &state.embedding_model(Some(&model)).await?;
    let text = fields.string("prompt")?.ok_or_else(|| ApiError::field("prompt", "prompt is required"))?;
    let options = EmbedOptions::take(&mut fields, model, true)?;
    fields.ignore(&["keep_alive", "options"]);
    fields.log_rest("/api/embeddings");
    let (mut found, _) = embeddings::embed(&state, model, input.client, vec![text.into()], &options).await?;
    Ok(Json(json!({ "embedding": found.pop() })).into_response())
}

/// `details` of a model.
fn details(facts: &ModelFacts) -> Value {
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
fn digest(name: &str, facts: &ModelFacts) -> String {
    let text = format!("{name} {} {} {}", facts.family, facts.parameters, facts.file_bytes);
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A model with its common fields; `None`: a recommender, which Ollama does not have.
fn listed(state: &State, entry: &Entry<'_>) -> Option<Value> {
    let facts = entry.facts?;
    Some(json!({
        "name": entry.name, "model": entry.name, "size": facts.file_bytes, "digest": digest(entry.name, facts),
        "details": details(facts), "modified_at": rfc3339(state.created),
    }))
}

/// `/api/tags`: the models.
fn tags(state: &State) -> Value {
    let models: Vec<Value> = state.entries().iter().filter_map(|entry| listed(state, entry)).collect();
    json!({ "models": models })
}

/// `/api/ps`: the loaded models, each with its first name.
fn ps(state: &State) -> Value {
    let mut models = Vec::new();
    let mut last: Option<*const ModelFacts> = None;
    for entry in state.entries().into_iter().filter(|entry| entry.is_loaded) {
        let (Some(mut model), Some(facts)) = (listed(state, &entry), entry.facts) else { continue };
        if last.replace(facts) == Some(std::ptr::from_ref(facts)) {
            continue;
        }
        // It stays loaded until another model needs the memory.
        model["expires_at"] = rfc3339(super::super::now() + (1 << 30)).into();
        model["size"] = facts.weight_bytes.into();
        model["size_vram"] = 0.into();
        model["context_length"] = entry.max_tokens.into();
        models.push(model);
    }
    json!({ "models": models })
}

/// Handles a request for the properties of a model.
async fn show(Shared(state): Shared<Arc<State>>, Untyped(input): Untyped) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let name = name(&state, &mut fields)?;
    fields.ignore(&["system", "template", "options", "verbose"]);
    fields.log_rest("/api/show");
    let entries = state.entries();
    let Some((entry, facts)) =
        entries.iter().find(|entry| entry.name == name).and_then(|entry| Some((entry, entry.facts?)))
    else {
        return Err(state.no_model(&[Kind::Language, Kind::Embedder], Some(&name)));
    };
    let profile = state.profile(&name);
    let capabilities = match (profile, entry.kind) {
        (Some(profile), _) => profile.capabilities.clone(),
        (None, Kind::Embedder) => vec!["embedding"],
        (None, _) => Vec::new(),
    };
    let family = facts.family;
    let mut info = json!({ "general.architecture": family, "general.parameter_count": facts.parameters });
    info[format!("{family}.context_length")] =
        profile.map(|profile| profile.context_length).or(entry.max_tokens).into();
    info[format!("{family}.embedding_length")] = entry.width.into();
    info[format!("{family}.block_count")] = facts.layers.into();
    Ok(Json(json!({
        "modelfile": format!("# served by scrimp\nFROM {}\n", entry.name), "parameters": "", "license": "",
        "template": profile.map_or("{{ .Prompt }}", |profile| profile.template.as_str()),
        "details": details(facts), "model_info": info, "capabilities": capabilities,
        "modified_at": rfc3339(state.created),
    }))
    .into_response())
}
