//! `/v1/chat/completions`: the next message of a conversation.

use super::{
    calls::{CallParser, MARKS, Piece},
    error::ApiError,
    fields::Fields,
    messages,
    params::{Params, alternatives},
    state::{EngineRequests, State, now},
    stream::{Chunks, collect, stream},
    tools::Tools,
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
    let prompt = messages::PromptOptions::take(&mut fields)?;
    let params = Params::take(&mut fields, &language.kv, 1)?;
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = alternatives(&mut fields, "top_logprobs")?;
    if top.is_some_and(|top| top > 0) && !wanted {
        return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs: true"));
    }
    fields.finish()?;

    let prompt = messages::prompt(language, conversation, &tools, prompt)?;
    let room = language.room(&prompt, state.options.max_model_len)?;
    let (mut requests, outputs) =
        EngineRequests::new(&state, client ^ super::hash_of(params.user.as_deref()));
    for i in 0..params.n {
        let constraint = match tools.constraint(language.constraints.as_ref())? {
            Some(constraint) => Some(constraint),
            None => params.format.constraint(language.constraints.as_ref())?,
        };
        let mut how = params.generate(i, room, usize::MAX, wanted.then(|| top.unwrap_or(0)), constraint);
        how.written = language.special_tokens(&params);
        if tools.is_offered() {
            how.written.extend(MARKS.iter().filter_map(|mark| language.tokenizer.token_id(mark)));
        }
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
            answers: (0..params.n).map(|_| Begun { parser: tools.parser(), ..Begun::default() }).collect(),
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

/// An answer of which a part was sent.
#[derive(Default)]
struct Begun {
    /// The chunk with the role was sent.
    role: bool,
    /// `None`: the answer has no calls.
    parser: Option<CallParser>,
    /// Number of calls.
    calls: usize,
    /// White space behind a text: it is sent with more text, and not before a call.
    space: String,
}

struct Chat {
    head: Head,
    answers: Vec<Begun>,
    tools: Tools,
    include_usage: bool,
}

impl Chat {
    /// Adds the chunk with the role if it was not sent yet.
    fn begin(&mut self, index: usize, out: &mut Vec<Value>) {
        if !std::mem::replace(&mut self.answers[index].role, true) {
            out.push(self.head.chunk(
                index,
                json!({ "role": "assistant", "content": "" }),
                Value::Null,
                None,
            ));
        }
    }

    /// Adds chunks for the parts of an answer; the first one carries the log-probabilities.
    fn pieces(&mut self, index: usize, pieces: Vec<Piece>, mut logprobs: Value, out: &mut Vec<Value>) {
        let answer = &mut self.answers[index];
        for piece in pieces {
            let delta = match piece {
                Piece::Text(text) => {
                    let text = std::mem::take(&mut answer.space) + &text;
                    let end = if answer.parser.is_some() { text.trim_end().len() } else { text.len() };
                    answer.space = text[end..].to_owned();
                    json!({ "content": &text[..end] })
                }
                Piece::Call(call) => {
                    answer.space.clear();
                    let Some(mut call) = self.tools.call(&call, answer.calls) else { continue };
                    call["index"] = json!(answer.calls);
                    answer.calls += 1;
                    json!({ "tool_calls": [call] })
                }
            };
            if delta["content"] != "" || !logprobs.is_null() {
                out.push(self.head.chunk(index, delta, logprobs.take(), None));
            }
        }
        if !logprobs.is_null() {
            out.push(self.head.chunk(index, json!({ "content": "" }), logprobs, None));
        }
    }
}

impl Chunks for Chat {
    fn token(&mut self, index: usize, token: Token) -> Vec<Value> {
        let mut out = Vec::new();
        self.begin(index, &mut out);
        let logprobs = self.head.logprobs(std::slice::from_ref(&token));
        let pieces = match &mut self.answers[index].parser {
            Some(parser) => parser.push(&token.text),
            None => vec![Piece::Text(token.text)],
        };
        self.pieces(index, pieces, logprobs, &mut out);
        out
    }

    fn end(&mut self, index: usize, summary: &Summary) -> Vec<Value> {
        let mut out = Vec::new();
        self.begin(index, &mut out);
        let mut pieces = match &mut self.answers[index].parser {
            Some(parser) => parser.push(&summary.text).into_iter().chain(parser.finish()).collect(),
            None => vec![Piece::Text(summary.text.clone())],
        };
        let answer = &mut self.answers[index];
        let has_calls = answer.calls > 0 || pieces.iter().any(|piece| matches!(piece, Piece::Call(_)));
        if !has_calls {
            // Nothing follows the white space.
            answer.parser = None;
            pieces.push(Piece::Text(String::new()));
        }
        self.pieces(index, pieces, Value::Null, &mut out);
        let reason = if has_calls { "tool_calls" } else { summary.reason.name() };
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
