//! The engine: the thread that owns the model. It receives requests, schedules them, computes steps and sends outputs.
//!
//! ```text
//!  EngineRequest ──► [channel] ──► Scheduler::schedule ──► Batch::forward ──► Answer::sample ──► EngineOutput ──► [channel]
//!                                       ▲  KvCacheManager                        │
//!                                       └───────────── next token ───────────────┘
//! ```
//! Faults are isolated: a panic while a token is sampled, or an error of a KV cache or a constraint, fails one request.

mod answer;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod harness;
mod kv_cache_manager;
mod memory;
mod prefix_store;
mod request;
mod speculation;

pub use request::KvOptions;
pub(crate) use request::{
    EngineOutput, EngineRequest, Failure, FinishReason, Generate, Logprobs, Summary, Token, Work,
};

use crate::{
    metrics::ModelMetrics,
    scheduler::{Limits, RequestId, Scheduler},
};
use answer::{Answer, End, Sampled};
use kv_cache_manager::KvCacheManager;
pub(crate) use memory::MemoryReport;
use scrimp_base::Error;
use scrimp_kv::KvError;
use scrimp_llm::{
    embedding::add_to_mean,
    model::{Batch, Model, Output, Session, Step},
    tokenizer::Tokenizer,
};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Interval at which an idle engine checks for its end.
const IDLE: Duration = Duration::from_millis(100);
/// Maximum number of times that a request starts over after a failed allocation.
const MAX_RESTARTS: usize = 4;

/// A message to the engine.
#[derive(Debug)]
pub(crate) enum Command {
    /// Add a request.
    AddRequest(Box<EngineRequest>),
    /// Report the holders of memory.
    Report(oneshot::Sender<MemoryReport>),
    /// Fail all requests and return.
    Stop,
}

/// Limits and options of the engine.
#[derive(Debug, Clone)]
pub(crate) struct EngineOptions {
    /// Limits of the scheduler.
    pub(crate) limits: Limits,
    /// Maximum size of all KV pages in bytes.
    pub(crate) kv_bytes: usize,
    /// Compress the longest KV caches when the memory is full, before requests are preempted.
    pub(crate) compress_under_pressure: bool,
    /// Cache the prefixes of requests.
    pub(crate) prefix_caching: bool,
    /// Directory of stored prefixes, and the limit on their bytes.
    pub(crate) prefix_store: Option<(PathBuf, u64)>,
}

/// A waiting or running request.
struct Active<'t> {
    request: EngineRequest,
    /// `None`: the request is for an embedding.
    answer: Option<Answer<'t>>,
    /// Sum of the hidden states, divided by the number of prompt tokens.
    hidden: Vec<f32>,
    prompt_tokens: usize,
    restarts: usize,
    begun: Instant,
    /// The first step.
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Active<'_> {
    /// Writes the phases of a finished request, which has `tokens` generated tokens, to its trace.
    fn trace(&self, tokens: usize) {
        let Some(trace) = &self.request.trace else { return };
        let end = self.first_token.map(|_| Instant::now());
        let phases = [("queue", self.started), ("prefill", self.first_token), ("decode", end)];
        trace.phases(self.begun, &phases, tokens);
    }
}

/// Receives the output of the model for one request of a step, on any thread.
struct OutputProcessor<'a, 't> {
    active: Option<&'a mut Active<'t>>,
    /// Tokens that fit into the context after this step.
    room: usize,
    sampled: Option<SamplingResult>,
}

/// A sampled token, or why none could be sampled.
type SamplingResult = Result<Sampled, Failure>;

/// A result for each request of a step (`None`: the model panicked), and the sampled tokens.
type Computed = (Option<Vec<scrimp_llm::Result<()>>>, Vec<Option<SamplingResult>>);

impl OutputProcessor<'_, '_> {
    /// Samples a token from logits `out`, or adds hidden states `out` (`[tokens][width]`) to their mean.
    fn process(&mut self, out: &[f32], width: usize) {
        let Some(active) = &mut self.active else { return };
        let Some(answer) = &mut active.answer else {
            return add_to_mean(&mut active.hidden, out, width, active.prompt_tokens);
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            let is_done = answer.score(out) || answer.is_empty();
            (!is_done).then(|| answer.sample(out, self.room)).transpose()
        }));
        self.sampled = match result {
            Ok(result) => result.map_err(|e| Failure::from(&e)).transpose(),
            Err(_) => Some(Err(Failure::Internal("sampling a token failed".into()))),
        };
    }
}

struct Engine<'m> {
    model: &'m Model,
    tokenizer: &'m Tokenizer,
    scheduler: Scheduler,
    kv_caches: KvCacheManager<'m>,
    batch: Batch,
    active: BTreeMap<RequestId, Active<'m>>,
    metrics: Arc<ModelMetrics>,
    own: OwnMetrics,
}

