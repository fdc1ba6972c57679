//! The thread that owns the model: takes requests, asks the scheduler what to run, runs it, sends what came of it.
//!
//! ```text
//!  Job ──► [channel] ──► scheduler.plan ──► Batch::forward ──► Answer::draw ──► Event ──► [channel of the request]
//!                             ▲  Memory (caches)                    │
//!                             └──────── one more token ─────────────┘
//! ```
//! A request fails alone: a panic while its token is drawn, an error of its cache or of its constraint end it and no other.

mod answer;
#[cfg(test)]
mod faults;
mod job;
mod memory;

pub use job::KvChoice;
pub(crate) use job::{Event, Failure, Generate, Job, Logprobs, Reason, Summary, Token, Work};

use crate::{
    metrics::Metrics,
    scheduler::{Limits, RequestId, Scheduler},
};
use answer::{Answer, Drawn};
use memory::Memory;
use scrimp_kv::KvError;
use scrimp_llm::{
    Category, Error,
    model::{Batch, Model, Output, Session, Step},
    tokenizer::Tokenizer,
};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

/// How long an idle engine waits before it looks again whether it is to end.
const IDLE: Duration = Duration::from_millis(100);
/// How often a request starts over because memory could not be had before it fails.
const RESTARTS: usize = 4;

/// What the engine is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// A request.
    Submit(Box<Job>),
    /// Fail all requests and end.
    Stop,
}

/// How the engine runs.
#[derive(Debug, Clone)]
pub(crate) struct EngineOptions {
    /// Limits of the scheduler.
    pub(crate) limits: Limits,
    /// Most bytes of KV pages of all requests.
    pub(crate) kv_bytes: usize,
    /// Whether caches are made smaller when memory runs short.
    pub(crate) compress_under_pressure: bool,
    /// Whether caches are kept for requests that begin alike.
    pub(crate) prefix_caching: bool,
}

/// A request that waits or runs.
struct Active<'t> {
    job: Job,
    answer: Option<Answer<'t>>,
    hidden: Vec<f32>,
    prompt_tokens: usize,
    restarts: usize,
    begun: Instant,
    last_token: Option<Instant>,
}

/// What a step's logits do to its request, on any thread.
struct Drawing<'a, 't> {
    active: Option<&'a mut Active<'t>>,
    /// Tokens that still fit the context afterwards.
    room: usize,
    drawn: Option<Result<Drawn, Failure>>,
}

impl Drawing<'_, '_> {
    /// Draws a token from logits, or adds hidden states of `width` elements to their mean.
    fn visit(&mut self, out: &[f32], width: usize) {
        let Some(active) = &mut self.active else { return };
        let Some(answer) = &mut active.answer else {
            return add_to_mean(&mut active.hidden, out, width, active.prompt_tokens);
        };
        let result = catch_unwind(AssertUnwindSafe(|| answer.draw(out, self.room)));
        self.drawn = Some(match result {
            Ok(result) => result.map_err(|e| failure(&e)),
            Err(_) => Err(Failure::Internal("drawing a token failed".into())),
        });
    }
}

struct Engine<'m> {
    model: &'m Model,
    tokenizer: &'m Tokenizer,
    scheduler: Scheduler,
    memory: Memory<'m>,
    batch: Batch,
    active: BTreeMap<RequestId, Active<'m>>,
    metrics: Arc<Metrics>,
}

/// Runs until it is told to stop, or nobody can tell it anything any more.
pub(crate) fn run(
    model: &Model,
    tokenizer: &Tokenizer,
    options: &EngineOptions,
    commands: &Receiver<Command>,
    metrics: Arc<Metrics>,
) {
    let mut engine = Engine {
        model,
        tokenizer,
        scheduler: Scheduler::new(options.limits),
        memory: Memory::new(model, options.kv_bytes, options.compress_under_pressure, options.prefix_caching),
        batch: Batch::new(model),
        active: BTreeMap::new(),
        metrics,
    };
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
            // All that came are looked at before the next step.
            Some(Command::Submit(job)) => engine.submit(*job),
            None => {
                engine.sweep();
                engine.step();
                engine.report();
            }
        }
    }
}

