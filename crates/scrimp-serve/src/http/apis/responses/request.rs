//! Requests of the Responses API: items become messages, tools become functions.

use super::super::super::{
    error::ApiError,
    fields::Fields,
    messages::{self, MAX_MESSAGES, PromptOptions},
    params::{Params, ResponseFormat},
    reasoning::ReasoningOptions,
    tools::{Choice, Tools},
    turn::Turn,
};
use crate::engine::KvOptions;
use serde_json::{Map, Value, json};

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
/// A request.
#[derive(Debug)]
pub(crate) struct Request {
    /// The conversation without the earlier one.
    pub(crate) turn: Turn,
    /// The system message.
    pub(super) instructions: Option<String>,
    /// Identifier of the stored response that the request continues.
    pub(super) previous: Option<String>,
    /// Keep the conversation.
    pub(super) stores: bool,
    /// Names of tools whose argument is a text.
    pub(super) custom: Vec<String>,
}

/// Takes all fields but `model`. `kv`: the default KV options.
pub(crate) fn take(fields: &mut Fields, kv: &KvOptions) -> Result<Request, ApiError> {
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