/// Runs until [`Command::Stop`] arrives or all senders of commands are dropped.
pub(crate) fn run(
    model: &Model,
    tokenizer: &Tokenizer,
    options: &EngineOptions,
    commands: &Receiver<Command>,
    metrics: Arc<ModelMetrics>,
) {
    let mut engine = Engine {
        model,
        tokenizer,
        scheduler: Scheduler::new(Limits {
            // With AMX, whole blocks are multiplied in bf16.
            separate_ends: model.level() != model.level().exact(),
            ..options.limits
        }),
        kv_caches: KvCacheManager::new(model, options),
        batch: Batch::new(model),
        active: BTreeMap::new(),
        metrics,
        own: OwnMetrics::default(),
    };
    engine.update_metrics();
    loop {
        let command = if engine.active.is_empty() {
            match commands.recv_timeout(IDLE) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        } else {
            commands.try_recv().ok()
        };
        match command {
            Some(Command::Stop) => {
                let ids: Vec<_> = engine.active.keys().copied().collect();
                ids.into_iter().for_each(|id| engine.fail(id, Failure::ShuttingDown));
                return;
            }
            Some(Command::Report(answer)) => {
                // The client may have disconnected.
                let _ = answer.send(engine.memory_report());
            }
            // All waiting commands are handled before the next step.
            Some(Command::AddRequest(request)) => engine.add_request(*request),
            None => {
                engine.cancel_expired();
                engine.step();
                engine.update_metrics();
            }
        }
    }
}

/// The part of a step that belongs to one request.
struct RunningStep {
    id: RequestId,
    session: Session,
    tokens: Vec<u32>,
    output: Output,
}

impl<'m> Engine<'m> {
    fn add_request(&mut self, mut request: EngineRequest) {
        let (id, prompt_tokens) = (request.id, request.prompt.len());
        let scores_prompt = matches!(&request.work, Work::Generate(params) if params.scores_prompt);
        let answer = match std::mem::replace(&mut request.work, Work::Embed) {
            Work::Embed => Ok(None),
            Work::Generate(params) => Answer::new(self.tokenizer, &request.prompt, *params).map(Some),
        };
        let prompt = std::mem::take(&mut request.prompt);
        let answer = answer.and_then(|answer| {
            // Scores need the logits after each token, which a cached prefix does not have.
            let is_cacheable = !scores_prompt;
            self.kv_caches.add(id, prompt, request.kv.clone(), is_cacheable)?;
            Ok(answer)
        });
        let answer = match answer {
            Ok(answer) => answer,
            Err(e) => {
                request.send(EngineOutput::Failed(Failure::from(&e)));
                return;
            }
        };
        if !self.scheduler.add_request(id, request.client, prompt_tokens) {
            self.kv_caches.forget(id);
            request.send(EngineOutput::Failed(Failure::Busy));
            return;
        }
        let (begun, hidden) = (Instant::now(), Vec::new());
        let (restarts, started, first_token, last_token) = (0, None, None, None);
        let active = Active {
            request,
            answer,
            hidden,
            prompt_tokens,
            restarts,
            begun,
            started,
            first_token,
            last_token,
        };
        self.active.insert(id, active);
    }

    /// Cancels requests whose client disconnected or whose deadline passed.
    fn cancel_expired(&mut self) {
        let now = Instant::now();
        let expired: Vec<_> = self
            .active
            .values()
            .filter(|a| a.request.outputs.is_closed() || a.request.deadline <= now)
            .map(|a| a.request.id)
            .collect();
        expired.into_iter().for_each(|id| self.fail(id, Failure::Timeout));
    }

    fn step(&mut self) {
        let plan = self.scheduler.schedule(&mut self.kv_caches);
        self.metrics.preemptions.add(plan.preempted.len() as u64);
        for id in plan.rejected {
            let what = "the request's tokens do not fit the KV cache of this server, even alone";
            self.fail(id, Failure::BadRequest(what.into()));
        }
        let mut running = self.begin_step(plan.scheduled);
        let is_alone = running.len() == 1 && self.scheduler.running().len() == 1;
        if is_alone && let Some(step) = running.pop_if(|step| self.may_draft(step)) {
            return self.speculate(step);
        }
        let computed = self.forward(&mut running);
        self.end_step(running, computed);
    }

