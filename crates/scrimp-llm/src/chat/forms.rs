//! Changes of a conversation for templates that do not know all its parts.

use serde_json::{Map, Value as Json, json};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The beginning and the end of a call in a text: the form of Qwen and Hermes, which [`describe`] demands.
const CALL: (&str, &str) = ("<tool_call>\n", "\n</tool_call>");
/// The beginning and the end of a result in a text.
const RESULT: (&str, &str) = ("<tool_response>\n", "\n</tool_response>");

fn message(role: &str, content: String) -> Json {
    json!({ "role": role, "content": content })
}

fn content(message: &Json) -> &str {
    message["content"].as_str().unwrap_or_default()
}

fn take_calls(message: &mut Json) -> Vec<Json> {
    match message.as_object_mut().and_then(|message| message.remove("tool_calls")) {
        Some(Json::Array(calls)) => calls,
        _ => Vec::new(),
    }
}

/// Joins two texts; an empty line separates them.
fn joined(first: &str, second: &str) -> String {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second.to_owned(),
        (_, true) => first.to_owned(),
        _ => format!("{first}\n\n{second}"),
    }
}

/// Replaces the identifiers of calls by nine letters and digits. Calls and results without one get one, in order.
pub(super) fn shorten_ids(messages: &mut [Json]) {
    let short = |id: &str| {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        Json::from(format!("{:09x}", hasher.finish() & 0xf_ffff_ffff))
    };
    let (mut calls, mut results) = (0, 0);
    for message in messages {
        for call in message.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
            let id = call["id"].as_str().map_or_else(|| calls.to_string(), str::to_owned);
            if let Some(call) = call.as_object_mut() {
                call.insert("id".into(), short(&id));
            }
            calls += 1;
        }
        if message["role"] == "tool" {
            let id = message["tool_call_id"].as_str().map_or_else(|| results.to_string(), str::to_owned);
            message["tool_call_id"] = short(&id);
            results += 1;
        }
    }
}

/// Gives each call a message of its own, followed by its result.
pub(super) fn separate_calls(messages: &mut Vec<Json>) {
    let mut out = Vec::with_capacity(messages.len());
    let mut rest = std::mem::take(messages).into_iter().peekable();
    while let Some(mut first) = rest.next() {
        let calls = take_calls(&mut first);
        if calls.is_empty() {
            out.push(first);
            continue;
        }
        if !content(&first).is_empty() {
            out.push(first);
        }
        let mut results = Vec::new();
        while let Some(result) = rest.next_if(|next| next["role"] == "tool") {
            results.push(result);
        }
        for call in calls {
            let found = results
                .iter()
                .position(|result| !call["id"].is_null() && result["tool_call_id"] == call["id"]);
            let result = match (found, results.is_empty()) {
                (Some(at), _) => Some(results.remove(at)),
                (None, false) => Some(results.remove(0)),
                (None, true) => None,
            };
            out.push(json!({ "role": "assistant", "content": "", "tool_calls": [call] }));
            out.extend(result);
        }
        out.extend(results);
    }
    *messages = out;
}

/// Writes calls into the text of the assistant, and results into messages of the user.
pub(super) fn write_calls(messages: &mut Vec<Json>) {
    let mut out: Vec<Json> = Vec::with_capacity(messages.len());
    let mut is_result = false;
    for mut next in std::mem::take(messages) {
        if next["role"] == "tool" {
            let text = format!("{}{}{}", RESULT.0, content(&next), RESULT.1);
            match out.last_mut().filter(|_| is_result) {
                Some(last) => last["content"] = format!("{}\n{text}", content(last)).into(),
                None => out.push(message("user", text)),
            }
            is_result = true;
            continue;
        }
        is_result = false;
        let calls = take_calls(&mut next);
        if !calls.is_empty() {
            let texts: Vec<String> = calls
                .iter()
                .map(|call| {
                    let function = if call["function"].is_object() { &call["function"] } else { call };
                    let call = json!({ "name": function["name"], "arguments": function["arguments"] });
                    format!("{}{call}{}", CALL.0, CALL.1)
                })
                .collect();
            let said = content(&next);
            let before = if said.is_empty() { String::new() } else { format!("{said}\n") };
            next["content"] = (before + &texts.join("\n")).into();
        }
        out.push(next);
    }
    *messages = out;
}

/// Describes the tools in a system message.
pub(super) fn describe(tools: &[Json], messages: &mut Vec<Json>) {
    let list: Vec<String> = tools.iter().map(Json::to_string).collect();
    let text = format!(
        "You may call these functions:\n{}\nTo call one, answer with nothing but\n{}\
         {{\"name\": \"the function\", \"arguments\": {{...}}}}{}",
        list.join("\n"),
        CALL.0,
        CALL.1,
    );
    match messages.first_mut().filter(|first| first["role"] == "system") {
        Some(first) => first["content"] = joined(content(first), &text).into(),
        None => messages.insert(0, message("system", text)),
    }
}

/// Removes all system messages and returns their text.
fn take_system(messages: &mut Vec<Json>) -> String {
    let mut text = String::new();
    messages.retain(|message| {
        let is_system = message["role"] == "system";
        if is_system {
            text = joined(&text, content(message));
        }
        !is_system
    });
    text
}

/// Makes one system message at the beginning of all.
pub(super) fn gather_system(messages: &mut Vec<Json>) {
    let text = take_system(messages);
    if !text.is_empty() {
        messages.insert(0, message("system", text));
    }
}

/// Puts the text of all system messages before the first message of the user.
pub(super) fn system_to_user(messages: &mut Vec<Json>) {
    let text = take_system(messages);
    if text.is_empty() {
        return;
    }
    match messages.first_mut().filter(|first| first["role"] == "user") {
        Some(user) => user["content"] = joined(&text, content(user)).into(),
        None => messages.insert(0, message("user", text)),
    }
}

/// Merges consecutive messages of one role that have nothing but text.
pub(super) fn merge(messages: &mut Vec<Json>) {
    let is_plain = |message: &Json| {
        message.as_object().is_some_and(|m: &Map<_, _>| !m.contains_key("tool_calls"))
            && message["role"] != "tool"
    };
    let mut out: Vec<Json> = Vec::with_capacity(messages.len());
    for next in std::mem::take(messages) {
        match out.last_mut().filter(|last| last["role"] == next["role"] && is_plain(last) && is_plain(&next))
        {
            Some(last) => last["content"] = joined(content(last), content(&next)).into(),
            None => out.push(next),
        }
    }
    *messages = out;
}
