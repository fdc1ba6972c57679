//! `/v1/chat/completions`: the next message of a conversation.

use super::{
    error::ApiError,
    fields::Fields,
    input::Input,
    messages,
    models::Served as _,
    params::{Params, alternatives},
    part_stream::PartChunks,
    parts::{AnswerParser, Block, Part},
    reasoning::ReasoningOptions,
    state::{State, now},
    stream::{Frames, Usage},
    tools::Tools,
    turn::{Answer, Turn},
};
use crate::engine::{KvOptions, Logprobs, Summary, Token};
use axum::{
    Json,
    extract::State as Shared,
    response::{IntoResponse, Response},
};
use scrimp_llm::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::sync::Arc;

/// Handles a request.
///
/// # Errors
/// Invalid fields, or a failure of the engine.
pub(crate) async fn chat(Shared(state): Shared<Arc<State>>, input: Input) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = &*state.language(fields.string("model")?.as_deref()).await?;
    let turn = take(&mut fields, &language.kv)?;
    fields.finish()?;
    let (streams, include_usage, n) = (turn.params.stream, turn.params.include_usage, turn.params.n);
    let answers = turn.submit(&state, language, input.client)?;
    let head = Head {
        id: format!("chatcmpl-{}", state.next_id()),
        model: language.name().to_owned(),
        tokenizer: Arc::clone(&language.tokenizer),
    };
    if streams {
        let begun = vec![Begun::default(); n];
        return answers.stream(Chat { head, answers: begun, include_usage }).await;
    }
    let (answers, usage) = answers.collect().await?;
    let choices = answers.into_iter().enumerate().map(|(index, answer)| head.choice(index, answer)).collect();
    let mut response = head.response("chat.completion", choices);
    response["usage"] = usage.json();
    Ok(Json(response).into_response())
}

/// Takes all fields but `model`. `kv`: the default KV options.
///
/// # Errors
/// A value is invalid.
pub(super) fn take(fields: &mut Fields, kv: &KvOptions) -> Result<Turn, ApiError> {
    let messages = messages::take(fields)?;
    let tools = Tools::take(fields)?;
    let options = messages::PromptOptions::take(fields)?;
    let reasoning = ReasoningOptions::take(fields)?;
    let params = Params::take(fields, kv, 1)?;
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = alternatives(fields, "top_logprobs")?;
    if top.is_some_and(|top| top > 0) && !wanted {
        return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs: true"));
    }
    let logprobs = wanted.then(|| top.unwrap_or(0));
    Ok(Turn { messages, tools, options, reasoning, params, logprobs })
}

/// The common fields of a response and its chunks.
struct Head {
    id: String,
    model: String,
    tokenizer: Arc<Tokenizer>,
}

impl Head {
    fn response(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": now(), "model": self.model, "choices": choices,
        })
    }

    /// A complete answer. Without text, `content` is null if there are calls.
    fn choice(&self, index: usize, answer: Answer) -> Value {
        let (mut reasoning, mut texts, mut calls) = (None, Vec::new(), Vec::new());
        for block in answer.blocks {
            match block {
                Block::Reasoning(text) => reasoning = Some(text),
                Block::Text(text) => texts.push(text),
                Block::Call { id, name, arguments } => calls.push(json!({
                    "id": id, "type": "function", "function": { "name": name, "arguments": arguments },
                })),
            }
        }
        let content = if texts.is_empty() && !calls.is_empty() { Value::Null } else { texts.concat().into() };
        let mut message = json!({ "role": "assistant", "content": content });
        if let Some(reasoning) = reasoning {
            message["reasoning_content"] = reasoning.into();
        }
        let mut reason = answer.complete.reason.name();
        if !calls.is_empty() {
            message["tool_calls"] = Value::Array(calls);
            reason = if answer.has_cut_call { reason } else { "tool_calls" };
        }
        let logprobs = self.logprobs(&answer.complete.logprobs);
        json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason })
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> Value {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason });
        self.response("chat.completion.chunk", vec![choice])
    }

    /// Log-probabilities in the format of this endpoint; `null` without any.
    fn logprobs(&self, tokens: &[Token]) -> Value {
        let one = |id: u32, logprob: f64| {
            let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
            json!({ "token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes })
        };
        let entry = |l: &Logprobs| {
            let mut entry = one(l.token, l.logprob);
            entry["top_logprobs"] = l.top.iter().map(|&(id, p)| one(id, p)).collect();
            entry
        };
        let entries: Vec<Value> = tokens.iter().filter_map(|t| t.logprobs.as_ref().map(entry)).collect();
        if entries.is_empty() { Value::Null } else { json!({ "content": entries }) }
    }
}

/// An answer of which a part was sent.
#[derive(Debug, Clone, Copy, Default)]
struct Begun {
    /// The chunk with the role was sent.
    role: bool,
    /// Number of calls.
    calls: usize,
}

struct Chat {
    head: Head,
    answers: Vec<Begun>,
    include_usage: bool,
}

impl PartChunks for Chat {
    /// Writes chunks for the parts of an answer; the first one carries the log-probabilities.
    fn parts(&mut self, index: usize, parts: Vec<Part>, token: Option<&Token>, out: &mut Frames) {
        let mut logprobs = token.map_or(Value::Null, |token| self.head.logprobs(std::slice::from_ref(token)));
        let answer = &mut self.answers[index];
        if !std::mem::replace(&mut answer.role, true) {
            let role = json!({ "role": "assistant", "content": "" });
            out.data(&self.head.chunk(index, role, Value::Null, None));
        }
        for part in parts {
            let delta = match part {
                Part::Reasoning(text) => json!({ "reasoning_content": text }),
                Part::Text(text) => json!({ "content": text }),
                Part::Call { id, name } => {
                    let function = json!({ "name": name, "arguments": "" });
                    answer.calls += 1;
                    json!({ "tool_calls": [{
                        "index": answer.calls - 1, "id": id, "type": "function", "function": function,
                    }] })
                }
                Part::Arguments(text) => {
                    let index = answer.calls.saturating_sub(1);
                    json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] })
                }
            };
            out.data(&self.head.chunk(index, delta, logprobs.take(), None));
        }
        if !logprobs.is_null() {
            out.data(&self.head.chunk(index, json!({ "content": "" }), logprobs, None));
        }
    }

    fn end(&mut self, index: usize, parser: &AnswerParser, summary: &Summary, out: &mut Frames) {
        let has_calls = parser.has_calls() && !parser.has_cut_call();
        let reason = if has_calls { "tool_calls" } else { summary.reason.name() };
        out.data(&self.head.chunk(index, json!({}), Value::Null, Some(reason)));
    }

    fn finish(&mut self, usage: &Usage, out: &mut Frames) {
        if self.include_usage {
            let mut chunk = self.head.response("chat.completion.chunk", Vec::new());
            chunk["usage"] = usage.json();
            out.data(&chunk);
        }
        out.done();
    }
}