    /// Handles the results of a step.
    fn end_step(&mut self, running: Vec<RunningStep>, (results, sampled): Computed) {
        let Some(results) = results else {
            // Only the sessions of this step are lost.
            self.batch = Batch::new(self.model);
            for step in running {
                self.fail(step.id, Failure::Internal("the model failed".into()));
            }
            return;
        };
        for ((step, result), sampled) in running.into_iter().zip(results).zip(sampled) {
            let (id, n) = (step.id, step.tokens.len());
            self.kv_caches.put(id, step.session);
            match result {
                Ok(()) => self.after_step(id, n, sampled),
                Err(e) if out_of_pages(&e) && self.may_restart(id) => {
                    self.scheduler.preempt(id, &mut self.kv_caches);
                }
                Err(e) => self.fail(id, Failure::from(&e)),
            }
        }
    }

    /// Takes the sessions of the scheduled requests out of the KV cache manager.
    fn begin_step(&mut self, scheduled: Vec<(RequestId, usize)>) -> Vec<RunningStep> {
        let mut running = Vec::with_capacity(scheduled.len());
        self.metrics.step_tokens.observe(scheduled.iter().map(|&(_, n)| n).sum());
        let now = Instant::now();
        for (id, n) in scheduled {
            if let Some(active) = self.active.get_mut(&id).filter(|active| active.started.is_none()) {
                active.started = Some(now);
                self.metrics.queue_time.observe(now - active.begun);
            }
            let all = self.kv_caches.tokens(id);
            let Some(session) = self.kv_caches.session(id) else { continue };
            let first = session.len();
            let Some(tokens) = all.get(first..first + n).map(<[u32]>::to_vec) else { continue };
            let is_last = first + n == all.len();
            let answer = self.active.get_mut(&id).and_then(|active| active.answer.as_mut());
            let output = match answer.map(|answer| answer.scores_prompt(first == 0)) {
                None => Output::Hidden,
                Some(true) => Output::EachLogits,
                Some(false) if is_last => Output::Logits,
                Some(false) => Output::Nothing,
            };
            if first != self.scheduler.num_computed(id) {
                // The KV cache was lost in a failed compression.
                self.scheduler.preempt(id, &mut self.kv_caches);
                continue;
            }
            if let Some(session) = self.kv_caches.take(id) {
                running.push(RunningStep { id, session, tokens, output });
            }
        }
        running
    }

    /// Runs the model for one step.
    fn forward(&mut self, running: &mut [RunningStep]) -> Computed {
        let (context, width) = (self.model.context_length(), self.model.config().hidden_size);
        let mut active: BTreeMap<_, _> = self.active.iter_mut().collect();
        let mut processors = Vec::with_capacity(running.len());
        for step in running.iter() {
            let room = context.saturating_sub(step.session.len() + step.tokens.len() + 1);
            let processor = OutputProcessor { active: active.remove(&step.id), room, sampled: None };
            processors.push(Mutex::new(processor));
        }
        let mut steps: Vec<Step<'_>> = running
            .iter_mut()
            .map(|s| Step { session: &mut s.session, tokens: &s.tokens, output: s.output })
            .collect();
        let batch = &mut self.batch;
        let results = catch_unwind(AssertUnwindSafe(|| {
            batch.forward(&mut steps, &|i, out| {
                processors[i].lock().unwrap_or_else(PoisonError::into_inner).process(out, width);
            })
        }));
        let sampled = processors.into_iter().map(|p| p.into_inner().unwrap_or_else(PoisonError::into_inner));
        (results.ok(), sampled.map(|p| p.sampled).collect())
    }

    fn may_restart(&mut self, id: RequestId) -> bool {
        self.active.get_mut(&id).is_some_and(|active| {
            active.restarts += 1;
            active.hidden.clear();
            active.restarts <= MAX_RESTARTS
        })
    }

    /// Handles `n` computed tokens of a request and the token sampled after them, if any.
    fn after_step(&mut self, id: RequestId, n: usize, sampled: Option<SamplingResult>) {
        let complete = self.scheduler.update_computed(id, n);
        self.kv_caches.cache_last_block(id);
        let Some(active) = self.active.get_mut(&id) else { return };
        if n > 1 || active.last_token.is_none() {
            self.metrics.prompt_tokens.add(n as u64);
        }
        if complete && let Some(scores) = active.answer.as_mut().and_then(Answer::take_scores) {
            active.request.send(EngineOutput::Prompt(scores));
        }
        let sampled = match sampled {
            Some(Ok(sampled)) => sampled,
            Some(Err(failure)) => return self.fail(id, failure),
            None if complete && active.answer.is_none() => {
                let embedding = std::mem::take(&mut active.hidden);
                active.request.send(EngineOutput::Embedding(embedding));
                return self.finish(id, End::default());
            }
            None if complete && active.answer.as_ref().is_some_and(Answer::is_empty) => {
                return self.finish(id, End { reason: FinishReason::Length, ..End::default() });
            }
            None => return,
        };
        let now = Instant::now();
        match active.last_token.replace(now) {
            None => {
                self.metrics.time_to_first_token.observe(now - active.begun);
                self.metrics.prefill_time.observe(now - active.started.unwrap_or(active.begun));
                active.first_token = Some(now);
                self.metrics.prefix_hits.add(self.kv_caches.cached(id) as u64);
                self.metrics.prefix_queries.add(active.prompt_tokens as u64);
                self.kv_caches.cache_prefix(id);
            }
            Some(before) => self.metrics.time_per_token.observe(now - before),
        }
        self.metrics.generated_tokens.add(1);
        let connected = active.request.send(EngineOutput::Token(sampled.token));
        match sampled.end {
            Some(end) => self.finish(id, end),
            None if connected => {
                self.kv_caches.push(id, sampled.id);
                self.scheduler.append_token(id);
            }
            None => self.fail(id, Failure::Timeout),
        }
    }

