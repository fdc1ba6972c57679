//! `/v1/chat/completions`: the next message of a conversation.

use super::{
    error::ApiError,
    fields::Fields,
    messages,
    params::{Params, alternatives},
    state::{EngineRequests, State, now},
    stream::{Chunks, collect, stream},
    tools::{self, Tools},
};
use crate::engine::{Logprobs, Summary, Token};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use scrimp_llm::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::sync::Arc;

/// Handles a request.
///
/// # Errors
/// Invalid fields, or a failure of the engine.
pub(crate) async fn chat(state: Arc<State>, body: &[u8], client: u64) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(body)?;
    let language = state.language(fields.string("model")?.as_deref())?;
    let conversation = messages::take(&mut fields)?;
    let tools = Tools::take(&mut fields)?;
    let extra = fields.object("chat_template_kwargs")?.unwrap_or_default();
    let params = Params::take(&mut fields, &language.kv)?;
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = alternatives(&mut fields, "top_logprobs")?;
    if top.is_some() && !wanted {
        return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs: true"));
    }
    fields.finish()?;

    let prompt = messages::prompt(language, conversation, &tools, extra)?;
    let room = language.room(&prompt, state.options.max_model_len)?;
    let (mut requests, outputs) =
        EngineRequests::new(&state, client ^ super::hash_of(params.user.as_deref()));
    for i in 0..params.n {
        let constraint = match tools.constraint(language.constraints.as_ref())? {
            Some(constraint) => Some(constraint),
            None => params.format.constraint(language.constraints.as_ref())?,
        };
        let how = params.generate(i, room, usize::MAX, wanted.then(|| top.unwrap_or(0)), constraint);
        requests.generate(prompt.clone(), params.kv.clone(), how);
    }
    language.submit(requests.finish())?;
    let head = Head {
        id: format!("chatcmpl-{}", state.next_id()),
        model: state.name().to_owned(),
        tokenizer: Arc::clone(&language.tokenizer),
    };
    if params.stream {
        let chunks = Chat {
            head,
            begun: vec![false; params.n],
            said: vec![false; params.n],
            held: vec![String::new(); params.n],
            tools,
            include_usage: params.include_usage,
        };
        return stream(outputs, params.n, chunks).await;
    }
    let (answers, usage) = collect(outputs, params.n).await?;
    let choices: Vec<Value> = answers
        .into_iter()
        .enumerate()
        .map(|(index, answer)| {
            let logprobs = head.logprobs(&answer.logprobs);
            let (content, calls) = tools.parse(&answer.text);
            let mut message = json!({ "role": "assistant", "content": content });
            let mut reason = answer.reason;
            if !calls.is_empty() {
                message["tool_calls"] = Value::Array(calls);
                reason = "tool_calls";
            }
            json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason })
        })
        .collect();
    let mut response = head.response("chat.completion", choices);
    response["usage"] = usage.json();
    Ok(Json(response).into_response())
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

struct Chat {
    head: Head,
    /// Per answer: the chunk with the role was sent.
    begun: Vec<bool>,
    /// Per answer: text outside of tool calls was sent.
    said: Vec<bool>,
    /// Per answer: text that may be the beginning of a tool call.
    held: Vec<String>,
    tools: Tools,
    include_usage: bool,
}

impl Chat {
    /// Adds the chunk with the role if it was not sent yet.
    fn begin(&mut self, index: usize, out: &mut Vec<Value>) {
        if !std::mem::replace(&mut self.begun[index], true) {
            out.push(self.head.chunk(
                index,
                json!({ "role": "assistant", "content": "" }),
                Value::Null,
                None,
            ));
        }
    }
}

impl Chunks for Chat {
    fn token(&mut self, index: usize, token: Token) -> Vec<Value> {
        let mut out = Vec::new();
        self.begin(index, &mut out);
        let logprobs = self.head.logprobs(std::slice::from_ref(&token));
        let mut text = token.text;
        if !self.tools.is_empty() {
            self.held[index] += &text;
            let held = &mut self.held[index];
            let behind = held.split_off(tools::settled(held, self.said[index]));
            text = std::mem::replace(held, behind);
            self.said[index] |= !text.is_empty();
        }
        if !text.is_empty() || !logprobs.is_null() {
            out.push(self.head.chunk(index, json!({ "content": text }), logprobs, None));
        }
        out
    }

    fn end(&mut self, index: usize, summary: &Summary) -> Vec<Value> {
        let mut out = Vec::new();
        self.begin(index, &mut out);
        let held = std::mem::take(&mut self.held[index]) + &summary.text;
        let (content, calls) = self.tools.parse(&held);
        if let Some(text) = content.as_str().filter(|text| !text.is_empty()) {
            out.push(self.head.chunk(index, json!({ "content": text }), Value::Null, None));
        }
        let mut reason = summary.reason.name();
        for (i, mut call) in calls.into_iter().enumerate() {
            call["index"] = json!(i);
            out.push(self.head.chunk(index, json!({ "tool_calls": [call] }), Value::Null, None));
            reason = "tool_calls";
        }
        out.push(self.head.chunk(index, json!({}), Value::Null, Some(reason)));
        out
    }

    fn usage(&mut self, usage: Value) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.head.response("chat.completion.chunk", Vec::new());
            chunk["usage"] = usage;
            chunk
        })
    }
}
