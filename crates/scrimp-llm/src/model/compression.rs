//! Compression of a session's KV cache: once when a prompt is complete, and repeatedly while text is generated.
//!
//! ```text
//! begin_prompt(n)  forward ... forward | n tokens: compress to the budget | decode ... | budget + slack: compress again
//!                  accumulating scores                                    the last 32 queries before that accumulate scores
//! ```
//! With [`Compression::chunks`], a long prompt is compressed several times while it is read.

use super::{Session, future_queries::SampledQueries, rope_and_append::apply_rope};
use crate::error::{Error, Result};
use scrimp_kernels::ops::RopeTable;
use scrimp_kv::{ApplyRope, Compressing, ScoresWanted, compress::Compression, policy::Needs};
use serde::{Deserialize, Serialize};

/// A cache may exceed its budget by 1 / `SLACK_SHARE` while text is generated, and by `MIN_SLACK` tokens at least.
const SLACK_SHARE: usize = 8;
const MIN_SLACK: usize = 64;
/// Decode steps before a compression that accumulate sums over all queries.
const DECODE_QUERIES: usize = 32;

/// The next compression.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// The length of the sequence at which it happens.
    at: usize,
    /// Tokens that each KV head keeps.
    budget: usize,
    /// The position from which sums over all queries are accumulated.
    sum_from: usize,
}

/// The state of a session's compressions.
#[derive(Debug, Clone, Default)]
pub(super) struct CompressionState {
    how: Option<Compression>,
    plan: Option<Plan>,
    /// Tokens of the prompt, where its last compression is due; 0 without a method.
    prompt: usize,
    /// Maximum size of the cache before a compression or a packing, bytes.
    peak_bytes: usize,
    /// The length of the sequence at the last compression.
    done: usize,
    /// The tokens of the prompt so far, if the policy reconstructs them.
    tokens: Option<Vec<u32>>,
    /// Tokens before this position stay unpacked until they are compressed.
    unpacked_until: usize,
}

/// The next compression in a saved session.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct SavedPlan {
    /// Tokens until it happens; `None`: no more compression.
    in_tokens: Option<usize>,
    budget: usize,
    /// Tokens of the text at the last compression.
    done: usize,
}

impl CompressionState {
    pub(super) fn how(&self) -> Option<&Compression> {
        self.how.as_ref()
    }

    /// The state of a session of `len` tokens, for a file; `None` where its prompt is incomplete.
    pub(super) fn saved(&self, len: usize) -> Option<SavedPlan> {
        let compressed = self.plan.is_none_or(|plan| plan.at > len && self.done > 0);
        let complete = compressed && len >= self.prompt && self.tokens.is_none();
        complete.then(|| SavedPlan {
            in_tokens: self.plan.map(|plan| plan.at - len),
            budget: self.plan.map_or(0, |plan| plan.budget),
            done: self.done,
        })
    }

    /// The inverse of [`CompressionState::saved`].
    pub(super) fn restore(&mut self, saved: SavedPlan, len: usize) {
        self.done = saved.done.min(len);
        self.plan = saved.in_tokens.filter(|_| self.how.is_some()).map(|tokens| {
            let at = len.saturating_add(tokens);
            Plan { at, budget: saved.budget, sum_from: at.saturating_sub(DECODE_QUERIES) }
        });
    }

    pub(super) fn forget(&mut self) {
        self.done = 0;
        self.peak_bytes = 0;
    }

    /// Tokens until the next compression, for a session of `len` tokens.
    pub(super) fn tokens_before_next(&self, len: usize) -> usize {
        self.plan.map_or(usize::MAX, |plan| plan.at.saturating_sub(len))
    }

    pub(super) fn unpacked_until(&self) -> usize {
        self.unpacked_until
    }
}

