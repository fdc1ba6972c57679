//! Compressing a session's KV cache: when a prompt is complete, and repeatedly while text is generated.
//!
//! ```text
//! begin_prompt(n)  forward ... forward | n tokens: compress to the budget | decode ... | budget + slack: compress again
//!                  gathering attention                                      the last 32 queries before that gather it
//! ```

use super::{
    Session,
    reconstruction::{SampledQueries, rotate},
};
use crate::error::Result;
use scrimp_kernels::ops::RopeTable;
use scrimp_kv::{StatsWanted, Turn, compress::Compression, policy::Needs};

/// How many tokens beyond its budget a cache may hold while text is generated: a share of the budget, but at least so many.
const SLACK: (usize, usize) = (8, 64);
/// Decode steps before a compression that gather attention.
const DECODE_QUERIES: usize = 32;

/// The next compression.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// It comes when the sequence has so many tokens.
    at: usize,
    /// Tokens that each KV head keeps then.
    budget: usize,
    /// The position from which attention summed over all queries is gathered.
    sum_from: usize,
}

/// The state of compression of a session.
#[derive(Debug, Clone, Default)]
pub(super) struct CompressionState {
    how: Option<Compression>,
    plan: Option<Plan>,
    /// Tokens before this position were there at the last compression: only its selection of them remains.
    done: usize,
    /// The tokens of the prompt, where it is to be repeated.
    tokens: Option<Vec<u32>>,
    /// Tokens that are not packed before they are compressed.
    unpacked_until: usize,
}

impl CompressionState {
    pub(super) fn forget(&mut self) {
        self.done = 0;
    }

    pub(super) fn unpacked_until(&self) -> usize {
        self.unpacked_until
    }
}

impl Session {
    /// How the cache is made smaller from now on, when a prompt is complete ([`Session::begin_prompt`]) and while text is
    /// generated after it; `None`: not at all.
    pub fn set_compression(&mut self, how: Option<Compression>) {
        self.compression.how = how.filter(|how| !how.keeps_everything());
        self.compression.plan = None;
    }

    /// Accumulates attention scores, from now on, for compressions with these needs when the sequence has `len` tokens.
    /// For a prompt that is compressed in several ways: call [`Session::complete`] when it is there, [`Session::fork`] it, then
    /// [`Session::compress`] the copies.
    pub fn gather_for(&mut self, needs: Needs, len: usize) {
        self.sampled = needs.expected.then(|| SampledQueries::new(self.len(), len));
        self.compression.unpacked_until = len;
        let recent_from = needs.recent.map(|w| len.saturating_sub(w) as u32);
        let Needs { sum, last, .. } = needs;
        let per_kv_head = !needs.query_heads;
        let wanted = StatsWanted { sum, recent_from, last, peak: false, per_kv_head };
        self.gather_attention(wanted.any().then_some(wanted));
    }

    /// Ends the accumulation that [`Session::gather_for`] began, and computes the other scores for the same needs; `tokens` are the last ones
    /// of the sequence, those that were appended since.
    ///
    /// # Errors
    /// As [`Session::repeat`].
    pub fn complete(&mut self, needs: Needs, tokens: &[u32]) -> Result<()> {
        self.gather_attention(None);
        if let Some(sampled) = self.sampled.take() {
            self.expect(&sampled)?;
        }
        if needs.repeated { self.repeat(tokens) } else { Ok(()) }
    }

    /// Says that the prompt is complete when the sequence has `len` tokens. Until then attention is gathered as the policy
    /// needs it; then, before the call that gets there returns, the cache is made smaller. While text is generated, it is made smaller
    /// again whenever it has grown by an eighth (or 64 tokens, if that is more).
    pub fn begin_prompt(&mut self, len: usize) {
        let Some(how) = &self.compression.how else { return };
        let budget = how.tokens_at_least_fixed(len);
        let needs = how.needs();
        self.sampled = needs.expected.then(|| SampledQueries::new(self.len(), len));
        self.compression.tokens = needs.repeated.then(Vec::new);
        self.compression.unpacked_until = len;
        self.compression.plan = Some(Plan { at: len, budget, sum_from: 0 });
        self.kv.clear_recent_stats();
    }