impl<'m> Engine<'m> {
    fn submit(&mut self, mut job: Job) {
        let (id, prompt_tokens) = (job.id, job.prompt.len());
        let answer = match std::mem::replace(&mut job.work, Work::Embed) {
            Work::Embed => Ok(None),
            Work::Generate(how) => Answer::new(self.tokenizer, &job.prompt, *how).map(Some),
        };
        let prompt = std::mem::take(&mut job.prompt);
        let answer = answer.and_then(|answer| {
            self.memory.add(id, prompt, job.kv.clone())?;
            Ok(answer)
        });
        let answer = match answer {
            Ok(answer) => answer,
            Err(e) => {
                job.send(Event::Failed(failure(&e)));
                return;
            }
        };
        if !self.scheduler.submit(id, job.client, prompt_tokens) {
            self.memory.forget(id);
            job.send(Event::Failed(Failure::Busy));
            return;
        }
        let (begun, hidden) = (Instant::now(), Vec::new());
        let active = Active { job, answer, hidden, prompt_tokens, restarts: 0, begun, last_token: None };
        self.active.insert(id, active);
    }

    /// Ends requests whose client went away, or whose time is up.
    fn sweep(&mut self) {
        let now = Instant::now();
        let gone: Vec<_> = self
            .active
            .values()
            .filter(|a| a.job.events.is_closed() || a.job.deadline <= now)
            .map(|a| a.job.id)
            .collect();
        gone.into_iter().for_each(|id| self.fail(id, Failure::Timeout));
    }

    fn step(&mut self) {
        let plan = self.scheduler.plan(&mut self.memory);
        self.metrics.preemptions.add(plan.preempted.len() as u64);
        for id in plan.impossible {
            let what = "the request's tokens do not fit the KV cache of this server, even alone";
            self.fail(id, Failure::BadRequest(what.into()));
        }
        let mut running = Vec::with_capacity(plan.steps.len());
        for (id, n) in plan.steps {
            let all = self.memory.tokens(id);
            let Some(session) = self.memory.session(id) else { continue };
            let first = session.len();
            let Some(tokens) = all.get(first..first + n).map(<[u32]>::to_vec) else { continue };
            let output = match (self.active.get(&id).is_some_and(|a| a.answer.is_some()), first + n) {
                (true, end) if end == all.len() => Output::Logits,
                (true, _) => Output::Nothing,
                (false, _) => Output::Hidden,
            };
            if first != self.scheduler.position(id) {
                // Its cache was lost when it was to be made smaller.
                self.scheduler.restart(id, &mut self.memory);
                continue;
            }
            if let Some(session) = self.memory.take(id) {
                running.push((id, session, tokens, output));
            }
        }
        let (context, width) = (self.model.context_length(), self.model.config().hidden_size);
        let mut active: BTreeMap<_, _> = self.active.iter_mut().collect();
        let mut drawings = Vec::with_capacity(running.len());
        for (id, session, tokens, _) in &running {
            let room = context.saturating_sub(session.len() + tokens.len() + 1);
            drawings.push(Mutex::new(Drawing { active: active.remove(id), room, drawn: None }));
        }
        let results = {
            let mut steps: Vec<Step<'_>> = running
                .iter_mut()
                .map(|(_, session, tokens, output)| Step { session, tokens, output: *output })
                .collect();
            let batch = &mut self.batch;
            catch_unwind(AssertUnwindSafe(|| {
                batch.forward(&mut steps, &|i, out| {
                    drawings[i].lock().unwrap_or_else(PoisonError::into_inner).visit(out, width);
                })
            }))
        };
        let drawn =
            drawings.into_iter().map(|d| d.into_inner().unwrap_or_else(PoisonError::into_inner).drawn);
        let drawn: Vec<_> = drawn.collect();
        let Ok(results) = results else {
            // The sessions of this step are lost, and nobody else's.
            self.batch = Batch::new(self.model);
            for (id, ..) in running {
                self.fail(id, Failure::Internal("the model failed".into()));
            }
            return;
        };
        for (((id, session, tokens, _), result), drawn) in running.into_iter().zip(results).zip(drawn) {
            self.memory.put(id, session);
            match result {
                Ok(()) => self.after_step(id, tokens.len(), drawn),
                Err(e) if out_of_pages(&e) && self.may_restart(id) => {
                    self.scheduler.restart(id, &mut self.memory);
                }
                Err(e) => self.fail(id, failure(&e)),
            }
        }
    }

