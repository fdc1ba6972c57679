//! The length of a draft that is expected to gain the most.
//!
//! A draft of `k` tokens, of which each is accepted with probability `p` if all before it are, yields
//! `1 + p + p^2 + ... + p^k` tokens for the time of a pass over `k + 1` tokens and of the draft (Leviathan et al.,
//! arXiv 2211.17192, theorem 3.8). `p` is estimated per class of tokens, which the source of the draft assigns. The time
//! of a pass is measured for each `k`, because it is not linear: kernels change with the number of tokens.

/// Maximum number of tokens of a draft. Batches of up to 16 rows cost little more than one row.
pub(super) const MAX_DRAFT: usize = 15;
/// Classes of tokens.
pub(super) const CLASSES: usize = 7;
/// Drafted tokens that the prior counts as.
const PRIOR_WEIGHT: f64 = 2.0;
/// Observations lose this share of their weight with each pass, so that a change of the text is noticed.
const FORGET: f64 = 0.01;
/// The cost of one more token in a pass, in passes over one token, before the first measurement.
const PRIOR_COST: f64 = 0.12;
/// Measurements of time that the prior counts as.
const PRIOR_TIMES: f64 = 0.25;
/// Maximum weight of earlier measurements of time beside a new one.
const MAX_TIMES: f64 = 4.0;
/// The smallest gain for which a draft is made: measurements are noisy.
const MIN_GAIN: f64 = 1.05;
/// The same where drafting costs time: tokens that are drafted and not verified are lost as well.
const MIN_COSTLY_GAIN: f64 = 1.1;
/// Passes with drafts after which a pass without one measures its time again.
const MAX_UNMEASURED: usize = 64;

/// The expectations of a source before the first measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prior {
    /// Acceptance of a token of each class.
    pub(super) classes: [f64; CLASSES],
    /// Acceptance of a token of unknown class.
    pub(super) unknown: f64,
    /// The cost of drafting a token, in passes over one token; 0: drafting is free.
    pub(super) step: f64,
}

/// Accepted and rejected tokens, with weights.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    accepted: f64,
    rejected: f64,
}

impl Count {
    fn add(&mut self, accepted: bool) {
        *if accepted { &mut self.accepted } else { &mut self.rejected } += 1.0;
    }

    fn forget(&mut self) {
        self.accepted *= 1.0 - FORGET;
        self.rejected *= 1.0 - FORGET;
    }

    fn acceptance(self, prior: f64) -> f64 {
        (self.accepted + prior * PRIOR_WEIGHT) / (self.accepted + self.rejected + PRIOR_WEIGHT)
    }
}

/// A time that is measured repeatedly.
#[derive(Debug, Clone, Copy, Default)]
struct Time {
    seconds: f64,
    weight: f64,
}

impl Time {
    fn add(&mut self, seconds: f64) {
        let weight = self.weight.min(MAX_TIMES);
        self.seconds = (self.seconds * weight + seconds) / (weight + 1.0);
        self.weight = weight + 1.0;
    }

    fn forget(&mut self) {
        self.weight *= 1.0 - FORGET;
    }

    fn estimate(self, prior: f64) -> f64 {
        (self.seconds * self.weight + prior * PRIOR_TIMES) / (self.weight + PRIOR_TIMES)
    }
}

/// The measured gain of drafts.
#[derive(Debug)]
pub(super) struct Gain {
    prior: Prior,
    classes: [Count; CLASSES],
    all: Count,
    /// Seconds of a pass over one token and as many drafted ones.
    passes: [Time; MAX_DRAFT + 1],
    /// Seconds of drafting a token.
    step: Time,
    /// Passes since the last one over one token.
    unmeasured: usize,
}

impl Gain {
    pub(super) fn new(prior: Prior) -> Self {
        let (classes, all) = ([Count::default(); CLASSES], Count::default());
        let passes = [Time::default(); MAX_DRAFT + 1];
        Self { prior, classes, all, passes, step: Time::default(), unmeasured: 0 }
    }

    /// The acceptance of a token of `class`; `None`: of unknown class.
    fn acceptance(&self, class: Option<usize>) -> f64 {
        match class {
            Some(class) => self.classes[class].acceptance(self.prior.classes[class]),
            None => self.all.acceptance(self.prior.unknown),
        }
    }

