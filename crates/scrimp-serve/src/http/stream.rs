//! Streaming responses: server-sent events, one per output of the engine.

use super::{error::ApiError, state::EngineOutputs};
use crate::engine::{EngineOutput, Logprobs, Summary, Token};
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures_core::Stream;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

/// The chunk format of an endpoint.
pub(crate) trait Chunks: Send + Unpin + 'static {
    /// Chunks for the scores of the prompt of answer `index`; may be empty.
    fn prompt(&mut self, _index: usize, _scores: Vec<Logprobs>) -> Vec<Value> {
        Vec::new()
    }
    /// Chunks for a token of answer `index`; may be empty.
    fn token(&mut self, index: usize, token: Token) -> Vec<Value>;
    /// Chunks for the end of answer `index`.
    fn end(&mut self, index: usize, summary: &Summary) -> Vec<Value>;
    /// The last chunk, with the usage of all answers; `None` if the request does not include it.
    fn usage(&mut self, usage: Value) -> Option<Value>;
}

/// The body of a streaming response. When the client disconnects, it is dropped and its requests are cancelled.
struct EventStream<C> {
    outputs: EngineOutputs,
    chunks: C,
    /// The first output: if it is a failure, the response is an error and not a stream.
    first: Option<(usize, EngineOutput)>,
    left: usize,
    usage: Usage,
    done: bool,
}

/// Streams `n` answers.
///
/// # Errors
/// The first output is a failure.
pub(crate) async fn stream(
    mut outputs: EngineOutputs,
    n: usize,
    chunks: impl Chunks,
) -> Result<Response, ApiError> {
    let first = outputs.recv().await;
    if let Some((_, EngineOutput::Failed(failure))) = first {
        return Err(failure.into());
    }
    let body = EventStream { outputs, chunks, first, left: n, usage: Usage::default(), done: false };
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

impl<C: Chunks> EventStream<C> {
    fn write(&mut self, index: usize, output: EngineOutput, out: &mut Vec<u8>) {
        match output {
            EngineOutput::Prompt(scores) => {
                self.chunks.prompt(index, scores).iter().for_each(|chunk| frame(out, chunk));
            }
            EngineOutput::Token(token) => {
                self.chunks.token(index, token).iter().for_each(|chunk| frame(out, chunk));
            }
            EngineOutput::Finished(summary) => {
                self.chunks.end(index, &summary).iter().for_each(|chunk| frame(out, chunk));
                self.usage.add(&summary);
                self.left -= 1;
            }
            EngineOutput::Failed(failure) => {
                frame(out, &ApiError::from(failure).body());
                self.done = true;
            }
            EngineOutput::Embedding(_) => {}
        }
        if self.left == 0 && !self.done {
            if let Some(chunk) = self.chunks.usage(self.usage.json()) {
                frame(out, &chunk);
            }
            out.extend_from_slice(b"data: [DONE]\n\n");
            self.done = true;
        }
    }
}

fn frame(out: &mut Vec<u8>, chunk: &Value) {
    out.extend_from_slice(b"data: ");
    // Writing JSON to a vector cannot fail.
    let _ = serde_json::to_writer(&mut *out, chunk);
    out.extend_from_slice(b"\n\n");
}

impl<C: Chunks> Stream for EventStream<C> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut out = Vec::new();
        if let Some((index, output)) = this.first.take() {
            this.write(index, output, &mut out);
        }
        // All available outputs go into one write.
        while !this.done {
            match this.outputs.poll_recv(cx) {
                Poll::Ready(Some((index, output))) => this.write(index, output, &mut out),
                Poll::Ready(None) => {
                    frame(&mut out, &ApiError::from(crate::engine::Failure::ShuttingDown).body());
                    this.done = true;
                }
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if out.is_empty() { Poll::Ready(None) } else { Poll::Ready(Some(Ok(out.into()))) }
    }
}

/// Token counts and KV cache sizes of all answers to a request.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    prompt: usize,
    cached: usize,
    generated: usize,
    kv_bytes: usize,
    kv_tokens: usize,
    kv_bytes_full: usize,
}

impl Usage {
    /// Adds an answer. The prompt of several answers counts once.
    pub(crate) fn add(&mut self, summary: &Summary) {
        self.prompt = self.prompt.max(summary.prompt_tokens);
        self.cached = self.cached.max(summary.cached_tokens);
        self.generated += summary.generated_tokens;
        self.kv_bytes += summary.kv_bytes;
        self.kv_tokens += summary.kv_tokens;
        self.kv_bytes_full += summary.kv_bytes_full;
    }

    /// The API's `usage` object, with the sizes of the KV caches.
    pub(crate) fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": { "cached_tokens": self.cached },
            "kv_bytes": self.kv_bytes,
            "kv_tokens": self.kv_tokens,
            "kv_bytes_full": self.kv_bytes_full,
        })
    }
}

/// A complete answer.
#[derive(Debug, Default)]
pub(crate) struct Complete {
    /// Text.
    pub(crate) text: String,
    /// Scores of the prompt's tokens but the first, if requested.
    pub(crate) prompt: Option<Vec<Logprobs>>,
    /// Tokens with their log-probabilities.
    pub(crate) logprobs: Vec<Token>,
    /// `finish_reason` of the API.
    pub(crate) reason: &'static str,
}

/// Waits for `n` answers.
///
/// # Errors
/// The failure of the first answer that fails.
pub(crate) async fn collect(
    mut outputs: EngineOutputs,
    n: usize,
) -> Result<(Vec<Complete>, Usage), ApiError> {
    let mut answers: Vec<Complete> = (0..n).map(|_| Complete::default()).collect();
    let mut usage = Usage::default();
    let mut left = n;
    while left > 0 {
        match outputs.recv().await {
            Some((index, EngineOutput::Prompt(scores))) => answers[index].prompt = Some(scores),
            Some((index, EngineOutput::Token(token))) => {
                answers[index].text += &token.text;
                if token.logprobs.is_some() {
                    answers[index].logprobs.push(token);
                }
            }
            Some((index, EngineOutput::Finished(summary))) => {
                answers[index].text += &summary.text;
                answers[index].reason = summary.reason.name();
                usage.add(&summary);
                left -= 1;
            }
            Some((_, EngineOutput::Failed(failure))) => return Err(failure.into()),
            Some((_, EngineOutput::Embedding(_))) => {}
            None => return Err(crate::engine::Failure::ShuttingDown.into()),
        }
    }
    Ok((answers, usage))
}
