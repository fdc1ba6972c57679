//! Continuous batching: decides which requests run in the next step, as a state machine without clocks, threads or models.
//!
//! ```text
//!            add_request          schedule: memory for all its tokens     last token computed
//!  (client) ────────────► waiting ─────────────────────────────► running ─────────────────────► append_token / remove_request
//!                            ▲  front of the queue                  │
//!                            └─────────── preempt: memory is full ──┘
//! ```
//! A request has `num_tokens` tokens, of which the KV cache contains `num_computed`. A step that computes one token of a
//! request is its *decode*; a step that computes several is *prefill*. One step can contain both. Decodes are scheduled
//! first. Prompts are prefilled in chunks, so that a long prompt does not delay the tokens of other requests. If more
//! requests wait for their first token than decode, prompts may use the whole step: larger chunks are faster per token.
//!
//! The chunks of a prompt ([`chunks`]) end at fixed positions, so that its results do not depend on other requests.
//!
//! Invariants for any behavior of the memory (the simulator in `tests` checks them):
//!
//! * A step computes at most `max_num_batched_tokens` tokens, or one block of a prompt beside the decodes, of at most
//!   `max_num_seqs` requests; each request occurs once.
//! * Requests are admitted in the order of the fair queue ([`fair`]). No request overtakes one that waits for memory.
//! * A running request is preempted only for one that was admitted earlier. A preempted request goes to the front of the
//!   queue. A request that does not fit even alone is rejected. So the oldest request always makes progress, and every request ends.
//! * Before a request is preempted, cached prefixes are evicted; then, if allowed, the longest KV caches are compressed.

mod chunks;
mod fair;
pub mod prefix;
#[cfg(test)]
mod simulator;

use chunks::Chunks;
use fair::FairQueue;
use std::collections::{BTreeMap, VecDeque};

/// Identifies a request. Later requests have larger ids.
pub type RequestId = u64;

/// The memory of all KV caches. Sizes have one unit, which the implementation chooses (the engine: bytes).
pub trait KvMemory {
    /// Free memory.
    fn available(&self) -> usize;
    /// Upper bound of the memory for `tokens` more tokens of a request.
    fn growth(&self, id: RequestId, tokens: usize) -> usize;
    /// Creates the KV cache of a request and returns the number of its tokens that a cached prefix already contains (less
    /// than all of them).
    fn allocate(&mut self, id: RequestId) -> usize;
    /// Frees the KV cache of a request.
    fn free(&mut self, id: RequestId);
    /// Evicts the least recently used cached prefix. False: there is none.
    fn evict_cached(&mut self) -> bool;
    /// Compresses the KV cache of a request. False: not allowed, or no memory was freed.
    fn compress(&mut self, id: RequestId) -> bool;
    /// Tokens in the KV cache of a request.
    fn num_tokens(&self, id: RequestId) -> usize;
}

/// Limits of a scheduler.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of running requests.
    pub max_num_seqs: usize,
    /// Maximum number of tokens per step.
    pub max_num_batched_tokens: usize,
    /// Maximum number of prompt tokens per step, if at least as many requests decode as wait for their first token.
    pub max_prefill_with_decode: usize,
    /// Maximum number of waiting requests.
    pub max_waiting: usize,
    /// The end of a prompt behind its last block is a chunk of its own, even if it is long.
    pub separate_ends: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_num_seqs: 32,
            max_num_batched_tokens: 512,
            max_prefill_with_decode: 256,
            max_waiting: 256,
            separate_ends: false,
        }
    }
}

/// The work of one step.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SchedulerOutput {
    /// Requests of the step, each with its number of new tokens.
    pub scheduled: Vec<(RequestId, usize)>,
    /// Requests that can never run: their tokens do not fit into the memory even alone.
    pub rejected: Vec<RequestId>,
    /// Requests that lost their KV cache.
    pub preempted: Vec<RequestId>,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    num_tokens: usize,
    num_prompt: usize,
    num_computed: usize,
    client: u64,
}

impl Request {
    fn num_remaining(&self) -> usize {
        self.num_tokens - self.num_computed
    }

    fn chunks(&self, limits: &Limits) -> Chunks {
        Chunks { prompt: self.num_prompt, total: self.num_tokens, separate_ends: limits.separate_ends }
    }
}

/// The state machine of all requests.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    requests: BTreeMap<RequestId, Request>,
    waiting: FairQueue,
    preempted: VecDeque<RequestId>,
    /// In the order of admission.
    running: Vec<RequestId>,
}

