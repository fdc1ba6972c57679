//! Streaming responses: server-sent events, one per output of the engine.

use super::{error::ApiError, state::EngineOutputs};
use crate::engine::{EngineOutput, FinishReason, Logprobs, Summary, Token};
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

/// The bytes of a streaming response.
#[derive(Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// Adds a server-sent event without a name.
    pub(crate) fn data(&mut self, value: &Value) {
        self.0.extend_from_slice(b"data: ");
        self.json(value);
        self.0.extend_from_slice(b"\n\n");
    }

    /// Adds a server-sent event.
    pub(crate) fn event(&mut self, name: &str, value: &Value) {
        self.0.extend_from_slice(format!("event: {name}\n").as_bytes());
        self.data(value);
    }

    /// Adds a line of JSON.
    pub(crate) fn line(&mut self, value: &Value) {
        self.json(value);
        self.0.push(b'\n');
    }

    /// Adds the last event of OpenAI's streams.
    pub(crate) fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn json(&mut self, value: &Value) {
        // Writing JSON to a vector cannot fail.
        let _ = serde_json::to_writer(&mut self.0, value);
    }
}

/// Media type of server-sent events.
pub(super) const EVENTS: &str = "text/event-stream; charset=utf-8";

/// The stream format of an endpoint.
pub(crate) trait Chunks: Send + Unpin + 'static {
    /// Media type of the stream.
    const MEDIA_TYPE: &'static str = EVENTS;

    /// Writes the scores of the prompt of answer `index`.
    fn prompt(&mut self, _index: usize, _scores: Vec<Logprobs>, _out: &mut Frames) {}
    /// Writes a token of answer `index`.
    fn token(&mut self, index: usize, token: Token, out: &mut Frames);
    /// Writes the end of answer `index`.
    fn end(&mut self, index: usize, summary: &Summary, out: &mut Frames);
    /// Writes the end of the stream, with the usage of all answers.
    fn finish(&mut self, usage: &Usage, out: &mut Frames);
    /// Writes an error, the end of the stream.
    fn fail(&mut self, e: &ApiError, out: &mut Frames) {
        out.data(&e.body());
    }
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
pub(crate) async fn stream<C: Chunks>(
    mut outputs: EngineOutputs,
    n: usize,
    chunks: C,
) -> Result<Response, ApiError> {
    let first = outputs.recv().await;
    if let Some((_, EngineOutput::Failed(failure))) = first {
        return Err(failure.into());
    }
    let body = EventStream { outputs, chunks, first, left: n, usage: Usage::default(), done: false };
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(C::MEDIA_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

impl<C: Chunks> EventStream<C> {
    fn write(&mut self, index: usize, output: EngineOutput, out: &mut Frames) {
        match output {
            EngineOutput::Prompt(scores) => self.chunks.prompt(index, scores, out),
            EngineOutput::Token(token) => self.chunks.token(index, token, out),
            EngineOutput::Finished(summary) => {
                self.chunks.end(index, &summary, out);
                self.usage.add(&summary);
                self.left -= 1;
            }
            EngineOutput::Failed(failure) => {
                self.chunks.fail(&failure.into(), out);
                self.done = true;
            }
            EngineOutput::Embedding(_) => {}
        }
        if self.left == 0 && !self.done {
            self.chunks.finish(&self.usage, out);
            self.done = true;
        }
    }
}

impl<C: Chunks> Stream for EventStream<C> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut out = Frames::default();
        if let Some((index, output)) = this.first.take() {
            this.write(index, output, &mut out);
        }
        // All available outputs go into one write.
        while !this.done {
            match this.outputs.poll_recv(cx) {
                Poll::Ready(Some((index, output))) => this.write(index, output, &mut out),
                Poll::Ready(None) => {
                    this.chunks.fail(&crate::engine::Failure::ShuttingDown.into(), &mut out);
                    this.done = true;
                }
                Poll::Pending if out.0.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if out.0.is_empty() { Poll::Ready(None) } else { Poll::Ready(Some(Ok(out.0.into()))) }
    }
}

/// Token counts and KV cache sizes of all answers to a request.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Prompt tokens.
    pub(crate) prompt: usize,
    /// Prompt tokens that a cached prefix contained.
    pub(crate) cached: usize,
    /// Generated tokens.
    pub(crate) generated: usize,
    /// Generated tokens inside the reasoning.
    pub(crate) reasoning: usize,
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
        self.reasoning += summary.reasoning_tokens;
        self.kv_bytes += summary.kv_bytes;
        self.kv_tokens += summary.kv_tokens;
        self.kv_bytes_full += summary.kv_bytes_full;
    }

    /// OpenAI's `usage` object, with the sizes of the KV caches.
    pub(crate) fn json(&self) -> Value {
        self.with_kv(json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": { "cached_tokens": self.cached },
            "completion_tokens_details": { "reasoning_tokens": self.reasoning },
        }))
    }

    /// `usage` of any API with the sizes of the KV caches.
    pub(crate) fn with_kv(&self, mut usage: Value) -> Value {
        usage["kv_bytes"] = json!(self.kv_bytes);
        usage["kv_tokens"] = json!(self.kv_tokens);
        usage["kv_bytes_full"] = json!(self.kv_bytes_full);
        usage
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
    /// Why it ended.
    pub(crate) reason: FinishReason,
    /// The stop string that ended it.
    pub(crate) stop: Option<String>,
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
                answers[index].reason = summary.reason;
                usage.add(&summary);
                answers[index].stop = summary.stop;
                left -= 1;
            }
            Some((_, EngineOutput::Failed(failure))) => return Err(failure.into()),
            Some((_, EngineOutput::Embedding(_))) => {}
            None => return Err(crate::engine::Failure::ShuttingDown.into()),
        }
    }
    Ok((answers, usage))
}
