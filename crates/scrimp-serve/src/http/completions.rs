//! `/v1/completions`: continuations of texts.

use super::{
    error::ApiError,
    fields::Fields,
    input::Input,
    models::Served as _,
    params::{Params, alternatives},
    state::{EngineRequests, Language, State, now},
    stream::{Chunks, Frames, Usage, collect, stream},
};
use crate::engine::{Logprobs, Summary, Token};
use axum::{
    Json,
    extract::State as Shared,
    response::{IntoResponse, Response},
};
use scrimp_llm::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Maximum number of prompts per request.
const MAX_PROMPTS: usize = 64;
/// Default of `max_tokens`.
const DEFAULT_TOKENS: usize = 16;

/// Handles a request.
///
/// # Errors
/// Invalid fields, or a failure of the engine.
pub(crate) async fn completions(
    Shared(state): Shared<Arc<State>>,
    input: Input,
) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = &*state.language(fields.string("model")?.as_deref()).await?;
    let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
    let echo = fields.boolean("echo")?.unwrap_or(false);
    if echo && suffix.is_some() {
        return Err(ApiError::field("suffix", "suffix and echo exclude each other"));
    }
    let prompts = match suffix {
        Some(suffix) => infills(language, fields.take("prompt"), &suffix)?,
        None => {
            let special = fields.boolean("add_special_tokens")?.unwrap_or(true);
            prompts(language, fields.take("prompt"), special)?
        }
    };
    let params = Params::take(&mut fields, &language.kv, 0)?;
    let logprobs = alternatives(&mut fields, "logprobs")?;
    // Texts have no reasoning.
    fields.ignore(&["reasoning", "reasoning_effort"]);
    fields.finish()?;

    let (mut requests, outputs) =
        EngineRequests::new(&state, language, input.client ^ super::hash_of(params.user.as_deref()));
    let mut echoes = Vec::new();
    for prompt in prompts {
        let room = language.room(&prompt, state.options.max_model_len)?;
        for i in 0..params.n {
            let constraint = params.format.constraint(language.constraints.as_ref())?;
            let mut how = params.generate(i, room, DEFAULT_TOKENS, logprobs, constraint);
            how.speculation = language.speculation(params.speculation)?;
            how.written = language.special_tokens(&params);
            how.scores_prompt = echo && logprobs.is_some();
            requests.generate(prompt.clone(), params.kv.clone(), how);
            echoes.push(if echo { Some(prompt.clone()) } else { None });
        }
    }
    let n = echoes.len();
    language.submit(requests.finish())?;
    let head = Head {
        id: format!("cmpl-{}", state.next_id()),
        model: language.name().to_owned(),
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
            let mut entries = Entries::default();
            let mut text = String::new();
            if let Some(prompt) = &echoes[index] {
                text = head.echo(prompt, answer.prompt, &mut entries);
            }
            head.answer(&answer.logprobs, &mut entries);
            json!({
                "index": index,
                "text": text + &answer.text,
                "logprobs": entries.json(),
                "finish_reason": answer.reason.name(),
            })
        })
        .collect();
    let mut response = head.response(choices);
    response["usage"] = usage.json();
    Ok(Json(response).into_response())
}

/// A string, a list of strings, a list of ids, or a list of lists of ids. `special`: texts get the tokenizer's begin token.
fn prompts(language: &Language, value: Option<Value>, special: bool) -> Result<Vec<Vec<u32>>, ApiError> {
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
            list.into_iter().map(|value| tokens(language, value, special).ok_or_else(wrong)?).collect()
        }
        value => Ok(vec![tokens(language, value, special).ok_or_else(wrong)??]),
    }
}

/// Prompts for the text between each prompt and `suffix`.
fn infills(language: &Language, prompt: Option<Value>, suffix: &str) -> Result<Vec<Vec<u32>>, ApiError> {
    let texts = match prompt {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) if !list.is_empty() && list.len() <= MAX_PROMPTS => {
            let texts = list.into_iter().map(|text| text.as_str().map(str::to_owned));
            texts
                .collect::<Option<_>>()
                .ok_or_else(|| ApiError::field("prompt", "with suffix, prompts must be texts"))?
        }
        _ => {
            return Err(ApiError::field(
                "prompt",
                "with suffix, prompt must be a string or a list of strings",
            ));
        }
    };
    texts.iter().map(|text| infill(language, text, suffix)).collect()
}

/// The prompt `<|fim_prefix|>TEXT<|fim_suffix|>SUFFIX<|fim_middle|>`.
/// Source: "Efficient Training of Language Models to Fill in the Middle" (Bavarian et al. 2022), section 3, mode PSM.
///
/// # Errors
/// The model cannot fill gaps.
pub(super) fn infill(language: &Language, text: &str, suffix: &str) -> Result<Vec<u32>, ApiError> {
    let Some([before, after, middle]) = language.tokenizer.infill_marks() else {
        let what = "this model cannot fill in the middle of a text: its tokenizer has no tokens for that";
        return Err(ApiError::field("suffix", what));
    };
    let encode = |text: &str| language.tokenizer.encode(text, false, false);
    let begin = language.tokenizer.bos().filter(|_| language.tokenizer.adds_bos());
    let mut ids: Vec<u32> = begin.into_iter().chain([before]).collect();
    ids.extend(encode(text)?);
    ids.push(after);
    ids.extend(encode(suffix)?);
    ids.push(middle);
    Ok(ids)
}

