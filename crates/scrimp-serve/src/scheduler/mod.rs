//! Who runs in the next step: continuous batching as a state machine without clocks, threads or models.
//!
//! ```text
//!            submit                admit: pages for all of it           last token computed
//!  (client) ───────► waiting ─────────────────────────────► running ───────────────────────► extend / finish
//!                       ▲  front of the queue                  │
//!                       └──────────── preempt: pages run out ──┘
//! ```
//! A request is `target` tokens that are to be in the cache, of which `computed` are. One more token each step is
//! *decode*, several are *prefill*; both may be in one step, decode first, prefill cut into chunks so that streams do not
//! stall behind a long prompt. Where more requests wait for their first token than decode, prompts may fill the step: they are
//! read faster in large parts, and fewer wait for the longer step than gain by it.
//!
//! What is promised, whatever memory does (the simulator in `tests` checks it):
//!
//! * a step has at most `max_step_tokens` tokens of at most `max_running` requests, and no request twice;
//! * requests are admitted in the order of the fair queue ([`fair`]), none overtakes one that waits for memory;
//! * a running request loses its pages only to one that was admitted before it, or when it is alone and does not fit,
//!   and is then first in the queue: so the oldest always makes progress, and all end;
//! * before anybody is preempted, pages kept for later requests are given up, and then, where allowed, the longest caches
//!   are made smaller.

mod fair;
pub mod prefix;
#[cfg(test)]
mod simulator;

use fair::FairQueue;
use std::collections::{BTreeMap, VecDeque};

/// Names a request; later ones are larger.
pub type RequestId = u64;

/// Memory, as the scheduler sees it. Sizes are in any one unit (the engine's are bytes).
pub trait Pages {
    /// What can be had now.
    fn free(&self) -> usize;
    /// What appending `tokens` to a request's cache takes at most.
    fn needed(&self, id: RequestId, tokens: usize) -> usize;
    /// Gives a request a cache, and returns how many of its tokens that holds already (fewer than `target`).
    fn begin(&mut self, id: RequestId) -> usize;
    /// Takes a request's cache away.
    fn release(&mut self, id: RequestId);
    /// Gives up the pages that were kept longest without being used by a request; false if there are none.
    fn evict_kept(&mut self) -> bool;
    /// Makes a request's cache smaller; false if that is not allowed or gains nothing.
    fn shrink(&mut self, id: RequestId) -> bool;
    /// Tokens that a request's cache holds.
    fn held(&self, id: RequestId) -> usize;
}

/// Limits of a scheduler.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests that run at once.
    pub max_running: usize,
    /// Tokens of a step.
    pub max_step_tokens: usize,
    /// Tokens of prompts in a step in which at least as many others decode as wait for their first token.
    pub max_prefill_beside_decode: usize,
    /// Requests that wait.
    pub max_waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_running: 32, max_step_tokens: 512, max_prefill_beside_decode: 256, max_waiting: 256 }
    }
}

/// What a step computes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Requests and how many tokens each appends.
    pub steps: Vec<(RequestId, usize)>,
    /// Requests that can never run: their tokens do not fit the memory even alone.
    pub impossible: Vec<RequestId>,
    /// Requests that lost their pages.
    pub preempted: Vec<RequestId>,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    target: usize,
    computed: usize,
    client: u64,
}

impl Request {
    fn left(&self) -> usize {
        self.target - self.computed
    }
}

