//! State shared by all HTTP handlers.

use super::{drain::Requests, error::ApiError, params::Params};
use crate::{
    constraint::Constraints,
    engine::{Command, EngineOutput, EngineRequest, Failure, Generate, KvOptions, Work},
    metrics::Metrics,
    options::ServeOptions,
    score::Recommender,
};
use axum::http::StatusCode;
use scrimp_llm::{chat::ChatTemplate, tokenizer::Tokenizer};
use std::{
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
    /// Channel to the engine.
    pub(crate) commands: Mutex<Sender<Command>>,
    /// Default KV options of requests.
    pub(crate) kv: KvOptions,
}

/// State shared by all HTTP handlers.
#[derive(Debug)]
pub(crate) struct State {
    /// The language model, if there is one.
    pub(crate) language: Option<Language>,
    /// The recommender, if there is one.
    pub(crate) recommender: Option<Recommender>,
    /// Model names; answers contain the first.
    pub(crate) names: Vec<String>,
    /// Limits and API keys.
    pub(crate) options: ServeOptions,
    /// Prometheus metrics.
    pub(crate) metrics: Arc<Metrics>,
    /// True while shutting down: new requests are refused.
    pub(crate) draining: AtomicBool,
    /// Running requests.
    pub(crate) requests: Requests,
    /// Start of the server, seconds since 1970.
    pub(crate) created: u64,
    /// Id of the next request.
    pub(crate) next_id: AtomicU64,
}

impl State {
    /// The language model.
    ///
    /// # Errors
    /// 404 if there is no language model or it has another name.
    pub(crate) fn language(&self, model: Option<&str>) -> Result<&Language, ApiError> {
        let not_found = |what: String| {
            let e = ApiError { param: Some("model".into()), ..ApiError::new(StatusCode::NOT_FOUND, what) };
            e.code("model_not_found")
        };
        if let Some(model) = model
            && !self.names.iter().any(|name| name == model)
        {
            let shown: String = model.chars().take(100).collect();
            let name = self.names.first().map_or("", String::as_str);
            return Err(not_found(format!("there is no model {shown:?}; this server has {name:?}")));
        }
        self.language.as_ref().ok_or_else(|| not_found("this server has no language model".into()))
    }

    /// A new id.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The name in answers.
    pub(crate) fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Receives the outputs of all engine requests of one HTTP request.
pub(crate) type EngineOutputs = UnboundedReceiver<(usize, EngineOutput)>;

impl Language {
    /// Checks a prompt and returns the number of tokens that fit after it. `limit`: maximum tokens of prompt and answer.
    ///
    /// # Errors
    /// 400 if the prompt is empty, too long, or contains an invalid token id.
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
                "the prompt has {} tokens and leaves no room for an answer: prompt and answer can have {limit} tokens together",
                prompt.len()
            );
            return Err(ApiError::field("messages", what).code("context_length_exceeded"));
        }
        Ok(limit - prompt.len())
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
    deadline: Instant,
    sender: UnboundedSender<(usize, EngineOutput)>,
    requests: Vec<EngineRequest>,
}

impl<'a> EngineRequests<'a> {
    /// Without requests; the second value receives the outputs.
    pub(crate) fn new(state: &'a State, client: u64) -> (Self, EngineOutputs) {
        let (sender, outputs) = unbounded_channel();
        let deadline = Instant::now() + state.options.request_timeout;
        (Self { state, client, deadline, sender, requests: Vec::new() }, outputs)
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
            index: self.requests.len(),
            outputs: self.sender.clone(),
        });
    }

    /// The requests.
    pub(crate) fn finish(self) -> Vec<EngineRequest> {
        self.requests
    }
}
