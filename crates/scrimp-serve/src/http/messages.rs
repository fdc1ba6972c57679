//! Messages of a conversation, and their prompt.

use super::{error::ApiError, fields::Fields, state::Language, tools::Tools};
use serde_json::{Map, Value, json};

/// Maximum number of messages.
const MAX_MESSAGES: usize = 1024;

/// Takes `messages`: objects with a role and content. Content parts are joined to one text.
///
/// # Errors
/// Invalid messages.
pub(crate) fn take(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let wrong = |what: String| ApiError::field("messages", what);
    let list = match fields.take("messages") {
        Some(Value::Array(list)) if !list.is_empty() && list.len() <= MAX_MESSAGES => list,
        _ => return Err(wrong(format!("messages must be a list of 1 to {MAX_MESSAGES} messages"))),
    };
    list.into_iter()
        .enumerate()
        .map(|(i, message)| {
            let Value::Object(mut message) = message else {
                return Err(wrong(format!("messages[{i}] must be an object with role and content")));
            };
            if !message.get("role").is_some_and(Value::is_string) {
                return Err(wrong(format!("messages[{i}].role must be a string")));
            }
            let content = text(message.remove("content")).ok_or_else(|| {
                wrong(format!("messages[{i}].content must be text, the only input of this model"))
            })?;
            message.insert("content".into(), Value::String(content));
            if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
                calls.iter_mut().for_each(arguments_as_object);
            }
            Ok(Value::Object(message))
        })
        .collect()
}

/// A string, a list of text parts, or nothing.
fn text(content: Option<Value>) -> Option<String> {
    match content {
        None | Some(Value::Null) => Some(String::new()),
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(parts)) => {
            parts.iter().map(|part| part.get("text").and_then(Value::as_str)).collect::<Option<String>>()
        }
        Some(_) => None,
    }
}

/// Parses the arguments of a call: the API has them as text, chat templates expect an object.
fn arguments_as_object(call: &mut Value) {
    let Some(arguments) = call.get_mut("function").and_then(|f| f.get_mut("arguments")) else { return };
    if let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        *arguments = parsed;
    }
}

/// The prompt for the assistant's next message.
///
/// # Errors
/// The model has no chat template, or the template rejects the messages.
pub(crate) fn prompt(
    language: &Language,
    mut messages: Vec<Value>,
    tools: &Tools,
    mut extra: Map<String, Value>,
) -> Result<Vec<u32>, ApiError> {
    let Some(template) = &language.template else {
        let what = "this model has no chat template: use /v1/completions";
        return Err(ApiError::field("messages", what));
    };
    let render = |messages: &[Value], extra: &Map<String, Value>| {
        template.render(messages, true, extra).map_err(ApiError::from)
    };
    if tools.is_offered() {
        let without = render(&messages, &extra)?;
        extra.insert("tools".into(), tools.list());
        if render(&messages, &extra)? == without {
            // The template ignores tools: a system message describes them.
            extra.remove("tools");
            messages.insert(0, json!({ "role": "system", "content": tools.instructions() }));
        }
    }
    let text = render(&messages, &extra)?;
    Ok(language.tokenizer.encode(&text, false, true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Value>, String> {
        take(&mut Fields::parse(text.as_bytes()).unwrap()).map_err(|e| e.message)
    }

    #[test]
    fn parts_are_joined() {
        let messages = read(
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": null,
                 "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]}]}"#,
        )
        .unwrap();
        assert_eq!(messages[0]["content"], "ab");
        assert_eq!(messages[1]["content"], "");
        assert_eq!(messages[1]["tool_calls"][0]["function"]["arguments"]["x"], 1);
    }

    #[test]
    fn wrong_messages_are_named() {
        for (text, part) in [
            (r#"{"messages": []}"#, "list of 1 to"),
            (r#"{}"#, "list of 1 to"),
            (r#"{"messages": ["hi"]}"#, "messages[0] must be an object"),
            (r#"{"messages": [{"content": "x"}]}"#, "messages[0].role"),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#,
                "messages[0].content",
            ),
            (r#"{"messages": [{"role": "user", "content": 5}]}"#, "messages[0].content"),
        ] {
            assert!(read(text).unwrap_err().contains(part), "{text}");
        }
    }
}