impl Session {
    /// Sets the compression of the cache, which happens when a prompt is complete ([`Session::begin_prompt`]) and
    /// repeatedly while text is generated. `None` disables compression.
    pub fn set_compression(&mut self, how: Option<Compression>) {
        self.compression.how = how.filter(|how| !how.keeps_everything());
        self.compression.plan = None;
    }

    /// Accumulates, from now on, the scores that `needs` names, for a compression at `len` tokens.
    ///
    /// To compress one prompt in several ways, call [`Session::finish_scores`] after the prompt, [`Session::fork`] the
    /// session, and [`Session::compress`] the forks.
    pub fn accumulate_scores_for(&mut self, needs: Needs, len: usize) {
        self.sampled_queries = SampledQueries::new(needs, self.len(), len, self.model.config());
        self.compression.unpacked_until = len;
        let wanted = needs.scores_wanted(len);
        self.accumulate_scores(wanted.any().then_some(wanted));
    }

    /// Stops accumulating and computes the scores of `needs` that need the complete prompt. `tokens` are the last
    /// tokens of the sequence, those that were appended since [`Session::accumulate_scores_for`].
    ///
    /// # Errors
    /// Those of [`Session::reconstruct`].
    pub fn finish_scores(&mut self, needs: Needs, tokens: &[u32]) -> Result<()> {
        self.accumulate_scores(None);
        if let Some(sampled) = self.sampled_queries.take() {
            self.compute_future_attention(&sampled)?;
        }
        if needs.reconstruction { self.reconstruct(tokens) } else { Ok(()) }
    }

    /// Declares that the prompt is complete when the sequence has `len` tokens. Until then the session accumulates the
    /// scores that the policy needs. The call that appends the last token of the prompt compresses the cache before it
    /// returns. While text is generated, the cache is compressed again whenever it has grown by an eighth (at least 64
    /// tokens).
    pub fn begin_prompt(&mut self, len: usize) {
        self.prompt = len;
        let Some(how) = &self.compression.how else { return };
        self.compression.tokens = how.needs().reconstruction.then(Vec::new);
        self.compression.prompt = len;
        self.plan_prompt();
    }

    /// Plans the next compression of a prompt of which a part is in the cache.
    fn plan_prompt(&mut self) {
        let Some(how) = &self.compression.how else { return };
        let prompt = self.compression.prompt;
        let budget = how.tokens_or_reserved(prompt);
        let rest = prompt.saturating_sub(self.len());
        let at = self.len() + how.until_next(rest, self.kept_mean(), budget);
        self.sampled_queries = SampledQueries::new(how.needs(), self.len(), at, self.model.config());
        self.compression.unpacked_until = at;
        self.compression.plan = Some(Plan { at, budget, sum_from: 0 });
        self.kv.clear_recent_scores();
    }

    /// Tokens that the layers without a sliding window keep, averaged over their heads.
    fn kept_mean(&self) -> usize {
        let heads = self.kv.full_layers().flat_map(|l| (0..self.kv.n_kv_heads()).map(move |h| (l, h)));
        heads.map(|(l, h)| self.kv.kept(l, h)).sum::<usize>()
            / (self.kv.full_layers().count() * self.kv.n_kv_heads()).max(1)
    }

    /// Maximum size of the KV cache since the sequence was empty, bytes. A prompt counts after each
    /// [`CHUNK`](super::CHUNK).
    pub fn kv_bytes_peak(&self) -> usize {
        self.compression.peak_bytes.max(self.kv_bytes())
    }

    /// Updates [`Session::kv_bytes_peak`], which reads the sizes of all blocks.
    pub(super) fn record_peak(&mut self) {
        self.compression.peak_bytes = self.kv_bytes_peak();
    }

    /// Compresses the cache if a part of a prompt is complete and the rest follows.
    pub(super) fn compress_part_if_due(&mut self) -> Result<()> {
        let due = self.compression.plan.is_some_and(|plan| plan.at <= self.len());
        if due && self.len() < self.compression.prompt { self.compress_if_due(&[]) } else { Ok(()) }
    }

