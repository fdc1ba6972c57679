//! Messages of a conversation, and their prompt.

use super::{error::ApiError, fields::Fields, reasoning::ReasoningOptions, state::Language, tools::Tools};
use scrimp_llm::chat::{Conversation, ReasoningMarks};
use serde_json::{Map, Value};

/// Maximum number of messages.
pub(super) const MAX_MESSAGES: usize = 1024;

/// Takes `messages`: objects with a role and content. Content parts become the lines of one text.
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
            // vLLM's name of the field.
            if let Some(reasoning) = message.remove("reasoning") {
                message.entry("reasoning_content").or_insert(reasoning);
            }
            if message.get("reasoning_content").is_some_and(|reasoning| !reasoning.is_string()) {
                message.remove("reasoning_content");
            }
            Ok(Value::Object(message))
        })
        .collect()
}

/// A string, a list of text parts, or nothing.
pub(super) fn text(content: Option<Value>) -> Option<String> {
    match content {
        None | Some(Value::Null) => Some(String::new()),
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(parts)) => {
            let text = |part: &'_ Value| {
                part.get("text").or_else(|| part.get("refusal"))?.as_str().map(str::to_owned)
            };
            parts.iter().map(text).collect::<Option<Vec<_>>>().map(|parts| parts.join("\n"))
        }
        Some(_) => None,
    }
}

/// Fields of a request that change the prompt.
#[derive(Debug, Default)]
pub(crate) struct PromptOptions {
    /// Variables of the chat template.
    variables: Map<String, Value>,
    /// The answer is a new message, even if the last message is the assistant's.
    begins: bool,
}

impl PromptOptions {
    /// Takes `chat_template_kwargs`, `continue_final_message` and `add_generation_prompt`.
    ///
    /// # Errors
    /// A value has another type.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
        let continues = fields.boolean("continue_final_message")?;
        let begins = fields.boolean("add_generation_prompt")?;
        Ok(Self { variables, begins: continues.map_or(begins == Some(true), |continues| !continues) })
    }
}

/// A tokenized prompt.
#[derive(Debug)]
pub(crate) struct Prompt {
    /// The text.
    pub(crate) text: String,
    /// Its tokens.
    pub(crate) tokens: Vec<u32>,
    /// The marks of the reasoning in the answer, and whether the answer begins inside it. `None`: the model does not reason.
    pub(crate) reasoning: Option<(&'static ReasoningMarks, bool)>,
}

/// The prompt for the assistant's next message, or for the rest of its last one.
///
/// # Errors
/// The model has no chat template, a role is unknown, or the template rejects the messages.
pub(crate) fn prompt(
    language: &Language,
    messages: &[Value],
    tools: &Tools,
    options: &PromptOptions,
    reasoning: &ReasoningOptions,
) -> Result<Prompt, ApiError> {
    let Some(template) = &language.template else {
        let what = "this model has no chat template: use /v1/completions";
        return Err(ApiError::field("messages", what));
    };
    let in_messages = |e| ApiError { param: Some("messages".into()), ..ApiError::from(e) };
    let mut variables = options.variables.clone();
    // Clients of vLLM switch the reasoning with a variable of the template.
    let switch = ["enable_thinking", "thinking"].into_iter().find_map(|name| variables.get(name)?.as_bool());
    for (name, value) in reasoning.variables() {
        variables.entry(name).or_insert(value);
    }
    let mut conversation = Conversation::new(messages).map_err(in_messages)?;
    conversation = conversation.tools(tools.list()).variables(variables);
    if let Some(thinks) = switch.or(reasoning.wanted) {
        conversation = conversation.thinks(thinks);
    }
    if options.begins {
        conversation = conversation.begin_answer();
    }
    let text = template.prompt(&conversation).map_err(in_messages)?;
    let tokens = language.tokenizer.encode(&text, false, true)?;
    let reasoning = template.reasoning_after(&conversation, &text);
    Ok(Prompt { text, tokens, reasoning })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Value>, String> {
        take(&mut Fields::parse(text.as_bytes()).unwrap()).map_err(|e| e.message)
    }

    #[test]
    fn parts_become_lines() {
        let messages = read(
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": null,
                 "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]}]}"#,
        )
        .unwrap();
        assert_eq!(messages[0]["content"], "a\nb");
        assert_eq!(messages[1]["content"], "");
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
