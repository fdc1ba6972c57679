//! State shared by all HTTP handlers.

use super::{
    drain::Requests, error::ApiError, history::History, languages::Languages, models::TextService,
    params::Params, reasoning::ReasoningOptions,
};
use crate::{
    constraint::Constraints,
    engine::{Command, EngineOutput, EngineRequest, Failure, Generate, KvOptions, Work},
    metrics::{Metrics, ModelMetrics},
    options::ServeOptions,
    score::Recommender,
    traces::{Trace, Traces},
};
use scrimp_llm::{
    Embedder, Reranker,
    chat::ChatTemplate,
    generate::{DraftKind, DraftModel, Speculation},
    tokenizer::Tokenizer,
};
use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::Sender,
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The language model.
#[derive(Debug)]
pub(crate) struct Language {
    /// Its names in requests; answers contain the first.
    pub(crate) names: Vec<String>,
    /// Tokenizer.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Chat template, if the model has one.
    pub(crate) template: Option<ChatTemplate>,
    /// Constrained decoding, if the tokenizer supports it.
    pub(crate) constraints: Option<Constraints>,
    /// Context length in tokens.
    pub(crate) context_length: usize,
    /// Vocabulary size; token ids are below it.
    pub(crate) vocab_size: usize,
    /// Number of values of an embedding.
    pub(crate) embedding_size: usize,
    /// Its metrics.
    pub(crate) metrics: Arc<ModelMetrics>,
    /// Its clones are the requests that use the model.
    pub(crate) lease: Arc<()>,
    /// Channel to the engine.
    pub(crate) commands: Mutex<Sender<Command>>,
    /// Default KV options of requests.
    pub(crate) kv: KvOptions,
    /// Default source of drafts.
    pub(crate) speculation: DraftKind,
    /// The model that drafts, if there is one.
    pub(crate) draft: Option<DraftModel>,
    /// Default reasoning of requests.
    pub(crate) reasoning: ReasoningOptions,
}

/// State shared by all HTTP handlers.
#[derive(Debug)]
pub(crate) struct State {
    /// The language models.
    pub(crate) languages: Languages,
    /// The embedding model, if there is one.
    pub(crate) embedder: Option<TextService<Embedder>>,
    /// The reranker, if there is one.
    pub(crate) reranker: Option<TextService<Reranker>>,
    /// The recommender, if there is one.
    pub(crate) recommender: Option<Recommender>,
    /// Limits and API keys.
    pub(crate) options: ServeOptions,
    /// The exporter of traces; `None`: traces are off.
    pub(crate) traces: Option<Traces>,
    /// Prometheus metrics.
    pub(crate) metrics: Arc<Metrics>,
    /// True while shutting down: new requests are refused.
    pub(crate) draining: AtomicBool,
    /// Running requests.
    pub(crate) requests: Requests,
    /// Stored conversations.
    pub(crate) history: History,
    /// Start of the server, seconds since 1970.
    pub(crate) created: u64,
    /// Id of the next request.
    pub(crate) next_id: AtomicU64,
}

impl State {
    /// A new id.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A time in seconds since 1970 as `YYYY-MM-DDThh:mm:ssZ` (RFC 3339).
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, eras of 400 years in the year 0.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A number that no other call, also in other processes, is likely to return.
pub(crate) fn unique() -> u64 {
    // Each state has random keys.
    RandomState::new().hash_one(now())
}

/// Receives the outputs of all engine requests of one HTTP request.
pub(crate) type EngineOutputs = UnboundedReceiver<(usize, EngineOutput)>;

impl Language {
    /// Checks a prompt and returns the number of tokens that fit after it. `limit`: maximum tokens of prompt and answer.
    ///
    /// # Errors
    /// 400 if the prompt is empty, too long, or contains an invalid token id. Clients recognize the words "prompt is too long"
    /// (Anthropic's) and "this model's maximum context length is" (OpenAI's).
    pub(crate) fn room(&self, prompt: &[u32], limit: usize) -> Result<usize, ApiError> {
        if prompt.is_empty() {
            return Err(ApiError::field("prompt", "the prompt is empty"));
        }
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(ApiError::field("prompt", format!("{id} is not a token id of this model")));
        }
        let limit = limit.min(self.context_length);
        if prompt.len() >= limit {
            let what = format!(
                "the prompt is too long: it has {} tokens, but this model's maximum context length is {limit} tokens, prompt and \
                 answer together",
                prompt.len()
            );
            return Err(ApiError::field("messages", what).code("context_length_exceeded"));
        }
        Ok(limit - prompt.len())
    }