/// The tokens of a text, with the tokenizer's begin token if `special`, or of a list of token ids; `None`: neither.
pub(super) fn tokens(language: &Language, value: Value, special: bool) -> Option<Result<Vec<u32>, ApiError>> {
    match value {
        Value::String(text) => Some(language.tokenizer.encode(&text, special, true).map_err(Into::into)),
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

    /// The name of a token. Tokens that are parts of characters get distinct names.
    fn name(&self, id: u32) -> String {
        match String::from_utf8(self.tokenizer.token_bytes(id).unwrap_or_default()) {
            Ok(text) => text,
            Err(e) => e.as_bytes().iter().fold("bytes:".to_owned(), |text, b| text + &format!("\\x{b:02x}")),
        }
    }

    /// Adds the tokens of the prompt, of which the first has no probability, if they have `scores`. Returns the text.
    fn echo(&self, prompt: &[u32], scores: Option<Vec<Logprobs>>, entries: &mut Entries) -> String {
        let (mut text, mut decoder) = (String::new(), self.tokenizer.stream());
        let mut scores = scores.map(Vec::into_iter);
        for (i, &id) in prompt.iter().enumerate() {
            if let Some(scores) = &mut scores {
                let score = if i == 0 { None } else { scores.next() };
                entries.add(self, id, score.as_ref());
            }
            let part = decoder.push(id);
            entries.offset += part.chars().count();
            text += &part;
        }
        let rest = decoder.finish();
        entries.offset += rest.chars().count();
        text + &rest
    }

    /// Adds the tokens of the answer that have log-probabilities.
    fn answer(&self, tokens: &[Token], entries: &mut Entries) {
        for token in tokens {
            if let Some(score) = &token.logprobs {
                entries.add(self, score.token, Some(score));
            }
            entries.offset += token.text.chars().count();
        }
    }
}

/// Log-probabilities in the format of this endpoint.
#[derive(Default)]
struct Entries {
    tokens: Vec<String>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
    /// Characters before the next token.
    offset: usize,
}

impl Entries {
    fn add(&mut self, head: &Head, id: u32, score: Option<&Logprobs>) {
        self.tokens.push(head.name(id));
        self.token_logprobs.push(score.map_or(Value::Null, |score| json!(score.logprob)));
        self.top_logprobs.push(score.map_or(Value::Null, |score| {
            // The token itself is always among them.
            let all = score.top.iter().copied().chain([(score.token, score.logprob)]);
            all.map(|(id, p)| (head.name(id), json!(p))).collect::<Map<_, _>>().into()
        }));
        self.text_offset.push(self.offset);
    }

    /// `null` without any.
    fn json(self) -> Value {
        if self.tokens.is_empty() {
            return Value::Null;
        }
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

struct Completions {
    head: Head,
    /// The prompts that are not sent yet.
    echoes: Vec<Option<Vec<u32>>>,
    /// Characters of each answer that were sent.
    offsets: Vec<usize>,
    include_usage: bool,
}

impl Completions {
    fn chunk(&self, index: usize, text: &str, logprobs: Value, reason: Option<&str>) -> Value {
        let choice = json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason });
        self.head.response(vec![choice])
    }

    /// Writes the chunk with the prompt, if it was not sent yet.
    fn echo(&mut self, index: usize, scores: Option<Vec<Logprobs>>, out: &mut Frames) {
        let Some(prompt) = self.echoes[index].take() else { return };
        let mut entries = Entries::default();
        let text = self.head.echo(&prompt, scores, &mut entries);
        self.offsets[index] = entries.offset;
        out.data(&self.chunk(index, &text, entries.json(), None));
    }
}

impl Chunks for Completions {
    fn prompt(&mut self, index: usize, scores: Vec<Logprobs>, out: &mut Frames) {
        self.echo(index, Some(scores), out);
    }

    fn token(&mut self, index: usize, token: Token, out: &mut Frames) {
        self.echo(index, None, out);
        let mut entries = Entries { offset: self.offsets[index], ..Entries::default() };
        self.head.answer(std::slice::from_ref(&token), &mut entries);
        self.offsets[index] = entries.offset;
        let logprobs = entries.json();
        if !token.text.is_empty() || !logprobs.is_null() {
            out.data(&self.chunk(index, &token.text, logprobs, None));
        }
    }

    fn end(&mut self, index: usize, summary: &Summary, out: &mut Frames) {
        self.echo(index, None, out);
        out.data(&self.chunk(index, &summary.text, Value::Null, Some(summary.reason.name())));
    }

    fn finish(&mut self, usage: &Usage, out: &mut Frames) {
        if self.include_usage {
            let mut chunk = self.head.response(Vec::new());
            chunk["usage"] = usage.json();
            out.data(&chunk);
        }
        out.done();
    }
}
