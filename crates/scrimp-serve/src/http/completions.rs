//! `/v1/completions`: continuations of texts.

use super::{
    error::ApiError,
    fields::Fields,
    params::{Params, alternatives},
    state::{EngineRequests, Language, State, now},
    stream::{Chunks, collect, stream},
};
use crate::engine::{Logprobs, Summary, Token};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use scrimp_llm::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::sync::Arc;

/// Maximum number of prompts per request.
const MAX_PROMPTS: usize = 64;
/// Default of `max_tokens`.
const DEFAULT_TOKENS: usize = 16;

/// Handles a request.
///
/// # Errors
/// Invalid fields, or a failure of the engine.
pub(crate) async fn completions(state: Arc<State>, body: &[u8], client: u64) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(body)?;
    let language = state.language(fields.string("model")?.as_deref())?;
    let prompts = prompts(language, fields.take("prompt"))?;
    let params = Params::take(&mut fields, &language.kv)?;
    let logprobs = alternatives(&mut fields, "logprobs")?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    if fields.take("suffix").is_some() {
        return Err(ApiError::field("suffix", "suffix is not supported"));
    }
    fields.finish()?;

    let (mut requests, outputs) =
        EngineRequests::new(&state, client ^ super::hash_of(params.user.as_deref()));
    let mut echoes = Vec::new();
    for prompt in prompts {
        let room = language.room(&prompt, state.options.max_model_len)?;
        let text = if echo { language.tokenizer.decode(&prompt) } else { String::new() };
        for i in 0..params.n {
            let constraint = params.format.constraint(language.constraints.as_ref())?;
            let how = params.generate(i, room, DEFAULT_TOKENS, logprobs, constraint);
            requests.generate(prompt.clone(), params.kv.clone(), how);
            echoes.push(text.clone());
        }
    }
    let n = echoes.len();
    language.submit(requests.finish())?;
    let head = Head {
        id: format!("cmpl-{}", state.next_id()),
        model: state.name().to_owned(),
        tokenizer: Arc::clone(&language.tokenizer),
    };
    if params.stream {
        let offsets = vec![0; n];
        let chunks = Completions { head, echoes, offsets, include_usage: params.include_usage };
        return stream(outputs, n, chunks).await;
    }
    let (answers, usage) = collect(outputs, n).await?;
    let choices: Vec<Value> = answers
        .into_iter()
        .enumerate()
        .map(|(index, answer)| {
            let mut offset = 0;
            let logprobs = head.logprobs(&answer.logprobs, &mut offset);
            json!({
                "index": index,
                "text": format!("{}{}", echoes[index], answer.text),
                "logprobs": logprobs,
                "finish_reason": answer.reason,
            })
        })
        .collect();
    let mut response = head.response(choices);
    response["usage"] = usage.json();
    Ok(Json(response).into_response())
}

/// A string, a list of strings, a list of ids, or a list of lists of ids.
fn prompts(language: &Language, value: Option<Value>) -> Result<Vec<Vec<u32>>, ApiError> {
    let wrong = || {
        let what = format!(
            "prompt must be a string or a list of token ids, or a list of up to {MAX_PROMPTS} of them"
        );
        ApiError::field("prompt", what)
    };
    match value.ok_or_else(|| ApiError::field("prompt", "there is no prompt"))? {
        Value::Array(list) if list.first().is_some_and(|v| !v.is_number()) => {
            if list.len() > MAX_PROMPTS {
                return Err(wrong());
            }
            list.into_iter().map(|value| tokens(language, value).ok_or_else(wrong)?).collect()
        }
        value => Ok(vec![tokens(language, value).ok_or_else(wrong)??]),
    }
}

/// The tokens of a text or of a list of token ids; `None`: neither.
pub(super) fn tokens(language: &Language, value: Value) -> Option<Result<Vec<u32>, ApiError>> {
    match value {
        Value::String(text) => Some(language.tokenizer.encode(&text, true, true).map_err(Into::into)),
        Value::Array(ids) => {
            let ids: Option<Vec<u32>> =
                ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect();
            ids.map(Ok)
        }
        _ => None,
    }
}

/// The common fields of a response and its chunks.
struct Head {
    id: String,
    model: String,
    tokenizer: Arc<Tokenizer>,
}

impl Head {
    fn response(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": now(), "model": self.model, "choices": choices,
        })
    }

    /// Log-probabilities in the format of this endpoint; `null` without any.
    fn logprobs(&self, tokens: &[Token], offset: &mut usize) -> Value {
        let found: Vec<&Logprobs> = tokens.iter().filter_map(|t| t.logprobs.as_ref()).collect();
        if found.is_empty() {
            return Value::Null;
        }
        // Tokens that are parts of characters get distinct names.
        let text = |id| match String::from_utf8(self.tokenizer.token_bytes(id).unwrap_or_default()) {
            Ok(text) => text,
            Err(e) => e.as_bytes().iter().fold("bytes:".to_owned(), |text, b| text + &format!("\\x{b:02x}")),
        };
        let offsets: Vec<usize> = tokens
            .iter()
            .map(|token| {
                let at = *offset;
                *offset += token.text.chars().count();
                at
            })
            .collect();
        let top: Vec<Value> = found
            .iter()
            .map(|l| {
                l.top.iter().map(|&(id, p)| (text(id), json!(p))).collect::<serde_json::Map<_, _>>().into()
            })
            .collect();
        json!({
            "tokens": found.iter().map(|l| text(l.token)).collect::<Vec<_>>(),
            "token_logprobs": found.iter().map(|l| l.logprob).collect::<Vec<_>>(),
            "top_logprobs": top,
            "text_offset": offsets,
        })
    }
}

struct Completions {
    head: Head,
    echoes: Vec<String>,
    offsets: Vec<usize>,
    include_usage: bool,
}

impl Completions {
    fn chunk(&self, index: usize, text: &str, logprobs: Value, reason: Option<&str>) -> Value {
        let choice = json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason });
        self.head.response(vec![choice])
    }
}

impl Chunks for Completions {
    fn token(&mut self, index: usize, token: Token) -> Vec<Value> {
        let text = std::mem::take(&mut self.echoes[index]) + &token.text;
        let logprobs = self.head.logprobs(std::slice::from_ref(&token), &mut self.offsets[index]);
        if text.is_empty() && logprobs.is_null() {
            return Vec::new();
        }
        vec![self.chunk(index, &text, logprobs, None)]
    }

    fn end(&mut self, index: usize, summary: &Summary) -> Vec<Value> {
        vec![self.chunk(index, &summary.text, Value::Null, Some(summary.reason.name()))]
    }

    fn usage(&mut self, usage: Value) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.head.response(Vec::new());
            chunk["usage"] = usage;
            chunk
        })
    }
}