    /// Makes the cache smaller now, to `budget` tokens of each KV head, by the attention that was gathered
    /// ([`Session::gather_attention`]). See [`scrimp_kv::Sequence::compress`].
    ///
    /// # Errors
    /// When memory cannot be had; then the session starts over.
    pub fn compress(&mut self, how: &Compression, budget: usize) -> Result<()> {
        let (model, len) = (self.model.clone(), self.len() as u32);
        let mut table = RopeTable::default();
        if how.rerotate {
            let inv_freq = &model.config().rope_for(self.rope_tokens).inv_freq;
            table.fill(model.exec().pool, &(0..len).collect::<Vec<_>>(), inv_freq, 1.0);
        }
        let turn = |key: &mut [f32], by: u32| {
            let (cos, sin) = table.row(by as usize);
            rotate(model.exec().level, model.config(), key, cos, sin);
        };
        let turn: Option<Turn<'_>> = if how.rerotate { Some(&turn) } else { None };
        if let Err(e) = self.kv.compress_turning(how, budget, model.exec().pool, turn) {
            self.reset();
            return Err(e.into());
        }
        self.compression.done = self.len();
        // Sliding-window layers were left alone.
        self.pack()
    }

    /// The session cannot be truncated to a position before this one: tokens before it were dropped.
    pub fn compressed(&self) -> usize {
        self.compression.done
    }

    /// What attention of the next `n` tokens is to be gathered.
    pub(super) fn wanted_stats(&self, n: usize) -> Option<StatsWanted> {
        if self.repeated.is_some() {
            return Some(StatsWanted { peak: true, per_kv_head: true, ..StatsWanted::default() });
        }
        if self.stats.is_some() {
            return self.stats;
        }
        let (plan, how) = (self.compression.plan?, self.compression.how.as_ref()?);
        let end = self.len() + n;
        let Needs { sum, recent, last, query_heads, .. } = how.needs();
        let wanted = StatsWanted {
            sum: sum && end > plan.sum_from,
            recent_from: recent
                .map(|w| plan.at.saturating_sub(w))
                .filter(|&from| end > from)
                .map(|p| p as u32),
            last: last && end >= plan.at,
            peak: false,
            per_kv_head: !query_heads,
        };
        wanted.any().then_some(wanted)
    }

    /// After `tokens` were appended: compresses if it is time to, and plans the next time.
    pub(super) fn compress_if_due(&mut self, tokens: &[u32]) -> Result<()> {
        if let Some(prompt) = &mut self.compression.tokens {
            prompt.extend_from_slice(tokens);
        }
        let Some(plan) = self.compression.plan.filter(|plan| self.len() >= plan.at) else { return Ok(()) };
        let Some(how) = self.compression.how.take() else { return Ok(()) };
        let prompt = self.compression.tokens.take();
        let needs = Needs { repeated: prompt.is_some(), ..Needs::NONE };
        let result = self
            .complete(needs, prompt.as_deref().unwrap_or_default())
            .and_then(|()| self.compress(&how, plan.budget));
        self.compression.how = Some(how);
        result?;
        // A prompt may have been shorter than the budget.
        let kept = self.kv.full_layers().map(|l| (0..self.kv.n_kv_heads()).map(move |h| (l, h)));
        let kept = kept.flatten().map(|(l, h)| self.kv.kept(l, h)).sum::<usize>()
            / (self.kv.full_layers().count() * self.kv.n_kv_heads()).max(1);
        let room = plan.budget.saturating_sub(kept) + (plan.budget / SLACK.0).max(SLACK.1);
        let at = self.len() + room;
        self.compression.plan = Some(Plan { at, sum_from: at.saturating_sub(DECODE_QUERIES), ..plan });
        self.kv.clear_recent_stats();
        Ok(())
    }
}