/// The state machine.
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
    /// Without requests.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            requests: BTreeMap::new(),
            waiting: FairQueue::default(),
            preempted: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Takes a request with `tokens` tokens (at least 1); `client` is whose share of the queue it belongs to. False: the
    /// queue is full.
    #[must_use]
    pub fn submit(&mut self, id: RequestId, client: u64, tokens: usize) -> bool {
        if self.waiting() >= self.limits.max_waiting {
            return false;
        }
        self.requests.insert(id, Request { target: tokens.max(1), computed: 0, client });
        self.waiting.push(client, id);
        true
    }

    /// Forgets a request, wherever it is; its pages go back.
    pub fn remove(&mut self, id: RequestId, pages: &mut impl Pages) {
        let Some(request) = self.requests.remove(&id) else { return };
        if let Some(at) = self.running.iter().position(|&r| r == id) {
            self.running.remove(at);
            pages.release(id);
        } else {
            self.waiting.remove(request.client, id);
            self.preempted.retain(|&r| r != id);
        }
    }

    /// A request's cache failed: it starts over.
    pub fn restart(&mut self, id: RequestId, pages: &mut impl Pages) {
        if self.running.contains(&id) {
            self.preempt(id, pages);
        }
    }

    /// One more token of a running request is known.
    pub fn extend(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.target += 1;
        }
    }

    /// `tokens` of a request were computed; true if these were all that are known.
    pub fn computed(&mut self, id: RequestId, tokens: usize) -> bool {
        self.requests.get_mut(&id).is_some_and(|request| {
            request.computed = (request.computed + tokens).min(request.target);
            request.left() == 0
        })
    }

    /// Tokens of a request that were computed.
    pub fn position(&self, id: RequestId) -> usize {
        self.requests.get(&id).map_or(0, |request| request.computed)
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.preempted.len()
    }

    /// Requests that run.
    pub fn running(&self) -> &[RequestId] {
        &self.running
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Decides what the next step computes. Pages for it are there when it returns.
    pub fn plan(&mut self, pages: &mut impl Pages) -> Plan {
        let mut plan = Plan::default();
        let mut reserved = 0;
        self.plan_running(true, &mut plan, &mut reserved, pages);
        let decoding = !plan.steps.is_empty();
        self.plan_running(false, &mut plan, &mut reserved, pages);
        self.admit(decoding, &mut plan, &mut reserved, pages);
        plan
    }

    /// Tokens that a request gets in this step.
    fn share(&self, plan: &Plan, decoding: bool, left: usize) -> usize {
        let planned: usize = plan.steps.iter().map(|(_, n)| n).sum();
        let room = self.limits.max_step_tokens.saturating_sub(planned);
        if left == 1 || !decoding {
            return left.min(room);
        }
        let decode = plan.steps.iter().filter(|(_, n)| *n == 1).count();
        if self.requests.len() > 2 * decode {
            return left.min(room);
        }
        left.min(room).min(self.limits.max_prefill_beside_decode.saturating_sub(planned - decode))
    }

    /// Decode steps, or chunks of prompts, of the requests that run.
    fn plan_running(&mut self, decode: bool, plan: &mut Plan, reserved: &mut usize, pages: &mut impl Pages) {
        let decoding = !decode && !plan.steps.is_empty();
        for id in self.running.clone() {
            let Some(request) = self.requests.get(&id).copied() else { continue };
            // It may have been preempted for one before it.
            if (request.left() == 1) != decode || request.left() == 0 || !self.running.contains(&id) {
                continue;
            }
            let tokens = self.share(plan, decoding, request.left());
            if tokens == 0 {
                continue;
            }
            if self.make_room(id, tokens, plan, reserved, pages) {
                *reserved += pages.needed(id, tokens);
                plan.steps.push((id, tokens));
            }
        }
    }

    /// Makes room for `tokens` of a running request; false if it lost its own pages, or can never run.
    fn make_room(
        &mut self,
        id: RequestId,
        tokens: usize,
        plan: &mut Plan,
        reserved: &mut usize,
        pages: &mut impl Pages,
    ) -> bool {
        loop {
            if pages.needed(id, tokens) + *reserved <= pages.free() {
                return true;
            }
            if pages.evict_kept() || self.shrink_longest(plan, pages) {
                continue;
            }
            // The youngest goes, even if it was to be part of this step.
            let Some(&victim) = self.running.last() else { return false };
            if victim == id && self.running.len() == 1 {
                // Nobody whose end it could wait for.
                plan.impossible.push(id);
                self.remove(id, pages);
                return false;
            }
            if let Some(at) = plan.steps.iter().position(|(step, _)| *step == victim) {
                let (_, tokens) = plan.steps.remove(at);
                *reserved -= pages.needed(victim, tokens);
            }
            plan.preempted.push(victim);
            self.preempt(victim, pages);
            if victim == id {
                return false;
            }
        }
    }

    /// Makes the longest cache smaller that can be; those that are part of this step stay as they are.
    fn shrink_longest(&self, plan: &Plan, pages: &mut impl Pages) -> bool {
        let mut longest: Vec<(usize, RequestId)> = self
            .running
            .iter()
            .filter(|id| plan.steps.iter().all(|(s, _)| s != *id))
            .map(|&id| (pages.held(id), id))
            .collect();
        longest.sort_unstable_by(|a, b| b.cmp(a));
        longest.into_iter().any(|(_, id)| pages.shrink(id))
    }

    /// Takes a running request's pages; it comes back before anybody who waits.
    fn preempt(&mut self, id: RequestId, pages: &mut impl Pages) {
        self.running.retain(|&r| r != id);
        pages.release(id);
        if let Some(request) = self.requests.get_mut(&id) {
            request.computed = 0;
            // The oldest first.
            let at = self.preempted.iter().position(|&r| r > id).unwrap_or(self.preempted.len());
            self.preempted.insert(at, id);
        }
    }

    /// Lets requests in while there is room for all of their tokens.
    fn admit(&mut self, decoding: bool, plan: &mut Plan, reserved: &mut usize, pages: &mut impl Pages) {
        // What was preempted in this step waits at least until the next.
        while plan.preempted.is_empty() && self.running.len() < self.limits.max_running {
            let Some(id) = self.preempted.front().copied().or_else(|| self.waiting.peek()) else { return };
            let Some(request) = self.requests.get(&id).copied() else { return };
            if self.share(plan, decoding, request.target) == 0 {
                return;
            }
            let cached = pages.begin(id).min(request.target - 1);
            let left = request.target - cached;
            // One token more, so that it does not stop right after its prompt.
            let fits = loop {
                if pages.needed(id, left + 1) + *reserved <= pages.free() {
                    break true;
                }
                if !pages.evict_kept() {
                    break false;
                }
            };
            // Alone, it goes as far as it can; caches that are made smaller may let it end.
            if !fits && !self.running.is_empty() {
                pages.release(id);
                return;
            }
            if self.preempted.front() == Some(&id) {
                self.preempted.pop_front();
            } else {
                self.waiting.pop();
            }
            self.running.push(id);
            if let Some(request) = self.requests.get_mut(&id) {
                request.computed = cached;
            }
            let tokens = self.share(plan, decoding, left);
            if tokens > 0 && self.make_room(id, tokens, plan, reserved, pages) {
                *reserved += pages.needed(id, tokens);
                plan.steps.push((id, tokens));
            }
        }
    }
}