    /// Finishes a request.
    fn finish(&mut self, id: RequestId, end: End) {
        let Some(active) = self.active.remove(&id) else { return };
        let session = self.kv_caches.session(id);
        let config = self.model.config();
        let summary = Summary {
            text: end.text,
            reason: end.reason,
            stop: end.stop,
            prompt_tokens: active.prompt_tokens,
            cached_tokens: self.kv_caches.cached(id),
            generated_tokens: active.answer.as_ref().map_or(0, |answer| answer.generated),
            reasoning_tokens: active.answer.as_ref().map_or(0, Answer::reasoning_tokens),
            kv_bytes: session.map_or(0, Session::kv_bytes),
            kv_tokens: session.map_or(0, Session::kv_tokens),
            kv_bytes_full: session.map_or(0, Session::len) * config.kv_bytes_per_token()
                + config.state_bytes(),
        };
        self.metrics.finished(end.reason.name(), active.begun.elapsed());
        self.metrics.request_prompt.observe(summary.prompt_tokens);
        self.metrics.request_generated.observe(summary.generated_tokens);
        if let Some(first) = active.first_token {
            self.metrics.decode_time.observe(first.elapsed());
        }
        active.trace(summary.generated_tokens);
        self.kv_caches.cache_prefix(id);
        self.kv_caches.store_prefix(id);
        self.scheduler.remove_request(id, &mut self.kv_caches);
        self.kv_caches.forget(id);
        active.request.send(EngineOutput::Finished(summary));
    }

    fn fail(&mut self, id: RequestId, failure: Failure) {
        self.scheduler.remove_request(id, &mut self.kv_caches);
        self.kv_caches.forget(id);
        if let Some(active) = self.active.remove(&id) {
            let reason = if active.request.outputs.is_closed() { "abort" } else { "error" };
            active.trace(active.answer.as_ref().map_or(0, |answer| answer.generated));
            self.metrics.finished(reason, active.begun.elapsed());
            active.request.send(EngineOutput::Failed(failure));
        }
    }

    fn update_metrics(&mut self) {
        let (metrics, own) = (&self.metrics, &mut self.own);
        metrics.running.replace(&mut own.running, self.scheduler.running().len() as u64);
        metrics.waiting.replace(&mut own.waiting, self.scheduler.num_waiting() as u64);
        metrics.kv_bytes.replace(&mut own.kv_bytes, self.kv_caches.bytes_in_use() as u64);
        metrics.kv_limit.replace(&mut own.kv_limit, self.kv_caches.limit() as u64);
        metrics.compressions.replace(&mut own.compressions, self.kv_caches.compressions);
        metrics.store_hits.replace(&mut own.store_hits, self.kv_caches.store_hits);
        metrics.store_bytes.replace(&mut own.store_bytes, self.kv_caches.store_bytes());
    }
}

/// The share of an engine in the metrics of all engines.
#[derive(Debug, Default)]
struct OwnMetrics {
    running: u64,
    waiting: u64,
    kv_bytes: u64,
    kv_limit: u64,
    compressions: u64,
    store_hits: u64,
    store_bytes: u64,
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        // Counters stay.
        let (metrics, own) = (&self.metrics, &mut self.own);
        metrics.running.replace(&mut own.running, 0);
        metrics.waiting.replace(&mut own.waiting, 0);
        metrics.kv_bytes.replace(&mut own.kv_bytes, 0);
        metrics.kv_limit.replace(&mut own.kv_limit, 0);
        metrics.store_bytes.replace(&mut own.store_bytes, 0);
    }
}

/// Whether the KV cache has no free pages for a sequence.
fn out_of_pages(e: &Error) -> bool {
    matches!(e.source_as(), Some(KvError::NoMemory { .. }))
}
