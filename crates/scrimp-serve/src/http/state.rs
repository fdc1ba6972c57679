//! What handlers share.

use super::error::ApiError;
use crate::{
    constraint::Constraints,
    engine::{Command, Event, Failure, Generate, Job, KvChoice, Work},
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

/// The language model, as handlers see it.
#[derive(Debug)]
pub(crate) struct Language {
    /// Its tokenizer.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Its chat template, if it has one.
    pub(crate) template: Option<ChatTemplate>,
    /// Constrained decoding, where the tokenizer allows it.
    pub(crate) constraints: Option<Constraints>,
    /// Longest sequence, tokens.
    pub(crate) context_length: usize,
    /// Tokens that logits may have; ids beyond are none.
    pub(crate) vocab_size: usize,
    /// The way to the engine.
    pub(crate) commands: Mutex<Sender<Command>>,
    /// How caches are kept where a request does not say.
    pub(crate) kv: KvChoice,
}

/// What handlers share.
#[derive(Debug)]
pub(crate) struct State {
    /// The language model, if one is served.
    pub(crate) language: Option<Language>,
    /// The recommender, if one is served.
    pub(crate) recommender: Option<Recommender>,
    /// Names of what is served; the first is the one in answers.
    pub(crate) names: Vec<String>,
    /// Limits and keys.
    pub(crate) options: ServeOptions,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// No new requests.
    pub(crate) draining: AtomicBool,
    /// When the server began, seconds since 1970.
    pub(crate) created: u64,
    /// The next request's id.
    pub(crate) next_id: AtomicU64,
}

impl State {
    /// The language model.
    ///
    /// # Errors
    /// 404 where none is served, or another one is asked for; 503 while shutting down.
    pub(crate) fn language(&self, model: Option<&str>) -> Result<&Language, ApiError> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Failure::ShuttingDown.into());
        }
        let not_found = |what: String| {
            let e = ApiError { param: Some("model".into()), ..ApiError::new(StatusCode::NOT_FOUND, what) };
            e.code("model_not_found")
        };
        if let Some(model) = model
            && !self.names.iter().any(|name| name == model)
        {
            let shown: String = model.chars().take(100).collect();
            let name = self.names.first().map_or("", String::as_str);
            return Err(not_found(format!("there is no model {shown:?} here; this server serves {name:?}")));
        }
        self.language.as_ref().ok_or_else(|| not_found("this server serves no language model".into()))
    }

    /// A new id.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The name of what is served.
    pub(crate) fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Answers to come.
pub(crate) type Events = UnboundedReceiver<(usize, Event)>;

impl Language {
    /// Refuses a prompt that cannot be answered; returns how many tokens still fit after it.
    ///
    /// # Errors
    /// 400 when it is empty or too long, or holds ids that are no tokens.
    pub(crate) fn room(&self, prompt: &[u32], most: usize) -> Result<usize, ApiError> {
        if prompt.is_empty() {
            return Err(ApiError::field("prompt", "the prompt is empty"));
        }
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(ApiError::field("prompt", format!("{id} is no token of this model")));
        }
        let most = most.min(self.context_length);
        if prompt.len() >= most {
            let what = format!(
                "the prompt has {} tokens and leaves no room for an answer: at most {most} tokens go together",
                prompt.len()
            );
            return Err(ApiError::field("messages", what).code("context_length_exceeded"));
        }
        Ok(most - prompt.len())
    }

    /// Hands jobs to the engine.
    ///
    /// # Errors
    /// 503 when it has ended.
    pub(crate) fn submit(&self, jobs: Vec<Job>) -> Result<(), ApiError> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        for job in jobs {
            commands
                .send(Command::Submit(Box::new(job)))
                .map_err(|_| ApiError::from(Failure::ShuttingDown))?;
        }
        Ok(())
    }
}

/// Builds jobs that answer into one channel.
pub(crate) struct Jobs<'a> {
    state: &'a State,
    client: u64,
    deadline: Instant,
    sender: UnboundedSender<(usize, Event)>,
    jobs: Vec<Job>,
}

impl<'a> Jobs<'a> {
    /// Of a client.
    pub(crate) fn new(state: &'a State, client: u64) -> (Self, Events) {
        let (sender, events) = unbounded_channel();
        let deadline = Instant::now() + state.options.request_timeout;
        (Self { state, client, deadline, sender, jobs: Vec::new() }, events)
    }

    /// One more answer.
    pub(crate) fn generate(&mut self, prompt: Vec<u32>, kv: KvChoice, how: Generate) {
        self.push(prompt, kv, Work::Generate(Box::new(how)));
    }

    /// One more embedding.
    pub(crate) fn embed(&mut self, prompt: Vec<u32>, kv: KvChoice) {
        self.push(prompt, kv, Work::Embed);
    }

    fn push(&mut self, prompt: Vec<u32>, kv: KvChoice, work: Work) {
        self.jobs.push(Job {
            id: self.state.next_id(),
            client: self.client,
            prompt,
            work,
            kv,
            deadline: self.deadline,
            index: self.jobs.len(),
            events: self.sender.clone(),
        });
    }

    /// The jobs.
    pub(crate) fn finish(self) -> Vec<Job> {
        self.jobs
    }
}