    fn may_restart(&mut self, id: RequestId) -> bool {
        self.active.get_mut(&id).is_some_and(|active| {
            active.restarts += 1;
            active.hidden.clear();
            active.restarts <= RESTARTS
        })
    }

    /// `n` tokens of a request were computed, and perhaps the next one drawn.
    fn after_step(&mut self, id: RequestId, n: usize, drawn: Option<Result<Drawn, Failure>>) {
        let complete = self.scheduler.computed(id, n);
        let Some(active) = self.active.get_mut(&id) else { return };
        if n > 1 || active.last_token.is_none() {
            self.metrics.prompt_tokens.add(n as u64);
        }
        let drawn = match drawn {
            Some(Ok(drawn)) => drawn,
            Some(Err(failure)) => return self.fail(id, failure),
            None if complete && active.answer.is_none() => {
                let embedding = std::mem::take(&mut active.hidden);
                active.job.send(Event::Embedding(embedding));
                return self.end(id, Reason::Stop, String::new());
            }
            None => return,
        };
        let now = Instant::now();
        match active.last_token.replace(now) {
            None => {
                self.metrics.time_to_first_token.observe(now - active.begun);
                self.metrics.prefix_hits.add(self.memory.cached(id) as u64);
                self.metrics.prefix_queries.add(active.prompt_tokens as u64);
                self.memory.keep(id);
            }
            Some(before) => self.metrics.time_per_token.observe(now - before),
        }
        self.metrics.generated_tokens.add(1);
        let listening = active.job.send(Event::Token(drawn.token));
        match drawn.end {
            Some((reason, text)) => self.end(id, reason, text),
            None if listening => {
                self.memory.push(id, drawn.id);
                self.scheduler.extend(id);
            }
            None => self.fail(id, Failure::Timeout),
        }
    }

    /// A request has all that it asked for.
    fn end(&mut self, id: RequestId, reason: Reason, text: String) {
        let Some(active) = self.active.remove(&id) else { return };
        let session = self.memory.session(id);
        let config = self.model.config();
        let token_bytes = 2 * 2 * config.n_layers * config.n_kv_heads * config.head_dim;
        let summary = Summary {
            text,
            reason,
            prompt_tokens: active.prompt_tokens,
            cached_tokens: self.memory.cached(id),
            generated_tokens: active.answer.map_or(0, |answer| answer.generated),
            kv_bytes: session.map_or(0, Session::kv_bytes),
            kv_tokens: session.map_or(0, Session::kv_tokens),
            kv_bytes_full: session.map_or(0, Session::len) * token_bytes,
        };
        self.metrics.finished(reason.name(), active.begun.elapsed());
        self.memory.keep(id);
        self.scheduler.remove(id, &mut self.memory);
        self.memory.forget(id);
        active.job.send(Event::Done(summary));
    }

    fn fail(&mut self, id: RequestId, failure: Failure) {
        self.scheduler.remove(id, &mut self.memory);
        self.memory.forget(id);
        if let Some(active) = self.active.remove(&id) {
            let reason = if active.job.events.is_closed() { "abort" } else { "error" };
            self.metrics.finished(reason, active.begun.elapsed());
            active.job.send(Event::Failed(failure));
        }
    }

    fn report(&self) {
        self.metrics.running.set(self.scheduler.running().len() as u64);
        self.metrics.waiting.set(self.scheduler.waiting() as u64);
        self.metrics.kv_bytes.set(self.memory.bytes_in_use() as u64);
        self.metrics.kv_limit.set(self.memory.limit() as u64);
        self.metrics.compressions.set(self.memory.shrunk);
    }
}

/// Adds rows of hidden states (`[tokens][width]`) to the mean over a prompt of `n` tokens.
fn add_rows(mean: &mut Vec<f32>, rows: &[f32], width: usize, n: usize) {
    mean.resize(width, 0.0);
    for row in rows.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / n as f32);
    }
}

/// Whose fault an error is.
fn failure(e: &Error) -> Failure {
    match e.category() {
        Category::BadInput if e.source_as::<KvError>().is_none() => Failure::BadRequest(match e.hint() {
            Some(hint) => format!("{e}; {hint}"),
            None => e.to_string(),
        }),
        _ => Failure::Internal(e.to_string()),
    }
}

/// Whether the KV cache has no free pages for a sequence.
fn out_of_pages(e: &Error) -> bool {
    matches!(e.source_as(), Some(KvError::NoMemory { .. }))
}