    /// The source of drafts for a request that names `wanted`.
    ///
    /// # Errors
    /// 400 if it names the draft model, and the language model has none.
    pub(crate) fn speculation(&self, wanted: Option<DraftKind>) -> Result<Speculation, ApiError> {
        let draft = self.draft.as_ref();
        match wanted {
            Some(kind) => {
                Speculation::new(kind, draft).map_err(|e| ApiError::field("speculate", e.to_string()))
            }
            // The draft model belongs to one of the models.
            None => Ok(Speculation::new(self.speculation, draft).unwrap_or_default()),
        }
    }

    /// Whether requests have drafts by default.
    pub(crate) fn drafts(&self) -> bool {
        !matches!(self.speculation(None), Ok(Speculation::Off))
    }

    /// The special tokens that an answer writes.
    pub(crate) fn special_tokens(&self, params: &Params) -> Vec<u32> {
        let all = 0..self.tokenizer.vocab_size() as u32;
        if params.skip_special {
            Vec::new()
        } else {
            all.filter(|&id| self.tokenizer.is_special(id)).collect()
        }
    }

    /// Sends requests to the engine.
    ///
    /// # Errors
    /// 503 if the engine has stopped.
    pub(crate) fn submit(&self, requests: Vec<EngineRequest>) -> Result<(), ApiError> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        for request in requests {
            commands
                .send(Command::AddRequest(Box::new(request)))
                .map_err(|_| ApiError::from(Failure::ShuttingDown))?;
        }
        Ok(())
    }
}

/// Builds the engine requests of one HTTP request. All send their outputs to one channel.
pub(crate) struct EngineRequests<'a> {
    state: &'a State,
    client: u64,
    lease: &'a Arc<()>,
    deadline: Instant,
    sender: UnboundedSender<(usize, EngineOutput)>,
    requests: Vec<EngineRequest>,
}

impl<'a> EngineRequests<'a> {
    /// Without requests; the second value receives the outputs.
    pub(crate) fn new(state: &'a State, language: &'a Language, client: u64) -> (Self, EngineOutputs) {
        let (sender, outputs) = unbounded_channel();
        let deadline = Instant::now() + state.options.request_timeout;
        (Self { state, client, lease: &language.lease, deadline, sender, requests: Vec::new() }, outputs)
    }

    /// Adds an answer.
    pub(crate) fn generate(&mut self, prompt: Vec<u32>, kv: KvOptions, params: Generate) {
        self.push(prompt, kv, Work::Generate(Box::new(params)));
    }

    /// Adds an embedding.
    pub(crate) fn embed(&mut self, prompt: Vec<u32>, kv: KvOptions) {
        self.push(prompt, kv, Work::Embed);
    }

    fn push(&mut self, prompt: Vec<u32>, kv: KvOptions, work: Work) {
        self.requests.push(EngineRequest {
            id: self.state.next_id(),
            client: self.client,
            prompt,
            work,
            kv,
            deadline: self.deadline,
            trace: Trace::current(),
            _lease: Arc::clone(self.lease),
            index: self.requests.len(),
            outputs: self.sender.clone(),
        });
    }

    /// The requests.
    pub(crate) fn finish(self) -> Vec<EngineRequest> {
        self.requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }
}
