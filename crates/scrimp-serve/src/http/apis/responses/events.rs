//! The events of a streamed response.

use super::{
    super::super::{
        error::ApiError,
        part_stream::PartChunks,
        parts::{AnswerParser, Block, Part},
        stream::{Frames, Usage},
    },
    Reply,
    items::{Item, last_status},
};
use crate::engine::{FinishReason, Summary, Token};
use serde_json::{Value, json};

/// A streamed response.
pub(super) struct Events {
    reply: Reply,
    /// Number of events.
    number: u64,
    /// The item that has begun.
    open: Option<Item>,
    /// The complete items.
    items: Vec<Value>,
    end: FinishReason,
}

impl Events {
    /// The events of `reply`, before the first one.
    pub(super) fn new(reply: Reply) -> Self {
        Self { reply, number: 0, open: None, items: Vec::new(), end: FinishReason::Stop }
    }

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
        self.close("completed", out);
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

    /// Ends the open item with this status.
    fn close(&mut self, status: &str, out: &mut Frames) {
        let Some(item) = self.open.take() else { return };
        let (part, value) = (item.part(), item.json(status));
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
}

impl PartChunks for Events {
    fn parts(&mut self, _: usize, parts: Vec<Part>, _: Option<&Token>, out: &mut Frames) {
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

    fn end(&mut self, _: usize, parser: &AnswerParser, summary: &Summary, out: &mut Frames) {
        self.close(last_status(parser.has_cut_call()), out);
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