impl Scheduler {
    /// A scheduler without requests.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            requests: BTreeMap::new(),
            waiting: FairQueue::default(),
            preempted: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Adds a request with `tokens` tokens (at least 1) to the queue of `client`. False: the queue is full.
    #[must_use]
    pub fn add_request(&mut self, id: RequestId, client: u64, tokens: usize) -> bool {
        if self.num_waiting() >= self.limits.max_waiting {
            return false;
        }
        self.requests.insert(
            id,
            Request { num_tokens: tokens.max(1), num_prompt: tokens.max(1), num_computed: 0, client },
        );
        self.waiting.push(client, id);
        true
    }

    /// Removes a request in any state and frees its KV cache.
    pub fn remove_request(&mut self, id: RequestId, memory: &mut impl KvMemory) {
        let Some(request) = self.requests.remove(&id) else { return };
        if let Some(at) = self.running.iter().position(|&r| r == id) {
            self.running.remove(at);
            memory.free(id);
        } else {
            self.waiting.remove(request.client, id);
            self.preempted.retain(|&r| r != id);
        }
    }

    /// Preempts a request whose KV cache failed: it starts over.
    pub fn preempt(&mut self, id: RequestId, memory: &mut impl KvMemory) {
        if self.running.contains(&id) {
            self.preempt_running(id, memory);
        }
    }