    /// The time of a pass with each number of drafted tokens, in passes over one token.
    fn costs(&self) -> [f64; MAX_DRAFT + 1] {
        let one = self.passes[0].seconds;
        let mut costs = [1.0; MAX_DRAFT + 1];
        for n in 1..costs.len() {
            let prior = costs[n - 1] + PRIOR_COST;
            // A pass over several tokens is not faster than one over fewer.
            costs[n] = if one > 0.0 { self.passes[n].estimate(prior * one) / one } else { prior };
            costs[n] = costs[n].max(1.0);
        }
        costs
    }

    /// A draft of at most `limit` tokens that is to be made. No draft is made where the time of a pass over one token is
    /// unknown, if drafting costs time.
    pub(super) fn plan(&self, limit: usize) -> Plan<'_> {
        let one = self.passes[0].seconds;
        let is_due = self.unmeasured >= MAX_UNMEASURED || (one == 0.0 && self.prior.step > 0.0);
        let step = match self.prior.step {
            0.0 => 0.0,
            prior if one > 0.0 => self.step.estimate(prior * one) / one,
            prior => prior,
        };
        Plan {
            gain: self,
            limit: if is_due { 0 } else { limit.min(MAX_DRAFT) },
            costs: self.costs(),
            step,
            tokens: Vec::new(),
            kept: 0,
            expected: 1.0,
            reached: 1.0,
            steps: Vec::new(),
        }
    }

    /// Learns from a drafted token of `class`, of which all tokens before it were accepted.
    pub(super) fn observe(&mut self, class: usize, accepted: bool) {
        self.classes[class].add(accepted);
        self.all.add(accepted);
    }

    /// Learns from the mean `seconds` that drafting a token took.
    pub(super) fn drafted(&mut self, seconds: f64) {
        self.step.add(seconds);
    }

    /// Learns from a pass over one token and `drafted` further ones that took `seconds`.
    pub(super) fn passed(&mut self, drafted: usize, seconds: f64) {
        self.unmeasured = if drafted == 0 { 0 } else { self.unmeasured + 1 };
        self.passes.iter_mut().for_each(Time::forget);
        self.passes[drafted].add(seconds);
        self.classes.iter_mut().for_each(Count::forget);
        self.all.forget();
    }
}

/// A draft that is being made.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    gain: &'a Gain,
    limit: usize,
    /// The time of a pass with each number of drafted tokens, and of drafting a token, in passes over one token.
    costs: [f64; MAX_DRAFT + 1],
    step: f64,
    /// All drafted tokens with their classes.
    tokens: Vec<(u32, usize)>,
    /// The tokens that are verified, from the first on.
    kept: usize,
    /// Expected tokens of the pass.
    expected: f64,
    /// The probability that all tokens of the draft are accepted.
    reached: f64,
    /// Seconds of the steps that were measured.
    steps: Vec<f64>,
}

