//! Items of a response's output: reasoning, messages, calls of functions and of custom tools.

use super::super::super::{parts::Block, state::unique};
use serde_json::{Value, json};

/// An item of the output.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) block: Block,
    /// A call of a tool whose argument is a text.
    pub(super) is_custom: bool,
}

impl Item {
    /// The item of a block. `custom`: names of custom tools.
    pub(super) fn new(block: &Block, custom: &[String]) -> Self {
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
    pub(super) fn part(&self) -> Option<Value> {
        match &self.block {
            Block::Reasoning(text) => Some(json!({ "type": "reasoning_text", "text": text })),
            Block::Text(text) => Some(text_part(text)),
            Block::Call { .. } => None,
        }
    }

    /// The text of a custom tool's call.
    pub(super) fn custom_input(arguments: &str) -> String {
        let parsed: Value = serde_json::from_str(arguments).unwrap_or_default();
        parsed["input"].as_str().map_or_else(|| arguments.to_owned(), str::to_owned)
    }

    /// The item in the API's form.
    pub(super) fn json(&self, status: &str) -> Value {
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
/// The status of the last item, a call that may be cut.
pub(super) fn last_status(is_cut: bool) -> &'static str {
    if is_cut { "incomplete" } else { "completed" }
}

/// The answer as a message.
pub(super) fn answer_message(blocks: &[Block]) -> Value {
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