    /// Appends one token to a running request.
    pub fn append_token(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.num_tokens += 1;
        }
    }

    /// Records that `tokens` more tokens of a request were computed. True: none remains.
    pub fn update_computed(&mut self, id: RequestId, tokens: usize) -> bool {
        self.requests.get_mut(&id).is_some_and(|request| {
            request.num_computed = (request.num_computed + tokens).min(request.num_tokens);
            request.num_remaining() == 0
        })
    }

    /// Number of computed tokens of a request.
    pub fn num_computed(&self, id: RequestId) -> usize {
        self.requests.get(&id).map_or(0, |request| request.num_computed)
    }

    /// Number of waiting requests.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len() + self.preempted.len()
    }

    /// Running requests in the order of their admission.
    pub fn running(&self) -> &[RequestId] {
        &self.running
    }

    /// True without requests.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Chooses the work of the next step. The memory has room for it when this returns.
    pub fn schedule(&mut self, memory: &mut impl KvMemory) -> SchedulerOutput {
        let mut step = StepPlan { output: SchedulerOutput::default(), reserved: 0, memory };
        self.schedule_running(true, &mut step);
        let decoding = !step.output.scheduled.is_empty();
        self.schedule_running(false, &mut step);
        self.schedule_waiting(decoding, &mut step);
        step.output
    }

    /// Number of tokens that a request gets in this step.
    fn token_budget(&self, output: &SchedulerOutput, decoding: bool, request: &Request) -> usize {
        let planned: usize = output.scheduled.iter().map(|(_, n)| n).sum();
        let room = self.limits.max_num_batched_tokens.saturating_sub(planned);
        let remaining = request.num_remaining();
        if remaining == 1 {
            return remaining.min(room);
        }
        let decodes = output.scheduled.iter().filter(|(_, n)| *n == 1).count();
        let prefilled = planned - decodes;
        let room = match decoding && self.requests.len() <= 2 * decodes {
            true => room.min(self.limits.max_prefill_with_decode.saturating_sub(prefilled)),
            false => room,
        };
        let chunks = request.chunks(&self.limits);
        match chunks.next(request.num_computed, room) {
            // A prompt makes progress beside any number of decodes.
            0 if prefilled == 0 => chunks.smallest(request.num_computed),
            n => n,
        }
    }

    /// Schedules running requests: their decodes, or chunks of their prompts.
    fn schedule_running(&mut self, decode: bool, step: &mut StepPlan<'_, impl KvMemory>) {
        let decoding = !decode && !step.output.scheduled.is_empty();
        for id in self.running.clone() {
            let Some(request) = self.requests.get(&id).copied() else { continue };
            let remaining = request.num_remaining();
            // A request earlier in this loop may have preempted it.
            if (remaining == 1) != decode || remaining == 0 || !self.running.contains(&id) {
                continue;
            }
            let tokens = self.token_budget(&step.output, decoding, &request);
            if tokens > 0 && self.make_room(id, tokens, step) {
                step.push(id, tokens);
            }
        }
    }

    /// Frees memory until `tokens` more tokens of a running request fit. False: the request itself was preempted or
    /// rejected.
    fn make_room(&mut self, id: RequestId, tokens: usize, step: &mut StepPlan<'_, impl KvMemory>) -> bool {
        loop {
            if step.fits(id, tokens) {
                return true;
            }
            if step.memory.evict_cached() || self.compress_longest(step) {
                continue;
            }
            // The newest request is preempted, even if it is part of this step.
            let Some(&victim) = self.running.last() else { return false };
            if victim == id && self.running.len() == 1 {
                // No other request will free memory.
                step.output.rejected.push(id);
                self.remove_request(id, step.memory);
                return false;
            }
            step.cancel(victim);
            step.output.preempted.push(victim);
            self.preempt_running(victim, step.memory);
            if victim == id {
                return false;
            }
        }
    }

    /// Compresses the longest KV cache that can be compressed and is not part of this step.
    fn compress_longest(&self, step: &mut StepPlan<'_, impl KvMemory>) -> bool {
        let mut longest: Vec<(usize, RequestId)> = self
            .running
            .iter()
            .filter(|id| step.output.scheduled.iter().all(|(s, _)| s != *id))
            .map(|&id| (step.memory.num_tokens(id), id))
            .collect();
        longest.sort_unstable_by(|a, b| b.cmp(a));
        longest.into_iter().any(|(_, id)| step.memory.compress(id))
    }

    /// Frees the KV cache of a running request and moves it in front of all waiting ones.
    fn preempt_running(&mut self, id: RequestId, memory: &mut impl KvMemory) {
        self.running.retain(|&r| r != id);
        memory.free(id);
        if let Some(request) = self.requests.get_mut(&id) {
            request.num_computed = 0;
            // The oldest first.
            let at = self.preempted.iter().position(|&r| r > id).unwrap_or(self.preempted.len());
            self.preempted.insert(at, id);
        }
    }

    /// Admits waiting requests while all of their tokens fit.
    fn schedule_waiting(&mut self, decoding: bool, step: &mut StepPlan<'_, impl KvMemory>) {
        // A request that was preempted in this step waits at least until the next one.
        while step.output.preempted.is_empty() && self.running.len() < self.limits.max_num_seqs {
            let Some(id) = self.preempted.front().copied().or_else(|| self.waiting.peek()) else { return };
            let Some(request) = self.requests.get(&id).copied() else { return };
            if self.token_budget(&step.output, decoding, &request) == 0 {
                return;
            }
            let cached = step.memory.allocate(id).min(request.num_tokens - 1);
            let remaining = request.num_tokens - cached;
            // With room for one more token, it does not stop directly after its prompt.
            let fits = loop {
                if step.fits(id, remaining + 1) {
                    break true;
                }
                if !step.memory.evict_cached() {
                    break false;
                }
            };
            // A request that runs alone starts even if it does not fit: compression may let it finish.
            if !fits && !self.running.is_empty() {
                step.memory.free(id);
                return;
            }
            if self.preempted.front() == Some(&id) {
                self.preempted.pop_front();
            } else {
                self.waiting.pop();
            }
            self.running.push(id);
            let request = Request { num_computed: cached, ..request };
            self.requests.insert(id, request);
            let tokens = self.token_budget(&step.output, decoding, &request);
            if tokens > 0 && self.make_room(id, tokens, step) {
                step.push(id, tokens);
            }
        }
    }
}

/// A step while it is being planned.
struct StepPlan<'a, M> {
    output: SchedulerOutput,
    /// Memory for the tokens of `output`.
    reserved: usize,
    memory: &'a mut M,
}

impl<M: KvMemory> StepPlan<'_, M> {
    /// Whether `tokens` more tokens of a request fit beside everything scheduled.
    fn fits(&self, id: RequestId, tokens: usize) -> bool {
        self.memory.growth(id, tokens) + self.reserved <= self.memory.available()
    }

    /// Schedules `tokens` tokens of a request.
    fn push(&mut self, id: RequestId, tokens: usize) {
        self.reserved += self.memory.growth(id, tokens);
        self.output.scheduled.push((id, tokens));
    }

    /// Takes a request out of the step.
    fn cancel(&mut self, id: RequestId) {
        if let Some(at) = self.output.scheduled.iter().position(|(scheduled, _)| *scheduled == id) {
            let (_, tokens) = self.output.scheduled.remove(at);
            self.reserved -= self.memory.growth(id, tokens);
        }
    }
}