    /// Compresses the cache now to `budget` tokens per KV head, by the accumulated scores
    /// ([`Session::accumulate_scores`]). See [`scrimp_kv::Sequence::compress`].
    ///
    /// # Errors
    /// When memory cannot be allocated; the session is then empty.
    pub fn compress(&mut self, how: &Compression, budget: usize) -> Result<()> {
        self.record_peak();
        let (model, len) = (self.model.clone(), self.len() as u32);
        let mut table = RopeTable::default();
        if how.rerotate {
            if model.config().rope_layers.contains(&false) {
                return Err(Error::unsupported(
                    "keys of this model cannot be rotated to other positions: some layers have no RoPE",
                    "leave out `kv_rerotate`",
                ));
            }
            let inv_freq = &model.config().rope_for(self.rope_tokens).inv_freq;
            table.fill(model.exec().pool, &(0..len).collect::<Vec<_>>(), inv_freq, 1.0);
        }
        let rotate = |key: &mut [f32], by: u32| {
            let (cos, sin) = table.row(by as usize);
            apply_rope(model.exec().level, model.config(), key, cos, sin);
        };
        let rotate: Option<ApplyRope<'_>> = if how.rerotate { Some(&rotate) } else { None };
        let queries = self.future_queries.take();
        let with = Compressing { exec: model.exec(), apply_rope: rotate, queries: queries.as_deref() };
        if let Err(e) = self.kv.compress_with(how, budget, with) {
            self.reset();
            return Err(e.into());
        }
        self.compression.done = self.len();
        // Compaction packs the layers that it writes. Sliding-window layers are packed here.
        self.pack()
    }

    /// The length of the sequence at its last compression. The session cannot be truncated to fewer tokens.
    pub fn compressed(&self) -> usize {
        self.compression.done
    }

    /// The scores that attention of the next `n` tokens accumulates.
    pub(super) fn scores_wanted(&self, n: usize) -> Option<ScoresWanted> {
        if self.reconstruction.is_some() {
            return Some(ScoresWanted { max: true, ..ScoresWanted::default() });
        }
        if self.scores_wanted.is_some() {
            return self.scores_wanted;
        }
        let (plan, how) = (self.compression.plan?, self.compression.how.as_ref()?);
        let end = self.len() + n;
        let mut wanted = how.needs().scores_wanted(plan.at);
        wanted.sum &= end > plan.sum_from;
        wanted.recent_from = wanted.recent_from.filter(|&from| end > from as usize);
        wanted.last &= end >= plan.at;
        wanted.any().then_some(wanted)
    }

    /// Called after `tokens` were appended: compresses the cache if its planned length is reached, and plans the next
    /// compression.
    pub(super) fn compress_if_due(&mut self, tokens: &[u32]) -> Result<()> {
        if let Some(prompt) = &mut self.compression.tokens {
            prompt.extend_from_slice(tokens);
        }
        let Some(plan) = self.compression.plan.filter(|plan| self.len() >= plan.at) else { return Ok(()) };
        let Some(how) = self.compression.how.take() else { return Ok(()) };
        let prompt = self.compression.tokens.take();
        let needs = Needs { reconstruction: prompt.is_some(), ..Needs::NONE };
        let result = self
            .finish_scores(needs, prompt.as_deref().unwrap_or_default())
            .and_then(|()| self.compress(&how, plan.budget));
        self.compression.how = Some(how);
        result?;
        if self.len() < self.compression.prompt {
            self.plan_prompt();
            return Ok(());
        }
        // A prompt may be shorter than the budget.
        let room = plan.budget.saturating_sub(self.kept_mean()) + (plan.budget / SLACK_SHARE).max(MIN_SLACK);
        let at = self.len() + room;
        self.compression.plan = Some(Plan { at, sum_from: at.saturating_sub(DECODE_QUERIES), ..plan });
        self.kv.clear_recent_scores();
        Ok(())
    }
}