impl Plan<'_> {
    /// The maximum number of further tokens.
    pub(super) fn room(&self) -> usize {
        self.limit - self.tokens.len()
    }

    /// The time of a draft and of a pass with `kept` tokens, if `drafted` tokens are drafted.
    fn time(&self, kept: usize, drafted: usize) -> f64 {
        self.costs[kept] + self.step * drafted as f64
    }

    /// Whether further tokens of `class` (`None`: unknown) are expected to gain.
    pub(super) fn pays(&self, class: Option<usize>) -> bool {
        if self.kept < self.tokens.len() {
            return false;
        }
        let p = self.gain.acceptance(class);
        let now = match self.kept {
            0 if self.step > 0.0 => MIN_COSTLY_GAIN,
            0 => MIN_GAIN,
            kept => self.expected / self.time(kept, kept),
        };
        let (mut expected, mut reached) = (self.expected, self.reached);
        (self.kept + 1..=self.limit).any(|n| {
            reached *= p;
            expected += reached;
            expected / self.time(n, n) > now
        })
    }

    /// Appends a drafted token of `class`. A token that is unlikely to be accepted is not verified; then the draft is
    /// complete.
    pub(super) fn push(&mut self, token: u32, class: usize) {
        self.tokens.push((token, class));
        let p = self.gain.acceptance(Some(class));
        let (drafted, now) = (self.tokens.len(), self.expected / self.time(self.kept, self.tokens.len()));
        let (mut expected, mut reached) = (self.expected, self.reached);
        // Longer drafts can pay where this one does not. They are expected to have the usual acceptance.
        let usual = self.gain.acceptance(None).max(p);
        let pays = (self.kept + 1..=self.limit).any(|n| {
            reached *= if n == self.kept + 1 { p } else { usual };
            expected += reached;
            expected / self.time(n, n.max(drafted)) > now
        });
        if pays {
            self.reached *= p;
            self.expected += self.reached;
            self.kept += 1;
        }
    }

    /// Records the time of drafting a token.
    pub(super) fn took(&mut self, seconds: f64) {
        self.steps.push(seconds);
    }

    /// All drafted tokens with their classes, the number of those that are verified, and the mean seconds of drafting one.
    pub(super) fn finish(self) -> (Vec<(u32, usize)>, usize, Option<f64>) {
        let mean = self.steps.iter().sum::<f64>() / self.steps.len() as f64;
        (self.tokens, self.kept, Some(mean).filter(|_| !self.steps.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Prior = Prior { classes: [0.7; CLASSES], unknown: 0.7, step: 0.0 };

    /// 400 passes of 10 ms, 1 ms for each token of a draft and `step` for drafting it. The first `accepted(n)` of `n` tokens
    /// are right. Returns the lengths of the last 200 drafts.
    fn lengths(prior: Prior, step: f64, accepted: impl Fn(usize) -> usize) -> Vec<usize> {
        let mut gain = Gain::new(prior);
        let mut all = Vec::new();
        for _ in 0..400 {
            let mut plan = gain.plan(usize::MAX);
            while plan.pays(Some(2)) {
                plan.push(0, 2);
            }
            let (tokens, kept, _) = plan.finish();
            if !tokens.is_empty() {
                gain.drafted(step);
            }
            let right = accepted(kept);
            (0..kept).take(right + 1).for_each(|i| gain.observe(2, i < right));
            gain.passed(kept, 0.010 + 0.001 * kept as f64);
            all.push(kept);
        }
        all.split_off(200)
    }

    #[test]
    fn drafts_grow_with_acceptance() {
        // Sometimes a pass without a draft is measured.
        let long = lengths(FREE, 0.0, |n| n).iter().filter(|&&n| n == MAX_DRAFT).count();
        assert!(long > 190, "{long}");
        let some = lengths(FREE, 0.0, |n| n.min(2));
        assert!(some.iter().filter(|&&n| (1..MAX_DRAFT).contains(&n)).count() > 190, "{some:?}");
    }

    #[test]
    fn rejected_drafts_become_rare_and_do_not_end() {
        let tokens: usize = lengths(FREE, 0.0, |_| 0).iter().sum();
        assert!((1..40).contains(&tokens), "{tokens} tokens in 200 steps");
    }

    #[test]
    fn expensive_drafts_are_shorter_and_then_not_made() {
        let prior = Prior { step: 0.4, ..FREE };
        let mean = |step| lengths(prior, step, |n| n.min(4)).iter().sum::<usize>() as f64 / 200.0;
        let (cheap, dear) = (mean(0.001), mean(0.004));
        assert!(cheap > dear && dear > 0.5, "{cheap} {dear}");
        assert!(mean(0.012) < 0.2, "drafting a token takes longer than a pass");
    }

    #[test]
    fn expensive_passes_are_rare_and_do_not_end() {
        // Each token of a draft costs a pass, and the first time a draft is made, it costs more.
        let mut gain = Gain::new(FREE);
        let mut passes = Vec::new();
        for i in 0..600 {
            let mut plan = gain.plan(4);
            while plan.pays(Some(0)) {
                plan.push(0, 0);
            }
            let kept = plan.finish().1;
            (0..kept).for_each(|_| gain.observe(0, true));
            gain.passed(
                kept,
                0.010 + if kept == 0 { 0.0 } else { 0.010 * kept as f64 + 0.1 / (i + 1) as f64 },
            );
            passes.push(kept);
        }
        let drafts = passes.split_off(100).into_iter().filter(|&n| n > 0).count();
        assert!((1..50).contains(&drafts), "{drafts} of 500 passes");
    }

    #[test]
    fn unlikely_tokens_are_not_verified() {
        let mut classes = [0.9; CLASSES];
        classes[0] = 0.01;
        let mut gain = Gain::new(Prior { classes, unknown: 0.9, step: 0.1 });
        assert!(!gain.plan(9).pays(None), "the time of a pass is unknown");
        gain.passed(0, 0.010);
        let mut plan = gain.plan(9);
        [(5, 1), (6, 1), (7, 0)].into_iter().for_each(|(token, class)| plan.push(token, class));
        assert!(!plan.pays(None));
        plan.took(0.002);
        plan.took(0.004);
        assert_eq!(plan.finish(), (vec![(5, 1), (6, 1), (7, 0)], 2, Some(0.003)));
        assert!(!gain.plan(0).pays(Some(1)), "no token can be verified");
    }
}
